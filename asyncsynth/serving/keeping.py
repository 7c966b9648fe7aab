"""Keeping a run's own servers running: who is told, what a crash leads to, when a server that lives counts as hung."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from asyncsynth.core.retry import Rng
from asyncsynth.errors import AsyncsynthError
from asyncsynth.serving.restarts import RestartPolicy, Restarts

Sleep = Callable[[float], Awaitable[None]]


class Watcher(Protocol):
    """Who is told that servers come and go: a `ServerPool`. Each may raise KeyError: it does not use this server."""

    def server_down(self, name: str, why: str) -> None:
        """Nothing is to be sent there."""

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
        """Returns once its process is gone."""


async def keep(
    child: Child,
    watcher: Watcher,
    *,
    restart: RestartPolicy | None = None,
    note: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Sleep = asyncio.sleep,
    rng: Rng | None = None,
) -> None:
    """Start a running `child` again whenever it ends, with growing pauses; returns when it has ended too often.

    Args:
        note: told in a line what happened.
        clock, sleep, rng: of the restarts; tests hand in their own.
    """
    policy = restart or RestartPolicy()
    restarts = Restarts(policy, rng or random.Random())  # noqa: S311 - jitter
    while True:
        end = await child.ended()
        watcher.server_down(child.name, end.why)
        while True:
            pause = restarts.crashed(clock())
            if pause is None:
                watcher.server_lost(child.name, f"{policy.said()}; the last time: {end.why}", end.advice)
                return
            note(f"{child.name} ended ({end.why}) and is started again")
            await sleep(pause)
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
    """While open, these go on; then they are cancelled."""
    tasks = [asyncio.ensure_future(keeper) for keeper in keepers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result  # a fault of our own


@dataclass(frozen=True, kw_only=True)
class HangPolicy:
    """When a server whose process lives counts as hung. Seconds, but for `least`.

    Long, since a restart costs all requests in flight and minutes of loading: /health, which needs nothing of the
    model, has to stay without a good answer for so long.

    Args:
        every_s: between two questions.
        answer_s: for an answer.
        hung_s: so long without one good answer.
        least: and so many questions; fewer may have been lost to a pause of our own.
    """

    every_s: float = 5.0
    answer_s: float = 10.0
    hung_s: float = 60.0
    least: int = 3


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
