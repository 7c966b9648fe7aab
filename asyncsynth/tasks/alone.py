"""A task on its own, outside a pipeline: a thread with its own event loop and pool.

The thread makes `next(task.process(rows))` work in a notebook, where a loop is already running. It is a
daemon thread: a task that is never unloaded must not keep the interpreter from ending. Its pool must
still be closed, because it owns an embedded model's process: when the task is unloaded or garbage-collected, at
the latest when the interpreter ends.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401  # before ours is registered, see the end of this file
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

from asyncsynth.errors import ConfigurationError, RecordError
from asyncsynth.pipeline.context import Context
from asyncsynth.pipeline.lanes import Work
from asyncsynth.records import Row, content_hash

if TYPE_CHECKING:
    from asyncsynth.client.llm import LLM
    from asyncsynth.client.messages import Completion, ModelRequest
    from asyncsynth.pipeline.step import ModelStep

#: How long `close` waits for the pool (an embedded model's process ends in well under a second).
_CLOSE_WAIT_S = 15.0


class Sender(Protocol):
    """What a runner needs of a pool."""

    async def send(self, request: ModelRequest, /) -> Completion:
        """One model call."""


Opener = Callable[["list[LLM]"], AbstractAsyncContextManager[Sender]]


class Rows(list[Row]):
    """The rows of one call. With a single row, its columns can be read directly: ``rows["instructions"]``."""

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, str):
            if len(self) != 1:
                raise KeyError(f"{item!r}: {len(self)} rows came back; choose one, as in rows[0][{item!r}]")
            return super().__getitem__(0)[item]
        return super().__getitem__(item)


def _bound_pool(llms: list[LLM]) -> AbstractAsyncContextManager[Sender]:
    """A pool bound as in a run. Imported late: building a pipeline needs no servers."""
    from asyncsynth.serving.binding import open_pool

    return open_pool(llms)


class _Held:
    """A thread whose loop holds one open pool, shared by all loaded tasks that ask the same models."""

    def __init__(self, key: object, llms: list[LLM], opener: Opener) -> None:
        self.key = key
        self.users = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.pool: Sender | None = None
        self.work = Work()  #: threads for the tools that tasks call
        self._llms = llms
        self._opener = opener
        self._stopping: asyncio.Event | None = None
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, name="asyncsynth-alone", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the pool can still be used, or is being opened."""
        return self._thread.is_alive()

    def wait_open(self) -> None:
        """Returns when the pool is open; raises the error that kept it from opening."""
        self._opened.result()

    def close_soon(self) -> None:
        """Asks the thread to end, without waiting. Safe from any thread, the garbage collector's included."""
        loop, stopping = self.loop, self._stopping
        if loop is not None and stopping is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(stopping.set)
            except RuntimeError:
                return  # it has just closed

    def close(self) -> None:
        """Closes the pool (an embedded model's process ends) and the thread. Rows in progress are cancelled."""
        self.close_soon()
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_WAIT_S)

    def _main(self) -> None:
        try:
            asyncio.run(self._hold())
        except BaseException as error:
            if not self._opened.done():
                self._opened.set_exception(error)
            # Else the pool did not close cleanly; no caller is left to act on it.
        finally:
            if _held.get(self.key) is self:
                del _held[self.key]

    async def _hold(self) -> None:
        """Opens the pool, keeps it for `submit`, and closes it in the task that opened it (anyio's scopes ask
        for that)."""
        self.loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        async with self._opener(self._llms) as pool:
            self.pool = pool
            self._opened.set_result(None)
            await self._stopping.wait()
            rows = [task for task in asyncio.all_tasks() if task.get_name() == _ROW_TASK]
            for task in rows:
                task.cancel()
            await asyncio.gather(*rows, return_exceptions=True)
            self.work.close()


class AloneRunner:
    """One loaded task's use of a held pool. It does not hold the task itself, so that a task which is dropped
    gives its pool back."""

    def __init__(self, task: ModelStep, *, opener: Opener = _bound_pool) -> None:
        task.check_mappings()
        self._step_id = content_hash(task.settings())
        self._held: _Held | None = _acquire(list(task.models()), opener)
        try:
            self._held.wait_open()
        except BaseException:
            self.close()
            raise
        weakref.finalize(task, self.close_soon).atexit = False

    def process(self, task: ModelStep, rows: list[Row]) -> Rows:
        """Processes all rows concurrently; the results are in their order. The first error stops the others and is
        raised."""
        futures = [self.submit(task, row, str(number), 0) for number, row in enumerate(rows)]
        done = Rows()
        try:
            for future in futures:
                done.extend(future.result())
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return done

    def submit(self, task: ModelStep, row: Row, key: str, run_seed: int) -> Future[list[Row]]:
        """One row, in the holder's loop."""
        held = self._held
        if held is None or held.loop is None or held.pool is None or not held.alive:
            raise ConfigurationError(f"{task.name} was unloaded", hint="Call load() again.")
        return asyncio.run_coroutine_threadsafe(self._run(task, row, key, run_seed, held.pool, held.work), held.loop)

    def close_soon(self) -> None:
        """Gives the pool back, without waiting; the last user closes it."""
        if (held := self._release()) is not None:
            held.close_soon()

    def close(self) -> None:
        """Gives the pool back; the last user closes it and waits for that."""
        if (held := self._release()) is not None:
            held.close()

    def _release(self) -> _Held | None:
        """The holder, if it has no users left."""
        held, self._held = self._held, None
        if held is None:
            return None
        with _lock:
            held.users -= 1
            if held.users:
                return None
            if _held.get(held.key) is held:
                del _held[held.key]
        return held

    async def _run(self, task: ModelStep, row: Row, key: str, run_seed: int, pool: Sender, work: Work) -> list[Row]:
        if (current := asyncio.current_task()) is not None:
            current.set_name(_ROW_TASK)
        ctx = Context(key=key, run_seed=run_seed, step_id=self._step_id, send=pool.send)
        ctx.equip(work=work)
        try:
            view = task.view(row)
        except KeyError as missing:
            raise RecordError(
                f"{task.name}: the row has no column {missing}; it has {', '.join(row) or 'none'}",
                reason="missing_column",
            ) from None
        made = task.generate(view, ctx)
        made = made if task.timeout is None or task.needs_work else ctx.in_time(task.timeout, made)
        return [task.merge(row, outputs) for outputs in await made]


def _acquire(llms: list[LLM], opener: Opener) -> _Held:
    """The open pool for these models, shared with other loaded tasks: an embedded model runs once, not per task."""
    places = {(llm.model, llm.is_embedded, llm.base_url, llm.api_key_env, id(llm.http_client)) for llm in llms}
    key = (frozenset(places), opener, os.environ.get("ASYNCSYNTH_SERVERS"))
    with _lock:
        held = _held.get(key)
        if held is None or not held.alive:
            held = _held[key] = _Held(key, llms, opener)
        held.users += 1
    return held


# Reentrant: a garbage collection inside the lock may finalize a task, which gives its pool back.
_lock = threading.RLock()
_held: dict[object, _Held] = {}
_ROW_TASK = "asyncsynth-row"


def _close_all() -> None:
    for held in list(_held.values()):
        held.close()


# atexit's own callbacks come too late: by then no executor takes work and (3.12) no thread can be started, and
# a pool may need either to close. This hook, which concurrent.futures uses for itself, runs while both still
# work; hooks run in reverse order, so ours, registered after theirs, comes first.
getattr(threading, "_register_atexit", atexit.register)(_close_all)
