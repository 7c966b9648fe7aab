"""A task on its own, outside a pipeline: a thread with its own event loop and pool.

The thread makes `next(task.process(rows))` work in a notebook, where a loop is already running.
"""

from __future__ import annotations

import atexit
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from asyncsynth.errors import RecordError
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row, content_hash
from asyncsynth.servers.binding import open_pool
from asyncsynth.servers.configs import servers_from_environment

if TYPE_CHECKING:
    from asyncsynth.client.pool import ServerPool
    from asyncsynth.pipeline.step import ModelStep


class Rows(list[Row]):
    """The rows of one call. With a single row, its columns can be read directly: ``rows["instructions"]``."""

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, str):
            if len(self) != 1:
                raise KeyError(f"{item!r}: {len(self)} rows came back; choose one first, as in rows[0][{item!r}]")
            return super().__getitem__(0)[item]
        return super().__getitem__(item)


_open_runners: weakref.WeakSet[AloneRunner] = weakref.WeakSet()


class AloneRunner:
    """Holds the loop's thread and the pool of one loaded task."""

    def __init__(self, task: ModelStep) -> None:
        self._task = task
        self._step_id = content_hash(task.settings())
        self._portal_context = start_blocking_portal("asyncio")
        self._portal: BlockingPortal = self._portal_context.__enter__()
        try:
            self._pool_context = self._portal.wrap_async_context_manager(
                open_pool(list(task.models()), servers=servers_from_environment())
            )
            self._pool: ServerPool = self._pool_context.__enter__()
        except BaseException as error:
            self._portal_context.__exit__(type(error), error, error.__traceback__)
            raise
        _open_runners.add(self)

    def process(self, rows: list[Row]) -> Rows:
        """All rows side by side, in order."""
        futures = [self.submit(row, str(number), 0) for number, row in enumerate(rows)]
        done = Rows()
        for future in futures:
            done.extend(future.result())
        return done

    def submit(self, row: Row, key: str, run_seed: int) -> Future[list[Row]]:
        """One row, in the runner's loop."""
        return self._portal.start_task_soon(self._run, row, key, run_seed)

    async def _run(self, row: Row, key: str, run_seed: int) -> list[Row]:
        ctx = Context(key=key, run_seed=run_seed, step_id=self._step_id, send=self._pool.send)
        try:
            view = self._task.view(row)
        except KeyError as missing:
            raise RecordError(
                f"{self._task.name}: the row has no column {missing}; it has {', '.join(row) or 'none'}",
                reason="missing_column",
            ) from None
        return [self._task.merge(row, outputs) for outputs in await self._task.generate(view, ctx)]

    def close(self) -> None:
        """Closes the pool (an embedded model's process ends) and the thread."""
        _open_runners.discard(self)
        try:
            self._pool_context.__exit__(None, None, None)
        finally:
            self._portal_context.__exit__(None, None, None)


@atexit.register
def _close_all() -> None:
    for runner in list(_open_runners):
        runner.close()


