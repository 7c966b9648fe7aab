"""`journal stats`: what a journal holds, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from asyncsynth.errors import StorageError
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.facts import SegmentFacts, sidecar_path
from asyncsynth.storage.files import REAL, FileSystem
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.kept_answers import disk_use
from asyncsynth.storage.layout import ANSWERS
from asyncsynth.storage.manifest import MANIFEST_NAME, Manifest


@dataclass(slots=True)
class JournalStats:
    """Numbers of one run directory."""

    directory: Path
    segments: int = 0
    bytes: int = 0  #: of all segments, headers and marks included
    entries: dict[str, int] = field(default_factory=dict)  #: type -> entries
    final: int = 0  #: records that ended well
    failed: int = 0  #: records that ended with failures only
    partial: int = 0  #: records with results of steps, and no end
    steps: dict[str, int] = field(default_factory=dict)  #: step of the current pipeline -> records with its results
    superseded: int = 0  #: entries of records that later ones have replaced
    superseded_bytes: int = 0
    sidecars: int = 0  #: usable ones
    sidecar_bytes: int = 0
    answers: int = 0  #: answers of models that are kept, see `storage.kept_answers`
    answer_bytes: int = 0
    first: str = ""  #: when the run directory was made, ISO 8601
    last: str = ""  #: time of the last write to its last segment

    @property
    def bytes_per_record(self) -> float | None:
        """Bytes of the journal for each record that it knows; None if there are no records."""
        records = self.final + self.failed + self.partial
        return self.bytes / records if records else None

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "directory": str(self.directory), "bytes_per_record": self.bytes_per_record}


def journal_stats(directory: Path, *, fs: FileSystem = REAL) -> JournalStats:
    """Reads one directory's journal twice, without its lock. Raises CorruptJournal, StorageError."""
    manifest = Manifest.load(directory)
    if manifest is None:
        raise StorageError(
            f"{directory / MANIFEST_NAME}: is missing", hint="`asyncsynth journal verify` reads a journal without it."
        )
    index = RunIndex(keys=manifest.keys, stride=manifest.stride)
    stats = JournalStats(directory, first=manifest.created)
    kinds: Counter[str] = Counter()
    with JournalView(directory, fs=fs) as view:
        view.walk(index)
        for where, body in view.bodies():
            entry = orjson.loads(body)
            kinds[entry["t"]] += 1
            if entry["t"] == "rec" and not _is_current(index, where, entry):
                stats.superseded += 1
                stats.superseded_bytes += len(body)
        stats.segments = len(view.segments)
        stats.bytes = sum(segment.size for segment in view.segments)
        for segment in view.segments:
            path = sidecar_path(segment.path)
            if segment.header is not None and SegmentFacts.load(segment, by_position=index.by_position, fs=fs):
                stats.sidecars += 1
                stats.sidecar_bytes += path.stat().st_size
        if view.segments:
            changed = view.segments[-1].path.stat().st_mtime
            stats.last = datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds")
    stats.entries = dict(kinds)
    stats.answers, stats.answer_bytes = disk_use(directory / ANSWERS)
    counts = index.counts()
    stats.final, stats.failed, stats.partial = counts.ok, counts.failed, index.partial()
    stats.steps = {name: index.step_count(step) for name, step in manifest.epochs[-1].steps.items()}
    return stats


def _is_current(index: RunIndex, where: int, entry: dict[str, Any]) -> bool:
    key = entry["k"]
    steps = [step["f"] for step in entry.get("s", ())]
    return index.is_current(key, where) or any(index.is_current(key, where, step) for step in steps)
