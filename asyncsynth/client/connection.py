"""One client connection of `http11.Http11Pool`: writes a request, reads the answer, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

import httptools

from asyncsynth.client.matching import Crossed, History, Matching, Verdict
from asyncsynth.client.transport import DEFAULT_TIMEOUTS, Timeouts, TransportFailure, WireResponse

#: Of one answer's headers, and of any run of bytes outside a body (trailers, 1xx answers, chunk extensions).
MAX_HEAD_BYTES = 100 * 1024  # httpx's bound
_ENCODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"})
_UNPACKED = frozenset({"gzip", "x-gzip", "deflate"})  #: encodings that are read, though identity was asked for
MAX_EXPANSION = 200  #: times; texts expand 3 to 20 times; more is an attempt to fill the memory
#: Refusals after which a connection to a server that returns ids is used again. After any other, a late copy would be
#: taken for the next request's answer: errors carry no id.
_REUSED_AFTER = frozenset({429, 503, 529})

#: Deviations that other clients accept too: folded header lines, LF without CR, blanks after the size of a chunk. Two
#: lengths, a length beside chunks, and header names with blanks stay refused.
_LENIENCIES = {
    "lenient_headers": True,
    "lenient_optional_cr_before_lf": True,
    "lenient_spaces_after_chunk_size": True,
}

_NAMES: dict[bytes, str] = {}  #: header names as received -> in lower case; servers send few different ones
_MAX_NAMES = 1000


def _name(raw: bytes) -> str:
    name = raw.decode("latin-1").lower()
    if len(_NAMES) < _MAX_NAMES:
        _NAMES[raw] = name
    return name


def compressed(encoding: str) -> str:
    """The message for an answer in a content encoding; it does not repeat the server's words."""
    shown = encoding if encoding in _ENCODINGS else "somehow"
    return f"the answer is {shown}-compressed though identity was asked for"


def content_encoding(headers: Mapping[str, str]) -> str:
    """The answer's content encodings, as `gzip` or `gzip, br`; '' for none.

    What is no coding of HTTP (`identity`, `none`, `utf-8`) changes nothing, as in httpx.
    """
    named = (name.strip().lower() for name in headers.get("content-encoding", "").split(","))
    return ", ".join(name for name in named if name in _ENCODINGS)


def is_unpacked(encoding: str) -> bool:
    """Whether `unpacked` can read a body in these encodings."""
    return all(name in _UNPACKED for name in encoding.split(", "))


def unpacked(body: bytes, encoding: str, most: int) -> bytes:
    """A body as it was before gzip or deflate, by each of the encodings named. Raises TransportFailure over `most`
    bytes, and for what is neither."""
    for name in reversed(encoding.split(", ")):
        body = _unpacked_once(body, name, most)
    return body


def _unpacked_once(body: bytes, encoding: str, most: int) -> bytes:
    raw_deflate = encoding == "deflate" and body[:1] != b"\x78"  # some servers leave out zlib's two bytes
    unpacker = zlib.decompressobj(-15 if raw_deflate else 47)
    try:
        plain = unpacker.decompress(body, min(most, MAX_EXPANSION * len(body)) + 1)
        while unpacker.eof and unpacker.unused_data[:2] == b"\x1f\x8b" and len(plain) <= most:  # a further member
            rest = unpacker.unused_data
            unpacker = zlib.decompressobj(47)
            plain += unpacker.decompress(rest, min(most, MAX_EXPANSION * len(body)) + 1 - len(plain) or 1)
    except zlib.error as error:
        raise TransportFailure("protocol", f"the answer's {encoding} body cannot be read: {error}") from None
    if len(plain) > most:
        raise TransportFailure("too_large", f"an answer over {most} bytes (once it is unpacked)")
    if len(plain) > MAX_EXPANSION * len(body):
        raise TransportFailure("protocol", f"the answer's {encoding} body expands more than {MAX_EXPANSION} times")
    if not unpacker.eof:
        raise TransportFailure("protocol", f"the answer's {encoding} body is cut off")
    return plain


def with_one_length(data: bytes) -> bytes | None:
    """An answer's beginning that names its length several times, alike, as if it did so once (RFC 9110, 8.6).

    None where there is nothing to mend: no whole head, a single length, or lengths that differ.
    """
    head, end, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    given = [line for line in lines if line[:15].lower() == b"content-length:"]
    lengths = [length.strip() for line in given for length in line[15:].split(b",")]
    if not end or len(lengths) < 2 or len(set(lengths)) > 1 or not lengths[0].isdigit():
        return None
    kept = [line for line in lines if line[:15].lower() != b"content-length:"]
    return b"\r\n".join([*kept, b"content-length: " + lengths[0]]) + end + body


def _parser_for(connection: Connection) -> Any:
    parser = httptools.HttpResponseParser(connection)
    parser.set_dangerous_leniencies(**_LENIENCIES)
    return parser


class Owner(Protocol):
    """What a connection needs of its pool."""

    clock: float
    sweep_s: float
    max_response_bytes: int
    matching: Matching
    opened: int

    def released(self, connection: Connection) -> None:
        """The answer is complete and the connection can serve another request."""

    def lost(self, connection: Connection, *, unanswered: bool) -> None:
        """The connection is gone. `unanswered`: reused, and it died before any response byte."""

    def hold(self, connection: Connection, seconds: float) -> None:
        """Call `connection.believe` after this many seconds."""


class Connection(asyncio.Protocol):
    """States: idle (`answer` is None), busy, dead; and, rarely, `held`: its answer waits to be believed.

    The pool owns idle connections; a request owns a busy or held one. `fail` is the only way from busy to dead,
    `_complete` the only one from busy to idle or held.
    """

    __slots__ = (
        "_bare_bytes",
        "_began",
        "_body",
        "_chunked",
        "_deadline",
        "_head_done",
        "_headers",
        "_heard",
        "_last",
        "_last_byte",
        "_length",
        "_parser",
        "_pool",
        "_size",
        "_spare",
        "_status",
        "_timeouts",
        "_token",
        "answer",
        "dead",
        "held",
        "history",
        "idle_since",
        "served",
        "transport",
        "untried",
    )

    def __init__(self, pool: Owner) -> None:
        self._pool = pool
        self._parser: Any = _parser_for(self)
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made
        self.answer: asyncio.Future[WireResponse] | None = None
        self.dead: bool = False
        self.idle_since: float = 0.0
        self.held: tuple[asyncio.Future[WireResponse], WireResponse] | None = None
        self.history: History = History()
        self.served: int = 0  #: answers so far
        self.untried: bool = False  #: the pool counts it as one without an answer yet
        self._began = 0.0
        self._spare = False  #: the message that is being read answers no request
        self._token = b""
        self._last = False
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

    def start(
        self,
        answer: asyncio.Future[WireResponse],
        timeouts: Timeouts,
        head: bytes,
        body: bytes,
        token: bytes = b"",
        *,
        last: bool = False,
    ) -> None:
        """Write the whole request in one go; `answer` gets the response or a TransportFailure.

        `head` (which may hold a key, and does not print) ends in "content-length: "; the number follows. `token` is the
        request's id, or empty. `last`: the connection is not used again.
        """
        self.answer = answer
        self._token = token
        self._last = last
        self._timeouts = timeouts
        # The clock may be one sweep behind: deadlines are never early.
        self._deadline = self._pool.clock + self._pool.sweep_s + timeouts.total
        if not self._pool.matching.returns_ids:
            self._began = time.monotonic()
        self._heard = False
        self._size = self._bare_bytes = 0
        self._head_done = False  # the rest is reset when the answer begins
        if self.dead:
            self.fail("reset", "closed by the server right after connecting")
        elif token:
            self.transport.write(b"%b%d\r\nx-request-id: %b\r\n\r\n%b" % (head, len(body), token, body))
        else:
            self.transport.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))

    @property
    def unheard(self) -> bool:
        """True while its first request waits for the first byte: the server may not have accepted the connection."""
        return self.answer is not None and not self._heard and not self.served and not self._last

    def check(self, clock: float) -> None:
        """Fail when a deadline has passed."""
        if self.answer is None:
            return
        if clock >= self._deadline:
            self.fail("timeout", f"no whole answer in {self._timeouts.total:g} s")
        elif clock >= self._last_byte + self._pool.sweep_s + self._timeouts.idle and self._is_inside:
            self.fail("timeout", f"no byte for {self._timeouts.idle:g} s inside an answer")

    @property
    def _is_inside(self) -> bool:
        """Whether the answer itself has begun: the body, and not only headers or the blanks that keep a connection.

        Until then the server may be at work, as it may be before the first byte.
        """
        return self._heard and (not self._head_done or any(part.strip() for part in self._body))

    def fail(self, reason: str, message: str) -> None:
        """Give up this answer and this connection."""
        answer, self.answer = self.answer, None
        if self.held is not None:
            answer = self.held[0]
        unanswered = reason == "reset" and not self._heard and self.served > 0 and answer is not None
        self.abort()
        self._pool.lost(self, unanswered=unanswered)
        if answer is not None and not answer.done():
            answer.set_exception(TransportFailure(reason, message, free=unanswered))

    def believe(self) -> None:
        """No other answer followed the held one: give it to its request."""
        held, self.held = self.held, None
        if held is None or self.dead:
            return
        answer, response = held
        self._pool.matching.repeats += 1
        self.history.add(hash(response.body))
        self._pool.released(self)
        if not answer.done():
            answer.set_result(response)

    def abort(self) -> None:
        """Drop the connection immediately, without an answer to its request."""
        self.answer = self.held = None
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
        if self.answer is None:
            self._read_unasked(data)
            return
        begins = not self._heard
        self._heard = True
        self._last_byte = self._pool.clock
        size = self._size
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            mended = with_one_length(data) if begins and not self._head_done else None
            if mended is not None:
                self._parser = _parser_for(self)
                self._heard = False
                self.data_received(mended)
                return
            hint = "; the server speaks TLS: does its URL begin with https://?" if data[:2] == b"\x15\x03" else ""
            self.fail("protocol", f"the answer is no HTTP/1.1: {str(error)[:200]}{hint}")
            return
        if self._spare and self.answer is None:  # it has begun and not ended
            self._refuse()
        elif self.answer is not None:  # unfinished
            self._bare_bytes = self._bare_bytes + len(data) if self._size == size else 0
            if self._bare_bytes > MAX_HEAD_BYTES:
                self.fail("protocol", f"headers over {MAX_HEAD_BYTES} bytes")

    def _read_unasked(self, data: bytes) -> None:
        """Bytes that no request asked for: a second answer, or noise. In both cases the connection is closed."""
        self.dead = True
        with contextlib.suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._parser.feed_data(data)
        self._refuse()

    def _refuse(self) -> None:
        """Give up the connection, and the answer that is held: it, or another one, belongs to no request here."""
        held, self.held = self.held, None
        self.abort()
        self._pool.lost(self, unanswered=False)
        if held is not None and not held[0].done():
            held[0].set_exception(Crossed(held[1]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.held is not None:  # nothing more follows
            self.believe()
        self.dead = True
        if self.answer is None:
            self._pool.lost(self, unanswered=False)
        elif self._head_done and exc is None and self._length is None and not self._chunked:
            self._complete(keep=False)  # closing is how this answer ends
        else:
            how = str(exc) if exc is not None else "closed by the server"
            where = f"after {self._size} bytes of the body" if self._head_done else "before the headers"
            if not self._heard and not self.served and self._pool.opened <= 1:
                where += " (if the server speaks TLS, its URL begins with https://)"
            self.fail("truncated" if self._head_done else "reset", f"{how} {where}")
        self._parser = None  # a reference cycle otherwise

    # --- httptools -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._spare = self.answer is None  # an answer after the end of an answer
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
        if "content-encoding" in headers:
            encoding = content_encoding(headers)
            if encoding and not is_unpacked(encoding):
                self.fail("protocol", compressed(encoding))

    def on_body(self, data: bytes) -> None:
        if self.answer is None and not self._spare:
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
            self._last_byte = math.inf  # the wait for the answer is no silence inside it
            return
        if self._spare:
            self._spare = False
            if self.held is None:
                self._pool.matching.surplus(self._status, b"".join(self._body), self.history)
            self._refuse()
            return
        # Bytes still to be written mean that the server answered before it had read the request.
        keep = self._parser.should_keep_alive() and self.transport.get_write_buffer_size() == 0
        self._complete(keep=keep)

    def _complete(self, *, keep: bool) -> None:
        answer, self.answer = self.answer, None
        if answer is None:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        status = self._status
        if "content-encoding" in self._headers and body and (encoding := content_encoding(self._headers)):
            try:
                body = unpacked(body, encoding, self._pool.max_response_bytes)
            except TransportFailure as failure:
                self.answer = answer
                self.fail(failure.reason, failure.message)
                return
        response = WireResponse(status, self._headers, body)
        matching = self._pool.matching
        verdict = Verdict.ACCEPT
        if status >= 300:
            keep = keep and status in _REUSED_AFTER and matching.returns_ids is True
        elif self._token and self._token in body:
            if not matching.returns_ids:
                matching.proven()
        elif not self._last:
            seconds = time.monotonic() - self._began
            verdict = matching.judge(self._token, response, self.history, fresh=not self.served, seconds=seconds)
        self.served += 1
        if verdict is not Verdict.ACCEPT:
            self.held = (answer, response)
            if verdict is Verdict.REFUSE:
                self._refuse()
                return
            if keep and not self.dead:
                self._pool.hold(self, matching.hold_s())
                return
            self.held = None  # the server closes the connection: nothing follows
        if keep and not self.dead and not self._last:
            self._pool.released(self)
        else:
            self.abort()
            self._pool.lost(self, unanswered=False)
        if not answer.done():
            answer.set_result(response)
