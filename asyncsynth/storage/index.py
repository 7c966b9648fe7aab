"""The resume index: what the journal says of each record, in arrays, about 45 bytes a record and 8 more a step.

It is built while the journal is verified (`Journal.open(directory, visitor=index)`), or for reading only by
`JournalView(directory).walk(index)`. While the run goes on it is not changed by new entries: it answers what
was there at the start, once for each record.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from asyncsynth.errors import InputError
from asyncsynth.storage.facts import DROP, FAILED, NOTHING, OK, POS, SIDECAR_MIN_BYTES, Ending, SegmentFacts, key_hash
from asyncsynth.storage.files import REAL, FileSystem
from asyncsynth.storage.framing import location
from asyncsynth.storage.segments import Segment

_STATUS = 0b0011  #: bits of a slot's flags: OPEN, OK or FAILED
_DROPPED = 0b0100
_CLAIMED = 0b1000
_KNOWN = 0b10000  #: the journal has an entry of this record

_NO_STEPS: dict[str, int] = {}


class DuplicateKey(InputError):
    """Two rows of the input have one key."""


@dataclass(slots=True)
class Claim:
    """What there is of a record. `steps`: step fingerprint -> location of the entry with its results."""

    done: bool = False  #: it ended in this epoch, from an equal row; `failed` tells how
    failed: bool = False
    moved: bool = False  #: it stood elsewhere in the input, or had left it: journal its position
    steps: Mapping[str, int] = field(default_factory=dict)


_NEW = Claim()


@dataclass(slots=True)
class Counts:
    """Records by how they ended, and rows: `failed_rows` and `dropped_rows` by (step, reason)."""

    ok: int = 0
    failed: int = 0
    rows: Counter[str] = field(default_factory=Counter)  #: leaf -> rows
    failed_rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped_rows: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def by_reason(self) -> Counter[str]:
        """Failed rows by reason, whatever the step."""
        found: Counter[str] = Counter()
        for (_, reason), n in self.failed_rows.items():
            found[reason] += n
        return found


class RunIndex:
    """A `Visitor` of the journal. `keys`: "position" (a record's key is its position) or "id"."""

    def __init__(self, *, keys: str, fs: FileSystem = REAL, sidecar_min_bytes: int = SIDECAR_MIN_BYTES) -> None:
        self.by_position = keys == "position"
        self._fs = fs
        self._sidecar_min_bytes = sidecar_min_bytes
        self._facts = SegmentFacts(by_position=self.by_position)
        # By slot; a slot is the position itself, or the order in which ids were first met.
        self._slots = 0
        self._flags = bytearray()
        self._final_at = array("Q")  #: location of the last final entry; 0: none
        self._final_epoch = array("H")
        self._row_hash = array("Q")  #: of the row that the final entry was made from
        self._position = array("I")
        self._ending = array("I")
        self._steps: dict[str, array[int]] = {}
        self._endings: list[Ending] = [NOTHING]
        self._ending_ids: dict[Ending, int] = {NOTHING: 0}
        # Ids only: the slots' key hashes, and an open-addressed table of slot + 1.
        self._key_hash = array("Q")
        self._table = array("I", bytes(4 << 10))

    # --- building: the journal's visitor -------------------------------------------------------

    def begin(self, segment: Segment) -> tuple[int, int] | None:
        """Takes the segment's sidecar where there is a good one."""
        loaded = SegmentFacts.load(segment, by_position=self.by_position)
        if loaded is None:
            self._facts = SegmentFacts(by_position=self.by_position)
            return None
        facts, last_seq, entries = loaded
        self._apply(segment.number, facts)
        return last_seq, entries

    def entry(self, where: int, body: bytes) -> None:
        self._facts.add(where, orjson.loads(body))

    def end(self, segment: Segment, last_seq: int, entries: int, *, closed: bool) -> None:
        self._apply(segment.number, self._facts)
        if closed and segment.size >= self._sidecar_min_bytes:
            self._facts.save(segment, last_seq, entries, fs=self._fs)
        self._facts = SegmentFacts(by_position=self.by_position)

    def _apply(self, segment: int, facts: SegmentFacts) -> None:
        base = location(segment, 0)
        endings = [self._ending_id(ending) for ending in facts.endings]
        columns = [[self._step_column(name) for name in names] for names in facts.step_sets]
        flags = self._flags
        for kind, status, epoch, key, position, row_hash, offset, ending, steps in facts:
            slot = self._slot(key)
            if kind == DROP:
                flags[slot] |= _DROPPED
                continue
            self._position[slot] = position
            flags[slot] = flags[slot] & ~_DROPPED | _KNOWN
            if kind == POS:
                continue
            for column in columns[steps]:
                if slot >= len(column):
                    _grow(column, self._slots)
                column[slot] = base + offset
            if status:
                flags[slot] = flags[slot] & ~_STATUS | status
                self._final_at[slot] = base + offset
                self._final_epoch[slot] = epoch
                self._row_hash[slot] = row_hash
                self._ending[slot] = endings[ending]

    def _ending_id(self, ending: Ending) -> int:
        found = self._ending_ids.get(ending)
        if found is None:
            found = self._ending_ids[ending] = len(self._endings)
            self._endings.append(ending)
        return found

    def _step_column(self, fingerprint: str) -> array[int]:
        column = self._steps.get(fingerprint)
        if column is None:
            column = self._steps[fingerprint] = array("Q")
        return column

    # --- slots ---------------------------------------------------------------------------------

    def _slot(self, key: int) -> int:
        """The slot of a position or of a key's hash; made if it is new."""
        if self.by_position:
            if key >= self._slots:
                self._extend(key + 1)
            return key
        slot, free = self._probe(key)
        if slot >= 0:
            return slot
        slot = self._slots
        self._extend(slot + 1)
        self._key_hash.append(key)
        self._table[free] = slot + 1
        if self._slots * 5 > len(self._table) * 3:
            self._rehash()
        return slot

    def _probe(self, key: int) -> tuple[int, int]:
        """(slot, -) of a key's hash, or (-1, free place in the table)."""
        table, hashes = self._table, self._key_hash
        mask = len(table) - 1
        at = key & mask
        while found := table[at]:
            if hashes[found - 1] == key:
                return found - 1, at
            at = (at + 1) & mask
        return -1, at

    def _rehash(self) -> None:
        self._table = table = array("I", bytes(4 * len(self._table) * 2))
        mask = len(table) - 1
        for slot, key in enumerate(self._key_hash, 1):
            at = key & mask
            while table[at]:
                at = (at + 1) & mask
            table[at] = slot

    def _extend(self, slots: int) -> None:
        self._slots = slots
        if slots > len(self._flags):
            size = max(64, slots + (slots >> 3))
            self._flags.extend(bytes(size - len(self._flags)))
            for column in (self._final_at, self._final_epoch, self._row_hash, self._position, self._ending):
                _grow(column, size)

    def _find(self, key: str) -> int:
        """The slot of a key, -1 when there is none."""
        if self.by_position:
            return slot if (slot := int(key)) < self._slots else -1
        return self._probe(key_hash(key))[0]

    # --- asking --------------------------------------------------------------------------------

    def claim(self, key: str, position: int, row_hash: str, epoch: int) -> Claim:
        """What there is of the record that the input now brings. Raises DuplicateKey the second time."""
        if self.by_position and position >= self._slots:
            return _NEW  # positions cannot come twice: nothing to remember, however many there are
        slot = self._slot(int(key) if self.by_position else key_hash(key))
        flags = self._flags[slot]
        if flags & _CLAIMED:
            raise DuplicateKey(
                f"the key {key!r} comes twice in the input, the second time at row {position}",
                hint="Keys must be unique: remove the duplicate, choose another id column, or use row positions.",
            )
        self._flags[slot] = flags & ~_DROPPED | _CLAIMED
        if not flags & _KNOWN:
            self._position[slot] = position
            return Claim()
        status = flags & _STATUS
        same = self._final_epoch[slot] == epoch and self._row_hash[slot] == int(row_hash, 16)
        moved = bool(flags & _DROPPED) or self._position[slot] != position
        self._position[slot] = position
        steps = {name: where for name, column in self._steps.items() if slot < len(column) and (where := column[slot])}
        return Claim(bool(status) and same, status == FAILED, moved, steps or _NO_STEPS)

    def final_of(self, key: str) -> int | None:
        """The location of a record's last final entry, None when it has none."""
        slot = self._find(key)
        return (self._final_at[slot] or None) if slot >= 0 else None

    def is_current(self, key: str, where: int, fingerprint: str | None = None) -> bool:
        """Whether the entry at `where` is the last word on a record in the input: on its end, or on a step."""
        slot = self._find(key)
        if slot < 0 or self._flags[slot] & _DROPPED:
            return False
        column = self._final_at if fingerprint is None else self._steps.get(fingerprint, ())
        return slot < len(column) and column[slot] == where

    def finals(self, epoch: int | None = None) -> Iterator[int]:
        """Locations of the final entries in the order of the input; of one epoch, or each record's last."""
        return (self._final_at[slot] for slot in self._in_order(epoch))

    def final_rows(self, leaf: str, epoch: int | None = None) -> Iterator[tuple[int, int]]:
        """As `finals`, (location, rows of the leaf) of those that have any."""
        rows = [next((n for name, n in ending.rows if name == leaf), 0) for ending in self._endings]
        for slot in self._in_order(epoch):
            if count := rows[self._ending[slot]]:
                yield self._final_at[slot], count

    def _in_order(self, epoch: int | None) -> Iterator[int]:
        """The slots of the final entries, in the order of the input."""
        if self.by_position:
            yield from (slot for slot in range(self._slots) if self._counts(slot, epoch))
            return
        chosen = array("Q", (slot for slot in range(self._slots) if self._counts(slot, epoch)))
        position = self._position
        by_place = array("I", bytes(4 * (max((position[slot] for slot in chosen), default=-1) + 1)))
        for slot in chosen:
            if by_place[position[slot]]:
                # Two records with one position: a run that stopped before it had seen how its input was reordered.
                yield from sorted(chosen, key=lambda slot: (position[slot], slot))
                return
            by_place[position[slot]] = slot + 1
        yield from (slot - 1 for slot in by_place if slot)

    def _counts(self, slot: int, epoch: int | None) -> bool:
        flags = self._flags[slot]
        return bool(flags & _STATUS and not flags & _DROPPED) and epoch in (None, self._final_epoch[slot])

    def counts(self, epoch: int | None = None) -> Counts:
        """What `finals(epoch)` would show, in numbers."""
        tally = Counter(
            (self._flags[slot] & _STATUS, self._ending[slot])
            for slot in range(self._slots)
            if self._counts(slot, epoch)
        )
        counts = Counts()
        for (status, number), n in tally.items():
            if status == OK:
                counts.ok += n
            else:
                counts.failed += n
            ending = self._endings[number]
            for leaf, rows in ending.rows:
                counts.rows[leaf] += rows * n
            for step, reason, rows in ending.failed:
                counts.failed_rows[step, reason] += rows * n
            for step, reason, rows in ending.dropped:
                counts.dropped_rows[step, reason] += rows * n
        return counts

    def step_count(self, fingerprint: str) -> int:
        """How many records have results of a step."""
        column = self._steps.get(fingerprint)
        return len(column) - column.count(0) if column is not None else 0

    def unclaimed_keys(self, read: Callable[[int], Mapping[str, Any]]) -> Iterator[str]:
        """Keys of the records that the input did not bring this time and had before. `read`: Journal.read."""
        for slot in range(self._slots):
            if self._flags[slot] & (_CLAIMED | _DROPPED | _KNOWN) != _KNOWN:
                continue
            if self.by_position:
                yield str(slot)
            elif where := self._any_entry(slot):
                yield read(where)["k"]

    def _any_entry(self, slot: int) -> int:
        if where := self._final_at[slot]:
            return where
        return next((column[slot] for column in self._steps.values() if slot < len(column) and column[slot]), 0)

    @property
    def nbytes(self) -> int:
        """Bytes of memory in the arrays."""
        columns = [self._final_at, self._final_epoch, self._row_hash, self._position, self._ending, self._key_hash]
        columns += [self._table, *self._steps.values()]
        return len(self._flags) + sum(len(column) * column.itemsize for column in columns)


def _grow(column: array[int], size: int) -> None:
    """Zeros up to at least `size` items."""
    if size > len(column):
        column.frombytes(bytes((size - len(column)) * column.itemsize))
