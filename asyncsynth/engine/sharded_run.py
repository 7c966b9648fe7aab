"""The directory of a run that several processes share, as its parent process sees it: opened, locked and checked.

The parent decides what the run is: it compares the pipeline with the run's manifest and gives each shard the same
one. What a shard's process does in its own directory is an ordinary run (`engine.run_directory`).
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from asyncsynth.core.retry import RetryPolicy
from asyncsynth.engine.changes import Journals, changes_since, refusal, survey
from asyncsynth.engine.failing import is_share
from asyncsynth.engine.options import RunOptions
from asyncsynth.engine.paid_answers import paid_answers
from asyncsynth.engine.run_directory import add_epoch, check_place, new_manifest
from asyncsynth.errors import ConfigurationError, PipelineError, RunLockedError
from asyncsynth.pipeline import GlobalStep, Plan
from asyncsynth.records import Part
from asyncsynth.servers.configs import ServerConfig
from asyncsynth.storage import layout
from asyncsynth.storage.entries import RecordEntry
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.extent import Extent
from asyncsynth.storage.files import REAL, make_directory
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.lock import RunLock
from asyncsynth.storage.manifest import Manifest
from asyncsynth.storage.shard_directories import journals, shard_path

#: Seconds that the processes of a parent which has died get for noticing it.
_ORPHANS_S = 10.0
_LOOK_S = 0.05


def shards_of(directory: Path) -> int:
    """How many shards the run has that is there; 0: none, or no run. Raises StorageError."""
    manifest = Manifest.load(directory)
    return 0 if manifest is None else manifest.shards


def refuse_barriers(plan: Plan) -> None:
    """Raises PipelineError for a step over all rows: no process of several has them all."""
    for node in plan.nodes:
        if isinstance(node.step, GlobalStep):
            raise PipelineError(
                f"step {node.step.name!r} waits for all rows, and --workers deals them out to several processes",
                step=node.step.name,
                hint="Run it without --workers, or split it there: what comes before in one pipeline, and this step "
                "in another that reads the first one's export.",
            )


def refuse_small_limits(workers: int, options: RunOptions, servers: list[ServerConfig]) -> None:
    """Raises ConfigurationError for a limit that so many processes cannot share, since each needs 1 of it."""
    given = [("--concurrency", options.concurrency), ("--window", options.window)]
    given += [
        (f"{key} of {server.name} ({server.origin})", getattr(server, key))
        for server in servers
        for key in ("limit", "max_concurrency", "requests_per_minute", "tokens_per_minute")
    ]
    for what, limit in given:
        if limit is not None and limit < workers:
            raise ConfigurationError(
                f"{what} is {limit}: {workers} processes cannot share it", hint=f"Take --workers {limit} at most."
            )


def shared_options(options: RunOptions, shard: Part, share: Part) -> RunOptions:
    """The options of the process that does `shard` with its `share` of what the run may take."""
    policy = options.retry or RetryPolicy()
    return replace(
        options,
        output=shard_path(options.directory(""), shard.number),
        shard=shard,
        share=share,
        start=None,
        update=False,
        # A share of all records is the parent's to judge: what fails may be the records of one process.
        max_failures="100%" if is_share(options.max_failures) else options.max_failures,
        concurrency=share.least_one(options.concurrency),
        window=share.least_one(options.window),
        window_bytes=max(1, share.of(options.window_bytes)),
        retry=replace(policy, budget_per_s=policy.budget_per_s / share.count),
    )


@contextlib.contextmanager
def opened(name: str, plan: Plan, options: RunOptions, workers: int) -> Iterator[int]:
    """Creates or checks the run's directory and its shards, holds its lock; yields the number of shards.

    A new run gets `workers` shards, and keeps that number.
    Raises RunChangedError, RunLockedError, ConfigurationError for another kind of run, StorageError.
    """
    path = options.directory(name)
    layout.refuse_own_places(path)
    check_place(path)
    refuse_barriers(plan)
    make_directory(REAL, path)
    lock = RunLock(path)
    try:
        manifest = _checked_manifest(name, path, plan, options, workers)
        stride = manifest.shards if manifest.keys == "position" else 1
        for number in range(manifest.shards):
            _give(shard_path(path, number), replace(manifest, shards=0, stride=stride))
        yield manifest.shards
    finally:
        lock.release()


def _checked_manifest(name: str, path: Path, plan: Plan, options: RunOptions, workers: int) -> Manifest:
    """The run's manifest, saved as it now stands."""
    reader = plan.source.open()
    keys = "id" if reader.id_column else "position"
    manifest = Manifest.load(path)
    if manifest is None:
        manifest = new_manifest(name, uuid.uuid4().hex, keys, plan, reader, options)
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
        if not options.update:
            with contextlib.ExitStack() as views:
                there = Journals([_journal(views, place, part) for place, part in journals(path, manifest)])
                if there.records():  # without any there is nothing to redo
                    found = survey(manifest, plan, changes, there, total=reader.size_hint())
                    kept = paid_answers(path, plan, options, shards=manifest.shards)
                    raise refusal(path, [found], plan.notes, kept=kept)
        add_epoch(manifest, keys, plan, reader)
        manifest.save(path)
    return manifest


def _journal(
    views: contextlib.ExitStack, place: Path, manifest: Manifest
) -> tuple[RunIndex, Callable[[int], RecordEntry]]:
    """The index of a shard's journal, and how an entry of it is read for as long as `views` is open."""
    index = RunIndex(keys=manifest.keys, stride=manifest.stride)
    view = views.enter_context(JournalView(place))
    view.walk(index)
    return index, view.record


def _give(place: Path, manifest: Manifest) -> None:
    """Gives a shard its manifest, once nobody writes there any more.

    The run's lock is ours, so whoever holds the shard's is a process whose parent has died, and is ending.
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
            time.sleep(_LOOK_S)
    try:
        manifest.save(place)
    finally:
        lock.release()
