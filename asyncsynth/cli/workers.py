"""`asyncsynth run --workers N`: the parent of the processes that share a run."""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asyncsynth.core.retry import RetryPolicy
from asyncsynth.engine.options import RunOptions
from asyncsynth.engine.pipeline import Pipeline
from asyncsynth.engine.report import RunReport
from asyncsynth.engine.run_servers import given_servers, servers_of
from asyncsynth.engine.sharded_run import opened, refuse_small_limits, shards_of
from asyncsynth.engine.worker_processes import Workers
from asyncsynth.errors import ConfigurationError
from asyncsynth.pipeline import Plan
from asyncsynth.servers.capabilities import Capabilities
from asyncsynth.serving.binding import open_pool
from asyncsynth.storage.extent import Extent
from asyncsynth.storage.layout import refuse_input_as_result
from asyncsynth.storage.manifest import Manifest

Run = Callable[..., Awaitable[RunReport]]

#: What a worker is told of the options; the rest is the parent's.
_TOLD = (
    "servers",
    "limit",
    "seed",
    "concurrency",
    "request_timeout",
    "model_change",
    "window",
    "retry_failed",
    "max_failures",
    "answers",
)
_CALL = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from asyncsynth.cli.worker_process import main; main()"
)


@contextlib.contextmanager
def run_of(
    pipeline: Pipeline,
    workers: int | None,
    target: str,
    input: Path | None,
    settings: Sequence[str],
    path: Sequence[str],
    options: Mapping[str, Any],
    *,
    export: bool = False,
) -> Iterator[Run]:
    """How the pipeline is to be run: in this process, or by several that share the run.

    A run that was dealt out once stays so: without `workers` it takes as many processes as it has shards.

    Args:
        path: `sys.path` before the pipeline's file added to it.
        export: the rows of the finished run will be written to its directory.

    Raises ConfigurationError, RunChangedError, RunLockedError, StorageError.
    """
    plan = pipeline.checked(RunOptions(**options))
    chosen = pipeline.with_place(plan, RunOptions(**options))
    if export and (source := plan.source.open().path) is not None:
        refuse_input_as_result(source, chosen.directory(pipeline.name), plan.leaves)
    there = shards_of(chosen.directory(pipeline.name))
    if not there and (workers or 1) == 1:

        async def alone(**more: Any) -> RunReport:
            return (await pipeline.arun(**options, **more)).report

        yield alone
        return
    count = workers or there
    _check(pipeline, chosen, count)
    with opened(pipeline.name, plan, chosen, count) as shards:
        epoch = len(Manifest.of_run(chosen.directory(pipeline.name)).epochs) - 1
        extent = Extent(epoch, _total(plan, chosen.limit), chosen.limit)
        job = {
            "target": target,
            "input": None if input is None else str(input),
            "settings": list(settings),
            "options": {name: options[name] for name in _TOLD if name in options}
            | {"output": str(chosen.directory(pipeline.name))},
        }

        async def together(*, on_runner: Callable[[Workers], None], **more: Any) -> RunReport:
            all_of_them = Workers(
                [sys.executable, "-P", "-c", _CALL, json.dumps(list(path))],
                job,
                shards=shards,
                workers=count,
                name=pipeline.name,
                directory=chosen.directory(pipeline.name),
                extent=extent,
                max_failures=chosen.max_failures,
            )
            return await _run(pipeline, replace(chosen, **more), all_of_them, on_runner)

        yield together


def _check(pipeline: Pipeline, options: RunOptions, workers: int) -> None:
    """Raises ConfigurationError for what several processes cannot share."""
    if options.embedded or any(llm.is_embedded for llm in pipeline.llms()):
        raise ConfigurationError(
            "an embedded model takes all of this machine's cores itself: more processes would only take some from it",
            hint="Leave --workers out; it is for servers that are faster than one process.",
        )
    refuse_small_limits(workers, options, given_servers(options))


async def _run(
    pipeline: Pipeline, options: RunOptions, workers: Workers, on_runner: Callable[[Workers], None]
) -> RunReport:
    """Starts and tries the servers, once for all workers, then lets these go."""
    found: list[dict[str, Any]] = []

    def on_found(capabilities: Sequence[Capabilities]) -> None:
        found.extend(one.as_json() for one in capabilities)
        if options.on_servers is not None:
            options.on_servers(capabilities)

    async with servers_of(pipeline.llms(), options, options.directory(pipeline.name)) as (servers, _):
        async with open_pool(
            pipeline.llms(),
            servers=servers,
            policy=options.retry or RetryPolicy(),
            rng=random.Random(),  # noqa: S311 - jitter of retries, not a secret
            needs=pipeline.needs(),
            on_found=on_found,
        ):
            pass
        on_runner(workers)
        report = await workers.run()
    report.servers = found
    return report


def _total(plan: Plan, limit: int | None) -> int | None:
    known = plan.source.open().size_hint()
    return limit if known is None else known if limit is None else min(known, limit)
