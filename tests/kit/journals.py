"""Journals, and file systems that fail or forget what was not synced."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.files import FILE_MODE, FileSystem
from asyncsynth.storage.journal import Journal

SMALL = {"group_delay_s": 0.0005}


def body(n: int, size: int = 0) -> bytes:
    return b'{"t":"rec","k":"%d","i":%d,"h":"0","x":"%b"}' % (n, n, b"y" * size)


async def write(directory: Path, start: int, count: int, *, size: int = 40, group: int = 7, **options: object) -> None:
    """Appends entries start..start+count-1 in synced groups; opens the journal, or makes it."""
    options = {**SMALL, **options}
    async with _open_or_create(directory, options) as journal:
        for n in range(start, start + count):
            journal.append(body(n, size))
            if n % group == group - 1:
                await journal.flushed()


def _open_or_create(directory: Path, options: dict[str, Any]) -> Journal:
    return Journal.open(directory, **options) if directory.exists() else Journal.create(directory, **options)


def keys(directory: Path) -> list[int]:
    """The entries that a reader sees."""
    with JournalView(directory) as view:
        return [int(entry["k"]) for _, entry in view.entries()]


def reopen(directory: Path) -> Journal:
    """Opens and lets go at once; the report stays."""
    journal = Journal.open(directory)
    asyncio.run(journal.close())
    return journal


class FailingFS(FileSystem):
    """Counts calls that change the disk. Number `fail_at` (from 0) raises `error`; unless `once`, later ones do too."""

    def __init__(
        self, fail_at: int = -1, error: int = errno.EIO, *, short_writes: bool = False, once: bool = False
    ) -> None:
        self.calls: list[str] = []
        self.fail_at = fail_at
        self.error = error
        self.short_writes = short_writes
        self.once = once

    def _step(self, name: str) -> None:
        at = len(self.calls)
        self.calls.append(name)
        if at == self.fail_at or (0 <= self.fail_at < at and not self.once):
            raise OSError(self.error, os.strerror(self.error))

    def open(self, path: Path, flags: int, mode: int = FILE_MODE) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            self._step("open")
        return super().open(path, flags, mode)

    def write(self, fd: int, data: memoryview) -> int:
        if self.short_writes:
            data = data[: max(1, len(data) // 2)]
        if len(self.calls) == self.fail_at:
            super().write(fd, data[: len(data) // 2])  # a torn write before the failure
        self._step("write")
        return super().write(fd, data)

    def fdatasync(self, fd: int) -> None:
        self._step("fdatasync")

    def ftruncate(self, fd: int, size: int) -> None:
        self._step("ftruncate")
        super().ftruncate(fd, size)

    def rename(self, old: Path, new: Path) -> None:
        self._step("rename")
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._step("unlink")
        super().unlink(path)

    def mkdir(self, path: Path) -> None:
        self._step("mkdir")
        super().mkdir(path)

    def fsync_dir(self, path: Path) -> None:
        self._step("fsync_dir")


class ForgetfulFS(FileSystem):
    """Knows which byte ranges and names were synced, so that a power cut can be played out."""

    def __init__(self) -> None:
        self._paths: dict[int, Path] = {}
        self._at: dict[int, int] = {}
        self.synced: dict[Path, bytes] = {}  #: contents on the "disk"
        self.names: set[Path] = set()  #: names on the "disk"

    def open(self, path: Path, flags: int, mode: int = FILE_MODE) -> int:
        fd = super().open(path, flags, mode)
        self._paths[fd] = path
        return fd

    def fdatasync(self, fd: int) -> None:
        path = self._paths[fd]
        self.synced[path] = path.read_bytes()

    def fsync_dir(self, path: Path) -> None:
        self.names.update(p for p in path.iterdir() if p.is_file())

    def power_cut(self, directory: Path, keep_page: Callable[[], bool], page: int = 64) -> None:
        """Leaves what a disk may hold: synced bytes, plus any subset of the pages that were not synced."""
        for path in directory.glob("seg-*.jsonl"):
            if path not in self.names:
                path.unlink()
                continue
            old, new = self.synced.get(path, b""), path.read_bytes()
            size = len(new) if keep_page() else len(old)
            out = bytearray(size)
            out[: len(old)] = old
            first = len(old) // page * page
            for at in range(first, size, page):
                if keep_page():
                    out[at : at + page] = new[at : at + page][: size - at]
                    out[: len(old)] = old
            path.write_bytes(bytes(out))
