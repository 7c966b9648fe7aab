"""The state of a run directory: read without its lock, also while another process is writing it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from asyncsynth.engine.barrier import BarrierCounts, earlier_output
from asyncsynth.engine.server_lines import kept_lines, merged_lines
from asyncsynth.storage.entries import FailedRow
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.extent import Extent, judged
from asyncsynth.storage.failures import failure_examples
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.lock import LOCK_NAME
from asyncsynth.storage.manifest import Manifest
from asyncsynth.storage.shard_directories import journals
from asyncsynth.storage.stage_directories import stage_before


@dataclass(slots=True)
class RunStatus:
    """Counts of the current state of the pipeline (the manifest's last epoch)."""

    pipeline: str
    directory: Path
    writer_pid: int | None  #: process that is writing the run now
    ok: int
    failed: int
    rows: dict[str, int]  #: end of the graph -> rows
    failed_rows: dict[str, int]  #: "step: reason" -> rows
    dropped_rows: dict[str, int]  #: "step: reason" -> rows
    steps: dict[str, int]  #: step that asks a model -> records that have its results
    examples: list[FailedRow] = field(default_factory=list)  #: one for each step and reason
    servers: list[dict[str, Any]] = field(default_factory=list)  #: as they stood last, see `engine.server_lines`
    before: RunStatus | None = None  #: of the segment before, where a step over all rows splits the pipeline
    shards: int = 0  #: processes that the run was dealt out to; 0: one, and not dealt out
    records: int | None = None  #: records of the input, or of its first `limit`, where that is known
    complete: bool | None = None  #: all of them have ended, in the segments before, too; None: not known
    unfinished: int | None = None  #: those that have not ended, where that is known
    completeness: str = ""  #: the same in words
    barrier: BarrierCounts | None = None  #: what became of this segment's rows on their way to the next one

    @classmethod
    def read(cls, directory: Path, *, examples: int = 0) -> RunStatus:
        """Reads the manifest and the journal. Raises ConfigurationError where there is no run."""
        manifest = Manifest.of_run(directory)
        if manifest.shards:
            extent = Extent.load(directory)
            parts = [cls._read(place, part, examples) for place, part in journals(directory, manifest)]
            return _together(directory, manifest, extent, parts, examples)
        return cls._read(directory, manifest, examples)

    @classmethod
    def _read(cls, directory: Path, manifest: Manifest, examples: int) -> RunStatus:
        extent = Extent.load(directory)  # before the journal: what is added meanwhile makes it say too little
        index = RunIndex(keys=manifest.keys, stride=manifest.stride)
        epoch = len(manifest.epochs) - 1
        with JournalView(directory) as view:
            view.walk(index)
            counts = index.counts(epoch)
            # Where nothing failed, that is not looked for in a million records.
            found = failure_examples(view, index, epoch) if counts.failed_rows else ()
            shown = list(islice(found, examples))
        before = _before(directory, manifest, examples)
        rows_of = before.directory.name if before is not None else ""
        how = judged(extent, epoch, lambda: counts.ok + counts.failed, rows_of=rows_of)
        complete, words = how.complete, how.words
        if before is not None and not before.complete:
            complete, words = before.complete, before.completeness
        return cls(
            pipeline=manifest.pipeline,
            directory=directory,
            writer_pid=writer_pid(directory),
            ok=counts.ok,
            failed=counts.failed,
            rows=dict(counts.rows),
            failed_rows={f"{step}: {reason}": n for (step, reason), n in counts.failed_rows.items()},
            dropped_rows={f"{step}: {reason}": n for (step, reason), n in counts.dropped_rows.items()},
            steps={name: index.step_count(fingerprint) for name, fingerprint in manifest.epochs[-1].steps.items()},
            examples=shown,
            servers=kept_lines(directory),
            before=before,
            records=how.records,
            complete=complete,
            unfinished=how.unfinished,
            completeness=words,
            barrier=earlier_output(directory, None),
        )

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"event": "status", **asdict(self), "directory": str(self.directory)}


def _together(
    directory: Path, manifest: Manifest, extent: Extent | None, parts: Sequence[RunStatus], examples: int
) -> RunStatus:
    """The status of a run from those of its shards."""

    def added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
        total: Counter[str] = Counter()
        for one in counts:
            total.update(one)
        return dict(total)

    ok, failed = sum(part.ok for part in parts), sum(part.failed for part in parts)
    how = judged(extent, len(manifest.epochs) - 1, lambda: ok + failed)
    first = {(failed.step, failed.reason): failed for part in reversed(parts) for failed in part.examples}
    return RunStatus(
        pipeline=manifest.pipeline,
        directory=directory,
        writer_pid=writer_pid(directory),
        ok=ok,
        failed=failed,
        rows=added(part.rows for part in parts),
        failed_rows=added(part.failed_rows for part in parts),
        dropped_rows=added(part.dropped_rows for part in parts),
        steps=added(part.steps for part in parts),
        examples=list(first.values())[:examples],
        servers=merged_lines(part.servers for part in parts),
        shards=manifest.shards,
        records=how.records,
        complete=how.complete,
        unfinished=how.unfinished,
        completeness=how.words,
    )


def _before(directory: Path, manifest: Manifest, examples: int) -> RunStatus | None:
    """The status of the segment that the rows come from. The last segment's directory holds all others."""
    place = stage_before(directory, manifest)
    return None if place is None else RunStatus.read(place, examples=examples)


def writer_pid(directory: Path) -> int | None:
    """The process that holds the run's lock, or None."""
    with contextlib.suppress(OSError), (directory / LOCK_NAME).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            held_by = os.pread(lock.fileno(), 32, 0).strip()
            return int(held_by) if held_by.isdigit() else None
    return None
