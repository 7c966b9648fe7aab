"""A server that sends some of its answers twice, the copy later than the answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import orjson


@contextlib.asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]],
) -> AsyncIterator[str]:
    """The base URL of a server that answers each connection with `serve`; all connections end with it."""
    tasks: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(one(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        finally:
            if tasks:
                await asyncio.wait(tasks, timeout=1)
            for task in tasks:
                task.cancel()


class CopyingServer:
    """Answers "answer to <the last message>"; counts the copies that it sends.

    `ids` is how it names answers: "body" or "header" (the request's own id, as vLLM does), "unique" (one of its own) or
    "none". `delay` gives the seconds until a copy is sent, or None for no copy. `slowest_s` bounds its answers' times.
    `in_turn`: the copy is sent before the connection's next request is read.
    """

    def __init__(
        self,
        ids: str,
        delay: Callable[[], float | None],
        *,
        rng: random.Random,
        slowest_s: float = 0.004,
        in_turn: bool = False,
    ) -> None:
        self.ids = ids
        self.delay = delay
        self.rng = rng
        self.slowest_s = slowest_s
        self.in_turn = in_turn
        self.copies = 0
        self.answered = 0
        self.base_url = ""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[CopyingServer]:
        """Listens on a free port."""
        async with listening(self._serve) as self.base_url:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            if head.startswith("GET"):
                found = b"/models" in head.encode()
                writer.write(_http(b"200 OK" if found else b"404 No", {"data": [{"id": "m"}] if found else []}))
                continue
            await asyncio.sleep(self.rng.random() * self.slowest_s)
            self.answered += 1
            reply = self._reply(orjson.loads(body), headers.get("x-request-id", ""))
            writer.write(reply)
            late = self.delay()
            if late is None:
                continue
            self.copies += 1
            if self.in_turn:
                await asyncio.sleep(late)
                writer.write(reply)
            else:
                loop.call_later(late, writer.write, reply)

    def _reply(self, request: dict[str, Any], request_id: str) -> bytes:
        text = "answer to " + request["messages"][-1]["content"]
        made: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}], "model": "m"}
        extra = b""
        if self.ids == "body":
            made["id"] = f"chatcmpl-{request_id}"
        elif self.ids == "header":
            extra = b"X-Request-Id: %b\r\n" % request_id.encode()
        elif self.ids == "unique":
            made["id"] = str(uuid.UUID(int=self.rng.getrandbits(128)))
        return _http(b"200 OK", made, extra)


def _http(status: bytes, body: dict[str, Any], extra: bytes = b"") -> bytes:
    raw = orjson.dumps(body)
    return b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, extra, len(raw), raw)
