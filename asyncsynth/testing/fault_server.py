"""FaultServer: an OpenAI-compatible server on a loopback port that answers the same request the same way, and
fails on request. Real sockets, no model; also the mock of the benchmarks.

    busy_at_first = lambda info: Fault("status", status=503) if info.index < 3 else None
    async with FaultServer(script=busy_at_first) as server:
        ...  # server.base_url is "http://127.0.0.1:<port>/v1"

`python -m asyncsynth.testing.fault_server --help` runs it alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import signal
import socket
import struct
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self

import httptools
import orjson

from asyncsynth.testing.abilities import Abilities
from asyncsynth.testing.answers import answer
from asyncsynth.testing.faults import (
    Fault,
    RequestInfo,
    Script,
    error_response,
    inject,
    random_faults,
    response,
)


class FaultServer:
    """The server. Async context manager, or `start()` and `stop()`; may be started again on its port.

    `script` decides for each request; without one, `fault_rate` and `seed` make `random_faults`.
    `delay_s` and `tokens` (words of an answer) apply to every request.
    `keep_alive_s` closes connections that are idle for this long (vLLM: 5 s).
    Above `max_in_flight` requests it answers 503. With `api_key`, other keys get 401. Models not in `models` get 404.
    `abilities` makes it a server that lacks or ignores something.
    """

    def __init__(
        self,
        *,
        script: Script | None = None,
        fault_rate: float = 0.0,
        seed: int = 0,
        delay_s: float = 0.0,
        tokens: int = 16,
        models: Sequence[str] = ("test-model",),
        api_key: str | None = None,
        any_model: bool = False,
        keep_alive_s: float | None = None,
        max_in_flight: int | None = None,
        context_chars: int | None = None,
        abilities: Abilities | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        keep_requests: bool = False,
    ) -> None:
        self.script: Script | None = script or (random_faults(fault_rate, seed) if fault_rate else None)
        self.delay_s = delay_s
        self.tokens = tokens
        self.models: tuple[str, ...] = tuple(models)
        self.api_key = api_key
        self.any_model = any_model
        self.keep_alive_s = keep_alive_s
        self.max_in_flight = max_in_flight
        self.context_chars = context_chars
        self.abilities = abilities
        self.host = host
        self.port: int = port
        self.requests = 0  #: completion requests received
        self.answered = 0  #: of those, answered with 200 and a right body
        self.aborted = 0  #: clients that left before their answer
        self.in_flight = 0
        self.highest_in_flight = 0
        self.connections = 0  #: accepted since the first start
        self.faults: dict[str, int] = {}
        self.log: list[RequestInfo] | None = [] if keep_requests else None
        self.open: set[_Connection] = set()
        self.seen: dict[int, int] = {}  #: requests by their bodies' hash: bodies of a million would fill the memory
        self.cache: dict[bytes, bytes] = {}
        self._server: asyncio.Server | None = None

    @property
    def base_url(self) -> str:
        """Where clients point: http://127.0.0.1:<port>/v1"""
        return f"http://{self.host}:{self.port}/v1"

    async def start(self) -> Self:
        """Starts to listen. The port stays the same after stop and start."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), self.host, self.port, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Closes the port and resets every connection, as a killed process does."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self.open):
            connection.abort()
        await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def complete(self, path: str, body: bytes) -> bytes:
        """The right answer to a completion request, as a whole HTTP response; kept for repeats."""
        known = self.cache.get(body)
        if known is not None:
            return known
        request = orjson.loads(body)
        if not self.any_model and request.get("model") not in self.models:
            text = f"The model `{request.get('model')}` does not exist."
            return error_response(404, text, "NotFoundError")
        if self.context_chars is not None and len(body) > self.context_chars:
            text = f"This model's maximum context length is {self.context_chars} characters."
            return error_response(400, text, "BadRequestError")
        if self.abilities is not None:
            applied = self.abilities.applied(path, request)
            if isinstance(applied, bytes):
                return applied
            request = applied
        served = self.models[0] if self.any_model else request["model"]
        made = answer(request, chat=path.endswith("/chat/completions"), tokens=self.tokens, served_as=served)
        if self.abilities is not None and path.endswith("/chat/completions"):
            self.abilities.think(request, made)
        reply = response(200, orjson.dumps(made))
        if len(self.cache) < 4096:
            self.cache[body] = reply
        return reply


class _Connection(asyncio.Protocol):
    """One client connection: parses requests, lets the script decide, writes."""

    def __init__(self, server: FaultServer) -> None:
        self.server = server
        self.number = 0
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made
        self.parser = httptools.HttpRequestParser(self)
        self.path = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []
        self.pending = False  #: a request waits for its answer
        self.request_id = b""  #: sent back, as vLLM does with --enable-request-id-headers
        self.idle: asyncio.TimerHandle | None = None
        self.loop = asyncio.get_running_loop()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is no subclass
        self.server.connections += 1
        self.number = self.server.connections
        self.server.open.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.write(error_response(400, "not HTTP", "BadRequestError"))
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.open.discard(self)
        if self.idle is not None:
            self.idle.cancel()
        if self.pending:
            self.server.aborted += 1
            self._done()

    # httptools

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        path, body = self.path.decode("latin-1"), b"".join(self.body)
        headers = self.headers
        self.request_id = next((value for name, value in headers if name.lower() == b"x-request-id"), b"")
        self.path, self.headers, self.body = b"", [], []
        if self.idle is not None:
            self.idle.cancel()
            self.idle = None
        server = self.server
        if server.api_key is not None and not self._authorised(headers) and path != "/health":
            self.transport.write(response(401, b'{"error":"Unauthorized"}'))
        elif path in ("/v1/chat/completions", "/v1/completions"):
            self._complete(path, headers, body)
        elif path == "/health":
            self.transport.write(response(200, b""))
        elif path == "/v1/models":
            models = [(server.abilities or Abilities()).listed(name) for name in server.models]
            self.transport.write(response(200, orjson.dumps({"object": "list", "data": models})))
        elif path == "/version" and server.abilities is not None and server.abilities.version:
            self.transport.write(response(200, orjson.dumps({"version": server.abilities.version})))
        else:
            self.transport.write(response(404, b'{"detail":"Not Found"}'))

    # answering

    def _authorised(self, headers: list[tuple[bytes, bytes]]) -> bool:
        wanted = f"Bearer {self.server.api_key}".encode()
        return any(name.lower() == b"authorization" and value == wanted for name, value in headers)

    def _complete(self, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        server = self.server
        index = server.requests
        server.requests += 1
        server.in_flight += 1
        server.highest_in_flight = max(server.highest_in_flight, server.in_flight)
        self.pending = True
        fault = None
        if server.script is not None or server.log is not None:
            known = hash(body)
            seen = server.seen[known] = server.seen.get(known, 0) + 1
            named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
            method = self.parser.get_method().decode()
            info = RequestInfo(index, method, path, named, body, self.number, seen)
            if server.log is not None:
                server.log.append(info)
            if server.script is not None:
                fault = server.script(info)
        if server.max_in_flight is not None and server.in_flight > server.max_in_flight and fault is None:
            text = "The engine is currently busy."
            fault = Fault("status", status=503, message=text)
        delay = server.delay_s + (fault.delay_s if fault is not None else 0.0)
        if delay:
            self.later(delay, self._answer, path, body, fault)
        else:
            self._answer(path, body, fault)

    def _answer(self, path: str, body: bytes, fault: Fault | None) -> None:
        if fault is not None and fault.kind != "none":
            self.server.faults[fault.kind] = self.server.faults.get(fault.kind, 0) + 1
            inject(self, fault, self._marked(self.server.complete(path, body)))
            return
        reply = self.server.complete(path, body)
        self.server.answered += reply.startswith(b"HTTP/1.1 200")
        self.finish(reply)

    def finish(self, reply: bytes) -> None:
        """Write the (last part of the) answer and wait for the next request."""
        self._done()
        self.transport.write(self._marked(reply))
        if self.server.keep_alive_s is not None:
            self.idle = self.loop.call_later(self.server.keep_alive_s, self.transport.close)

    def _marked(self, reply: bytes) -> bytes:
        """A whole answer with the request's id in its headers, once."""
        mark = b"\r\nx-request-id: %b\r\n" % self.request_id
        if not self.request_id or not reply.startswith(b"HTTP/1.1 ") or mark in reply:
            return reply
        return reply.replace(b"\r\n", mark, 1)

    def later(self, delay: float, action: Callable[..., object], *args: object) -> None:
        """Do it `delay` seconds from now unless the connection is gone by then."""
        self.loop.call_later(delay, self._if_open, action, *args)

    def _if_open(self, action: Callable[..., object], *args: object) -> None:
        if self in self.server.open:
            action(*args)

    def abort(self) -> None:
        """Reset: lingering for no time makes the kernel send RST rather than FIN."""
        sock = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _done(self) -> None:
        if self.pending:
            self.pending = False
            self.server.in_flight -= 1


async def _serve(options: argparse.Namespace) -> None:
    rate, statuses = options.fault_rate, options.fault_status or (500, 503)
    server = FaultServer(
        script=random_faults(rate, options.seed, statuses=statuses) if rate else None,
        delay_s=options.delay_ms / 1000,
        tokens=options.tokens,
        models=options.model or ["test-model"],
        any_model=not options.model,
        api_key=options.api_key,
        port=options.port,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with server:
        print(server.base_url, flush=True)  # the ready signal, and where to
        await stopped.wait()


_HELP = (
    "An OpenAI-compatible server without a model, on a loopback port. It answers the same request the same way and "
    "fails on request. It prints its base URL and serves until Ctrl-C."
)


def main() -> None:
    """The command line: prints its base URL once it listens, serves until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m asyncsynth.testing.fault_server", description=_HELP)
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="milliseconds before each answer")
    parser.add_argument("--fault-rate", type=float, default=0.0, help="share of requests that fail, 0 to 1")
    said = "status of such a failure, may be repeated; without it 500, and 503 (overloaded)"
    parser.add_argument("--fault-status", type=int, action="append", help=said)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random failures")
    parser.add_argument("--tokens", type=int, default=16, help="words of an answer")
    every = "name of a served model, may be repeated; without it, test-model is listed and every name is answered"
    parser.add_argument("--model", action="append", help=every)
    parser.add_argument("--api-key", default=None, help="answer 401 to any other key")
    options = parser.parse_args()
    run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run
    with contextlib.suppress(ImportError):  # not on every platform
        run = importlib.import_module("uvloop").run
    run(_serve(options))


if __name__ == "__main__":
    main()
