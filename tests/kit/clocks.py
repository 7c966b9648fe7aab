"""A clock that a test turns by hand."""

from __future__ import annotations

import asyncio


class ManualClock:
    """Stands still until something sets `now` or sleeps. Call it, or pass `clock` and `sleep`. Unit: seconds."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)
