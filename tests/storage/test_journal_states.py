"""The journal's states: every row of the tables is reached by a real journal, and no other move exists."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from asyncsynth.errors import StorageError
from asyncsynth.storage import journal_states as states
from asyncsynth.storage.files import FileSystem
from asyncsynth.storage.journal import Journal
from tests.kit.journals import body, keys


class HeldFS(FileSystem):
    """The writer thread waits in each sync until `go` lets one through, and fails it if told so."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.open_gate = False
        self.fails = False

    def fdatasync(self, fd: int) -> None:
        if not self.open_gate:
            self.go.acquire()
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class Watched(Journal):
    """Notes each change of its two states: (before, after)."""

    seen: ClassVar[set[tuple[str, str]]] = set()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_life", "_groups") and hasattr(self, name):
            self.seen.add((getattr(self, name), value))
        super().__setattr__(name, value)


Scene = Callable[[Path, HeldFS], Awaitable[None]]


def journal(run: Path, fs: HeldFS) -> Journal:
    return Watched.create(run, fs=fs, group_entries=2, group_delay_s=60)


def free(fs: HeldFS) -> None:
    fs.open_gate = True
    fs.go.release(99)


async def normal(run: Path, fs: HeldFS) -> None:
    """A group is written while the next collects, becomes due, and goes."""
    opened = journal(run, fs)
    for n in range(2):  # full: committed
        opened.append(body(n))
    opened._commit()  # nothing collects
    opened.append(body(2))  # collects beside
    opened.append(body(3))  # is due
    opened.append(body(4))
    opened._commit()
    free(fs)
    await opened.flushed()
    opened._commit()  # idle
    opened.append(body(5))
    closing = asyncio.ensure_future(opened.close())
    await asyncio.sleep(0)
    await opened.close()  # while the other closes it
    await closing
    await opened.close()
    opened._release()
    with pytest.raises(StorageError, match="the journal is closed"):
        opened.append(body(6))
    assert keys(run) == [0, 1, 2, 3, 4, 5]


async def left(run: Path, fs: HeldFS) -> None:
    """Released while it is open, with nothing to write."""
    journal(run, fs)._release()


async def beside(run: Path, fs: HeldFS) -> None:
    """What collects is not due when the write before it ends."""
    opened = journal(run, fs)
    for n in range(3):
        opened.append(body(n))
    free(fs)
    while opened._groups != states.COLLECTING:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await opened.close()
    assert keys(run) == [0, 1, 2]


async def fails_while(run: Path, fs: HeldFS, more: int) -> None:
    """A write fails while `more` entries collect behind it."""
    opened = journal(run, fs)
    told: list[StorageError] = []
    opened.watch(lambda _: None, told.append)
    for n in range(2 + more):
        opened.append(body(n))
    fs.fails = True
    wait = asyncio.ensure_future(opened.flushed())
    await asyncio.sleep(0)
    free(fs)
    with pytest.raises(StorageError, match="cannot create the segment"):
        await wait
    for call in (opened.flushed, opened.close):
        with pytest.raises(StorageError, match="cannot create the segment"):
            await call()
    with pytest.raises(StorageError, match="cannot create the segment"):
        opened.append(body(9))
    assert len(told) == 1


async def fails_closing(run: Path, fs: HeldFS) -> None:
    opened = journal(run, fs)
    opened.append(body(0))
    fs.fails = True
    free(fs)
    with pytest.raises(StorageError, match="cannot create the segment"):
        await opened.close()


async def cancelled(run: Path, fs: HeldFS, collecting: int, fails: bool) -> None:
    """`close` is cancelled while a group is being written: what collects is given up, the write ends by itself."""
    opened = journal(run, fs)
    for n in range(2):
        opened.append(body(n))
    for n in range(collecting):
        opened.append(body(2 + n))
    closing = asyncio.ensure_future(opened.close())
    await asyncio.sleep(0)
    closing.cancel()
    fs.fails = fails
    free(fs)
    with pytest.raises(asyncio.CancelledError):
        await closing
    for _ in range(9):
        await asyncio.sleep(0)
    await opened.close()


async def gives_up(run: Path, fs: HeldFS, entries: int) -> None:
    """Released with a group that collects; with three entries, the first two are being written."""
    opened = journal(run, fs)
    for n in range(entries):
        opened.append(body(n))
    free(fs)
    opened._release()
    with pytest.raises(StorageError, match="closed before its last write"):
        await opened.flushed()


SCENES: list[tuple[str, Scene]] = [
    ("normal", normal),
    ("beside", beside),
    ("left", left),
    *((f"fails with {more}", lambda run, fs, more=more: fails_while(run, fs, more)) for more in range(3)),
    ("fails while closing", fails_closing),
    *(
        (f"cancelled with {n}, {fails}", lambda run, fs, n=n, fails=fails: cancelled(run, fs, n, fails))
        for n in (0, 1)
        for fails in (False, True)
    ),
    *((f"gives up {n}", lambda run, fs, n=n: gives_up(run, fs, n)) for n in (1, 3)),
]  # type: ignore[misc]


def test_every_row_is_reached_and_no_other_move_is_made(tmp_path: Path) -> None:
    for number, (name, scene) in enumerate(SCENES):
        print(name)
        asyncio.run(asyncio.wait_for(scene(tmp_path / str(number), HeldFS()), 20))
    rows = [*states.LIFE.items(), *states.GROUPS.items()]
    assert Watched.seen == {(before, after) for (before, _), after in rows}


@pytest.mark.parametrize(
    ("column", "state"),
    [
        (states.begun, states.COLLECTING),  # two groups would collect
        (states.begun, states.DUE),
        (states.written, states.IDLE),  # nothing was being written
        (states.written, states.COLLECTING),
    ],
)
def test_a_move_that_no_table_has_is_refused(column: dict[str, str], state: str) -> None:
    with pytest.raises(KeyError, match=state):
        column[state]
