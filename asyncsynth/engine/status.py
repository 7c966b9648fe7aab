"""The state of a run directory: read without its lock, even while another process is writing it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from asyncsynth.engine.barrier import BarrierCounts, earlier_output
from asyncsynth.engine.report import added
from asyncsynth.engine.server_lines import kept_lines, merged_lines
from asyncsynth.storage.entries import FailedRow
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.extent import Completeness, Extent, judged
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
    missing: Completeness  #: of the whole run, the stages before this one included
    examples: list[FailedRow] = field(default_factory=list)  #: one for each step and reason
    servers: list[dict[str, Any]] = field(default_factory=list)  #: their last state, see `engine.server_lines`
    before: RunStatus | None = None  #: of the stage before, if a step over all rows splits the pipeline
    shards: int = 0  #: parts that several processes share; 0: the run has one part
    barrier: BarrierCounts | None = None  #: what the step over all rows after this stage did with its rows

    @property
    def complete(self) -> bool | None:
        """Whether every record of the input has ended; None if that is not known."""
        return self.missing.complete

    @property
    def records(self) -> int | None:
        """Records of the input, or of its first `limit`, if that is known."""
        return self.missing.records

    @property
    def unfinished(self) -> int | None:
        """Records that have not ended, if that is known."""
        return self.missing.unfinished

    @property
    def completeness(self) -> str:
        """What is missing, in words."""
        return self.missing.words

    @classmethod
    def read(cls, directory: Path, *, examples: int = 0) -> RunStatus:
        """Reads the manifest and the journal. Raises ConfigurationError if there is no run."""
        manifest = Manifest.of_run(directory)
        if manifest.shards:
            extent = Extent.load(directory)
            parts = [cls._read(place, part, examples) for place, part in journals(directory, manifest)]
            return _together(directory, manifest, extent, parts, examples)
        return cls._read(directory, manifest, examples)

    @classmethod
    def _read(cls, directory: Path, manifest: Manifest, examples: int) -> RunStatus:
        extent = Extent.load(directory)  # before the journal: with what is added meanwhile it says too little
        index = RunIndex(keys=manifest.keys, stride=manifest.stride)
        epoch = len(manifest.epochs) - 1
        with JournalView(directory) as view:
            view.walk(index)
            counts = index.counts(epoch)
            # Without failures, a million records need not be searched for one.
            found = failure_examples(view, index, epoch) if counts.failed_rows else ()
            shown = list(islice(found, examples))
        before = _before(directory, manifest, examples)
        rows_of = before.directory.name if before is not None else ""
        missing = judged(extent, epoch, lambda: counts.ok + counts.failed, rows_of=rows_of)
        if before is not None and not before.complete:
            missing = replace(before.missing, part=before.missing.part or rows_of)
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
            missing=missing,
            examples=shown,
            servers=kept_lines(directory),
            before=before,
            barrier=earlier_output(directory, None),
        )

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"event": "status", **self._plain()}

    def _plain(self) -> dict[str, Any]:
        plain = {**asdict(self), **self.missing.as_json(), "directory": str(self.directory)}
        del plain["missing"]
        return {**plain, "before": None if self.before is None else self.before._plain()}


def _together(
    directory: Path, manifest: Manifest, extent: Extent | None, parts: Sequence[RunStatus], examples: int
) -> RunStatus:
    """The status of a run from those of its shards."""

    ok, failed = sum(part.ok for part in parts), sum(part.failed for part in parts)
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
        missing=judged(extent, len(manifest.epochs) - 1, lambda: ok + failed),
        examples=list(first.values())[:examples],
        servers=merged_lines(part.servers for part in parts),
        shards=manifest.shards,
    )


def _before(directory: Path, manifest: Manifest, examples: int) -> RunStatus | None:
    """The status of the stage that the rows come from. The last stage's directory holds all others."""
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
