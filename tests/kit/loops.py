"""Coroutines run as tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

RUNNERS: dict[str, Callable[..., Any]] = {"asyncio": asyncio.run}
try:
    import uvloop

    RUNNERS["uvloop"] = uvloop.run
except ImportError:
    pass


def on_both_loops(scene: Callable[[], Awaitable[None]]) -> Callable[..., None]:
    """Makes a test of a coroutine function: on asyncio's loop and on uvloop's, at most 30 s each."""

    @pytest.mark.parametrize("loop", RUNNERS)
    def test(loop: str) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(30):
                await scene()

        RUNNERS[loop](bounded())

    test.__doc__ = scene.__doc__
    return test


def run_async(main: Coroutine[Any, Any, T], *, within_s: float = 60) -> T:
    """Runs a coroutine and checks that it leaves no task behind."""

    async def checked() -> T:
        try:
            return await asyncio.wait_for(main, within_s)
        finally:
            for _ in range(5):  # transports finish closing in the next turns of the loop
                await asyncio.sleep(0)
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            assert not left, f"tasks left behind: {left}"

    return asyncio.run(checked())


async def until(condition: Callable[[], object]) -> None:
    """Yields to the loop until `condition` is true."""
    while not condition():  # noqa: ASYNC110  # any condition; there is no event to wait for
        await asyncio.sleep(0)


async def settle() -> None:
    """Yields to the loop ten times: enough for everything that waits for nothing outside."""
    for _ in range(10):
        await asyncio.sleep(0)
