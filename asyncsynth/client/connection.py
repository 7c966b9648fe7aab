"""One client connection of `http11.Http11Pool`: writes a request, reads the answer, one at a time."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import httptools

from asyncsynth.client.transport import DEFAULT_TIMEOUTS, Timeouts, TransportFailure, WireResponse

#: Of one answer's headers, and of anything that is no body in a row (trailers, 1xx answers, chunk extensions).
MAX_HEAD_BYTES = 64 * 1024
_ENCODINGS = frozenset({"gzip", "deflate", "br", "zstd"})


_NAMES: dict[bytes, str] = {}  #: header names as they came -> in lower case; those that servers send are few
_MAX_NAMES = 1000


def _name(raw: bytes) -> str:
    name = raw.decode("latin-1").lower()
    if len(_NAMES) < _MAX_NAMES:
        _NAMES[raw] = name
    return name


def compressed(encoding: str) -> str:
    """The message for an answer in a content encoding; a server's own words stay out of it."""
    shown = encoding if encoding in _ENCODINGS else "somehow"
    return f"the answer is {shown}-compressed though identity was asked for"


class Owner(Protocol):
    """What a connection needs of its pool."""

    clock: float
    sweep_s: float
    max_response_bytes: int

    def released(self, connection: Connection) -> None:
        """The answer is complete and the connection can serve another request."""

    def lost(self, connection: Connection, *, unanswered: bool) -> None:
        """The connection is gone. `unanswered`: reused, and it died before any response byte."""


class Connection(asyncio.Protocol):
    """States: idle (`answer` is None), busy, dead. The pool owns idle ones; a request owns a busy one.

    `fail` is the one way from busy to dead, `_complete` the one from busy to idle.
    """

    __slots__ = (
        "_bare_bytes",
        "_body",
        "_chunked",
        "_deadline",
        "_head_done",
        "_headers",
        "_heard",
        "_last_byte",
        "_length",
        "_parser",
        "_pool",
        "_served",
        "_size",
        "_status",
        "_timeouts",
        "answer",
        "dead",
        "idle_since",
        "transport",
    )

    def __init__(self, pool: Owner) -> None:
        self._pool = pool
        self._parser: Any = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made
        self.answer: asyncio.Future[WireResponse] | None = None
        self.dead: bool = False
        self.idle_since: float = 0.0
        self._served = 0
        self._timeouts = DEFAULT_TIMEOUTS
        self._deadline = 0.0
        self._last_byte = 0.0
        self._heard = False  #: any byte of this answer
        self._bare_bytes = 0  #: received since its last piece of body
        self._reset_answer()

    def _reset_answer(self) -> None:
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._head_done = False
        self._length: int | None = None  #: content-length
        self._chunked = False

    # --- the pool's side -----------------------------------------------------------------------

    def start(self, answer: asyncio.Future[WireResponse], timeouts: Timeouts, head: bytes, body: bytes) -> None:
        """Write the whole request in one go; `answer` gets the response or a TransportFailure.

        `head` (which may hold a key, and does not print) ends in "content-length: "; the number follows.
        """
        self.answer = answer
        self._timeouts = timeouts
        # The clock may be one sweep behind: deadlines are never early.
        self._deadline = self._pool.clock + self._pool.sweep_s + timeouts.total
        self._heard = False
        self._size = self._bare_bytes = 0
        self._head_done = False  # the rest is reset when the answer begins
        if self.dead:
            self.fail("reset", "closed by the server right after connecting")
        else:
            self.transport.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))

    def check(self, clock: float) -> None:
        """Fail when a deadline has passed."""
        if self.answer is None:
            return
        if clock >= self._deadline:
            self.fail("timeout", f"no whole answer in {self._timeouts.total:g} s")
        elif self._heard and clock >= self._last_byte + self._pool.sweep_s + self._timeouts.idle:
            self.fail("timeout", f"no byte for {self._timeouts.idle:g} s inside an answer")

    def fail(self, reason: str, message: str) -> None:
        """Give up this answer and this connection."""
        answer, self.answer = self.answer, None
        unanswered = reason == "reset" and not self._heard and self._served > 0 and answer is not None
        self.abort()
        self._pool.lost(self, unanswered=unanswered)
        if answer is not None and not answer.done():
            answer.set_exception(TransportFailure(reason, message, free=unanswered))

    def abort(self) -> None:
        """Drop the connection at once, with no answer to anyone."""
        self.answer = None
        self.dead = True
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """Close an idle connection in good order."""
        self.dead = True
        self.transport.close()

    # --- asyncio.Protocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio and uvloop both set TCP_NODELAY on every TCP socket.
        self.transport = transport  # type: ignore[assignment]  # a TCP connection's is an asyncio.Transport

    def data_received(self, data: bytes) -> None:
        if self.answer is None:  # nobody asked
            self.fail("protocol", "unasked bytes")
            return
        self._heard = True
        self._last_byte = self._pool.clock
        size = self._size
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail("protocol", f"the answer is no HTTP/1.1: {str(error)[:200]}")
            return
        if self.answer is not None:  # unfinished
            self._bare_bytes = self._bare_bytes + len(data) if self._size == size else 0
            if self._bare_bytes > MAX_HEAD_BYTES:
                self.fail("protocol", f"headers over {MAX_HEAD_BYTES} bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        self.dead = True
        if self.answer is None:
            self._pool.lost(self, unanswered=False)
        elif self._head_done and exc is None and self._length is None and not self._chunked:
            self._complete(keep=False)  # closing is how this answer ends
        else:
            how = str(exc) if exc is not None else "closed by the server"
            where = f"after {self._size} bytes of the body" if self._head_done else "before the headers"
            self.fail("truncated" if self._head_done else "reset", f"{how} {where}")
        self._parser = None  # it holds us, we hold it

    # --- httptools -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.answer is None:  # bytes after the end of an answer
            self.fail("protocol", "unasked bytes")
        self._reset_answer()

    def on_header(self, name: bytes, value: bytes) -> None:
        key = _NAMES.get(name) or _name(name)
        text = value.decode("latin-1")
        headers = self._headers
        headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def on_headers_complete(self) -> None:
        self._head_done = True
        self._status = self._parser.get_status_code()
        headers = self._headers
        self._chunked = "chunked" in headers.get("transfer-encoding", "")
        length = headers.get("content-length")
        if length is not None:
            self._length = int(length)  # llhttp has checked it
            if self._length > self._pool.max_response_bytes:
                self._too_large(f"{self._length} bytes announced")
        encoding = headers.get("content-encoding", "identity")
        if encoding != "identity":
            self.fail("protocol", compressed(encoding))

    def on_body(self, data: bytes) -> None:
        if self.answer is None:
            return
        self._size += len(data)
        if self._size > self._pool.max_response_bytes:
            self._too_large("and more coming")
        else:
            self._body.append(data)

    def _too_large(self, detail: str) -> None:
        self._body.clear()
        self.fail("too_large", f"an answer over {self._pool.max_response_bytes} bytes ({detail})")

    def on_message_complete(self) -> None:
        if self._status < 200:  # 100 Continue, 103 Early Hints: the answer is still to come
            self._head_done = False
            return
        # Bytes still to be written mean that the server answered before it had read the request.
        keep = self._parser.should_keep_alive() and self.transport.get_write_buffer_size() == 0
        self._complete(keep=keep)

    def _complete(self, *, keep: bool) -> None:
        answer, self.answer = self.answer, None
        if answer is None:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        response = WireResponse(self._status, self._headers, body)
        self._served += 1
        if keep and not self.dead:
            self._pool.released(self)
        else:
            self.abort()
            self._pool.lost(self, unanswered=False)
        if not answer.done():
            answer.set_result(response)
