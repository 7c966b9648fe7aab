"""How a run directory stands: read without its lock, also while another process is writing it."""

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
from asyncsynth.engine.limits import kept_lines, merged_lines
from asyncsynth.storage.entries import FailedRow
from asyncsynth.storage.failures import failures
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.lock import LOCK_NAME
from asyncsynth.storage.manifest import Manifest
from asyncsynth.storage.reading import JournalView
from asyncsynth.storage.shards import journals


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
    examples: list[FailedRow] = field(default_factory=list)
    servers: list[dict[str, Any]] = field(default_factory=list)  #: as they stood last, see `engine.limits`
    before: RunStatus | None = None  #: of the segment before, where a step over all rows splits the pipeline
    shards: int = 0  #: processes that the run was dealt out to; 0: one, and not dealt out
    barrier: BarrierCounts | None = None  #: what became of this segment's rows on their way to the next one

    @classmethod
    def read(cls, directory: Path, *, examples: int = 0) -> RunStatus:
        """Reads the manifest and the journal. Raises ConfigurationError where there is no run."""
        manifest = Manifest.of_run(directory)
        if manifest.shards:
            parts = [cls._read(place, part, examples) for place, part in journals(directory, manifest)]
            return _together(directory, manifest, parts, examples)
        return cls._read(directory, manifest, examples)

    @classmethod
    def _read(cls, directory: Path, manifest: Manifest, examples: int) -> RunStatus:
        index = RunIndex(keys=manifest.keys, stride=manifest.stride)
        epoch = len(manifest.epochs) - 1
        with JournalView(directory) as view:
            view.walk(index)
            counts = index.counts(epoch)
            # Where nothing failed, that is not looked for in a million records.
            found = failures(view, index, epoch) if counts.failed_rows else ()
            shown = [failed for _, failed in islice(found, examples)]
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
            before=_before(directory, manifest, examples),
            barrier=earlier_output(directory, None),
        )

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"event": "status", **asdict(self), "directory": str(self.directory)}


def _together(directory: Path, manifest: Manifest, parts: Sequence[RunStatus], examples: int) -> RunStatus:
    """The status of a run from those of its shards."""

    def added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
        total: Counter[str] = Counter()
        for one in counts:
            total.update(one)
        return dict(total)

    return RunStatus(
        pipeline=manifest.pipeline,
        directory=directory,
        writer_pid=writer_pid(directory),
        ok=sum(part.ok for part in parts),
        failed=sum(part.failed for part in parts),
        rows=added(part.rows for part in parts),
        failed_rows=added(part.failed_rows for part in parts),
        dropped_rows=added(part.dropped_rows for part in parts),
        steps=added(part.steps for part in parts),
        examples=[failed for part in parts for failed in part.examples][:examples],
        servers=merged_lines(part.servers for part in parts),
        shards=manifest.shards,
    )


def _before(directory: Path, manifest: Manifest, examples: int) -> RunStatus | None:
    """The status of the segment that the rows come from. The last segment's directory holds all others."""
    folder = manifest.source.get("segment")
    if not folder:
        return None
    place = directory / folder if (directory / folder).is_dir() else directory.parent / folder
    return RunStatus.read(place, examples=examples) if Manifest.exists(place) else None


def writer_pid(directory: Path) -> int | None:
    """The process that holds the run's lock, or None."""
    with contextlib.suppress(OSError), (directory / LOCK_NAME).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            held_by = os.pread(lock.fileno(), 32, 0).strip()
            return int(held_by) if held_by.isdigit() else None
    return None
