"""What the socket tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from asyncsynth.client.transport import Timeouts

RUNNERS: dict[str, Callable[..., Any]] = {"asyncio": asyncio.run}
try:
    import uvloop

    RUNNERS["uvloop"] = uvloop.run
except ImportError:
    pass

CHAT = "/chat/completions"
QUICK = Timeouts(connect=5, idle=0.05, total=0.1)  #: with sweeps of 10 ms


def on_both_loops(scene: Callable[[], Awaitable[None]]) -> Callable[..., None]:
    """A coroutine function as a test, on asyncio's loop and on uvloop's. 30 s are a bug."""

    @pytest.mark.parametrize("loop", RUNNERS)
    def test(loop: str) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(30):
                await scene()

        RUNNERS[loop](bounded())

    test.__doc__ = scene.__doc__
    return test


def chat_body(text: str = "hello", **fields: Any) -> bytes:
    """A chat request as bytes."""
    return orjson.dumps(
        {"model": "test-model", "messages": [{"role": "user", "content": text}], "max_tokens": 64, **fields}
    )


async def until(condition: Callable[[], bool]) -> None:
    """Give way to the loop until it is so."""
    while not condition():  # noqa: ASYNC110  # any condition, none of which has an event
        await asyncio.sleep(0)
