"""What the pool puts on the wire and makes of odd answers: headers, keys, smuggling, framing."""

from __future__ import annotations

import asyncio
import socket
import traceback
import zlib

import orjson
import pytest

from asyncsynth.client.connection import Connection
from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.request_heads import Head
from asyncsynth.client.secret import Secret
from asyncsynth.client.transport import Timeouts, TransportFailure
from asyncsynth.errors import ConfigurationError
from asyncsynth.testing import FaultServer
from tests.kit.loops import on_both_loops
from tests.kit.requests import CHAT, chat_body


@on_both_loops
async def test_paths_keys_and_headers_reach_the_server() -> None:
    async with FaultServer(api_key="canary-key-1", keep_requests=True) as server:
        pool = Http11Pool(server.base_url, {"X-Team": "a", "Connection": "close"}, api_key=Secret("canary-key-1"))
        assert (await pool.post(CHAT, chat_body())).status == 200
        assert (await pool.get("/health", at_origin=True)).status == 200
        models = orjson.loads((await pool.get("/models")).body)
        assert models["data"][0]["id"] == "test-model"
        assert server.log is not None
        headers = server.log[0].headers
        assert headers["x-team"] == "a"
        assert headers["accept-encoding"] == "identity"
        assert headers["host"] == f"127.0.0.1:{server.port}"
        assert pool.opened == 3, "only POST requests share connections"
        wrong = Http11Pool(server.base_url, api_key=Secret("canary-key-2"))
        assert (await wrong.post(CHAT, chat_body())).status == 401
        await wrong.aclose()
        await pool.aclose()


@pytest.mark.slow
@on_both_loops
async def test_keys_print_nowhere() -> None:
    pool = Http11Pool("http://127.0.0.1:9/v1", api_key=Secret("canary-key-3"))
    printed = repr(pool) + str(vars(pool)) + repr(Secret("canary-key-3"))
    try:
        await pool.post(CHAT, b"{}")
    except TransportFailure as failure:
        lines = traceback.TracebackException.from_exception(failure, capture_locals=True).format()
        printed += "".join(lines)
    assert "connect" in printed
    assert "canary-key-3" not in printed
    await pool.aclose()


@pytest.mark.parametrize(
    "url", ["", "ftp://x/v1", "http:///v1", "http://x:y/v1", "http://u:canary@x/v1", "http://x/v1?a=b", "x:80"]
)
def test_bad_base_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Http11Pool(url)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("a", "b\r\nc: d"), ("a\n", "b"), ("", "b"), ("a", "\u2028")])
def test_headers_cannot_smuggle(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError):
        Http11Pool("http://x/v1", {name: value})


def test_paths_cannot_smuggle() -> None:
    async def scene() -> None:
        pool = Http11Pool("http://127.0.0.1:9/v1")
        for path in ("models", "/a b", "/a\r\nx: y", "/\u00e9"):
            with pytest.raises(ConfigurationError):
                await pool.get(path)

    asyncio.run(scene())


class _Raw(asyncio.Protocol):
    """A server that answers each request with fixed bytes."""

    reply = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.reply)  # type: ignore[attr-defined]


def packed(plain: bytes, encoding: str, wbits: int, cut: int = 0) -> bytes:
    """A compressed answer, `cut` bytes of its body left out."""
    body = zlib.compress(plain, wbits=wbits)
    body = body[: len(body) - cut]
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"ok"),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nX: a\r\n  b\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2  \r\nok\r\n0\r\n\r\n", b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: Identity\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding:\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nok", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok", "protocol"),
        (packed(b"ok" * 20, "gzip", 31), b"ok" * 20),
        (packed(b"ok" * 20, "X-GZIP", 31), b"ok" * 20),
        (packed(b"ok" * 20, "deflate", 15), b"ok" * 20),
        (packed(b"ok" * 20, "deflate", -15), b"ok" * 20),
        (packed(b"ok" * 20, "gzip", 31, cut=3), "protocol"),
        (packed(bytes(1 << 20), "gzip", 31), "protocol"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 13_000 + b"Content-Length: 2\r\n\r\nok", b"ok"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: a\r\ncontent-length:2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok", "protocol"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
            "protocol",
        ),
        (packed(zlib.compress(b"ok" * 20), "deflate, deflate", 15), b"ok" * 20),
        (packed(b"ok" * 20, "identity, gzip", 31), b"ok" * 20),
        (packed(b"ok" * 20, "gzip, br", 31), "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: utf-8\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000, "protocol"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "protocol"),
    ],
)
def test_odd_answers(reply: bytes, expected: bytes | str) -> None:
    async def scene() -> None:
        kind = type("Kind", (_Raw,), {"reply": reply})
        server = await asyncio.get_running_loop().create_server(kind, "127.0.0.1", 0)
        pool = Http11Pool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", sweep_s=0.01)
        for _ in range(3):
            try:
                got: bytes | str = (await pool.post(CHAT, b"{}", Timeouts(total=1))).body
            except TransportFailure as failure:
                got = failure.reason
            assert got == expected
        await pool.aclose()
        server.close()
        await server.wait_closed()

    asyncio.run(scene())


def test_a_request_is_one_write() -> None:
    """Header and body in two sends cost 44 ms where Nagle's algorithm meets delayed acknowledgements."""

    class Recorder:
        writes: list[bytes] = []  # noqa: RUF012

        def write(self, data: bytes) -> None:
            self.writes.append(data)

    async def scene() -> None:
        connection = Connection(Http11Pool("http://x/v1"))
        connection.transport = Recorder()  # type: ignore[assignment]
        connection.start(asyncio.get_running_loop().create_future(), Timeouts(), b"head: ", b"body")
        assert Recorder.writes == [b"head: 4\r\n\r\nbody"]

    asyncio.run(scene())


@on_both_loops
async def test_nagle_is_off() -> None:
    async with FaultServer() as server:
        pool = Http11Pool(server.base_url)
        await pool.post(CHAT, chat_body())
        sock = pool._idle[0].transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await pool.aclose()


def test_a_head_does_not_print() -> None:
    assert "key" not in f"{Head(b'key')!r} {Head(b'key')}"
