"""The journal: append-only, one writer, group commit; entries are acknowledged only once they are on the disk.

Appending is cheap and does no I/O: lines collect into a group, and one thread writes and syncs a group at a
time. A failed write or sync is final: every waiter and every later append gets the same StorageError, and the
sync is never tried again (after a failed fsync the kernel marks the pages clean, so a retry would lie).

Layout of the run directory and of a line: see `segments` and `framing`; after a crash: see `recovery`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zlib import crc32

from asyncsynth.errors import StorageError
from asyncsynth.storage import journal_states as states
from asyncsynth.storage.commit_groups import GROUP_BYTES, Group, Options
from asyncsynth.storage.entry_reader import LineReader
from asyncsynth.storage.files import (
    OWN_FDS,
    REAL,
    FileSystem,
    is_full,
    make_directory,
    remove_stale,
    storage_error,
    write_all,
)
from asyncsynth.storage.framing import Header, header_line, mark_line, split_location
from asyncsynth.storage.lock import RunLock, refuse_if_gone
from asyncsynth.storage.recovery import NoVisitor, Recovered, RecoveryReport, Visitor, recover
from asyncsynth.storage.segments import Segment, list_segments, segment_path

_BRACE, _END_BRACE = b"{}"


class Journal:
    """The writer of one run directory. Use from one event loop; made by `create` or `open`."""

    def __init__(self, directory: Path, fs: FileSystem, lock: RunLock, state: Recovered, options: Options) -> None:
        self.directory = directory
        self.run_id: str = state.run_id or uuid.uuid4().hex
        self.report: RecoveryReport = state.report
        self.failure: StorageError | None = None  #: the error that ended writing, in the state FAILED and after it
        self._life: states.Life = states.OPEN
        self._groups: states.Groups = states.IDLE
        self._fs = fs
        self._lock = lock
        self._options = options
        self._reader = LineReader(directory, fs, state.salts)
        self._seq = state.last_seq
        self._segment = state.last_segment
        self._offset = options.segment_bytes  # as if full: an earlier segment is never appended to
        self._salt = 0
        self._prev = 0  #: the last seq before this segment
        self._marks = 0  #: in this segment
        self._pending: Group | None = None
        self._in_flight: Group | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd = -1  # only the writer thread touches it while a group is in flight
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="sidecars")  # no thread until a segment is full
        self._on_durable: Callable[[list[Any]], None] = _ignore
        self._on_fatal: Callable[[StorageError], None] = _ignore

    # --- opening -------------------------------------------------------------------------------

    @classmethod
    def create(cls, directory: Path, *, run_id: str | None = None, fs: FileSystem = REAL, **options: Any) -> Journal:
        """A journal in a directory that has none (made, mode 0700, if missing); takes the lock.

        Raises RunLockedError, and StorageError if there is a journal already or the disk refuses.
        """
        make_directory(fs, directory)
        lock = RunLock(directory, fs=fs)
        try:
            if list_segments(directory, fs):
                raise StorageError(
                    f"{directory}: there is a run here already",
                    hint="Resume it, or choose another run directory.",
                )
            state = Recovered(run_id, {}, 0, 0, RecoveryReport())
            return cls(directory, fs, lock, state, Options(**options))
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        run_id: str | None = None,
        visitor: Visitor | None = None,
        fs: FileSystem = REAL,
        **options: Any,
    ) -> Journal:
        """Takes the lock, verifies every line, repairs a torn tail; `report` has the findings.

        `visitor` is shown every entry on the way (see `RunIndex`). No segment: an empty journal, of the run `run_id`.
        Raises RunLockedError, CorruptJournal (file and offset), StorageError.
        """
        lock = RunLock(directory, fs=fs)
        try:
            remove_stale(directory, fs=fs)
            state = recover(directory, fs, visitor or NoVisitor())
            state.run_id = state.run_id or run_id
            return cls(directory, fs, lock, state, Options(**options))
        except BaseException:
            lock.release()
            raise

    # --- writing -------------------------------------------------------------------------------

    def append(self, body: bytes) -> int:
        """Adds one entry and returns its location; durable once a later `flushed()` returns.

        `body` is the bytes of one JSON object with at least one member, without a newline. Raises
        StorageError once writing has failed, ValueError for a body of another shape.
        """
        if len(body) < 3 or body[0] != _BRACE or body[-1] != _END_BRACE or b"\n" in body:
            raise ValueError("a journal entry is one non-empty JSON object on one line")
        return self.append_encoded(body)

    def append_encoded(self, body: bytes) -> int:
        """As `append`, for a body that is known to have that shape: one made by `Entry.encode`."""
        group = self._pending
        if group is None:
            self._refuse_unless_open()
            group = self._begin_group()
        self._seq = seq = self._seq + 1
        head = b'%b,"_q":%d' % (body[:-1], seq)
        line = b'%b,"_c":"%08x"}\n' % (head, crc32(head, self._salt))
        where = self._segment << 40 | self._offset
        size = len(line)
        self._offset += size
        group.lines.append(line)
        group.nbytes += size
        if len(group.lines) > self._options.group_entries or group.nbytes >= GROUP_BYTES:
            self._commit()
        return where

    async def flushed(self) -> None:
        """Returns when everything appended so far is on the disk. Raises StorageError if that failed.

        May be cancelled; the commit continues.
        """
        if self.failure is not None:
            raise self._refusal()
        group = self._pending or self._in_flight
        if group is None:
            return
        waiter = asyncio.get_running_loop().create_future()
        group.waiters.append(waiter)
        await waiter

    def watch(self, on_durable: Callable[[list[Any]], None], on_fatal: Callable[[StorageError], None]) -> None:
        """Sets the functions called, in the event loop, for each group that became durable, with its tokens (`settle`),
        and for the failure that ends writing."""
        self._on_durable, self._on_fatal = on_durable, on_fatal

    def settle(self, token: object) -> None:
        """Gives `token` to `on_durable` once everything appended so far is on the disk.

        For many entries in flight this is several times cheaper than `flushed`, which wakes a task for each.
        Raises StorageError once writing has failed; a token that waits then is never given back.
        """
        if self.failure is not None:
            raise self._refusal()
        group = self._pending or self._in_flight
        if group is None:
            self._on_durable([token])
        else:
            group.tokens.append(token)

    def _begin_group(self) -> Group:
        """A new pending group with its mark, in a new segment if this one is full; starts its timer."""
        self._groups = states.begun[self._groups]
        loop = self._loop = asyncio.get_running_loop()
        header: bytes | None = None
        closes: Callable[[], None] | None = None
        if self._offset >= self._options.segment_bytes:
            closes = self._roll()
            self._segment += 1
            self._prev, self._marks = self._seq, 0
            self._salt = secrets.randbits(32)
            self._reader.salts[self._segment] = self._salt
            header = header_line(Header(self.run_id, self._segment, self._salt, self._seq))
            self._seq += 1
            self._offset = len(header)
        group = self._pending = Group(self._segment, self._offset, header)
        group.closes = closes
        self._add_mark(group)
        self._timer = loop.call_later(self._options.group_delay_s, self._commit)
        return group

    def _roll(self) -> Callable[[], None] | None:
        """The segment is full. Returns the function that saves its sidecar once the segment is on the disk."""
        on_full = self._options.on_full
        if on_full is None or self._loop is None or not self._marks:
            return None
        path = segment_path(self.directory, self._segment)
        header = Header(self.run_id, self._segment, self._salt, self._prev)
        segment = Segment(self._segment, path, self._offset, header, 0)
        return on_full(segment, self._seq, self._seq - self._prev - 1 - self._marks)

    def _add_mark(self, group: Group) -> None:
        """states.Groups are written in turn, each synced before the next: all before this is durable by then."""
        mark = mark_line(self._seq, self._salt)
        self._seq += 1
        self._marks += 1
        self._offset += len(mark)
        group.lines.append(mark)
        group.nbytes += len(mark)

    def _commit(self) -> None:
        """Hands the pending group to the writer thread, or notes that it is due when the thread is busy."""
        before, self._groups = self._groups, states.committed[self._groups]
        if before == self._groups or self._groups != states.WRITING:
            return
        group = self._pending
        assert group is not None
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pending, self._in_flight = None, group
        work = self._loop.run_in_executor(self._thread, self._write, group)
        work.add_done_callback(self._written)

    def _write(self, group: Group) -> None:
        """In the writer thread: everything before is durable; makes this group durable or raises."""
        fs = self._fs
        path = segment_path(self.directory, group.segment)
        doing = "create the segment" if group.header is not None else "write the journal"
        try:
            if group.header is not None:
                self._close_fd()
                self._fd = fs.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                OWN_FDS.add(self._fd)
                write_all(fs, self._fd, group.header)
                fs.fdatasync(self._fd)
                fs.fsync_dir(self.directory)
                doing = "write the journal"
            write_all(fs, self._fd, b"".join(group.lines))
            doing = "sync the journal"
            fs.fdatasync(self._fd)
            # Checked before it is acknowledged: data written to a file that no longer has a name is lost.
            refuse_if_gone(self._fd, path, "journal's segment")
            self._lock.check()
        except OSError as error:
            if is_full(error) and self._fd >= 0:
                self._cut_back(group)
            raise storage_error(error, path, doing) from error

    def _cut_back(self, group: Group) -> None:
        """On a full disk: gives back the half-written group, so that the file ends with a good line."""
        try:
            self._fs.ftruncate(self._fd, group.at if group.header is None else 0)
        except OSError:
            return  # recovery will cut it off

    def _written(self, work: asyncio.Future[None]) -> None:
        """In the event loop, when the thread is done: acknowledges the group or keeps the failure."""
        group, self._in_flight = self._in_flight, None
        assert group is not None
        was_due = self._groups == states.DUE
        self._groups = states.written[self._groups]
        error = work.exception() if not work.cancelled() else StorageError("the journal's write was cancelled")
        if error is not None:
            self._fail(error, group)
            return
        if group.closes is not None:
            self._helper.submit(group.closes)
        for waiter in group.waiters:
            if not waiter.done():
                waiter.set_result(None)
        if group.tokens:
            self._on_durable(group.tokens)
        pending = self._pending
        if pending is not None and (was_due or len(pending.lines) > self._options.group_entries):
            self._commit()

    def _fail(self, error: BaseException, group: Group) -> None:
        self._life, self._groups = states.failed[self._life], states.dropped[self._groups]
        is_first = self.failure is None
        if not is_first:
            pass
        elif isinstance(error, StorageError):
            self.failure = error
        else:
            self.failure = StorageError(f"{self.directory}: writing the journal failed: {error!r}")
            self.failure.__cause__ = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiters = group.waiters + (self._pending.waiters if self._pending else [])
        self._pending = None
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(self._refusal())
        if is_first and self.failure is not None:
            self._on_fatal(self.failure)

    def _refusal(self) -> StorageError:
        """A fresh error for each caller: one instance raised in many tasks would accumulate tracebacks."""
        failure = self.failure
        assert failure is not None
        error = type(failure)(failure.message, hint=failure.hint)
        error.__cause__ = failure.__cause__
        return error

    def _refuse_unless_open(self) -> None:
        if self.failure is not None:
            raise self._refusal()
        if self._life != states.OPEN:
            raise StorageError(f"{self.directory}: the journal is closed")

    # --- reading and closing -------------------------------------------------------------------

    def read(self, where: int) -> dict[str, Any]:
        """The entry at a location, checked; also one that is not written yet. Raises CorruptJournal."""
        line = self._unwritten(*split_location(where))
        return self._reader.parse(where, line) if line is not None else self._reader.read(where)

    def _unwritten(self, segment: int, offset: int) -> bytes | None:
        for group in (self._in_flight, self._pending):
            if group is None or group.segment != segment or not group.at <= offset < group.at + group.nbytes:
                continue
            at = group.at
            for line in group.lines:
                if at == offset:
                    return line
                at += len(line)
        return None

    async def close(self) -> None:
        """Makes everything durable, writes a last mark, releases the lock. Safe to call twice.

        Raises StorageError if writing has failed, now or before: acknowledged entries are still safe.
        """
        before, self._life = self._life, states.closed[self._life]
        if before in (states.CLOSING, states.CLOSED):
            return
        try:
            if self._life != states.FAILED and self._loop is not None:
                self._commit()
                await self.flushed()
                # The last mark shows that everything before it was synced: from now on a bad line is corruption.
                self._begin_group()
                self._commit()
                await self.flushed()
                if (save := self._roll()) is not None:
                    self._helper.submit(save)
        finally:
            self._release()
        if self.failure is not None:
            raise self._refusal()

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._pending is not None and self.failure is None:
            self._fail(StorageError(f"{self.directory}: the journal was closed before its last write"), self._pending)
        self._thread.shutdown(wait=True)
        self._helper.shutdown(wait=True)
        self._close_fd()
        self._reader.close()
        self._lock.release()
        self._life = states.released[self._life]

    def _close_fd(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            OWN_FDS.discard(fd)
            self._fs.close(fd)

    async def __aenter__(self) -> Journal:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _ignore(_: object) -> None:
    """Does nothing: the default observer."""
