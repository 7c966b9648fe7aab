"""Answers made to use up a client: sockets that send without end, and what our process pays for it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from asyncsynth.client.adopt import HttpxExchange, adopt
from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.transport import Exchange, Timeouts, TransportFailure
from asyncsynth.testing import Fault, FaultServer
from tests.kit.files import ROOT
from tests.kit.loops import on_both_loops
from tests.kit.processes import environment
from tests.kit.requests import CHAT, QUICK, chat_body

pytestmark = pytest.mark.row(25)

Writer = Callable[[asyncio.StreamWriter], Awaitable[None]]
MiB = 1 << 20


@asynccontextmanager
async def raw_server(answer: Writer) -> AsyncIterator[str]:
    """A server that answers each request with the bytes of `answer`, until the client leaves."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


def endless(first: bytes, piece: bytes) -> Writer:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while True:
            writer.write(piece)
            await writer.drain()

    return write


async def failure(base_url: str, timeout: Timeouts = Timeouts()) -> TransportFailure:
    pool = Http11Pool(base_url, sweep_s=0.01)
    try:
        with pytest.raises(TransportFailure) as caught:
            await pool.post(CHAT, chat_body(), timeout)
    finally:
        await pool.aclose()
    return caught.value


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
ENDLESS = {
    "one header": (b"HTTP/1.1 200 OK\r\nx: ", b"x" * 65536),
    "many headers": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 10_000),
    "a status line": (b"HTTP/1.1 200 ", b"x" * 65536),
    "trailers": (CHUNKED + b"1\r\nx\r\n0\r\n", b"x: y\r\n" * 10_000),
    "one trailer": (CHUNKED + b"0\r\nx: ", b"x" * 65536),
    "a chunk extension": (CHUNKED + b"1;", b"x" * 65536),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 3000),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_is_no_body_ends_after_its_64_kib(name: str) -> None:
    async def scene() -> None:
        async with raw_server(endless(*ENDLESS[name])) as base_url:
            assert (await failure(base_url)).reason == "protocol"

    asyncio.run(scene())


@on_both_loops
async def test_a_header_that_drips_ends_with_the_deadline() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.002)

    async with raw_server(drip) as base_url:
        assert (await failure(base_url, QUICK)).reason == "timeout"


BOMBS = """
import asyncio, resource, sys
import httpx
from asyncsynth.client.adopt import HttpxExchange
from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.transport import TransportFailure

async def main(base_url, how):
    client = httpx.AsyncClient()
    make = {"pool": lambda: Http11Pool(base_url), "httpx": lambda: HttpxExchange(client, base_url)}[how]
    exchange = make()
    async def ask(kind):
        try:
            answer = await exchange.post("/chat/completions", b'{"model":"test-model","kind":"%s"}' % kind)
            return f"{answer.status} {len(answer.body)}"
        except TransportFailure as failure:
            return failure.reason
    await ask(b"warm")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = [await ask(kind) for kind in (b"huge", b"huge_chunked", b"gzip_bomb", b"deep")]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    await exchange.aclose()
    await client.aclose()
    print(*said, grown * (1 if sys.platform == "darwin" else 1024))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("how", ["pool", "httpx"])
def test_bombs_are_refused_within_32_mib(how: str, fault_server: Callable[..., FaultServer]) -> None:
    """10 GB announced, 10 GB in chunks, 64 MiB of zeros in 64 KB of gzip, 100,000 nested arrays."""
    sizes = {"huge": 10_000_000_000, "huge_chunked": 10_000_000_000, "gzip_bomb": 64 * MiB, "deep": 100_000}

    def script(info: object) -> Fault | None:
        kind = next((kind for kind in ("huge_chunked", "huge", "gzip_bomb", "deep") if kind.encode() in info.body), "")  # type: ignore[attr-defined]
        return Fault(kind, size=sizes[kind]) if kind else Fault("status", status=200, body=b"{}")  # type: ignore[arg-type]

    server = fault_server(script=script)
    asked = subprocess.run(
        [sys.executable, "-c", BOMBS, server.base_url, how],
        capture_output=True, text=True, timeout=60, env=environment(), cwd=ROOT, check=False,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    *said, grown = asked.stdout.split()
    assert said == ["too_large", "too_large", "protocol", "200", "200000"]
    assert int(grown) <= 32 * MiB


def test_an_adopted_client_follows_no_redirect_and_sends_its_key_to_one_origin_only() -> None:
    async def scene() -> None:
        async with FaultServer(keep_requests=True) as other:
            for status in (301, 302, 303, 307, 308):
                script = lambda info, status=status: Fault(  # noqa: E731
                    "status", status=status, headers={"location": other.base_url + "/chat/completions"}
                )
                async with FaultServer(script=script) as server:
                    client = httpx.AsyncClient(base_url=server.base_url, headers={"authorization": "Bearer canary-key"})
                    for exchange in (adopt(client), HttpxExchange(client, server.base_url)):
                        assert await _status(exchange) == status
                        await exchange.aclose()
                    await client.aclose()
            assert other.connections == 0

    asyncio.run(scene())


async def _status(exchange: Exchange) -> int:
    return (await exchange.post(CHAT, chat_body())).status
