"""One writer per run directory: an advisory lock on a file that is never deleted."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from asyncsynth.errors import RunLockedError
from asyncsynth.storage import layout
from asyncsynth.storage.files import REAL, FileSystem, storage_error

LOCK_NAME = layout.LOCK


class RunLock:
    """Held from construction to `release`, or to the end of the process, however that comes."""

    def __init__(self, directory: Path, *, fs: FileSystem = REAL) -> None:
        """Raises RunLockedError with the holder's pid, StorageError when the file cannot be made."""
        path = directory / LOCK_NAME
        try:
            fd = fs.open(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise storage_error(error, path, "open the lock file") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            fs.close(fd)
            raise RunLockedError(
                f"{directory}: another process (pid {holder}) is writing this run",
                hint="Wait for it to end, stop it, or choose another run directory.",
            ) from None
        except OSError as error:
            fs.close(fd)
            raise storage_error(error, path, "lock the run directory") from error
        self._fd = fd
        self._fs = fs
        with contextlib.suppress(OSError):  # the pid is a courtesy: a full disk must not stop a resume here
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Lets the next process in. Safe to call twice. The file stays: deleting it would race."""
        if self._fd >= 0:
            self._fs.close(self._fd)
            self._fd = -1
