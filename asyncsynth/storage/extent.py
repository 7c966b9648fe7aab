"""extent.json: how many records a run's input has, and whether all of them have ended.

The journal shows which records have ended, but not how many there are. A run writes this file when it makes its
directory, before it reads its first record (``complete`` is false) and again when every record of the input has ended.
It is replaced atomically, so that it is never ahead of the journal: after a crash it shows too little, never too much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from asyncsynth.errors import RunUnfinished
from asyncsynth.storage import layout
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.files import REAL, FileSystem, atomic_write, storage_error
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.manifest import Manifest
from asyncsynth.storage.shard_directories import journals
from asyncsynth.storage.stage_directories import stage_before

EXTENT_NAME = layout.EXTENT


@dataclass(frozen=True, slots=True)
class Extent:
    """How far the last run over a directory came.

    Args:
        epoch: the state of the pipeline that it ran; the facts hold only for this one.
        records: records of the input, or of its first `limit`; None if that is not known yet.
        limit: the run's ``limit``.
        complete: the input was read to its end, or to `limit`, and every record has ended.
    """

    epoch: int
    records: int | None
    limit: int | None = None
    complete: bool = False

    @classmethod
    def load(cls, directory: Path) -> Extent | None:
        """The directory's extent; None if there is none, or none that can be read. Raises StorageError."""
        path = directory / EXTENT_NAME
        try:
            found = cls(**orjson.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, path, "read the file") from error
        except (ValueError, TypeError):
            return None
        numbers = [found.epoch, *(number for number in (found.records, found.limit) if number is not None)]
        return found if {*map(type, numbers)} == {int} and type(found.complete) is bool else None

    def save(self, directory: Path, *, fs: FileSystem = REAL) -> None:
        """Writes it atomically and durably. Raises StorageError."""
        atomic_write(directory / EXTENT_NAME, orjson.dumps(asdict(self)) + b"\n", fs=fs)


def reopen(directory: Path) -> None:
    """Records that the directory's records no longer have all ended: entries were lost. Raises StorageError."""
    extent = Extent.load(directory)
    if extent is not None and extent.complete:
        Extent(extent.epoch, extent.records, extent.limit).save(directory)


@dataclass(frozen=True, slots=True)
class Completeness:
    """Whether all records of a run have ended.

    Args:
        complete: None if it is not known: the directory was made by an earlier version.
        records: records of the input, or of its first `limit`, where that is known.
        unfinished: of these, those that have not ended; None if that is not known.
        limit: the run's ``limit``.
        part: folder of the stage that is not complete; '' for the last one, and for a run that has one only.
        rows_of: folder of the stage before, if its rows have not passed the step over all rows after it.
    """

    complete: bool | None
    records: int | None
    unfinished: int | None
    limit: int | None = None
    part: str = ""
    rows_of: str = ""

    def as_json(self) -> dict[str, Any]:
        """The keys that `status --json`, `export --json` and a run's last event share."""
        state = {"complete": self.complete, "unfinished": self.unfinished, "records": self.records}
        return {**state, "completeness": self.words}

    @property
    def words(self) -> str:
        """For a person: one line."""
        if self.complete:
            return f"complete (--limit {self.limit:,})" if self.limit is not None else "complete"
        if self.complete is None:
            return "not known to be complete: resume it with this version of asyncsynth to find out"
        return f"unfinished: {self.missing}"

    @property
    def missing(self) -> str:
        """The remaining work of an unfinished run, in words; '' for a complete one."""
        if self.complete:
            return ""
        place = f" ({self.part})" if self.part else ""
        if self.records is not None and self.unfinished:
            return f"{self.unfinished:,} of {self.records:,} records have not ended{place}"
        if self.rows_of:
            return f"the rows of {self.rows_of} have not passed the step over all rows after it{place}"
        if self.records is not None:  # all of them ended in an earlier run: this one tries some again
            return f"the last run was stopped before its end{place}"
        return f"the input was not read to its end{place}"


def judged(extent: Extent | None, epoch: int, ended: Callable[[], int], *, rows_of: str = "") -> Completeness:
    """What an extent shows about a state of the pipeline. `ended`: counts the records that have ended in it.

    `rows_of`: the folder of the stage before, if there is one.
    """
    if extent is None:
        return Completeness(None, None, None)
    # It is of another epoch: the run was stopped before it began to read. A later stage knows its records when it
    # starts.
    if extent.epoch != epoch or (rows_of and extent.records is None):
        return Completeness(False, None, None, rows_of=rows_of)
    count = ended()
    left = None if extent.records is None else max(0, extent.records - count)
    complete = extent.complete and not left
    if not complete and not left:
        left = None  # at least one has not ended, or is not known yet
    return Completeness(complete, extent.records, left, extent.limit)


def ended_records(directory: Path, manifest: Manifest) -> int:
    """How many records have ended in the run's current state, of all its shards. Reads the journal's index."""
    total = 0
    for place, part in journals(directory, manifest):
        index = RunIndex(keys=part.keys, stride=part.stride)
        with JournalView(place) as view:
            view.walk(index)
        counts = index.counts(len(manifest.epochs) - 1)
        total += counts.ok + counts.failed
    return total


def completeness(directory: Path) -> Completeness:
    """Whether all records of a run have ended, those of the stages before its last one, and of shards, included.

    Raises ConfigurationError if there is no run, CorruptJournal, StorageError.
    """
    manifest = Manifest.of_run(directory)
    before = stage_before(directory, manifest)
    if before is not None:
        earlier = completeness(before)
        if not earlier.complete:
            return replace(earlier, part=earlier.part or before.name)
    extent = Extent.load(directory)
    return judged(
        extent,
        len(manifest.epochs) - 1,
        lambda: ended_records(directory, manifest),
        rows_of=before.name if before is not None else "",
    )


def refuse_unfinished(directory: Path, found: Completeness) -> None:
    """Raises RunUnfinished unless the run is known to be complete."""
    if not found.complete:
        raise RunUnfinished(
            f"{directory}: {found.words}", hint="Resume the run, or leave out --complete-only (complete_only=True)."
        )
