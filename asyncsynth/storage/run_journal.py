"""A run's journal: an entry and its facts in one call.

The facts of each entry are noted as it is appended, and saved beside its segment when that is full. Reading the
entries back for them would cost several times as much, and a resume after a crash would wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from asyncsynth.errors import StorageError
from asyncsynth.storage.commit_groups import OnFull
from asyncsynth.storage.entries import Entry, RecordEntry
from asyncsynth.storage.facts import SIDECAR_MIN_BYTES, SegmentFacts
from asyncsynth.storage.files import REAL, FileSystem
from asyncsynth.storage.journal import Journal
from asyncsynth.storage.recovery import RecoveryReport, Visitor
from asyncsynth.storage.segments import Segment


class RunJournal:
    """The only writer of a run directory's journal. Made by `create` or `open`; use it from one event loop."""

    def __init__(
        self, begin: Callable[[OnFull], Journal], keys: str, fs: FileSystem, min_sidecar_bytes: int | None
    ) -> None:
        self._by_position = keys == "position"
        self._fs = fs
        self._min_sidecar_bytes = SIDECAR_MIN_BYTES if min_sidecar_bytes is None else min_sidecar_bytes
        self._facts = SegmentFacts(by_position=self._by_position)  #: of the segment that is being written
        self._journal = journal = begin(self._close_facts)
        self.appended: int = 0  #: entries
        # The journal's own method: one call less for each record.
        self.settle: Callable[[object], None] = journal.settle  #: see `Journal.settle`

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        keys: str,
        run_id: str | None = None,
        fs: FileSystem = REAL,
        min_sidecar_bytes: int | None = None,
        **options: Any,
    ) -> RunJournal:
        """As `Journal.create`. `keys`: "position" or "id", what the records are known by."""
        return cls(
            lambda on_full: Journal.create(directory, run_id=run_id, fs=fs, on_full=on_full, **options),
            keys, fs, min_sidecar_bytes,
        )  # fmt: skip

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        keys: str,
        run_id: str | None = None,
        visitor: Visitor | None = None,
        fs: FileSystem = REAL,
        min_sidecar_bytes: int | None = None,
        **options: Any,
    ) -> RunJournal:
        """As `Journal.open`. `keys`: "position" or "id", what the records are known by."""
        return cls(
            lambda on_full: Journal.open(directory, run_id=run_id, visitor=visitor, fs=fs, on_full=on_full, **options),
            keys, fs, min_sidecar_bytes,
        )  # fmt: skip

    def append(self, entry: Entry) -> int:
        """Adds one entry and notes its facts; returns its location. It is durable once a later `flushed()` returns.

        Raises NotJson (then nothing was added), and StorageError once writing has failed.
        """
        where = self._journal.append_encoded(entry.encode())
        entry.note(self._facts, where)  # only now: the entry may have begun a segment
        self.appended += 1
        return where

    def _close_facts(self, segment: Segment, last_seq: int, entries: int) -> Callable[[], None] | None:
        """The segment is full. Returns a function that writes its sidecar; call it once the segment is synced.

        None if there is no sidecar to write: the segment is small, or an entry's facts are missing.
        """
        facts, self._facts = self._facts, SegmentFacts(by_position=self._by_position)
        if facts.entries != entries or segment.size < self._min_sidecar_bytes:
            return None
        return partial(facts.save, segment, last_seq, entries, fs=self._fs)

    @property
    def report(self) -> RecoveryReport:
        """The findings on opening."""
        return self._journal.report

    def read(self, where: int) -> RecordEntry:
        """The results of a record at a location, checked. Raises CorruptJournal, StorageError."""
        return RecordEntry.from_wire(self._journal.read(where))

    def watch(self, on_durable: Callable[[list[Any]], None], on_fatal: Callable[[StorageError], None]) -> None:
        """See `Journal.watch`."""
        self._journal.watch(on_durable, on_fatal)

    async def flushed(self) -> None:
        """See `Journal.flushed`."""
        await self._journal.flushed()

    async def close(self) -> None:
        """See `Journal.close`."""
        await self._journal.close()

    async def __aenter__(self) -> RunJournal:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
