"""The directory of a run that several processes share, as their parent sees it: opened, locked and checked.

The parent compares the pipeline with the run's manifest and gives each shard the same manifest. In its own directory,
the process of a shard does an ordinary run (`engine.run_directory`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

from asyncsynth.engine.changes import Journals, changes_since, refusal, survey
from asyncsynth.engine.failing import is_share
from asyncsynth.engine.paid_answers import paid_answers
from asyncsynth.engine.run import Run, shared
from asyncsynth.engine.run_directory import add_epoch, check_place, new_manifest, set_aside
from asyncsynth.errors import ConfigurationError, PipelineError, RunLockedError
from asyncsynth.pipeline import GlobalStep, Plan
from asyncsynth.records import Part
from asyncsynth.storage import layout
from asyncsynth.storage.entries import RecordEntry
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.extent import Extent
from asyncsynth.storage.files import REAL, make_directory
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.lock import RunLock
from asyncsynth.storage.manifest import Manifest
from asyncsynth.storage.shard_directories import journals, shard_path

#: Seconds for worker processes to notice that their parent has died.
_ORPHANS_S = 10.0
_LOOK_S = 0.05


def shards_of(directory: Path) -> int:
    """How many shards the run in `directory` has; 0: none, or there is no run. Raises StorageError."""
    manifest = Manifest.load(directory)
    return 0 if manifest is None else manifest.shards


def refuse_barriers(plan: Plan) -> None:
    """Raises PipelineError for a step over all rows: with several processes, none has all rows."""
    for node in plan.nodes:
        if isinstance(node.step, GlobalStep):
            raise PipelineError(
                f"step {node.step.name!r} needs all rows, and --workers divides them among several processes",
                step=node.step.name,
                hint="Run it without --workers, or split the pipeline: the steps before this one in one pipeline, and "
                "this step in another that reads the first one's export.",
            )


def refuse_unshareable(run: Run, workers: int) -> None:
    """Raises ConfigurationError, PipelineError for what several processes cannot share."""
    if run.servers.embedded is not None or any(llm.is_embedded for llm in run.servers.llms):
        raise ConfigurationError(
            "an embedded model already uses all cores of this machine: more processes would only compete with it",
            hint="Leave out --workers; it is for servers that are faster than one process.",
        )
    refuse_small_limits(run, workers)
    refuse_barriers(run.plan)
    if run.options.retry is not None:
        raise ConfigurationError(
            "a retry policy of your own cannot be given to other processes", hint="Run it in one process."
        )


def refuse_small_limits(run: Run, workers: int) -> None:
    """Raises ConfigurationError for a limit that is smaller than the number of processes: each needs 1 of it."""
    given = [("--concurrency", run.servers.concurrency), ("--window", run.window)]
    given += [
        (f"{key} of {server.name} ({server.origin})", getattr(server, key))
        for server in run.servers.configs
        for key in ("limit", "max_concurrency", "requests_per_minute", "tokens_per_minute")
    ]
    for what, limit in given:
        if limit is not None and limit < workers:
            raise ConfigurationError(
                f"{what} is {limit}: {workers} processes cannot share it", hint=f"Use at most --workers {limit}."
            )


def shard_of(run: Run, shard: Part, share: Part) -> Run:
    """The part of a run that one process does, with its `share` of every limit."""
    servers, retry = run.servers, run.servers.retry
    return replace(
        run,
        directory=shard_path(run.directory, shard.number),
        shard=shard,
        share=share,
        update=False,  # the parent has given the shard its manifest
        use_cache=True,
        # A share of all records is the parent's to judge: the records of one process may fail more often.
        max_failures="100%" if is_share(run.max_failures) else run.max_failures,
        window=share.least_one(run.window),
        window_bytes=max(1, share.of(run.window_bytes)),
        servers=replace(
            servers,
            needs=None,  # the parent has tested the servers
            start=None,  # and started them
            configs=[shared(config, share) for config in servers.configs],
            concurrency=share.least_one(servers.concurrency),
            retry=replace(retry, budget_per_s=retry.budget_per_s / share.count),
        ),
    )


@contextlib.asynccontextmanager
async def open_shards(run: Run, workers: int) -> AsyncIterator[int]:
    """Creates or checks the run's directory and its shards, holds its lock; yields the number of shards.

    A new run gets `workers` shards, and keeps that number.
    Raises RunChangedError, RunLockedError, ConfigurationError for another kind of run, StorageError.
    """
    path = run.directory
    layout.refuse_own_places(path)
    check_place(path)
    refuse_barriers(run.plan)
    if not run.use_cache:
        set_aside(path)
    make_directory(REAL, path)
    lock = RunLock(path)
    try:
        manifest = _checked_manifest(run, workers)
        stride = manifest.shards if manifest.keys == "position" else 1
        for number in range(manifest.shards):
            await _give(shard_path(path, number), replace(manifest, shards=0, stride=stride))
        yield manifest.shards
    finally:
        lock.release()


def _checked_manifest(run: Run, workers: int) -> Manifest:
    """The run's manifest, checked against the plan and saved."""
    path, plan = run.directory, run.plan
    reader = plan.source.open()
    keys = "id" if reader.id_column else "position"
    manifest = Manifest.load(path)
    if manifest is None:
        manifest = new_manifest(run, uuid.uuid4().hex, keys, reader)
        manifest.shards = workers
        Extent(0, None).save(path)  # first, as in `RunDirectory.opened`
        manifest.save(path)
        return manifest
    if not manifest.shards:
        raise ConfigurationError(
            f"{path} is a run of one process: its journal cannot be split into shards",
            hint="Run without --workers, or choose another directory.",
        )
    if changes := changes_since(manifest, plan, reader, keys):
        if not run.update:
            with contextlib.ExitStack() as views:
                there = Journals([_journal(views, place, part) for place, part in journals(path, manifest)])
                if there.records():  # without any there is nothing to redo
                    found = survey(manifest, plan, changes, there, total=reader.size_hint())
                    kept = paid_answers(run, shards=manifest.shards)
                    raise refusal(path, [found], plan.notes, kept=kept)
        add_epoch(manifest, keys, plan, reader)
        manifest.save(path)
    return manifest


def _journal(
    views: contextlib.ExitStack, place: Path, manifest: Manifest
) -> tuple[RunIndex, Callable[[int], RecordEntry]]:
    """The index of a shard's journal, and how to read an entry of it while `views` is open."""
    index = RunIndex(keys=manifest.keys, stride=manifest.stride)
    view = views.enter_context(JournalView(place))
    view.walk(index)
    return index, view.record


async def _give(place: Path, manifest: Manifest) -> None:
    """Gives a shard its manifest, once no process writes there any more.

    This process holds the run's lock, so a process that holds the shard's has lost its parent, and is ending.
    """
    make_directory(REAL, place)
    until = time.monotonic() + _ORPHANS_S
    while True:
        try:
            lock = RunLock(place)
            break
        except RunLockedError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(_LOOK_S)
    try:
        manifest.save(place)
    finally:
        lock.release()
