"""What can go wrong with an answer, and how the fault server makes it go wrong."""

from __future__ import annotations

import asyncio
import hashlib
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, Protocol

import orjson

FaultKind = Literal[
    "none",  # the right answer; with `delay_s`, late
    "status",  # an error status with an OpenAI-shaped error body
    "hang",  # never a byte, the connection stays open
    "reset",  # the connection is reset before any byte
    "truncate",  # headers promise the whole body, the connection closes after `at` bytes of it
    "reset_mid",  # the same with a reset instead of a close
    "hang_mid",  # the first `at` bytes of the body, then silence
    "slow_body",  # `at` bytes of the body every `interval_s`
    "close_after",  # the right answer, then the connection closes `interval_s` later without having said so
    "no_length",  # the right answer, its end marked by closing (HTTP/1.0 style)
    "chunked",  # the right answer in chunks of `at` bytes
    "bad_json",
    "bad_utf8",
    "null_content",
    "empty_content",
    "surrogate",  # a lone surrogate escape inside the text
    "deep",  # `size` nested arrays
    "huge",  # a body of `size` bytes, honestly announced
    "huge_chunked",  # the same, unannounced
    "gzip_bomb",  # `size` zeros, compressed although the client did not ask for it
    "not_http",  # bytes that are no HTTP
    "redirect",  # 307 to `message`
]
_ALL_RATE_FAULTS: tuple[FaultKind, ...] = ("status", "reset", "truncate", "bad_json", "null_content")


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request. Fields matter to the kinds that name them."""

    kind: FaultKind = "none"
    status: int = 500
    retry_after: str | None = None  #: sent as the header, as it is
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None  #: instead of the error body (kind "status")
    message: str = "injected fault"
    delay_s: float = 0.0  #: before anything else, with any kind
    interval_s: float = 0.0
    at: int = 20
    in_headers: bool = False  #: kinds that count `at` bytes of the body count from the status line instead
    size: int = 100_000


@dataclass(slots=True)
class RequestInfo:
    """One request as the server saw it. `seen` counts requests with this very body, this one included."""

    index: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    seen: int = 1

    @property
    def json(self) -> Any:
        """The parsed body."""
        return orjson.loads(self.body)


Script = Callable[[RequestInfo], Fault | None]


def random_faults(
    rate: float,
    seed: int = 0,
    kinds: Sequence[FaultKind] = _ALL_RATE_FAULTS,
    statuses: Sequence[int] = (500, 503),
) -> Script:
    """A script in which each request fails with probability `rate`, as hash(seed, body, times seen) says:
    independent of arrival order, so that a run with many in flight meets the same faults again."""

    def script(info: RequestInfo) -> Fault | None:
        digest = hashlib.blake2b(b"%d:%d:%b" % (seed, info.seen, info.body), digest_size=8).digest()
        chance = random.Random(digest)  # noqa: S311  # a test's dice
        if chance.random() >= rate:
            return None
        return Fault(chance.choice(kinds), status=chance.choice(statuses))

    return script


def response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole HTTP/1.1 response."""
    extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items()).encode()
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:  # 529
        phrase = "Status"
    return b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b" % (
        status,
        phrase.encode(),
        len(body),
        extra,
        body,
    )


def error_response(status: int, message: str, kind: str, headers: Mapping[str, str] | None = None) -> bytes:
    """An error in vLLM's shape."""
    error = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return response(status, orjson.dumps(error), headers)


class Connection(Protocol):
    """The server's side of a connection, as far as a fault needs it."""

    transport: asyncio.Transport

    def finish(self, reply: bytes) -> None: ...
    def later(self, delay: float, action: Callable[..., object], *args: object) -> None: ...
    def abort(self) -> None: ...


def inject(connection: Connection, fault: Fault, reply: bytes) -> None:
    """Sends `reply` (a whole response) with the fault."""
    if fault.kind in ("bad_json", "bad_utf8", "null_content", "empty_content", "surrogate", "deep"):
        connection.finish(response(200, _spoiled(fault, reply)))
    elif fault.kind in ("status", "redirect"):
        connection.finish(_refusal(fault))
    elif fault.kind in ("huge", "huge_chunked", "gzip_bomb", "not_http"):
        _hostile(connection, fault)
    else:
        _cut(connection, fault, reply)


def _split(reply: bytes) -> tuple[bytes, bytes]:
    head, _, body = reply.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", body


def _refusal(fault: Fault) -> bytes:
    headers = dict(fault.headers)
    status = fault.status
    if fault.retry_after is not None:
        headers["retry-after"] = fault.retry_after
    if fault.kind == "redirect":
        headers["location"] = fault.message
        status = 307
    if fault.body is not None:
        return response(status, fault.body, headers)
    return error_response(status, fault.message, "InjectedFault", headers)


def _spoiled(fault: Fault, reply: bytes) -> bytes:
    body = _split(reply)[1]
    if fault.kind == "bad_json":
        return body[: len(body) // 2]
    if fault.kind == "bad_utf8":
        return body.replace(b'"content":"', b'"content":"\xff\xfe').replace(b'"text":"', b'"text":"\xff\xfe')
    if fault.kind == "surrogate":
        return body.replace(b'"content":"', b'"content":"\\ud83d').replace(b'"text":"', b'"text":"\\ud83d')
    if fault.kind == "deep":
        return b"[" * fault.size + b"]" * fault.size
    made = orjson.loads(body)
    for choice in made["choices"]:
        value = None if fault.kind == "null_content" else ""
        if "message" in choice:
            choice["message"]["content"] = value
        else:
            choice["text"] = value
    return orjson.dumps(made)


def _hostile(connection: Connection, fault: Fault) -> None:
    """Answers that a client should not read to their end."""
    if fault.kind == "not_http":
        connection.finish(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        connection.transport.close()
    elif fault.kind == "gzip_bomb":
        packed = zlib.compress(bytes(fault.size), wbits=31)
        connection.finish(response(200, packed, {"content-encoding": "gzip"}))
    else:
        announced = fault.kind == "huge"
        framing = b"content-length: %d" % fault.size if announced else b"transfer-encoding: chunked"
        connection.transport.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        _pour(connection, fault.size, chunked=not announced)


def _pour(connection: Connection, left: int, *, chunked: bool) -> None:
    """Sends up to `left` bytes in pieces, with few of them in memory, until the client closes."""
    if connection.transport.is_closing():
        return
    piece = b"x" * min(left, 1 << 18)
    if connection.transport.get_write_buffer_size() < 1 << 20:
        connection.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        left -= len(piece)
    if left:
        connection.later(0, lambda: _pour(connection, left, chunked=chunked))
    else:
        connection.finish(b"0\r\n\r\n" if chunked else b"")


def _cut(connection: Connection, fault: Fault, reply: bytes) -> None:
    """Sends the right answer in pieces, or a part of it."""
    head, body = (b"", reply) if fault.in_headers else _split(reply)
    transport = connection.transport
    if fault.kind == "reset":
        connection.abort()
    elif fault.kind == "truncate":
        connection.finish(head + body[: fault.at])
        transport.close()
    elif fault.kind == "reset_mid":
        transport.write(head + body[: fault.at])
        # A reset overtakes bytes the client has not read yet: leave it a moment.
        connection.later(fault.interval_s or 0.02, connection.abort)
    elif fault.kind == "hang_mid":
        transport.write(head + body[: fault.at])
    elif fault.kind == "slow_body":
        transport.write(head)
        _drip(connection, fault, body)
    elif fault.kind == "close_after":
        connection.finish(reply)
        connection.later(fault.interval_s, transport.close)
    elif fault.kind == "no_length":
        connection.finish(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + body)
        transport.close()
    elif fault.kind == "chunked":
        pieces = [body[i : i + fault.at] for i in range(0, len(body), fault.at)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        connection.finish(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")


def _drip(connection: Connection, fault: Fault, rest: bytes) -> None:
    piece, rest = rest[: fault.at], rest[fault.at :]
    if not rest:
        connection.finish(piece)
        return
    connection.transport.write(piece)
    connection.later(fault.interval_s, _drip, connection, fault, rest)
