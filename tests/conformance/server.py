"""An OpenAI-compatible server on raw sockets that deviates in one way, as a row of the table says.

A `Reply` becomes bytes here, so that a behaviour may break HTTP as well as JSON. A request
for a record carries ``question N.`` in its body; requests without it are those of the start (readiness, capabilities).
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

MODEL = "model-a"
_RECORD = re.compile(r"question (\d+)\.")
_HEAD_BYTES = 1 << 20


@dataclass(slots=True)
class Asked:
    """One request as it arrived. `nth`: its number on its connection, from 1."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    nth: int
    connection: Connection

    @property
    def json(self) -> dict[str, Any]:
        """The body; {} where there is none."""
        return json.loads(self.body) if self.body else {}

    @property
    def is_chat(self) -> bool:
        return self.path.rstrip("/").endswith("/chat/completions")

    @property
    def is_list(self) -> bool:
        return self.path.rstrip("/").endswith("/models")

    @property
    def record(self) -> int | None:
        """The record that it is for; None for requests of the start."""
        found = _RECORD.search(self.body.decode())
        return int(found[1]) if found and self.is_chat else None


@dataclass(slots=True)
class Reply:
    """An answer. `body`: bytes or text as they are, anything else as JSON. `length`: whether Content-Length is sent."""

    body: Any = b""
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
    kind: str | None = "application/json"
    length: bool = True

    @property
    def payload(self) -> bytes:
        """The body as bytes."""
        if isinstance(self.body, bytes):
            return self.body
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()

    def lines(self) -> list[bytes]:
        """The status line and the headers."""
        headers = [*self.headers]
        if self.kind is not None:
            headers.append(("Content-Type", self.kind))
        if self.length:
            headers.append(("Content-Length", str(len(self.payload))))
        return [f"HTTP/1.1 {self.status} Reason".encode(), *(f"{name}: {value}".encode() for name, value in headers)]

    def raw(self) -> bytes:
        """The whole message."""
        return b"\r\n".join(self.lines()) + b"\r\n\r\n" + self.payload


CLOSE = object()  #: ends the connection without a word
Answer = Callable[["Server", Asked], Any]  #: -> Reply, bytes, CLOSE, None (it has written by itself), or an awaitable


class Connection:
    """The server's side of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Writes bytes."""
        self._writer.write(data)
        await self._writer.drain()

    def reset(self) -> None:
        """Ends with RST."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    def close(self) -> None:
        """Ends with FIN."""
        self._writer.close()


class Server:
    """Serves one behaviour. A context manager.

    Args:
        answer: what it answers.
        idle_s: closes connections that are idle for this long; None keeps them.
        closes: closes each connection after its first answer, without saying so.
        accept: called with each new connection; False resets it.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        idle_s: float | None = None,
        closes: bool = False,
        accept: Callable[[Server], bool] = lambda server: True,
    ) -> None:
        self._answer = answer
        self._idle_s = idle_s
        self._closes = closes
        self._accept = accept
        self._open: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.results: dict[str, Reply] = {}  #: answers that a behaviour keeps for later, by path
        self.asked: Counter[str] = Counter()  #: requests by path
        self.records: Counter[int] = Counter()  #: requests by record
        self.busy = 0
        self.base_url = ""

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=_HEAD_BYTES)
        port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        connection = Connection(reader, writer)
        self._open.add(connection)
        try:
            if self._accept(self):
                await self._serve(connection)
            else:
                connection.reset()
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(connection)
            connection.close()

    async def _serve(self, connection: Connection) -> None:
        nth = 0
        while True:
            asked = await self._read(connection, nth := nth + 1)
            self.asked[asked.path] += 1
            if asked.record is not None:
                self.records[asked.record] += 1
            self.busy += 1
            try:
                made = self._answer(self, asked)
                if inspect.isawaitable(made):
                    made = await made
            finally:
                self.busy -= 1
            if made is CLOSE:
                return
            if made is not None:
                await connection.send(made.raw() if isinstance(made, Reply) else made)
            if self._closes or (isinstance(made, Reply) and not made.length):
                return

    async def _read(self, connection: Connection, nth: int) -> Asked:
        async with asyncio.timeout(self._idle_s):
            head = await connection.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await connection.reader.readexactly(int(headers.get("content-length", 0)))
        path, _, query = target.partition("?")
        return Asked(method, path, query, headers, body, nth, connection)


# --- a server without faults ---------------------------------------------------------------------


def text_of(asked: Asked) -> str:
    """What the faultless server says: names the record, so that an answer at the wrong record shows."""
    return "Hello." if asked.record is None else f"answer {asked.record}"


def completion(asked: Asked, **fields: Any) -> dict[str, Any]:
    """A chat completion; `fields` replace its own."""
    message = {"role": "assistant", "content": text_of(asked)}
    count = asked.json.get("n") or 1
    choices = [{"index": n, "message": message, "finish_reason": "stop", "logprobs": None} for n in range(count)]
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": choices,
        "usage": usage, **fields,
    }  # fmt: skip


def choice(
    asked: Asked, *, finish: Any = "stop", message: dict[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    """A completion whose one choice has this finish_reason, message and further fields."""
    said = {"role": "assistant", **({"content": text_of(asked)} if message is None else message)}
    return completion(asked, choices=[{"index": 0, "message": said, "finish_reason": finish, **fields}])


def models(*names: str) -> dict[str, Any]:
    """A list of models."""
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "someone"} for name in names]}


def normal(asked: Asked) -> Reply:
    """What a server without faults answers."""
    if asked.is_list:
        return Reply(models(MODEL))
    if asked.is_chat and asked.json.get("model") != MODEL:
        return Reply({"error": {"message": "The model does not exist.", "type": "NotFoundError", "code": 404}}, 404)
    if asked.is_chat:
        return Reply(completion(asked))
    return Reply({"error": {"message": "Not Found", "type": "invalid_request_error", "code": 404}}, 404)


# --- where a behaviour shows ---------------------------------------------------------------------

Make = Callable[[Asked], Any]  #: -> as `Answer`


def chats(make: Make) -> Answer:
    """In every chat answer, those of the start included."""
    return lambda server, asked: make(asked) if asked.is_chat else normal(asked)


def every_record(make: Make) -> Answer:
    """In every answer for a record."""
    return lambda server, asked: normal(asked) if asked.record is None else make(asked)


def record_3(make: Make) -> Answer:
    """In every answer for record 3."""
    return lambda server, asked: make(asked) if asked.record == 3 else normal(asked)


def at_first(make: Make) -> Answer:
    """In the first answer for each record; the others are good."""

    def answer(server: Server, asked: Asked) -> Any:
        return make(asked) if asked.record is not None and server.records[asked.record] == 1 else normal(asked)

    return answer


def in_list(make: Make) -> Answer:
    """In answers to /v1/models."""
    return lambda server, asked: make(asked) if asked.is_list else normal(asked)


def at(path: str, make: Callable[[Asked], Any | Awaitable[Any]]) -> Answer:
    """In answers at one path of the origin."""
    return lambda server, asked: make(asked) if asked.path == path else normal(asked)


def refuses(when: Callable[[dict[str, Any]], bool], body: Any, status: int = 400) -> Answer:
    """Refuses the chat requests whose fields are so."""
    return chats(lambda asked: Reply(body, status) if when(asked.json) else normal(asked))
