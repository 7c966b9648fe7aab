"""A server that answers chat completions with next to no CPU, so that a benchmark measures the client.

    python benchmarks/mock_server.py --delay-ms 50

It finds a request's end by its Content-Length and writes one ready answer (0.8 KB of JSON, 100 tokens of usage);
nothing of the body is read. `GET` paths that a client asks at its start (health, models) are answered as well.
It is no test of correctness (`asyncsynth.testing.FaultServer` is), only of speed. Prints its base URL.

With a delay, answers that fall due in the same millisecond are written in one go, by one timer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Callable
from typing import cast

MODEL = "test-model"
_HEADERS_END = b"\r\n\r\n"
_TICK_S = 0.001


def http(body: bytes, status: str = "200 OK") -> bytes:
    """A whole HTTP/1.1 answer around a JSON body."""
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status.encode(), len(body), body,
    )  # fmt: skip


def completion(chars: int) -> bytes:
    """A chat completion whose text has `chars` characters."""
    text = ("A plain answer of some words that says what it has to say. " * (chars // 59 + 1))[:chars]
    message = {"role": "assistant", "content": text}
    answer = {
        "id": "chatcmpl-benchmark",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 200, "completion_tokens": 100, "total_tokens": 300},
    }
    return json.dumps(answer).encode()


class Later:
    """Writes answers when they are due: a heap would cost more than the order it keeps, ticks do not."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, list[asyncio.Transport]] = {}
        self.answer = b""

    def add(self, transport: asyncio.Transport, delay_s: float) -> None:
        """Answers on `transport` after `delay_s`."""
        due = int((self._loop.time() + delay_s) / _TICK_S) + 1
        slot = self._slots.get(due)
        if slot is None:
            self._slots[due] = slot = []
            self._loop.call_at(due * _TICK_S, self._fire, due)
        slot.append(transport)

    def _fire(self, due: int) -> None:
        for transport in self._slots.pop(due):
            if not transport.is_closing():  # a client that has left meanwhile
                transport.write(self.answer)


class Connection(asyncio.Protocol):
    """One client's connection. Requests that follow each other without a pause are answered in order."""

    def __init__(self, answer: bytes, later: Later, delay: Callable[[], float] | None) -> None:
        self._answer = answer
        self._later = later
        self._delay = delay
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Answers each request that is complete."""
        buffer = self._buffer + data if self._buffer else data
        while True:
            head = buffer.find(_HEADERS_END)
            if head < 0:
                break
            end = head + 4
            at = buffer.lower().find(b"content-length:", 0, head) if buffer[:4] == b"POST" else -1
            if at >= 0:
                stop = buffer.find(b"\r", at)
                end += int(buffer[at + 15 : stop])
            if len(buffer) < end:
                break
            self._reply(buffer[: head + 4])
            buffer = buffer[end:]
        self._buffer = buffer

    def _reply(self, head: bytes) -> None:
        transport = self._transport
        assert transport is not None
        if head[:4] != b"POST":
            path = head.split(b" ", 2)[1]
            if path.endswith(b"/models"):
                transport.write(http(json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode()))
            else:
                known = path in (b"/health", b"/version")
                transport.write(http(b'{"version":"0"}') if known else http(b"{}", "404 Not Found"))
        elif self._delay is None:
            transport.write(self._answer)
        else:
            self._later.add(transport, self._delay())


def delays(delay_ms: float, sigma: float, seed: int) -> Callable[[], float] | None:
    """Seconds until an answer: constant, or lognormal about `delay_ms` as the median; None without a delay."""
    if delay_ms <= 0:
        return None
    seconds = delay_ms / 1000
    if not sigma:
        return lambda: seconds
    rng = random.Random(seed)  # noqa: S311 - times of answers, not secrets
    return lambda: seconds * rng.lognormvariate(0, sigma)


async def serve(options: argparse.Namespace) -> None:
    """Runs until it is killed."""
    loop = asyncio.get_running_loop()
    answer = http(completion(options.chars))
    later = Later(loop)
    later.answer = answer
    delay = delays(options.delay_ms, options.sigma, options.seed)
    server = await loop.create_server(lambda: Connection(answer, later, delay), "127.0.0.1", options.port, backlog=8192)
    port = server.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port}/v1", flush=True)
    await server.serve_forever()


def main() -> None:
    """Parses the command line and serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="the median time to answer")
    parser.add_argument("--sigma", type=float, default=0.0, help="of the lognormal time to answer; 0: constant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chars", type=int, default=560, help="characters of the answer; 560 make 0.8 KB of JSON")
    options = parser.parse_args()
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(options))
    else:
        uvloop.run(serve(options))


if __name__ == "__main__":
    main()
