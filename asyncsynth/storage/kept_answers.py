"""Models' answers, stored under their requests, so that a changed parser does not pay for them again.

A directory of answers holds pairs of files, one pair for each session that kept something:

- ``ans-000001.jsonl``: a header line, then one line per answer: ``{"k":key,"a":answer,"_q":…,"_c":…}``, framed and
  checked as the journal's lines are (`storage.framing`). The key is 128 bits, in hex.
- ``ans-000001.idx``: 32 bytes per answer: key (16), offset of its line (8, little endian), tag (8).

An index entry is only a hint: the line that it leads to must check, and must have the whole key. If a file is torn or
damaged, its lost answers are paid for again; it can never give a wrong one.
So nothing is synced here. A later answer under the same key replaces the earlier one.

Any number of processes may use a directory at the same time. Each writes its own pair of files, made with O_EXCL, and
reads what the others had written when it opened the directory.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from asyncsynth.errors import ConfigurationError
from asyncsynth.storage.files import REAL, FileSystem, make_directory, storage_error, write_all
from asyncsynth.storage.framing import check, frame
from asyncsynth.storage.layout import ANSWERS, MANIFEST

FORMAT = 1
KEY_BYTES = 16
TAG_BYTES = 8

_DATA = re.compile(r"ans-(\d{6,})\.jsonl\Z")
_INDEX = re.compile(r"ans-(\d{6,})\.idx\Z")
_ENTRY = struct.Struct("<16sQ8s")
_HEADER = b'{"t":"answers",'
_FILE_BITS = 40  #: of a location: file number above, byte offset below
#: Bytes that are written at once, and how long fewer of them wait (seconds).
_GROUP_BYTES = 1 << 18
_GROUP_DELAY_S = 0.05
#: Answers that a slow disk has not written yet; beyond this number, they are counted and not kept.
_MOST_BEHIND = 64 << 20
_OPEN_FILES = 64
_READ_BYTES = 8192


@dataclass(slots=True)
class _File:
    """One file of answers that can be read."""

    path: Path
    salt: int


class AnswerStore:
    """Reads the answers that were kept before it was opened, and keeps new ones. Never raises once it is open.

    An answer that was kept since is not looked up: within one session a request that comes twice is sent twice.

    Args:
        write_to: directory for new answers, made when the first one comes; None keeps nothing.
        read_from: directories that are read, the most trusted last: its answer to a request wins. Missing ones are
            passed over.

    Raises StorageError when a directory that is there cannot be listed.
    """

    def __init__(self, write_to: Path | None, read_from: Sequence[Path] = (), *, fs: FileSystem = REAL) -> None:
        self._write_to = write_to
        self._fs = fs
        self.damaged: int = 0  #: answers that the index names and that do not check
        self.not_kept: int = 0  #: answers that could not be written
        self.kept: int = 0  #: answers handed to the disk
        self._problem = ""
        self._unreadable: list[Path] = []
        self._files: list[_File] = []
        self._fds: dict[int, int] = {}
        self._keys, self._places = array("Q"), array("Q")
        self._mask = 0
        self.count: int = 0  #: different requests whose answers can be read
        self._load([index for directory in read_from for index in _index_files(directory)])
        self._data_fd = self._index_fd = -1
        self._salt = self._offset = self._seq = 0
        self._lines: list[bytes] = []
        self._entries: list[bytes] = []
        self._waiting = 0  #: bytes of `_lines`
        self._handed = 0  #: bytes given to the thread, counted in the event loop
        self._written = 0  #: bytes it has written, counted in the thread
        self._timer: asyncio.TimerHandle | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._closed = False

    # --- reading -------------------------------------------------------------------------------

    def get(self, key: bytes) -> Any | None:
        """The answer kept under a key (JSON), None if there is none that checks."""
        if not self.count:
            return None
        short = int.from_bytes(key[:8], "little")
        slot = short & self._mask
        keys, places = self._keys, self._places
        while place := places[slot]:
            if keys[slot] == short:
                return self._read(place, key)
            slot = (slot + 1) & self._mask
        return None

    def _read(self, place: int, key: bytes) -> Any | None:
        try:
            line = self._line(place)
            if check(line, self._files[(place >> _FILE_BITS) - 1].salt)[0] < 0:
                raise ValueError("does not check")
            said = orjson.loads(line)
            # Another key with the same first 64 bits is not damage.
            return said["a"] if said["k"] == key.hex() else None
        except (OSError, ValueError, KeyError, TypeError):
            self.damaged += 1
            return None

    def _line(self, place: int) -> bytes:
        number, at = (place >> _FILE_BITS) - 1, place & ((1 << _FILE_BITS) - 1)
        fd = self._fds.get(number)
        if fd is None:
            if len(self._fds) >= _OPEN_FILES:
                self._close_read()
            fd = self._fds[number] = self._fs.open(self._files[number].path, os.O_RDONLY)
        read = b""
        while chunk := self._fs.pread(fd, max(_READ_BYTES, len(read)), at + len(read)):
            end = chunk.find(b"\n")
            if end >= 0:
                return read + chunk[:end]
            read += chunk
        raise ValueError("the line has no end")

    def _load(self, indexes: list[Path]) -> None:
        """Makes the table: open addressing, two arrays of 64 bits, at most two thirds full."""
        room = sum(_size(path) // _ENTRY.size for path in indexes)
        if not room:
            return
        capacity = 1 << max(3, (room * 3 // 2).bit_length())
        self._mask = capacity - 1
        self._keys = array("Q", bytes(8 * capacity))
        self._places = array("Q", bytes(8 * capacity))
        for path in indexes:
            salt = _salt(path.with_suffix(".jsonl"), self._fs)
            raw = b"" if salt is None else _bytes(path, room)
            if salt is None or not raw:
                self._unreadable.append(path)
                continue
            self._files.append(_File(path.with_suffix(".jsonl"), salt))
            room -= len(raw) // _ENTRY.size
            self._add(len(self._files) << _FILE_BITS, raw)

    def _add(self, file: int, raw: bytes) -> None:
        keys, places, mask = self._keys, self._places, self._mask
        limit = 1 << _FILE_BITS
        for short, _, offset, _ in struct.iter_unpack("<QQQQ", raw):
            if not 0 < offset < limit:
                continue  # a torn index
            slot = short & mask
            while places[slot] and keys[slot] != short:
                slot = (slot + 1) & mask
            if not places[slot]:
                self.count += 1
            keys[slot], places[slot] = short, file | offset

    # --- keeping -------------------------------------------------------------------------------

    def put(self, key: bytes, tag: bytes, answer: Any) -> None:
        """Keeps an answer: JSON, or dataclasses of JSON. On the disk within a second; not synced.

        `tag` (at most 8 bytes) tells whose it is, for `count_kept`. Answers that cannot be kept are counted in
        `not_kept`.
        """
        if self._write_to is None:
            return
        try:
            body = orjson.dumps({"k": key.hex(), "a": answer})
        except TypeError:  # not JSON: it will be refused elsewhere
            self.not_kept += 1
            return
        if self._problem or self._handed - self._written > _MOST_BEHIND or not (self._data_fd >= 0 or self._begin()):
            self.not_kept += 1
            return
        self._seq += 1
        line = frame(body, self._seq, self._salt)
        self._lines.append(line)
        self._entries.append(_ENTRY.pack(key, self._offset, tag))
        self._offset += len(line)
        self._waiting += len(line)
        self.kept += 1
        if self._waiting >= _GROUP_BYTES:
            self._commit()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_GROUP_DELAY_S, self._commit)

    def _begin(self) -> bool:
        """Makes this session's pair of files, under the next free number. False when it cannot."""
        assert self._write_to is not None
        try:
            make_directory(self._fs, self._write_to)
            number = 1 + max((int(m[1]) for name in os.listdir(self._write_to) if (m := _DATA.match(name))), default=0)
            while self._data_fd < 0:
                path = self._write_to / f"ans-{number:06d}.jsonl"
                try:
                    self._data_fd = self._fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                except FileExistsError:  # another process has just taken it
                    number += 1
            self._index_fd = self._fs.open(path.with_suffix(".idx"), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except Exception as error:
            self._fail(error, self._write_to)
            return False
        self._salt = secrets.randbits(32)
        header = frame(orjson.dumps({"t": "answers", "format": FORMAT, "salt": self._salt}), 1, 0)
        self._seq = 1
        self._lines.append(header)
        self._offset = len(header)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="asyncsynth answers")
        return True

    def _commit(self) -> None:
        """Hands the waiting answers to the thread."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._lines or self._thread is None:
            return
        lines, entries = b"".join(self._lines), b"".join(self._entries)
        self._lines, self._entries, self._waiting = [], [], 0
        self._handed += len(lines)
        self._thread.submit(self._write, lines, entries)

    def _write(self, lines: bytes, entries: bytes) -> None:
        """In the thread. The lines are written first, so that the index never names missing ones."""
        if self._problem:
            return  # a line may be torn: offsets after it would be wrong
        try:
            write_all(self._fs, self._data_fd, lines)
            write_all(self._fs, self._index_fd, entries)
        except Exception as error:
            assert self._write_to is not None
            self._fail(error, self._write_to)
            return
        self._written += len(lines)

    def _fail(self, error: Exception, path: Path) -> None:
        told = storage_error(error, path, "keep answers").message if isinstance(error, OSError) else str(error)
        self._problem = told

    def notes(self) -> list[str]:
        """Notes for users, one line each."""
        notes = []
        if self._problem:
            notes.append(f"answers are no longer kept, and you may pay for them again: {self._problem}")
        elif self.not_kept:
            notes.append(f"{self.not_kept} answers were not kept: the disk was too slow for them, or they are not JSON")
        if self.damaged:
            notes.append(f"{self.damaged} kept answers are damaged and were requested again")
        if self._unreadable:
            first = self._unreadable[0]
            notes.append(f"{len(self._unreadable)} files of kept answers cannot be read ({first}): they are not used")
        return notes

    def close(self) -> None:
        """Writes the waiting answers and closes the files. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._commit()
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        for fd in (self._data_fd, self._index_fd):
            if fd >= 0:
                self._fs.close(fd)
        self._data_fd = self._index_fd = -1
        self._write_to = None
        self._close_read()

    def _close_read(self) -> None:
        for fd in self._fds.values():
            self._fs.close(fd)
        self._fds.clear()


def check_cache(path: Path) -> None:
    """Raises ConfigurationError for a path that cannot be a directory of answers."""
    if path.exists() and not path.is_dir():
        raise ConfigurationError(f"{path} is a file; answers are kept in a directory", hint="Name a directory.")
    if not path.is_dir():
        return
    names = os.listdir(path)
    if MANIFEST in names:
        raise ConfigurationError(
            f"{path} is a run directory, not a directory of answers",
            hint=f"Name {path / ANSWERS} to use the answers which that run kept, or another directory.",
        )
    if names and not any(_DATA.match(name) for name in names):
        raise ConfigurationError(
            f"{path} holds other files and no answers", hint="Name a new or an empty directory for kept answers."
        )


def count_kept(directories: Iterable[Path]) -> dict[bytes, int]:
    """Answers in directories by tag, without reading them. An answer that was replaced counts twice."""
    counts: dict[bytes, int] = {}
    for directory in directories:
        for path in _index_files(directory):
            for _, _, tag in _ENTRY.iter_unpack(_bytes(path)):
                counts[tag] = counts.get(tag, 0) + 1
    return counts


def disk_use(directory: Path) -> tuple[int, int]:
    """(answers, bytes) of a directory of answers; (0, 0) if there is none. Raises StorageError."""
    indexes = list(_index_files(directory))
    sizes = [_size(path) for path in indexes]
    entries = sum(size // _ENTRY.size for size in sizes)
    return entries, sum(sizes) + sum(_size(path.with_suffix(".jsonl")) for path in indexes)


def padded(tag: bytes) -> bytes:
    """A tag in the form that `count_kept` returns."""
    return tag[:TAG_BYTES].ljust(TAG_BYTES, b"\0")


def _index_files(directory: Path) -> Iterator[Path]:
    """The index files of a directory, oldest first; none if there is no directory. Raises StorageError."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise storage_error(error, directory, "list the kept answers") from error
    for _, name in sorted((int(match[1]), name) for name in names if (match := _INDEX.match(name))):
        yield directory / name


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _bytes(path: Path, most: int | None = None) -> bytes:
    """Whole index entries of a file, `most` of them; empty when it cannot be read. A torn end is left out."""
    try:
        with path.open("rb") as file:
            raw = file.read() if most is None else file.read(most * _ENTRY.size)
    except OSError:
        return b""
    return raw[: len(raw) - len(raw) % _ENTRY.size]


def _salt(path: Path, fs: FileSystem) -> int | None:
    """The salt of a file of answers, None when its header does not check or is of another format."""
    try:
        fd = fs.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        line = fs.pread(fd, 256, 0).partition(b"\n")[0]
        if not line.startswith(_HEADER) or check(line, 0)[0] < 0:
            return None
        said = orjson.loads(line)
        return int(said["salt"]) if said["format"] == FORMAT else None
    except (OSError, ValueError, KeyError):
        return None
    finally:
        fs.close(fd)
