"""`Pipeline`: the graph that can be run: `run()`, `await arun()`, `async for row in stream()`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Unpack

import anyio

from asyncsynth.calling import checked
from asyncsynth.engine.execution import execute
from asyncsynth.engine.options import FinishedRows, RunOptions, RunSettings
from asyncsynth.engine.report import RunReport
from asyncsynth.engine.result import Result
from asyncsynth.engine.run import Run, compiled, default_directory, run_of
from asyncsynth.engine.runner import OnRows, Runner
from asyncsynth.errors import AsyncsynthError, ConfigurationError
from asyncsynth.pipeline import Graph, Plan, SourceStep
from asyncsynth.pipeline.function_process import refuse_run
from asyncsynth.pipeline.naming import number_of
from asyncsynth.records import Row
from asyncsynth.steps.loaders import LoadJSONL
from asyncsynth.storage.manifest import Manifest

T = TypeVar("T")

#: Finished records that wait for a slow reader of `stream()`; beyond, the run waits too.
_STREAM_BUFFER = 64
#: Seconds that a run waits for a stream that was left in another thread's loop, and between two looks at it.
_OTHER_LOOP_S, _LOOK_EVERY_S = 5.0, 0.01


class Pipeline(Graph):
    """A graph of steps, joined by ``>>`` inside ``with Pipeline() as pipeline:``, and its runs.

    Run the same pipeline with the same ``output`` again to resume: what is done is not paid for again.
    """

    #: Its number among the pipelines that one line made in this process; 0 before its first run (`naming.number_of`).
    _number = 0

    @checked
    def run(self, *, on_runner: Callable[[Runner], None] | None = None, **options: Unpack[RunSettings]) -> Result:
        """Runs to the end and returns the result. Keyword arguments: see `RunOptions`; `on_runner`: see `arun`.

        Not from a running event loop (a notebook's cell, an async function): use ``await arun()`` there.
        Raises AsyncsynthError: PipelineError, ServerError, StorageError, ...
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise ConfigurationError(
                "pipeline.run() was called inside a running event loop",
                hint="Write `await pipeline.arun(...)` there (a notebook cell can await).",
            )
        try:
            return run_in_loop(functools.partial(self.arun, on_runner=on_runner, **options))
        except AsyncsynthError as error:
            if os.environ.get("ASYNCSYNTH_TRACEBACK"):
                raise
            # Its message names the place and what to do; two dozen lines of the event loop above it would hide that.
            raise error.with_traceback(None) from error.__cause__

    @checked
    async def arun(
        self, *, on_runner: Callable[[Runner], None] | None = None, **options: Unpack[RunSettings]
    ) -> Result:
        """`run()` for a running event loop. `on_runner` gets the Runner, for progress and draining: one for each
        stage, if steps over all rows split the pipeline."""
        return Result(await self._run(RunOptions(**options), on_runner=on_runner))

    @checked
    def stream(self, *, leaf: str = "default", **options: Unpack[RunSettings]) -> AsyncIterator[Row]:
        """Yields result rows as their records become durable, in the order in which they finish.

        Leaving the loop early stops the run and closes its connections; the directory can be resumed. The run waits for
        a slow reader. Rows that an earlier run finished are yielded, too.
        """
        streamed = _Streamed()
        rows = self._stream(streamed, leaf, RunOptions(**options))
        streamed.reader = weakref.ref(rows)
        return rows

    async def _stream(self, streamed: _Streamed, leaf: str, chosen: RunOptions) -> AsyncGenerator[Row, None]:
        finished: asyncio.Queue[FinishedRows | None] = asyncio.Queue(_STREAM_BUFFER)

        async def run() -> None:
            try:
                await self._run(chosen, on_rows=finished.put)
            finally:
                # The last word. After the reader has left, nothing reads it.
                if not _is_cancelling():
                    await finished.put(None)

        # The run has its own task: a task group around a `yield` would break when the reader leaves.
        task = streamed.task = asyncio.create_task(run(), name=f"asyncsynth {self.name}")
        _STREAMED.add(streamed)
        try:
            while (rows := await finished.get()) is not None:
                for row in rows.get(leaf, ()):
                    yield row
            await task
        finally:
            if not task.done():
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            _STREAMED.discard(streamed)

    async def _run(
        self,
        options: RunOptions,
        *,
        on_rows: OnRows | None = None,
        on_runner: Callable[[Runner], None] | None = None,
    ) -> RunReport:
        refuse_run()
        run = self.resolved(options)
        await _streams_left()
        return await execute(run, on_rows=on_rows, on_runner=on_runner)

    def resolved(self, options: RunOptions) -> Run:
        """What `options` mean for this pipeline: the plan, the run directory, the servers.

        Opens no directory and sends nothing. Raises PipelineError, ConfigurationError, InputError.
        """
        plan = self.checked(options)
        return run_of(self, plan, self._directory(plan, options), options)

    def _directory(self, plan: Plan, options: RunOptions) -> Path:
        """The run directory. Notes in the plan if another pipeline of this process has the usual one."""
        if options.output is not None:
            return Path(options.output)
        if self.is_named:
            return default_directory(self.name)
        by_content = default_directory(f"pipeline-{plan.fingerprint[:8]}")
        if self.origin is None:
            # No file names it. Its directory follows from what it does, so that two pipelines never share one.
            return by_content
        number = self._number or number_of(self.origin, plan.fingerprint, update=options.update)
        self._number = number
        chosen = default_directory(self.name if number == 1 else f"{self.name}-{number}")
        if number > 1:
            plan.notes.append(
                f"{self.origin.file}:{self.origin.line} made {number} pipelines without a name. The results of this "
                f"one are in {chosen}; name each with Pipeline(name=...)"
            )
        # Earlier versions of asyncsynth chose the directory by the pipeline's content.
        return by_content if Manifest.exists(by_content) and not Manifest.exists(chosen) else chosen

    def checked(self, options: RunOptions | None = None) -> Plan:
        """The compiled plan. Raises PipelineError; sends nothing."""
        return compiled(self, options or RunOptions())

    def with_input(self, path: str) -> None:
        """Reads rows from a JSONL file instead of what the pipeline's source says (``--input``)."""
        old = next((step for step in self.steps if isinstance(step, SourceStep)), None)
        if old is None:
            raise ConfigurationError("--input: the pipeline has no source that the file could replace")
        new = LoadJSONL(
            path,
            id_column=getattr(old, "id_column", None),
            on_bad_row=getattr(old, "on_bad_row", "stop"),
            name=old.name,
            output_mappings=old.output_mappings,
        )
        self.replace(old, new)


@dataclass(eq=False, slots=True)
class _Streamed:
    """A run that is read by `stream()`."""

    task: asyncio.Task[None] | None = None
    reader: weakref.ref[AsyncGenerator[Row, None]] | None = None  #: dead once its reader has left without closing it


_STREAMED: set[_Streamed] = set()


async def _streams_left() -> None:
    """Waits for runs whose readers left by `break`: Python closes them later, and until then they hold a lock."""
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    left = [
        one.task
        for one in list(_STREAMED)
        if one.task is not None and one.task is not this and one.reader is not None and one.reader() is None
    ]
    if ending := [task for task in left if task.get_loop() is loop]:
        await asyncio.wait(ending)
    # A loop of another thread that does not turn, because it waits for this one, must not be waited for without end.
    until = loop.time() + _OTHER_LOOP_S
    for task in left:
        while not task.done() and task.get_loop().is_running() and loop.time() < until:  # noqa: ASYNC110  # not our loop's
            await asyncio.sleep(_LOOK_EVERY_S)


def run_in_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine function in a new event loop, on uvloop where it is installed."""
    try:
        import uvloop  # noqa: F401
    except ImportError:
        options: dict[str, Any] = {}
    else:
        options = {"use_uvloop": True}

    return anyio.run(main, backend="asyncio", backend_options=options)


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


__all__ = ["Pipeline", "run_in_loop"]
