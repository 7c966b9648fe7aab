"""Reading single entries by location, and reading a journal that another process may be writing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from asyncsynth.errors import CorruptJournal
from asyncsynth.storage.entries import RecordEntry
from asyncsynth.storage.files import REAL, FileSystem, storage_error
from asyncsynth.storage.framing import check, split_location
from asyncsynth.storage.recovery import NoVisitor, Torn, Visitor, Walk
from asyncsynth.storage.segments import Segment, list_segments, segment_path

_OPEN_FILES = 32  #: read descriptors kept open
_GUESS = 8192  #: bytes read at first for one line


class LineReader:
    """Random access by location, each line checked."""

    def __init__(self, directory: Path, fs: FileSystem, salts: dict[int, int]) -> None:
        self.directory = directory
        self.salts = salts  #: segment number -> salt
        self._fs = fs
        self._fds: dict[int, int] = {}

    def read(self, where: int) -> dict[str, Any]:
        """The entry at a location. Raises CorruptJournal, StorageError."""
        segment, offset = split_location(where)
        try:
            fd = self._fds.get(segment, -1)
            if fd < 0:
                fd = self._open(segment)
            line = self._fs.pread(fd, _GUESS, offset)
            while (newline := line.find(b"\n")) < 0:
                more = self._fs.pread(fd, max(len(line), _GUESS), offset + len(line))
                if not more:
                    break
                line += more
        except OSError as error:
            raise storage_error(error, segment_path(self.directory, segment), "read the journal") from error
        return self.parse(where, line[: newline + 1])

    def parse(self, where: int, line: bytes) -> dict[str, Any]:
        """The entry in the line (newline included) at a location."""
        segment, offset = split_location(where)
        line = line[:-1]
        salt = self.salts.get(segment)
        at = check(line, salt)[1] if salt is not None else -1
        if at < 0:
            raise CorruptJournal(
                f"{segment_path(self.directory, segment)}:{offset}: there is no good line here",
                hint="Restore the run directory from a copy, or keep what is good: `asyncsynth journal repair DIR`.",
            )
        entry: dict[str, Any] = orjson.loads(line[:at] + b"}")
        return entry

    def _open(self, segment: int) -> int:
        if len(self._fds) >= _OPEN_FILES:
            self._fs.close(self._fds.pop(next(iter(self._fds))))
        fd = self._fds[segment] = self._fs.open(segment_path(self.directory, segment), 0)  # O_RDONLY
        return fd

    def close(self) -> None:
        """Closes the descriptors; a later read opens them again."""
        while self._fds:
            self._fs.close(self._fds.popitem()[1])


class JournalView:
    """A journal read without the lock, for `status` and `export`: nothing is written or repaired.

    It shows the segments that existed when it was opened, and stops at the first torn line of the last one.
    """

    def __init__(self, directory: Path, *, fs: FileSystem = REAL) -> None:
        """Raises StorageError, CorruptJournal when a segment is missing."""
        self.directory = directory
        self.segments: list[Segment] = list_segments(directory, fs)
        headers = [segment.header for segment in self.segments if segment.header is not None]
        self.run_id: str | None = headers[0].run_id if headers else None
        self.torn: Torn | None = None  #: where the last walk stopped early
        self._fs = fs
        self._reader = LineReader(directory, fs, {header.segment: header.salt for header in headers})

    def walk(self, visitor: Visitor) -> int:
        """Shows every entry to the visitor; returns how many. Raises CorruptJournal, StorageError."""
        walk = Walk(self.segments, self._fs, visitor, settled=False)
        for where, body in walk:
            visitor.entry(where, body)
        if walk.last is not None:
            visitor.end(walk.last.segment, walk.last_seq, walk.last.entries, closed=False)
        self.torn = walk.torn
        return walk.entries

    def entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(location, entry) in the order written. Raises CorruptJournal, StorageError."""
        return ((where, orjson.loads(body)) for where, body in self.bodies())

    def bodies(self) -> Iterator[tuple[int, bytes]]:
        """(location, JSON bytes) in the order written. Raises CorruptJournal, StorageError."""
        walk = Walk(self.segments, self._fs, NoVisitor(), settled=False)
        yield from walk
        self.torn = walk.torn

    def read(self, where: int) -> dict[str, Any]:
        """The entry at a location, checked, as it is on the disk."""
        return self._reader.read(where)

    def records(self) -> Iterator[tuple[int, RecordEntry]]:
        """(location, entry) of the entries with results of records, in the order written. Raises as `entries`."""
        return ((where, RecordEntry.from_wire(wire)) for where, wire in self.entries() if wire["t"] == "rec")

    def record(self, where: int) -> RecordEntry:
        """The results of a record at a location, checked. Raises CorruptJournal, StorageError."""
        return RecordEntry.from_wire(self._reader.read(where))

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> JournalView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
