"""`sys.exit` in a task that a step's own code started costs that step's row, and not the run.

asyncio raises a SystemExit of any task out of the event loop, whoever awaits the task. So while a run with user code is
in a loop, tasks that this code starts (TaskGroup, gather, create_task) turn SystemExit into an error that their awaiter
gets, as every other exception of theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from asyncsynth.pipeline.seen import row_error

_PACKAGE = str(Path(__file__).resolve().parents[1])
#: Whether a task descends from a run: others in the same loop are none of a run's business.
_IN_RUN: ContextVar[bool] = ContextVar("asyncsynth_in_run", default=False)


class _ExitIsAnError(Coroutine[Any, Any, Any]):
    """A coroutine that raises RecordError where the one inside raises SystemExit."""

    __slots__ = ("_inside",)

    def __init__(self, inside: Coroutine[Any, Any, Any]) -> None:
        self._inside = inside

    def send(self, value: Any) -> Any:
        try:
            return self._inside.send(value)
        except SystemExit as error:
            raise row_error(error, {}) from error

    def throw(self, *error: Any) -> Any:
        try:
            return self._inside.throw(*error)
        except SystemExit as exit_:
            raise row_error(exit_, {}) from exit_

    def close(self) -> None:
        self._inside.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._inside.__await__()

    def __getattr__(self, name: str) -> Any:  # cr_frame and its like, for stacks
        return getattr(self._inside, name)


class _Factory:
    """A loop's task factory while runs are in it, before the one that the loop had."""

    def __init__(self, before: Callable[..., Any] | None) -> None:
        self.before = before
        self.runs = 0

    def __call__(self, loop: asyncio.AbstractEventLoop, coro: Any, **more: Any) -> Any:
        context = more.get("context")
        if (_IN_RUN.get() if context is None else context.get(_IN_RUN, False)) and _is_users(coro):
            coro = _ExitIsAnError(coro)
        make = self.before or _plain_task
        return make(loop, coro, **more)


def _plain_task(loop: asyncio.AbstractEventLoop, coro: Any, **more: Any) -> asyncio.Task[Any]:
    return asyncio.Task(coro, loop=loop, **more)


def _is_users(coro: Any) -> bool:
    code = getattr(coro, "cr_code", None)
    return code is None or not code.co_filename.startswith(_PACKAGE)


@contextmanager
def exits_are_errors(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """While it is entered, for tasks started from here on by code that is not this package's."""
    before: Any = loop.get_task_factory()
    factory = before if isinstance(before, _Factory) else _Factory(before)
    if factory is not before:
        loop.set_task_factory(factory)
    factory.runs += 1
    token = _IN_RUN.set(True)
    try:
        yield
    finally:
        _IN_RUN.reset(token)
        factory.runs -= 1
        if not factory.runs and loop.get_task_factory() is factory:
            loop.set_task_factory(factory.before)
