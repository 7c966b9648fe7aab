"""Opens a journal that a crash may have cut: verifies it, saves a torn tail elsewhere, cuts it off.

Only the last segment can be torn, because a segment begins only after the one before it is on the disk.
A line that does not check is a torn tail if nothing shows that it was ever synced; else it is corruption, and refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from asyncsynth.errors import CorruptJournal
from asyncsynth.storage import layout
from asyncsynth.storage.files import FileSystem, storage_error, write_all
from asyncsynth.storage.framing import location
from asyncsynth.storage.segments import Scan, Segment, list_segments, open_for_reading, synced_past

_COPY = 1 << 20


class Visitor(Protocol):
    """Gets the entries of a journal while it is verified, so that the bytes are read only once."""

    def begin(self, segment: Segment) -> tuple[int, int] | None:
        """(last seq, entries) when the segment's contents are known already and need no scan; else None."""

    def entry(self, where: int, body: bytes) -> None:
        """One checked entry: its location and its JSON bytes."""

    def end(self, segment: Segment, last_seq: int, entries: int, *, closed: bool) -> None:
        """The segment was scanned to its end. `closed`: it will not grow, and derived files may be written."""


class NoVisitor:
    """Verifies everything, keeps nothing."""

    def begin(self, segment: Segment) -> tuple[int, int] | None:
        return None

    def entry(self, where: int, body: bytes) -> None:
        pass

    def end(self, segment: Segment, last_seq: int, entries: int, *, closed: bool) -> None:
        pass


@dataclass(slots=True)
class RecoveryReport:
    """The findings on opening. `bytes_cut` > 0 if a torn tail was moved to `tail_file`."""

    entries: int = 0
    segments: int = 0
    bytes_cut: int = 0
    cut_file: Path | None = None
    cut_at: int = 0  #: byte offset in `cut_file`
    tail_file: Path | None = None

    def __str__(self) -> str:
        text = f"journal: {self.entries} entries kept in {self.segments} segment(s)"
        if self.bytes_cut:
            text += (
                f"; cut {self.bytes_cut} bytes of an unfinished write at {self.cut_file}:{self.cut_at}"
                f" (kept in {self.tail_file})"
            )
        return text


@dataclass(slots=True)
class Recovered:
    """The journal after recovery."""

    run_id: str | None  #: None when there is no segment yet
    salts: dict[int, int]
    last_segment: int
    last_seq: int
    report: RecoveryReport


@dataclass(slots=True)
class Torn:
    """Where the good lines of the last segment end."""

    segment: Segment
    at: int


def corrupt(segment: Segment, at: int, what: str) -> CorruptJournal:
    """The refusal, with file and offset."""
    return CorruptJournal(
        f"{segment.path}:{at}: {what}",
        hint="Bytes that were once safely on the disk have changed; nothing was altered. Restore the run directory"
        " from a copy, or keep what is good of it: `asyncsynth journal repair DIR`.",
    )


class Walk:
    """Verifies the segments in order and yields (location, JSON bytes) of every entry. Raises CorruptJournal.

    After the walk: `last_seq`, `entries`, `torn`, and `last`, the scan of the last segment (None when the
    visitor knew it, or when even its header is torn). The visitor's `end` is called for all but the last
    segment, which the caller settles.
    """

    def __init__(self, segments: list[Segment], fs: FileSystem, visitor: Visitor, *, settled: bool) -> None:
        self._settled = settled  #: this process holds the lock
        self._segments = segments
        self._fs = fs
        self._visitor = visitor
        self.last_seq: int = 0
        self.entries: int = 0
        self.torn: Torn | None = None
        self.last: Scan | None = None

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        run_id: str | None = None
        for segment in self._segments:
            is_last = segment is self._segments[-1]
            header = segment.header
            if header is None:
                self._refuse_if_synced(segment, is_last)
                self.torn = Torn(segment, 0)
                return
            if header.prev != self.last_seq or (run_id or header.run_id) != header.run_id:
                raise corrupt(segment, 0, f"the segment does not continue line {self.last_seq} of this run")
            run_id = header.run_id
            known = self._visitor.begin(segment)
            if known is not None:
                self.last_seq = known[0]
                self.entries += known[1]
            else:
                yield from self._scan(segment, is_last)

    def _refuse_if_synced(self, segment: Segment, is_last: bool) -> None:
        with open_for_reading(self._fs, segment.path) as fd:
            if not is_last or synced_past(self._fs, fd, 0, segment.size, self.last_seq + 1, None):
                raise corrupt(segment, 0, "the segment's header does not check")

    def _scan(self, segment: Segment, is_last: bool) -> Iterator[tuple[int, bytes]]:
        with open_for_reading(self._fs, segment.path) as fd:
            scan = Scan(self._fs, fd, segment)
            base = location(segment.number, 0)
            for offset, body in scan:
                yield base + offset, body
            self.last_seq = scan.last_seq
            self.entries += scan.entries
            if scan.bad:
                assert segment.header is not None
                salt = segment.header.salt
                if not is_last or synced_past(self._fs, fd, scan.end, segment.size, scan.last_seq + 1, salt):
                    raise corrupt(segment, scan.end, "a line of the journal does not check")
                self.torn = Torn(segment, scan.end)
        if is_last:
            self.last = scan
        else:
            self._visitor.end(segment, scan.last_seq, scan.entries, closed=self._settled)


def recover(directory: Path, fs: FileSystem, visitor: Visitor) -> Recovered:
    """Verifies the journal, repairs a torn tail and makes the result durable. The caller holds the lock."""
    segments = list_segments(directory, fs)
    walk = Walk(segments, fs, visitor, settled=True)
    for where, body in walk:
        visitor.entry(where, body)
    report = RecoveryReport(entries=walk.entries)
    if walk.torn is not None:
        _cut(walk.torn, directory, fs, report)
        if walk.torn.at == 0:
            segments.pop()
    if walk.last is not None:
        _settle(walk.last, directory, fs)
        visitor.end(walk.last.segment, walk.last_seq, walk.last.entries, closed=True)
    report.segments = len(segments)
    headers = [segment.header for segment in segments if segment.header is not None]
    return Recovered(
        run_id=headers[0].run_id if headers else None,
        salts={header.segment: header.salt for header in headers},
        last_segment=len(segments),
        last_seq=walk.last_seq,
        report=report,
    )


def _settle(scan: Scan, directory: Path, fs: FileSystem) -> None:
    """Makes the last group durable: its good lines count from now on, though they may never have been synced.

    They are written again, byte for byte: after a sync that failed, the kernel holds the pages as clean, and
    another sync alone would do nothing and report success.
    """
    path = scan.segment.path
    try:
        fd = fs.open(path, os.O_RDWR)
        try:
            last_group = fs.pread(fd, scan.end - scan.group_at, scan.group_at)
            fs.seek(fd, scan.group_at)
            write_all(fs, fd, last_group)
            fs.fdatasync(fd)
        finally:
            fs.close(fd)
        fs.fsync_dir(directory)
    except OSError as error:
        raise storage_error(error, path, "sync the journal") from error


def _cut(torn: Torn, directory: Path, fs: FileSystem, report: RecoveryReport) -> None:
    """Keeps the torn tail in a file of its own, then removes it from the segment; durable at every step."""
    path = torn.segment.path
    tail = _free_name(directory, layout.tail_stem(torn.segment.number, torn.at))
    try:
        if torn.at == 0:  # not even a header: the whole file is the tail
            report.bytes_cut = torn.segment.size
            if report.bytes_cut == 0:
                fs.unlink(path)
                fs.fsync_dir(directory)
                return
            fs.rename(path, tail)
            fs.fsync_dir(directory)
        else:
            report.bytes_cut = _copy_and_truncate(path, torn.at, tail, directory, fs)
            torn.segment.size = torn.at
    except OSError as error:
        raise storage_error(error, path, "cut the unfinished write") from error
    report.cut_file, report.cut_at, report.tail_file = path, torn.at, tail


def _copy_and_truncate(path: Path, at: int, tail: Path, directory: Path, fs: FileSystem) -> int:
    """Bytes cut. Raises OSError; the segment is touched only once the copy is on the disk."""
    source = fs.open(path, os.O_RDWR)
    try:
        target = fs.open(tail, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        copied = 0
        try:
            while chunk := fs.pread(source, _COPY, at + copied):
                write_all(fs, target, chunk)
                copied += len(chunk)
            fs.fdatasync(target)
        finally:
            fs.close(target)
        fs.fsync_dir(directory)
        fs.ftruncate(source, at)
        fs.fdatasync(source)
    finally:
        fs.close(source)
    return copied


def _free_name(directory: Path, stem: str) -> Path:
    """A name that no earlier recovery has used."""
    path, n = directory / f"{stem}.bin", 1
    while path.exists():
        n += 1
        path = directory / f"{stem}-{n}.bin"
    return path
