"""The file system as storage uses it: one small interface, so that tests can make any call fail.

Everything that changes the disk goes through a `FileSystem`; errors become `StorageError` naming the path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from pathlib import Path
from zlib import crc32

from asyncsynth.errors import StorageError
from asyncsynth.storage import layout

DIR_MODE = 0o700
FILE_MODE = 0o600
EXPORT_MODE = 0o666  #: less the umask: files that a user asked for may be shared
#: A new file: never an existing one, and never through a link.
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW

#: A short name of the machine that wrote a temporary file.
_HOST = f"{crc32(os.uname().nodename.encode()):08x}"

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_HINTS = {
    errno.ENOSPC: "The disk is full. Free some space, then run the same command again: it resumes.",
    errno.EDQUOT: "The quota is used up. Free some space, then run the same command again: it resumes.",
    errno.EROFS: "The file system is read-only. Remount it writable or choose another run directory.",
    errno.EACCES: "No permission. Make the directory writable for this user or choose another run directory.",
    errno.EPERM: "No permission. Make the directory writable for this user or choose another run directory.",
    errno.EIO: "The disk reports a fault. Check it, copy the run directory to a sound one, resume there.",
    errno.EMFILE: "Too many open files. Raise the limit (ulimit -n), then run the same command again.",
}


#: Descriptors that a forked process must not keep: of locks, and of files that are being written.
OWN_FDS: set[int] = set()


def _close_in_child() -> None:
    """Closes a forked process's copies. The parent's own stay open and locked."""
    for fd in list(OWN_FDS):
        with contextlib.suppress(OSError):
            os.close(fd)
    OWN_FDS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


class FileSystem:
    """The calls that storage makes. Each is one system call and raises OSError as the system does."""

    def open(self, path: Path, flags: int, mode: int = FILE_MODE) -> int:
        """A file descriptor; `mode`, less the umask, is that of a file it creates."""
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def write(self, fd: int, data: memoryview) -> int:
        """May write less than all of it: see `write_all`."""
        return os.write(fd, data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def seek(self, fd: int, offset: int) -> None:
        os.lseek(fd, offset, os.SEEK_SET)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def fdatasync(self, fd: int) -> None:
        """Syncs a file: contents and length are on the disk when this returns."""
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # macOS: fsync stops at the drive's cache
        else:
            os.fdatasync(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def mkdir(self, path: Path) -> None:
        os.mkdir(path, DIR_MODE)

    def fsync_dir(self, path: Path) -> None:
        """Syncs a directory: names made, renamed or removed in it are on the disk when this returns."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


REAL = FileSystem()


def write_all(fs: FileSystem, fd: int, data: bytes) -> None:
    """Writes every byte, also after short writes. Raises OSError."""
    view = memoryview(data)
    while view:
        written = fs.write(fd, view)
        if written <= 0:
            raise OSError(errno.EIO, "write returned 0")
        view = view[written:]


def is_full(error: BaseException) -> bool:
    """True for 'no space left' and 'quota exceeded'."""
    return isinstance(error, OSError) and error.errno in _FULL


def storage_error(error: OSError, path: Path, doing: str) -> StorageError:
    """The StorageError for a failed call: the operation, the path, and what to do next."""
    number = error.errno or 0
    reason = f"{error.strerror or error} ({errno.errorcode.get(number, number)})"
    hint = _HINTS.get(number, "Nothing acknowledged is lost. Fix the cause, then run the same command again.")
    return StorageError(f"{path}: cannot {doing}: {reason}", hint=hint)


def make_directory(fs: FileSystem, path: Path) -> None:
    """Makes a private directory (0700) and missing parents, each durable. Raises StorageError."""
    if path.is_dir():
        return
    try:
        if not path.parent.is_dir():
            make_directory(fs, path.parent)
        with contextlib.suppress(FileExistsError):
            fs.mkdir(path)
        fs.fsync_dir(path.parent)
    except OSError as error:
        raise storage_error(error, path, "make the directory") from error
    if not path.is_dir():
        raise StorageError(f"{path}: is not a directory", hint="Choose another run directory.")


def temporary_path(path: Path) -> Path:
    """The path of a file before it gets its name. It tells which process wrote it: see `remove_stale`.

    Each thread has its own, so that two may write to one path: the file is that of the last to end.
    """
    return path.with_name(layout.temporary_name(path.name, os.getpid(), _HOST, threading.get_native_id()))


def open_temporary(path: Path, *, fs: FileSystem = REAL, mode: int = FILE_MODE) -> tuple[int, Path]:
    """(descriptor, `temporary_path`) of a new, empty file. Raises OSError.

    An existing file of this name is removed, never written to: a process with the same pid left it, or another user
    put a link there to have a file overwritten.
    """
    temporary = temporary_path(path)
    try:
        return fs.open(temporary, _NEW, mode), temporary
    except FileExistsError:
        fs.unlink(temporary)
        return fs.open(temporary, _NEW, mode), temporary


def remove_stale(directory: Path, *, fs: FileSystem = REAL, of: str | None = None) -> list[Path]:
    """Removes half-written files (`of`: of this name only) whose writer was killed; those removed.

    Only those of processes of this machine that have ended: another machine may be writing in a shared directory.
    A failure is ignored: they only take up space.
    """
    removed: list[Path] = []
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            parts = layout.temporary_parts(name)
            if parts is None or parts[2] != _HOST or of not in (None, parts[0]) or is_alive(parts[1]):
                continue
            with contextlib.suppress(OSError):
                fs.unlink(directory / name)
                removed.append(directory / name)
    return removed


def is_alive(pid: int) -> bool:
    """True if a process of this machine has the pid."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # another user's
    return True


def atomic_write(path: Path, data: bytes, *, fs: FileSystem = REAL, sync: bool = True) -> None:
    """Replaces a file so that a reader, or a crash, sees all old or all new bytes. Raises StorageError.

    Without `sync` a power cut may leave an empty file: for what is only displayed.
    """
    temporary: Path | None = None
    try:
        fd, temporary = open_temporary(path, fs=fs)
        try:
            write_all(fs, fd, data)
            if sync:
                fs.fdatasync(fd)
        finally:
            fs.close(fd)
        fs.rename(temporary, path)
        if sync:
            fs.fsync_dir(path.parent)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                fs.unlink(temporary)
        raise storage_error(error, path, "write the file") from error
