"""A server that speaks TLS, with an authority made on the spot."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import trustme

from tests.kit.requests import chat_answer

AUTHORITY = trustme.CA()


class TlsServer:
    """Answers every request; remembers what came through the handshake, and what did not."""

    def __init__(self, name: str) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        AUTHORITY.issue_cert(name).configure_cert(self.context)
        self.received = b""
        self.port = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[TlsServer]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port = server.sockets[0].getsockname()[1]
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # refused handshakes
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.received += head
            body = chat_answer("hello")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context
