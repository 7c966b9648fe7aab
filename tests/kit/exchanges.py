"""Servers without sockets, under a `ServerPool`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
import tenacity

from asyncsynth.client.messages import ChatRequest
from asyncsynth.client.server_pool import Server, ServerPool
from asyncsynth.client.transport import DEFAULT_TIMEOUTS, Timeouts, WireResponse
from asyncsynth.core.retry import RetryPolicy

FAST = RetryPolicy(wait=tenacity.wait_none())


def answer(text: str = "hi", model: str = "m") -> WireResponse:
    body = {
        "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "model": model,
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    return WireResponse(200, {}, orjson.dumps(body))


def refusal(status: int, message: str = "no") -> WireResponse:
    return WireResponse(status, {}, orjson.dumps({"error": {"message": message}}))


class FakeExchange:
    """Answers by `reply(n-th request, body)`; with `gate` set, each request waits until it is released."""

    def __init__(self, reply: Callable[[int, dict[str, Any]], WireResponse | Exception] | None = None) -> None:
        self.base_url = "http://fake/v1"
        self.timeouts = DEFAULT_TIMEOUTS
        self.reply = reply or (lambda n, body: answer())
        self.gate: asyncio.Semaphore | None = None
        self.bodies: list[dict[str, Any]] = []
        self.seen: list[Timeouts] = []
        self.busy = self.most = self.cancelled = 0
        self.closed = False

    async def post(self, path: str, body: bytes, timeout: Timeouts = DEFAULT_TIMEOUTS) -> WireResponse:
        fields = orjson.loads(body)
        self.bodies.append(fields)
        self.seen.append(timeout)
        self.busy += 1
        self.most = max(self.most, self.busy)
        n = len(self.bodies)
        try:
            if self.gate is not None:
                await self.gate.acquire()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.busy -= 1
        result = self.reply(n, fields)
        if isinstance(result, Exception):
            raise result
        return result

    async def get(self, path: str, timeout: Timeouts = DEFAULT_TIMEOUTS, *, at_origin: bool = False) -> WireResponse:
        raise NotImplementedError

    async def aclose(self) -> None:
        self.closed = True


def make(exchange: FakeExchange, **options: Any) -> ServerPool:
    fields: dict[str, Any] = {"name": "s", "models": frozenset({"m"}), "limit": 4} | options
    policy = fields.pop("policy", FAST)
    server = Server(base_url=exchange.base_url, exchange=exchange, **fields)
    return ServerPool([server], policy=policy, rng=random.Random(0))


def ask(model: str = "m", **params: Any) -> ChatRequest:
    return ChatRequest(model, [{"role": "user", "content": "hello"}], params)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


def server(name: str, exchange: FakeExchange, **fields: Any) -> Server:
    options: dict[str, Any] = {"models": frozenset({"m"}), "limit": 4} | fields
    return Server(name=name, base_url=exchange.base_url, exchange=exchange, **options)


def pool_of(*servers: Server, **options: Any) -> ServerPool:
    return ServerPool(servers, rng=random.Random(0), **options)
