"""Keeps a run's own servers running: what follows a crash, and when a server whose process lives counts as hung."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from asyncsynth.core.retry import Rng
from asyncsynth.errors import AsyncsynthError
from asyncsynth.serving.restarts import RestartPolicy, Restarts

Sleep = Callable[[float], Awaitable[None]]


class Watcher(Protocol):
    """Hears that servers come and go: a `ServerPool`. Each method may raise KeyError: it does not use this server."""

    def server_down(self, name: str, why: str) -> None:
        """Send nothing there."""

    def server_up(self, name: str) -> None:
        """It answers again."""

    def server_lost(self, name: str, why: str, advice: str = "") -> None:
        """It will not come back."""


@dataclass(frozen=True, slots=True)
class End:
    """Why a server ended: `why` for people, in one line; `advice`: what to do about it."""

    why: str
    advice: str = ""


class Child(Protocol):
    """A server that can be started again after its end."""

    name: str

    async def start(self) -> None:
        """Returns once it answers. Raises AsyncsynthError."""

    async def ended(self) -> End:
        """Returns once it is gone, or hangs so that it has to go."""

    async def clear(self) -> None:
        """Ends what is left of it."""


@dataclass(frozen=True, kw_only=True)
class HangPolicy:
    """When a server whose process lives counts as hung. Seconds, but for `least`.

    Long, since a restart costs all requests in flight and minutes of loading, and /health needs nothing of the model.

    Args:
        every_s: between two questions.
        answer_s: for an answer.
        hung_s: how long no good answer came.
        least: questions without a good answer, at least; fewer may have been lost to a pause of our own.
    """

    every_s: float = 5.0
    answer_s: float = 10.0
    hung_s: float = 60.0
    least: int = 3


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """How servers are kept running.

    Args:
        restart, hang: when one is started again, and when one that lives counts as hung.
        clock, sleep, rng: of the restarts; tests hand in their own.
    """

    restart: RestartPolicy = field(default_factory=RestartPolicy)
    hang: HangPolicy = field(default_factory=HangPolicy)
    clock: Callable[[], float] = time.monotonic
    sleep: Sleep = asyncio.sleep
    rng: Rng = field(default_factory=random.Random)


async def keep(
    child: Child,
    watcher: Watcher,
    *,
    how: Keeping | None = None,
    on_crash: Callable[[End, float], None] = lambda end, pause: None,
) -> None:
    """Starts a running `child` again whenever it ends, with growing pauses; returns when it has ended too often.

    Args:
        on_crash: gets why it ended and the seconds until it is started again.
    """
    how = how or Keeping()
    restarts = Restarts(how.restart, how.rng)
    while True:
        end = await child.ended()
        watcher.server_down(child.name, end.why)
        await child.clear()
        while True:
            pause = restarts.crashed(how.clock())
            if pause is None:
                watcher.server_lost(child.name, f"{how.restart.said()}; the last time: {end.why}", end.advice)
                return
            on_crash(end, pause)
            await how.sleep(pause)
            try:
                await child.start()
            except AsyncsynthError as error:
                end = End(error.message, error.hint or "")
            except OSError as error:  # no process, no memory for one
                end = End(f"it could not be started: {error}")
            else:
                break
        watcher.server_up(child.name)


@contextlib.asynccontextmanager
async def kept(*keepers: Awaitable[None]) -> AsyncIterator[None]:
    """Runs these while it is open, then cancels them."""
    tasks = [asyncio.ensure_future(keeper) for keeper in keepers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result  # a fault of our own


async def until_it_hangs(
    healthy: Callable[[], Awaitable[str]],
    policy: HangPolicy,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Sleep = asyncio.sleep,
) -> str:
    """Returns why once a server counts as hung.

    Args:
        healthy: asks once; '' for a good answer, or what came instead. Must return in seconds.
    """
    since: float | None = None
    failures = 0
    while True:
        await sleep(policy.every_s)
        asked_at = clock()
        said = await healthy()
        if not said:
            since, failures = None, 0
            continue
        since = asked_at if since is None else since
        failures += 1
        away = clock() - since
        if away >= policy.hung_s and failures >= policy.least:
            return f"its process lives, but /health gave no good answer for {away:.0f} s ({said})"
