"""Behaviours of HTTP and of connections: redirects, framing, codings, closing, few workers."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable
from typing import Any

from tests.conformance.server import CLOSE, Answer, Asked, Reply, Server, at_first, normal
from tests.conformance.table import Behaviour, Complete, Told

_MODAL = "https://modal.com/docs/guide/webhook-timeouts"
_RFC = "https://www.rfc-editor.org/rfc/rfc9112"


def _to_slash(status: int) -> Answer:
    def answer(server: Server, asked: Asked) -> Any:
        if not asked.path.endswith("/") and (asked.is_list or asked.is_chat):
            return Reply(status=status, headers=[("Location", f"{asked.path}/")])
        return normal(asked)

    return answer


def _moved_chat(server: Server, asked: Asked) -> Any:
    if asked.is_chat and not asked.path.startswith("/real"):
        return Reply(status=307, headers=[("Location", f"{server.base_url.removesuffix('/v1')}/real{asked.path}")])
    return normal(asked)


def _see_result(server: Server, asked: Asked) -> Any:
    """303 to a place where a GET finds the answer."""
    if asked.path.startswith("/result/"):
        return server.results.pop(asked.path)
    if asked.record is None:
        return normal(asked)
    place = f"/result/{asked.record}-{server.records[asked.record]}"
    server.results[place] = normal(asked)
    return Reply(status=303, headers=[("Location", place)])


REDIRECTS = [
    Behaviour("redirect_308", "sends every path to the one with a slash, with 308", ("Next.js", "FastAPI gateways"), _to_slash(308), Complete()),
    Behaviour("redirect_307", "sends every path to the one with a slash, with 307", ("FastAPI", "BentoML"), _to_slash(307), Complete()),
    Behaviour("redirect_chat", "sends chats to another path of the same origin, with 307", ("gateways",), _moved_chat, Complete()),
    Behaviour("redirect_result", "sends long requests to a result, with 303", ("Modal",), _see_result, Complete(), _MODAL),
]  # fmt: skip


def _framed(frame: Callable[[Reply], bytes], *, chat_alone: bool = False) -> Answer:
    def answer(server: Server, asked: Asked) -> Any:
        reply = normal(asked)
        return frame(reply) if asked.is_chat or not chat_alone else reply

    return answer


def _with(*headers: tuple[str, str]) -> Answer:
    def frame(reply: Reply) -> bytes:
        reply.headers += headers
        return reply.raw()

    return _framed(frame)


def _lines(change: Callable[[list[bytes]], list[bytes]], end: bytes = b"\r\n") -> Answer:
    return _framed(lambda reply: end.join(change(reply.lines())) + 2 * end + reply.payload)


def _chunked(size: int = 17, *, after_size: bytes = b"", trailer: bytes = b"", coding: str = "chunked") -> Answer:
    def frame(reply: Reply) -> bytes:
        reply.length = False
        reply.headers.append(("Transfer-Encoding", coding))
        parts = [reply.payload[n : n + size] for n in range(0, len(reply.payload), size)]
        chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(part), after_size, part) for part in parts)
        return b"\r\n".join(reply.lines()) + b"\r\n\r\n" + chunks + b"0\r\n" + trailer + b"\r\n"

    return _framed(frame)


def _coded(name: str, encode: Callable[[bytes], bytes]) -> Answer:
    def frame(reply: Reply) -> bytes:
        reply.body = encode(reply.payload)
        reply.headers.append(("Content-Encoding", name))
        return reply.raw()

    return _framed(frame)


def _deflate(data: bytes) -> bytes:
    return zlib.compress(data)


def _kind(kind: str | None) -> Answer:
    def frame(reply: Reply) -> bytes:
        reply.kind = kind
        return reply.raw()

    return _framed(frame)


async def _trickle(server: Server, asked: Asked) -> Any:
    raw = normal(asked).raw()
    for start in range(0, len(raw), 40):
        await asked.connection.send(raw[start : start + 40])
        await asyncio.sleep(0)


def _open_ended(reply: Reply) -> Reply:
    reply.length = False
    return reply


def _until_closed(server: Server, asked: Asked) -> Reply:
    return _open_ended(normal(asked))


async def _headers_at_once(server: Server, asked: Asked) -> Any:
    head, _, body = normal(asked).raw().partition(b"\r\n\r\n")
    await asked.connection.send(head + b"\r\n\r\n")
    await asyncio.sleep(0.01)
    await asked.connection.send(body)


_COOKIES = [("Set-Cookie", f"c{n}={'v' * 300}") for n in range(300)]
_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

FRAMING = [
    Behaviour("chunked", "sends the body in small chunks", ("vLLM", "TGI", "nginx"), _chunked(), Complete(), _RFC),
    Behaviour("chunked_one_byte", "sends the body in chunks of one byte", ("gateways",), _chunked(1), Complete(), _RFC),
    Behaviour("chunk_extensions", "sends chunk extensions", ("proxies",), _chunked(after_size=b";name=value"), Complete(), _RFC),
    Behaviour("chunk_trailers", "sends trailers after the last chunk", ("gRPC gateways", "Envoy"), _chunked(trailer=b"X-Checksum: 1\r\n"), Complete(), _RFC),
    Behaviour("chunk_blanks", "sends blanks after chunk sizes", ("old proxies",), _chunked(after_size=b"  "), Complete(), _RFC),
    Behaviour("chunked_upper_case", "writes the coding as `Chunked`", ("old servers",), _chunked(coding="Chunked"), Complete(), _RFC),
    Behaviour("no_length", "sends no length and closes", ("HTTP/1.0 servers", "Python http.server"), _until_closed, Complete(), _RFC),
    Behaviour("http_1_0", "speaks HTTP/1.0", ("Python http.server", "mlx-lm"), _lines(lambda lines: [lines[0].replace(b"HTTP/1.1", b"HTTP/1.0"), *lines[1:]]), Complete(), _RFC, options={"closes": True}),
    Behaviour("connection_close", "closes each connection after its answer", ("gateways",), _with(("Connection", "close")), Complete(), _RFC, options={"closes": True}),
    Behaviour("two_equal_lengths", "sends Content-Length twice, alike", ("proxies",), _lines(lambda lines: [*lines, lines[-1]]), Complete(), _RFC),
    Behaviour("header_upper_case", "writes header names in upper case", ("old servers",), _lines(lambda lines: [lines[0], *(line.upper() if line.startswith(b"Content-Length") else line for line in lines[1:])]), Complete(), _RFC),
    Behaviour("no_reason_phrase", "sends no reason after the status", ("Go servers",), _lines(lambda lines: [lines[0].replace(b" Reason", b" "), *lines[1:]]), Complete(), _RFC),
    Behaviour("folded_header", "folds a header over two lines", ("old proxies",), _lines(lambda lines: [lines[0], b"X-Fold: a\r\n  b", *lines[1:]]), Complete(), _RFC),
    Behaviour("bare_line_ends", "ends header lines with LF alone", ("CGI scripts",), _lines(list, b"\n"), Complete(), _RFC),
    Behaviour("utf8_header", "sends UTF-8 in a header", ("gateways",), _with(("X-Modell", "größe")), Complete()),
    Behaviour("long_header", "sends a header of 40 KB", ("Azure", "gateways"), _with(("X-Context", "a" * 40_000)), Complete()),
    Behaviour("many_headers", "sends 90 KB of cookies", ("Cloudflare", "gateways"), _with(*_COOKIES), Complete()),
    Behaviour("early_hints", "sends 103 before the answer", ("Cloudflare",), _framed(lambda reply: _HINTS + reply.raw()), Complete(), _RFC),
    Behaviour("continue_first", "sends 100 although it was not asked to", ("old proxies",), _framed(lambda reply: _CONTINUE + reply.raw()), Complete(), _RFC),
    Behaviour("equal_lengths_in_one", "sends one Content-Length with the number twice", ("proxies",), _lines(lambda lines: [*lines[:-1], lines[-1] + b", " + lines[-1].rpartition(b" ")[2]]), Complete(), _RFC),
    Behaviour("lengths_differ", "sends two lengths that differ, each time", ("broken proxies",), _lines(lambda lines: [*lines, b"Content-Length: 7"]), Told(("sample request", "protocol", "Content-Length"))),
    Behaviour("gzip_twice", "compresses twice, and names it", ("gateways",), _coded("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))), Complete()),
    Behaviour("coding_none", "names a coding that is none of HTTP's", ("gateways",), _coded("utf-8", lambda body: body), Complete()),
    Behaviour("headers_at_once", "sends headers at once and the body when it is made", ("Flask servers", "gateways"), _headers_at_once, Complete()),
    Behaviour("gzip", "compresses although identity was asked for", ("gateways", "IIS"), _coded("gzip", gzip.compress), Complete()),
    Behaviour("deflate", "deflates although identity was asked for", ("gateways",), _coded("deflate", _deflate), Complete()),
    Behaviour("identity_upper_case", "names the coding `Identity`", ("gateways",), _coded("Identity", bytes), Complete()),
    Behaviour("coding_empty", "sends an empty Content-Encoding", ("gateways",), _coded("", bytes), Complete()),
    Behaviour("kind_text", "calls the JSON text/plain", ("gateways",), _kind("text/plain; charset=utf-8"), Complete()),
    Behaviour("kind_missing", "sends no Content-Type", ("CGI scripts",), _kind(None), Complete()),
    Behaviour("trickle", "sends the answer in pieces", ("slow proxies",), _trickle, Complete()),
]  # fmt: skip


def _reset_on_reuse(server: Server, asked: Asked) -> Any:
    if asked.nth > 1:
        asked.connection.reset()
        return CLOSE
    return normal(asked)


async def _cut_body(asked: Asked) -> Any:
    await asked.connection.send(normal(asked).raw()[:-30])
    return CLOSE


async def _reset_body(asked: Asked) -> Any:
    await asked.connection.send(normal(asked).raw()[:-30])
    asked.connection.reset()
    return CLOSE


def _reset_first(asked: Asked) -> Any:
    asked.connection.reset()
    return CLOSE


def _twice(server: Server, asked: Asked) -> Any:
    raw = normal(asked).raw()
    return raw + raw if asked.is_chat else raw


async def _twice_later(server: Server, asked: Asked) -> Any:
    """The copy comes a moment later, when the connection may be in use again."""
    raw = normal(asked).raw()
    if asked.record is None or server.records[asked.record] > 1:
        return raw
    await asked.connection.send(raw)
    await asyncio.sleep(0.001)
    return raw


async def _few_workers(server: Server, asked: Asked) -> Any:
    if asked.is_chat and server.busy > 4:
        return Reply("Service Unavailable", 503, kind="text/plain")
    await asyncio.sleep(0.005)
    return normal(asked)


def _garbage(after: bytes) -> Answer:
    return lambda server, asked: normal(asked).raw() + after


def _two_lengths(asked: Asked) -> Any:
    reply = normal(asked)
    reply.headers.append(("Content-Length", "7"))
    return reply


_SLOW = {"idle_s": 0.02}

CONNECTIONS = [
    Behaviour("closes_silently", "closes each connection after its answer, without saying so", ("AWS load balancers", "gunicorn"), lambda server, asked: normal(asked), Complete(), options={"closes": True}),
    Behaviour("resets_on_reuse", "resets a connection that is used again", ("firewalls", "load balancers"), _reset_on_reuse, Complete()),
    Behaviour("idle_20_ms", "closes connections that are idle for 20 ms", ("gunicorn", "uvicorn"), lambda server, asked: normal(asked), Complete(), "https://github.com/encode/uvicorn/discussions/1681", options=_SLOW),
    Behaviour("cut_in_the_body", "closes the connection inside the body, at first", ("load balancers",), at_first(_cut_body), Complete()),
    Behaviour("reset_in_the_body", "resets the connection inside the body, at first", ("load balancers",), at_first(_reset_body), Complete()),
    Behaviour("reset_before_answer", "resets the connection before it answers, at first", ("load balancers", "vLLM"), at_first(_reset_first), Complete()),
    Behaviour("garbage_line_ends", "sends line ends after the body", ("CGI scripts",), _garbage(b"\r\n\r\n"), Complete()),
    Behaviour("garbage_words", "sends words after the body", ("broken proxies",), _garbage(b"GARBAGE GARBAGE\r\n"), Complete()),
    Behaviour("answers_twice", "sends each answer twice at once", ("broken proxies",), _twice, Complete(), run={"concurrency": 2}),
    Behaviour("answers_twice_later", "sends each answer again 1 ms later", ("broken proxies",), _twice_later, Complete(), run={"concurrency": 2}),
    Behaviour("two_lengths", "sends two lengths that differ, at first", ("broken proxies",), at_first(_two_lengths), Complete(), _RFC),
    Behaviour("four_workers", "works on four requests and answers 503 to the others", ("llama.cpp", "gunicorn"), _few_workers, Complete(), "https://github.com/ggml-org/llama.cpp/pull/20817"),
    Behaviour("four_connections", "resets connections over four", ("firewalls", "small servers"), lambda server, asked: normal(asked), Complete(), options={"accept": lambda server: server.connections <= 4}),
]  # fmt: skip
