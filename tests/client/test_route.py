"""Proxies of the environment: which is used, and that requests go through it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.route import environment_proxy
from asyncsynth.client.secret import Secret
from asyncsynth.client.transport import TransportFailure
from asyncsynth.errors import ConfigurationError
from tests.kit.copying_server import listening
from tests.kit.loops import on_both_loops
from tests.kit.requests import CHAT
from tests.kit.tls import TlsServer, trusting

PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("environ", "scheme", "host", "expected"),
    [
        ({}, "http", "gpu", None),
        ({"HTTP_PROXY": PROXY}, "http", "gpu", PROXY),
        ({"HTTP_PROXY": PROXY}, "https", "gpu", None),
        ({"HTTPS_PROXY": PROXY}, "https", "gpu", PROXY),
        ({"ALL_PROXY": PROXY}, "https", "gpu", PROXY),
        ({"http_proxy": "http://lower:1", "HTTP_PROXY": PROXY}, "http", "gpu", "http://lower:1"),
        ({"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"}, "http", "gpu", None),
        ({"HTTP_PROXY": "proxy.example:3128"}, "http", "gpu", PROXY),
        ({"HTTP_PROXY": "https://p"}, "http", "gpu", "https://p:443"),
        ({"HTTP_PROXY": PROXY}, "http", "localhost", None),
        ({"HTTP_PROXY": PROXY}, "http", "127.0.0.7", None),
        ({"HTTP_PROXY": PROXY}, "http", "::1", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "*"}, "http", "gpu", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "a.b, gpu"}, "http", "gpu", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "example.com"}, "http", "x.example.com", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": ".example.com"}, "http", "x.EXAMPLE.com", None),
        ({"HTTP_PROXY": PROXY, "no_proxy": "*.example.com"}, "http", "x.example.com", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "example.com"}, "http", "badexample.com", PROXY),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, "http", "10.1.2.3", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, "http", "11.1.2.3", PROXY),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "fd00::/8"}, "http", "fd00::7", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "gpu:8000"}, "http", "gpu", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "gpu:8001"}, "http", "gpu", PROXY),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "[fd00::7]:8000"}, "http", "fd00::7", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "https://gpu"}, "http", "gpu", None),
    ],
)
def test_which_proxy(environ: dict[str, str], scheme: str, host: str, expected: str | None) -> None:
    proxy, note = environment_proxy(scheme, host, 8000, environ)
    assert (None if proxy is None else str(proxy), note) == (expected, "")


def test_what_is_no_proxy_is_refused_and_socks_is_said() -> None:
    proxy, note = environment_proxy("https", "gpu", 443, {"ALL_PROXY": "socks5://u:canary@p:1080"})
    assert proxy is None
    assert "ALL_PROXY names a SOCKS proxy" in note
    assert "canary" not in note
    for value in ("ftp://p", "http://", "http://p:x"):
        with pytest.raises(ConfigurationError, match="HTTP_PROXY is not the URL of a proxy"):
            environment_proxy("http", "gpu", 80, {"HTTP_PROXY": value})


def test_the_note_goes_where_the_run_reads_it() -> None:
    pool = Http11Pool("http://gpu:8000/v1", environ={"HTTP_PROXY": "socks5h://p:1080"})
    notes = ["an earlier one"]
    pool.report_to(notes)
    assert "SOCKS" in notes[1]


class _ProxyServer:
    """A forward proxy: remembers request heads; CONNECT is passed on to `tls_port`."""

    def __init__(self, tls_port: int = 0, refuses: bytes = b"") -> None:
        self.heads: list[bytes] = []
        self.tls_port = tls_port
        self.refuses = refuses

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if self.refuses:
                writer.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\n\r\n" % self.refuses)
                await writer.drain()
                return
            if head.startswith(b"CONNECT"):
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                there, back = await asyncio.open_connection("127.0.0.1", self.tls_port)
                await asyncio.gather(_copy(reader, back), _copy(there, writer))
                return
            await reader.readexactly(2)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    finally:
        target.close()


@asynccontextmanager
async def proxied(proxy: _ProxyServer, login: str = "user:canary%40pw@") -> AsyncIterator[str]:
    async with listening(proxy.serve) as url:
        yield url.removesuffix("/v1").replace("http://", f"http://{login}")


@on_both_loops
async def test_http_goes_to_the_proxy_in_absolute_form_with_its_login() -> None:
    proxy = _ProxyServer()
    async with proxied(proxy) as url:
        pool = Http11Pool("http://gpu.invalid:8000/v1", query={"a": "b c"}, environ={"HTTP_PROXY": url})
        for _ in range(2):
            assert (await pool.post(CHAT, b"{}")).body == b"ok"
        assert "canary" not in repr(vars(pool)) + repr(vars(pool._route))
        await pool.aclose()
    lines = proxy.heads[0].decode().split("\r\n")
    assert lines[0] == "POST http://gpu.invalid:8000/v1/chat/completions?a=b%20c HTTP/1.1"
    assert "host: gpu.invalid:8000" in lines
    login = base64.b64encode(b"user:canary@pw").decode()
    assert f"proxy-authorization: Basic {login}" in lines


@on_both_loops
async def test_https_goes_through_a_tunnel_and_the_proxy_sees_no_key() -> None:
    async with TlsServer("gpu.invalid").serving() as server:
        proxy = _ProxyServer(server.port)
        async with proxied(proxy) as url:
            pool = Http11Pool(
                "https://gpu.invalid/v1", api_key=Secret("canary-key-9"), ssl_context=trusting(),
                environ={"HTTPS_PROXY": url},
            )  # fmt: skip
            assert (await pool.post(CHAT, b"{}")).status == 200
            await pool.aclose()
        assert proxy.heads[0].startswith(b"CONNECT gpu.invalid:443 HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic" in proxy.heads[0]
        assert b"canary-key-9" not in b"".join(proxy.heads)
        assert b"Bearer canary-key-9" in server.received
        assert b"proxy-authorization" not in server.received.lower()


@on_both_loops
async def test_a_proxy_that_refuses_is_named_and_its_password_is_not() -> None:
    for status, words in ((b"407 Login", "put user:password"), (b"403 No", "(403)")):
        async with proxied(_ProxyServer(refuses=status)) as url:
            pool = Http11Pool("https://gpu.invalid/v1", environ={"HTTPS_PROXY": url})
            with pytest.raises(TransportFailure) as caught:
                await pool.post(CHAT, b"{}")
            assert caught.value.reason == "connect"
            assert words in caught.value.message
            assert "the proxy http://127.0.0.1:" in caught.value.message
            assert "canary" not in caught.value.message
            await pool.aclose()
