"""`journal verify`: reads every byte of a run's journal, and compares all derived files with it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from asyncsynth.errors import ConfigurationError, StorageError
from asyncsynth.storage import layout
from asyncsynth.storage.barrier_rows import check_rows
from asyncsynth.storage.damage import SegmentCheck, check_segment, read_header, size_of
from asyncsynth.storage.facts import SegmentFacts, sidecar_path
from asyncsynth.storage.files import REAL, FileSystem, storage_error
from asyncsynth.storage.manifest import MANIFEST_NAME, Manifest
from asyncsynth.storage.segments import segment_path


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that differs from what was written. `offset` in bytes, None for the whole file."""

    path: Path
    offset: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.offset}: {self.what}" if self.offset is not None else f"{self.path}: {self.what}"


@dataclass(slots=True)
class Verified:
    """The contents of one run directory, and the findings. Without findings the journal is whole."""

    directory: Path
    manifest: Manifest | None = None
    segments: list[SegmentCheck] = field(default_factory=list)
    sidecars: int = 0  #: that agree with their segments
    wrong_sidecars: list[Path] = field(default_factory=list)  #: that check and say something else
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  #: damage that the next run repairs

    @property
    def kinds(self) -> Counter[str]:
        """Entries by type."""
        return sum((segment.kinds for segment in self.segments), Counter())

    @property
    def lines(self) -> int:
        """Lines that check: headers, marks and entries."""
        return sum((s.header_size > 0) + s.marks + s.entries for s in self.segments)

    @property
    def nbytes(self) -> int:
        return sum(segment.size for segment in self.segments)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "directory": str(self.directory),
            "segments": len(self.segments),
            "bytes": self.nbytes,
            "lines": self.lines,
            "marks": sum(segment.marks for segment in self.segments),
            "entries": dict(self.kinds),
            "sidecars": self.sidecars,
            "findings": [{"path": str(f.path), "offset": f.offset, "what": f.what} for f in self.findings],
            "notes": self.notes,
        }


def run_directories(directory: Path) -> list[Path]:
    """The directories of a run's journals, in order: its shards if it has any; `stage-k` where steps over all
    rows split it, then itself.

    Raises ConfigurationError if there is no run.
    """
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise storage_error(error, directory, "list the run directory") from error
    if MANIFEST_NAME not in names and not layout.segment_numbers(names):
        raise ConfigurationError(
            f"{directory} is not a run directory: there is neither a {MANIFEST_NAME} nor a journal in it",
            hint="Name the directory that the run printed (`--output`).",
        )
    if shards := layout.shard_numbers(names):
        return [directory / layout.shard_name(number) for number in shards]
    return [*(directory / folder for folder in layout.stage_folders(names)), directory]


def verify(directory: Path, *, fs: FileSystem = REAL) -> Verified:
    """Reads one directory's journal whole. Changes nothing. Raises StorageError if it cannot be read."""
    found = Verified(directory)
    try:
        found.manifest = Manifest.load(directory)
        if found.manifest is None:
            found.findings.append(Finding(directory / MANIFEST_NAME, None, "is missing"))
    except StorageError as error:
        found.findings.append(Finding(directory / MANIFEST_NAME, 0, error.message.partition(": ")[2]))
    found.segments = _headers(directory, found.manifest, fs)
    prev = 0
    for at, segment in enumerate(found.segments):
        following = found.segments[at + 1 :]
        # The seq that this segment must end with; if nothing of the next is readable, any end is accepted.
        next_prev = next((s.header.prev for s in following[:1] if s.header is not None and s.header_size), None)
        if next_prev is None and following:
            next_prev = -1
        _segment(found, segment, prev, next_prev, fs)
        prev = max(segment.last_seq, next_prev or 0)
    wrong, other = check_rows(directory)
    if wrong:
        found.findings.append(Finding(directory / layout.BARRIER_ROWS, None, f"{wrong}; the next run makes it again"))
    if other:
        found.notes.append(f"{directory / layout.BARRIER_ROWS}: {other}")
    return found


def _headers(directory: Path, manifest: Manifest | None, fs: FileSystem) -> list[SegmentCheck]:
    """The segments that there are and those that are missing between them."""
    numbers = layout.segment_numbers(os.listdir(directory))
    checks: list[SegmentCheck] = []
    run_id = manifest.run_id if manifest is not None else None
    for number in range(1, numbers[-1] + 1 if numbers else 1):
        check = SegmentCheck(number, segment_path(directory, number))
        check.there = number in set(numbers)
        if check.there:
            check.size = size_of(check.path)
            check.header, check.header_size = read_header(fs, check.path, check.size, run_id, number)
            if run_id is None and check.header_size and check.header is not None:
                run_id = check.header.run_id
        checks.append(check)
    return checks


def _segment(found: Verified, segment: SegmentCheck, prev: int, next_prev: int | None, fs: FileSystem) -> None:
    header = segment.header
    if segment.header_size and header is not None and header.prev != prev:
        found.findings.append(
            Finding(segment.path, 0, f"begins after line {header.prev}, the segment before it ends with {prev}")
        )
        prev = header.prev
    manifest = found.manifest
    facts = SegmentFacts(by_position=manifest is not None and manifest.keys == "position")
    broken: list[int] = []

    def entry(where: int, body: bytes) -> None:
        try:
            facts.add(where, orjson.loads(body))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            broken.append(where & ((1 << 40) - 1))

    end = next_prev if next_prev is not None and next_prev >= 0 else None
    check_segment(segment, fs, prev, end, entry)
    if next_prev == -1:  # not the last, and its end is not known
        for damage in segment.damages:
            damage.synced = True
    _tell(found, segment, broken)
    if manifest is not None and not segment.damages and not broken:
        _sidecar(found, segment, facts, fs)


def _tell(found: Verified, segment: SegmentCheck, broken: list[int]) -> None:
    if not segment.there:
        found.findings.append(Finding(segment.path, None, "this segment of the journal is missing"))
        return
    for damage in segment.damages:
        if not damage.synced:
            found.notes.append(
                f"{segment.path}:{damage.offset}: {segment.size - damage.offset} bytes of a write that was not"
                " finished; the next run cuts them off and keeps them in a file"
            )
            continue
        what = "the header does not check" if damage.offset == 0 else f"{damage.size} bytes do not check"
        if damage.size == 0 and damage.offset:
            what = "lines are missing here"
        lost = f"; {damage.missing} line(s) lost from line {damage.first} on" if damage.missing else ""
        keys = f"; of records {', '.join(map(repr, damage.keys[:5]))}" if damage.keys else ""
        found.findings.append(Finding(segment.path, damage.offset, what + lost + keys))
    found.findings += [
        Finding(segment.path, at, "a mark names another line than the one before it") for at in segment.wrong_marks
    ]
    found.findings += [Finding(segment.path, at, "is no entry of this format, though it checks") for at in broken]
    if gone := segment.kinds["lost"]:
        found.notes.append(f"{segment.path}: {gone} line(s) were lost; a repair recorded the gap")


def _sidecar(found: Verified, segment: SegmentCheck, facts: SegmentFacts, fs: FileSystem) -> None:
    path = sidecar_path(segment.path)
    if not path.exists():
        return
    loaded = SegmentFacts.load(segment.segment, by_position=facts.by_position, fs=fs)
    if loaded is None:
        found.notes.append(f"{path}: cannot be used; the next run makes it again")
    elif loaded[1:] != (segment.last_seq, segment.entries) or not facts.same_as(loaded[0]):
        found.wrong_sidecars.append(path)
        found.findings.append(Finding(path, None, "differs from its segment"))
    else:
        found.sidecars += 1
