"""The lock of a run directory: it survives deleted files, and does not survive its process."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncsynth.errors import RunLockedError, StorageError
from asyncsynth.storage.journal import Journal
from asyncsynth.storage.lock import RunLock
from tests.kit.journals import SMALL, body, keys, reopen, write

#: Takes the lock, starts a process that outlives it, says both pids, and waits to be killed.
HOLDER = """
import multiprocessing, os, sys, time
from pathlib import Path
from asyncsynth.storage.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
{start}
print(os.getpid(), child, flush=True)
time.sleep(60)
"""
FORKED = """
ready, told = os.pipe()
child = os.fork()
if not child:
    os.write(told, b"x")
    time.sleep(60)
    os._exit(0)
os.read(ready, 1)
"""
GIVEN_ON = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[lock._fd]).pid
"""


def killed_holder(run: Path, start: str) -> tuple[int, int]:
    """(pid of a process that held the lock and was killed, pid of the process that it started and that lives on)."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(start=start), str(run)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    pid, child = map(int, holder.stdout.readline().split())
    holder.kill()
    holder.wait()
    holder.stdout.close()
    return pid, child


@pytest.fixture
def run(tmp_path: Path) -> Path:
    asyncio.run(write(tmp_path / "run", 0, 3))
    return tmp_path / "run"


@pytest.mark.row(39)
def test_a_process_that_a_step_forked_does_not_keep_the_lock_of_a_killed_run(run: Path) -> None:
    _, child = killed_holder(run, FORKED)
    try:
        os.kill(child, 0)  # it lives
        assert reopen(run).report.entries == 3
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.row(39)
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="holders are found in /proc")
def test_a_lock_that_was_given_on_names_the_process_that_holds_it(run: Path) -> None:
    pid, child = killed_holder(run, GIVEN_ON)
    try:
        with pytest.raises(
            RunLockedError, match=rf"\(pid {pid}\) is gone, .*started \(pid {child}\) still holds"
        ) as told:
            RunLock(run)
        assert f"kill {child}" in (told.value.hint or "")
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.row(39)
def test_a_deleted_lock_file_lets_nobody_in(run: Path) -> None:
    lock = RunLock(run)
    (run / "LOCK").unlink()
    with pytest.raises(RunLockedError):
        RunLock(run)
    lock.release()
    RunLock(run).release()


def _replace(path: Path) -> None:
    other = path.with_name("copy")
    shutil.copy(path, other)
    other.replace(path)


@pytest.mark.row(39)
@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda run: (run / "LOCK").unlink(), "LOCK: the lock file"),
        (lambda run: _replace(run / "LOCK"), "LOCK: the lock file"),
        (lambda run: (run / "seg-000002.jsonl").unlink(), "seg-000002.jsonl: the journal's segment"),
        (lambda run: _replace(run / "seg-000002.jsonl"), "seg-000002.jsonl: the journal's segment"),
        (lambda run: run.rename(run.with_name("moved")), "the journal's segment"),
        (shutil.rmtree, "the journal's segment"),
    ],
)
def test_a_writer_whose_files_are_taken_away_stops_before_it_acknowledges_more(
    run: Path, harm: Callable[[Path], object], what: str
) -> None:
    async def scene() -> None:
        journal = Journal.open(run, **SMALL)
        journal.append(body(3))
        await journal.flushed()
        harm(run)
        journal.append(body(4))
        with pytest.raises(StorageError, match=f"{what} was deleted, moved or replaced while the run was writing"):
            await journal.flushed()
        with pytest.raises(StorageError, match="was deleted, moved or replaced"):
            await journal.close()

    asyncio.run(scene())
    moved = run.with_name("moved")
    if moved.exists():
        assert keys(moved)[:4] == [0, 1, 2, 3]


def test_a_fork_takes_nothing_from_the_parent(run: Path) -> None:
    lock = RunLock(run)
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(RunLockedError, match=f"pid {os.getpid()}"):
        RunLock(run)
    lock.check()
    lock.release()
