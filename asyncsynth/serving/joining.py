"""Servers that do not answer when a run starts: it waits for those that it needs, starts without the others, and adds
them when they answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from asyncsynth.client.server_pool import Server, ServerPool
from asyncsynth.errors import AsyncsynthError, ServerUnreachable
from asyncsynth.servers.capabilities import Capabilities

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Connected:
    """A server that answers. `server` is None if it has none of the models that the run needs; `found` is what it
    can do, if that was tried."""

    server: Server | None
    served: frozenset[str]
    found: Sequence[Capabilities] = ()
    #: What it answered to requests for models that it does not list, by model.
    refusals: Mapping[str, AsyncsynthError] = field(default_factory=dict)


@dataclass(slots=True)
class Latecomer(Generic[T]):
    """A target whose server does not answer yet."""

    target: T
    error: ServerUnreachable | None  #: of the first attempt
    attempt: asyncio.Task[Connected] | None = None  #: or that attempt, if it is still running


async def connect_all(
    targets: Sequence[T],
    connect: Callable[[T], Awaitable[Connected]],
    enough: Callable[[Mapping[int, Connected]], bool],
    *,
    grace_s: float,
) -> tuple[dict[int, Connected], list[Latecomer[T]]]:
    """Connect to all targets at once.

    Args:
        enough: whether a run could begin with these (by their place among the targets).
        grace_s: how long to wait for the others once it could.

    Raises:
        ServerUnreachable: of the first that did not answer, where a run cannot begin without.
        AsyncsynthError: what any of them met; only a server that does not answer is waited for.
    """

    async def one(target: T) -> Connected:
        return await connect(target)

    tasks = [asyncio.create_task(one(target), name="asyncsynth connect") for target in targets]
    connected: dict[int, Connected] = {}
    errors: dict[int, ServerUnreachable] = {}
    pending = set(tasks)
    try:
        while pending:
            done, pending = await asyncio.wait(
                pending, timeout=grace_s if enough(connected) else None, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            for place in (tasks.index(task) for task in done):
                try:
                    connected[place] = tasks[place].result()
                except ServerUnreachable as error:
                    errors[place] = error
        if errors and not enough(connected):
            raise errors[min(errors)]
    except BaseException:
        await _ended(tasks)
        raise
    late = [
        Latecomer(target, errors.get(place), tasks[place] if tasks[place] in pending else None)
        for place, target in enumerate(targets)
        if place not in connected
    ]
    return connected, late


@contextlib.asynccontextmanager
async def joining(
    pool: ServerPool,
    latecomers: Sequence[Latecomer[T]],
    connect: Callable[[T], Awaitable[Connected]],
    name: Callable[[T], str],
    *,
    retry_s: float,
) -> AsyncIterator[None]:
    """While open, each latecomer is tried every `retry_s` seconds and joins the pool when it answers."""
    for late in latecomers:
        said = f" ({one_line(late.error)})" if late.error is not None else ""
        pool.notes.append(
            f"{name(late.target)} is not ready yet{said}; the run continues, and it joins when it answers"
        )
    tasks = [
        asyncio.create_task(_join(pool, late, connect, name(late.target), retry_s), name="asyncsynth join")
        for late in latecomers
    ]
    try:
        yield
    finally:
        await _ended(tasks)


async def _join(
    pool: ServerPool, late: Latecomer[T], connect: Callable[[T], Awaitable[Connected]], name: str, retry_s: float
) -> None:
    attempt: Awaitable[Connected] | None = late.attempt
    while True:
        try:
            if attempt is None:
                await asyncio.sleep(retry_s)
                attempt = connect(late.target)
            connected = await attempt
        except ServerUnreachable:
            attempt = None
            continue
        except AsyncsynthError as error:
            pool.notes.append(f"{name} is left out: {one_line(error)}")
            return
        if connected.server is None:
            served = ", ".join(sorted(connected.served)) or "nothing"
            pool.notes.append(f"{name} is left out: it has none of the run's models, but {served}")
        else:
            pool.add_server(connected.server)
            pool.notes.append(f"{name} answers and has joined")
        return


async def cancelled(latecomers: Sequence[Latecomer[T]]) -> None:
    """Ends the attempts that are still running."""
    await _ended([late.attempt for late in latecomers if late.attempt is not None])


async def _ended(tasks: Iterable[asyncio.Task[object]]) -> None:
    """Cancel them and wait for their ends."""
    waited = list(tasks)
    for task in waited:
        task.cancel()
    await asyncio.gather(*waited, return_exceptions=True)


def one_line(error: AsyncsynthError) -> str:
    """An error's message without its hint."""
    return str(error).partition("\n")[0]
