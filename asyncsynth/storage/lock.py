"""One writer per run directory: advisory locks on a file that is never deleted, and on the directory itself.

The second one still holds if the file is deleted. Both belong to the process that took them: a forked process closes
its copies at once, so that a step's own process pool cannot keep a killed run locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from asyncsynth.errors import RunLockedError, StorageError
from asyncsynth.storage import layout
from asyncsynth.storage.files import OWN_FDS, REAL, FileSystem, is_alive, storage_error

LOCK_NAME = layout.LOCK
_HOLDERS_TOLD = 5


class RunLock:
    """Held from construction to `release`, or to the end of the process for any reason."""

    def __init__(self, directory: Path, *, fs: FileSystem = REAL) -> None:
        """Raises RunLockedError with the holder's pid, StorageError if the file cannot be made."""
        path = directory / LOCK_NAME
        try:
            fd = fs.open(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise storage_error(error, path, "open the lock file") from error
        OWN_FDS.add(fd)
        self._fd = fd
        self._directory_fd = -1
        self._fs = fs
        self._path = path
        try:
            _take(fd)
            self._directory_fd = _locked_directory(directory)
        except BlockingIOError:
            told = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            self.release()
            raise _refusal(directory, told) from None
        except OSError as error:
            self.release()
            raise storage_error(error, path, "lock the run directory") from error
        with contextlib.suppress(OSError):  # the pid is only information: a full disk must not stop a resume here
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)

    def check(self) -> None:
        """Raises StorageError if the lock file or the directory is no longer the one that was locked."""
        for fd, path, what in (
            (self._fd, self._path, "lock file"),
            (self._directory_fd, self._path.parent, "run directory"),
        ):
            if fd >= 0:
                refuse_if_gone(fd, path, what)

    def release(self) -> None:
        """Lets the next process in. Safe to call twice. The file stays: deleting it would race."""
        for fd in (self._directory_fd, self._fd):
            if fd >= 0:
                OWN_FDS.discard(fd)
                self._fs.close(fd)
        self._fd = self._directory_fd = -1


def _take(fd: int) -> None:
    """Locks an open file or directory. Raises BlockingIOError when another process holds it."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _locked_directory(directory: Path) -> int:
    """The descriptor that holds the lock of the directory; -1 if the file system only locks files.

    Raises BlockingIOError when another process holds it.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1
    OWN_FDS.add(fd)
    try:
        _take(fd)
    except OSError as error:
        OWN_FDS.discard(fd)
        os.close(fd)
        if isinstance(error, BlockingIOError):
            raise
        return -1
    return fd


def refuse_if_gone(fd: int, path: Path, what: str) -> None:
    """Raises StorageError if the open file or directory is no longer the one at the path."""
    try:
        there: os.stat_result | None = os.stat(path)
    except OSError:
        there = None
    if there is None or not os.path.samestat(there, os.fstat(fd)):
        raise StorageError(
            f"{path}: the {what} was deleted, moved or replaced while the run was writing there",
            hint="Nothing more is written. Put the run directory back as it was, or restore it from a copy, and run the"
            " same command again; or start a new run directory.",
        )


def _refusal(directory: Path, told: str) -> RunLockedError:
    """`told`: the pid in the lock file."""
    writer = int(told) if told.isdigit() else 0
    holders = [pid for pid in _holders(directory) if pid != writer]
    if writer and not is_alive(writer) and holders:
        some = ", ".join(map(str, holders[:_HOLDERS_TOLD]))
        return RunLockedError(
            f"{directory}: the process that was writing this run (pid {writer}) is gone, and a process that it started"
            f" (pid {some}) still holds its lock",
            hint=f"End that process (`kill {holders[0]}`), then run the same command again.",
        )
    if writer and not is_alive(writer):
        return RunLockedError(
            f"{directory}: another process is writing this run; its lock file names pid {writer}, which is not on this"
            " machine any more",
            hint="Wait for it to end, stop it (it may run on another machine), or choose another run directory.",
        )
    if writer == os.getpid():
        return RunLockedError(
            f"{directory}: this process (pid {writer}) is writing this run already",
            hint="Wait for that run to end, or choose another run directory. A stream() that was left early ends when"
            " its iterator is closed: `await rows.aclose()`.",
        )
    return RunLockedError(
        f"{directory}: another process (pid {told or 'unknown'}) is writing this run",
        hint="Wait for it to end, stop it, or choose another run directory.",
    )


def _holders(directory: Path) -> list[int]:
    """The processes of this machine that have the lock file or the directory open, as far as /proc shows them."""
    wanted = []
    for path in (directory / LOCK_NAME, directory):
        with contextlib.suppress(OSError):
            wanted.append(os.stat(path))
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                opened = (os.stat(f"/proc/{name}/fd/{fd}") for fd in os.listdir(f"/proc/{name}/fd"))
                if any(os.path.samestat(one, other) for one in opened for other in wanted):
                    found.append(int(name))
    return sorted(found)
