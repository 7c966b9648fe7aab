"""Carrying out a run: in this process, or by several that share it.

Both do the same in the same order, so that errors come cheap first: open, lock and check the directory, start the
servers, connect to them and test them, then let the records go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from asyncsynth.engine.report import RunReport
from asyncsynth.engine.run import Run
from asyncsynth.engine.run_servers import run_servers
from asyncsynth.engine.runner import OnRows, Runner
from asyncsynth.engine.sharded_run import open_shards, refuse_unshareable, shards_of
from asyncsynth.engine.stages import open_stages, run_stages
from asyncsynth.engine.worker_processes import WorkerProgram, Workers

#: What does a run, to those who show it and stop it.
Running: TypeAlias = Runner | Workers


async def execute(
    run: Run, *, on_rows: OnRows | None = None, on_runner: Callable[[Runner], None] | None = None
) -> RunReport:
    """Does a run, or a shard of one, in this process.

    Args:
        on_rows: see `Runner`.
        on_runner: gets the Runner of each stage before it begins.

    Raises AsyncsynthError for what stopped it, after everything that was done is safe.
    """
    async with open_stages(run) as stages, run_servers(run) as servers, servers.connected() as pool:
        return await run_stages(stages, pool, found=servers.found, on_rows=on_rows, on_runner=on_runner)


def processes(run: Run, workers: int | None) -> int:
    """How many worker processes do a run; 0: this process does it.

    A run that has shards keeps them: without `workers` it takes as many processes as it has shards.
    """
    there = shards_of(run.directory)
    return (workers or there) if there or (workers or 1) > 1 else 0


async def execute_shared(
    run: Run, workers: int, program: WorkerProgram, *, on_runner: Callable[[Workers], None] | None = None
) -> RunReport:
    """Does a run in `workers` processes. The servers are started and tested once for all of them.

    Raises what `execute` raises, and ConfigurationError for what processes cannot share.
    """
    refuse_unshareable(run, workers)
    async with open_shards(run, workers) as shards, run_servers(run) as servers:
        await servers.test()
        together = Workers(run, shards, workers, program, found=servers.found)
        if on_runner is not None:
            on_runner(together)
        return await together.run()
