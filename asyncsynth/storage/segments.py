"""The segment files of a journal: listing them, reading their headers, walking their lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asyncsynth.errors import CorruptJournal, StorageError
from asyncsynth.storage import layout
from asyncsynth.storage.files import FileSystem, storage_error
from asyncsynth.storage.framing import FORMAT, MARK_START, Header, check_next, mark_durable_upto, parse_header

_CHUNK = 1 << 20
_HEADER = 1 << 12  #: bytes that any header fits in


@dataclass(slots=True)
class Segment:
    """One segment file. `header` is None when its first line does not check. `size` is in bytes."""

    number: int
    path: Path
    size: int
    header: Header | None
    body_at: int  #: offset of the first line after the header


def segment_path(directory: Path, number: int) -> Path:
    return directory / layout.segment_name(number)


def list_segments(directory: Path, fs: FileSystem) -> list[Segment]:
    """The segments in order. Raises StorageError, and CorruptJournal if one between others is missing."""
    try:
        numbers = layout.segment_numbers(os.listdir(directory))
    except OSError as error:
        raise storage_error(error, directory, "list the run directory") from error
    for want, have in enumerate(numbers, 1):
        if want != have:
            raise CorruptJournal(
                f"{segment_path(directory, want)}: this segment of the journal is missing",
                hint="Restore the file from a copy, or continue without it: `asyncsynth journal repair DIR`.",
            )
    return [_open_segment(directory, number, fs) for number in numbers]


def _open_segment(directory: Path, number: int, fs: FileSystem) -> Segment:
    path = segment_path(directory, number)
    with open_for_reading(fs, path) as fd:
        size = fs.size(fd)
        line, newline, _ = fs.pread(fd, _HEADER, 0).partition(b"\n")
    parsed = parse_header(line) if newline else None
    if parsed is None:
        return Segment(number, path, size, None, 0)
    header, version = parsed
    if version != FORMAT:
        raise StorageError(
            f"{path}: the journal has format {version}; this version of asyncsynth reads format {FORMAT}",
            hint="Use the asyncsynth version that made the run, or start a new run directory.",
        )
    if header.segment != number:
        raise CorruptJournal(f"{path}:0: this file is segment {header.segment}, by its header")
    return Segment(number, path, size, header, len(line) + 1)


class open_for_reading:
    """Context manager: a read-only descriptor; OSError on opening becomes StorageError."""

    def __init__(self, fs: FileSystem, path: Path) -> None:
        self._fs = fs
        self._path = path

    def __enter__(self) -> int:
        try:
            self._fd = self._fs.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise storage_error(error, self._path, "open the journal") from error
        return self._fd

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._fs.close(self._fd)
        if isinstance(error, OSError):
            raise storage_error(error, self._path, "read the journal") from error


def iter_lines(fs: FileSystem, fd: int, start: int, stop: int) -> Iterator[tuple[int, bytes, bool]]:
    """(offset, line without newline, whether it had one) of the bytes from `start` to `stop`.

    `stop` is the size the file had when it was listed: another process may be adding to it.
    """
    carry = b""
    position = start  # of the next byte to read
    while True:
        # The chunk grows with an unfinished line, so that a long one is not copied once per chunk.
        chunk = fs.pread(fd, min(max(_CHUNK, len(carry)), max(0, stop - position)), position)
        if not chunk:
            break
        offset = position - len(carry)
        position += len(chunk)
        lines = (carry + chunk).split(b"\n") if carry else chunk.split(b"\n")
        carry = lines.pop()
        for line in lines:
            yield offset, line, True
            offset += len(line) + 1
    if carry:
        yield position - len(carry), carry, False


class Scan:
    """Walks the checked entries of one segment, stopping at the first line that does not check.

    After the walk: `end` (offset after the last good line), `last_seq`, `entries`, `bad` (stopped early), and
    `group_at`, the offset of the last mark: only the lines after it may be unsynced.
    """

    def __init__(self, fs: FileSystem, fd: int, segment: Segment) -> None:
        assert segment.header is not None
        self._fs = fs
        self._fd = fd
        self._salt = segment.header.salt
        self._stop = segment.size
        self.segment = segment
        self.end: int = segment.body_at
        self.group_at: int = segment.body_at
        self.last_seq: int = segment.header.prev + 1
        self.entries: int = 0
        self.bad: bool = False

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """(offset, JSON bytes of the entry without its frame); marks are checked but not yielded."""
        salt = self._salt
        for offset, line, whole in iter_lines(self._fs, self._fd, self.end, self._stop):
            at = check_next(line, self.last_seq + 1, salt)
            if at < 0 or not whole:
                self.bad = True
                return
            self.last_seq += 1
            self.end = offset + len(line) + 1
            if line.startswith(MARK_START):
                self.group_at = offset
            else:
                self.entries += 1
                yield offset, line[:at] + b"}"


def synced_past(fs: FileSystem, fd: int, start: int, stop: int, seq: int, salt: int | None) -> bool:
    """Whether a mark between two bytes shows that line `seq` was once on the disk."""
    return any(mark_durable_upto(line, salt) >= seq for _, line, _ in iter_lines(fs, fd, start, stop))
