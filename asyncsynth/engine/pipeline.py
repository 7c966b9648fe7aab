"""`Pipeline`: the graph that can be run: `run()`, `await arun()`, `async for row in stream()`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, Unpack

import anyio

from asyncsynth.calling import checked
from asyncsynth.core.retry import RetryPolicy
from asyncsynth.engine.options import FinishedRows, RunOptions, RunSettings
from asyncsynth.engine.report import RunReport
from asyncsynth.engine.result import Result
from asyncsynth.engine.run_servers import servers_of
from asyncsynth.engine.runner import OnRows, Runner
from asyncsynth.engine.stages import open_segments, run_segments
from asyncsynth.errors import ConfigurationError
from asyncsynth.pipeline import Graph, Plan, SourceStep
from asyncsynth.pipeline.naming import number_of
from asyncsynth.pipeline.worker_process import refuse_run
from asyncsynth.records import Row
from asyncsynth.servers.capabilities import Capabilities
from asyncsynth.serving.binding import answering_models, open_pool
from asyncsynth.steps.loaders import LoadJSONL
from asyncsynth.storage.manifest import Manifest

T = TypeVar("T")

#: Finished records that wait for a slow reader of `stream()`; beyond, the run waits too.
_STREAM_BUFFER = 64


class Pipeline(Graph):
    """A graph of steps, joined by ``>>`` inside ``with Pipeline() as pipeline:``, and its runs.

    Running the same pipeline with the same ``output`` again resumes: what is done is not paid again.
    """

    #: Which of the pipelines that its place made in this process, once it ran: see `naming.number_of`.
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
        return run_in_loop(functools.partial(self.arun, on_runner=on_runner, **options))

    @checked
    async def arun(
        self, *, on_runner: Callable[[Runner], None] | None = None, **options: Unpack[RunSettings]
    ) -> Result:
        """`run()` for a running event loop. `on_runner` gets the Runner, for progress and draining: one
        for each segment, where steps over all rows split the pipeline."""
        chosen = RunOptions(**options)
        return Result(await self._run(chosen, on_runner=on_runner))

    @checked
    def stream(self, *, leaf: str = "default", **options: Unpack[RunSettings]) -> AsyncIterator[Row]:
        """Yields result rows as their records become durable, in the order in which they finish.

        Leaving the loop early stops the run, closes its connections and leaves a directory that resumes.
        A slow reader is backpressure. Rows that an earlier run finished are yielded too.
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
                # Said last; when the reader has left, nobody waits for it.
                if not _is_cancelling():
                    await finished.put(None)

        # The run is a task of its own: a task group around a `yield` would break when the reader leaves.
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
        """Checks, opens the run directory, binds the servers; in that order, so that errors come cheap first."""
        refuse_run()
        plan = self.checked(options)
        options = self.with_place(plan, options)
        await _streams_left()
        async with open_segments(self.name, plan, options) as segments:
            found: list[dict[str, Any]] = []

            def on_found(capabilities: Sequence[Capabilities]) -> None:
                found.extend(one.as_json() for one in capabilities)
                if options.on_servers is not None:
                    options.on_servers(capabilities)

            async with (
                servers_of(self.llms(), options, options.directory(self.name)) as (servers, supervisor),
                open_pool(
                    self.llms(),
                    servers=servers,
                    embedded=options.embedded_spec(),
                    policy=options.retry or RetryPolicy(),
                    rng=random.Random(),  # noqa: S311 - jitter of retries, not a secret
                    progress=options.on_download,
                    concurrency=options.concurrency,
                    needs=None if options.shard is not None else self.needs(),  # tried before, once for all shards
                    on_found=on_found,
                ) as pool,
            ):
                if supervisor is not None:
                    supervisor.watch(pool)
                report = await run_segments(self.name, segments, pool, on_rows=on_rows, on_runner=on_runner)
                report.servers = found
                return report

    def with_place(self, plan: Plan, options: RunOptions) -> RunOptions:
        """`options` with the run directory decided."""
        if self.is_named or options.output is not None:
            return replace(options, output=options.directory(self.name))
        by_content = options.directory(f"pipeline-{plan.fingerprint[:8]}")
        if self.origin is None:
            # No file that names it: pipelines must not meet in one directory, so each has its own by what it does.
            return replace(options, output=by_content)
        number = self._number or number_of(self.origin, plan.fingerprint, update=options.update)
        self._number = number
        chosen = options.directory(self.name if number == 1 else f"{self.name}-{number}")
        if number > 1:
            plan.notes.append(
                f"this is the {number}. pipeline without a name that {self.origin.file}:{self.origin.line} made: "
                f"its results are in {chosen}; Pipeline(name=...) says which is which"
            )
        # Runs of earlier versions of asyncsynth lie where the pipeline's content says.
        if Manifest.exists(by_content) and not Manifest.exists(chosen):
            chosen = by_content
        return replace(options, output=chosen)

    def checked(self, options: RunOptions | None = None) -> Plan:
        """The compiled plan. Raises PipelineError; sends nothing."""
        options = options or RunOptions()
        return self.plan(run_seed=options.seed, answering=answering_models(self.llms(), options.embedded_spec()))

    def with_input(self, path: str) -> None:
        """Reads rows from a JSONL file instead of what the pipeline's source says (``--input``)."""
        old = next((step for step in self.steps if isinstance(step, SourceStep)), None)
        if old is None:
            raise ConfigurationError("--input: the pipeline has no source whose place the file could take")
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
    """A run that somebody reads by `stream()`."""

    task: asyncio.Task[None] | None = None
    reader: weakref.ref[AsyncGenerator[Row, None]] | None = None  #: dead once its reader has left without closing it


_STREAMED: set[_Streamed] = set()


async def _streams_left() -> None:
    """Waits for runs whose readers left by `break`: Python closes these a moment later, and they lock a directory."""
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    left = [
        one.task
        for one in _STREAMED
        if one.task not in (None, this) and one.reader is not None and one.reader() is None
    ]
    if ending := [task for task in left if task is not None and task.get_loop() is loop]:
        await asyncio.wait(ending)


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
