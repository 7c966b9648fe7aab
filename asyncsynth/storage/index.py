"""The resume index: what the journal has for each record, in arrays, about 45 bytes a record and 8 more a step.

It is built while the journal is opened (`Journal.open(directory, visitor=index)`), or for reading only by
`JournalView(directory).walk(index)`. A segment's columns come from its sidecar or from its lines, and are copied
in slices where no earlier segment has entries of the records, which is nearly everywhere. New entries do
not change the index during a run: it answers what was there at the start, once for each record.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import orjson

from asyncsynth.errors import InputError
from asyncsynth.records import key_hash
from asyncsynth.storage.facts import (
    DROPPED,
    FAILED,
    KNOWN,
    NOTHING,
    OK,
    SIDECAR_MIN_BYTES,
    STATUS,
    Ending,
    SegmentFacts,
    grow,
)
from asyncsynth.storage.files import REAL, FileSystem
from asyncsynth.storage.segments import Segment

_CLAIMED = 0b1000  #: besides the flags of `facts`: the input has delivered the record
_UNTOUCHED = re.compile(rb"\0+")

_NO_STEPS: dict[str, int] = {}


class DuplicateKey(InputError):
    """Two rows of the input have one key."""


@dataclass(slots=True)
class Claim:
    """What the journal has of a record. `steps`: step fingerprint -> location of the entry with its results."""

    done: bool = False  #: it ended in this epoch, from an equal row; `failed` tells how
    failed: bool = False
    lost_rows: bool = False  #: it, or some of the rows that were made of it, failed
    moved: bool = False  #: it was elsewhere in the input, or had left it: journal its position
    ended: bool = False  #: it ended in this epoch, even from another row: the journal counts it
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


class RunIndex:
    """A `Visitor` of the journal. `keys`: "position" (a record's key is its position) or "id".

    `stride`: only every `stride`-th position exists (in a shard), so that the arrays have no gaps.
    """

    def __init__(
        self, *, keys: str, stride: int = 1, fs: FileSystem = REAL, sidecar_min_bytes: int = SIDECAR_MIN_BYTES
    ) -> None:
        self.by_position: bool = keys == "position"
        self._stride = stride
        self._fs = fs
        self._sidecar_min_bytes = sidecar_min_bytes
        self._facts = SegmentFacts(by_position=self.by_position)
        # By slot; a slot is position // stride, or the order in which ids were first met.
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
        """Uses the segment's sidecar if there is a good one."""
        loaded = SegmentFacts.load(segment, by_position=self.by_position, fs=self._fs)
        if loaded is None:
            self._facts = SegmentFacts(by_position=self.by_position)
            return None
        facts, last_seq, entries = loaded
        self._apply(facts)
        return last_seq, entries

    def entry(self, where: int, body: bytes) -> None:
        self._facts.add(where, orjson.loads(body))

    def end(self, segment: Segment, last_seq: int, entries: int, *, closed: bool) -> None:
        self._facts.settle()
        if closed and segment.size >= self._sidecar_min_bytes:
            self._facts.save(segment, last_seq, entries, fs=self._fs)
        self._apply(self._facts)
        self._facts = SegmentFacts(by_position=self.by_position)

    def _apply(self, facts: SegmentFacts) -> None:
        """Adds settled facts of the next segment: in slices if nothing is known yet, else row by row."""
        rows = len(facts)
        if not rows:
            return
        slots = self._slots_of(facts.keys)
        endings = [self._ending_id(ending) for ending in facts.endings]
        if endings != list(range(len(endings))):
            facts.ending = array("I", map(endings.__getitem__, facts.ending))
        pairs = list(zip(self._columns(), facts.columns(), strict=True))
        pairs += [(self._step_column(step), column) for step, column in facts.steps.items()]
        for target, _ in pairs:
            grow(target, self._slots)
        flags = self._flags
        start = 0
        for end in _run_ends(slots, ordered=self.by_position):
            first, last = slots[start], slots[end - 1] + 1
            at = first
            for run in _UNTOUCHED.finditer(bytes(flags[first:last])):
                self._merge(facts, slots, range(start + at - first, start + run.start()))
                at, stop = first + run.start(), first + run.end()
                chosen = slice(start + run.start(), start + run.end())
                flags[at:stop] = facts.flags[chosen]
                for target, column in pairs:
                    target[at:stop] = column[chosen]
                at = stop
            self._merge(facts, slots, range(start + at - first, end))
            start = end

    def _merge(self, facts: SegmentFacts, slots: array[int], rows: range) -> None:
        """The segment's facts about records that are also in earlier segments."""
        flags = self._flags
        steps = [(self._step_column(step), column) for step, column in facts.steps.items()]
        for row in rows:
            slot, said = slots[row], facts.flags[row]
            if said & KNOWN:
                self._position[slot] = facts.position[row]
                flags[slot] = flags[slot] & ~DROPPED | said & (KNOWN | DROPPED)
            else:
                flags[slot] |= DROPPED
            for target, column in steps:
                if where := column[row]:
                    target[slot] = where
            if status := said & STATUS:
                flags[slot] = flags[slot] & ~STATUS | status
                self._final_at[slot] = facts.final_at[row]
                self._final_epoch[slot] = facts.final_epoch[row]
                self._row_hash[slot] = facts.row_hash[row]
                self._ending[slot] = facts.ending[row]

    def _columns(self) -> list[array[int]]:
        """As `SegmentFacts.columns`."""
        return [self._position, self._final_at, self._final_epoch, self._row_hash, self._ending]

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
            slot = key // self._stride
            if slot >= self._slots:
                self._extend(slot + 1)
            return slot
        slot, free = self._look_up(key)
        if slot >= 0:
            return slot
        slot = self._slots
        self._extend(slot + 1)
        self._key_hash.append(key)
        self._table[free] = slot + 1
        self._make_room(self._slots)
        return slot

    def _slots_of(self, keys: array[int]) -> array[int]:
        """The slots of a segment's keys; those of new keys follow all others."""
        if self.by_position:
            if self._stride > 1:
                keys = array("Q", (key // self._stride for key in keys))
            if keys[-1] >= self._slots:
                self._extend(keys[-1] + 1)
            return keys
        self._make_room(self._slots + len(keys))
        table, hashes, mask = self._table, self._key_hash, len(self._table) - 1
        slots = array("Q")
        for key in keys:  # `_look_up`, written out: a call for each of a million keys takes a second
            at = key & mask
            while found := table[at]:
                if hashes[found - 1] == key:
                    break
                at = (at + 1) & mask
            else:
                hashes.append(key)
                found = table[at] = len(hashes)
            slots.append(found - 1)
        self._extend(len(hashes))
        return slots

    def _look_up(self, key: int) -> tuple[int, int]:
        """(slot, -) of a key's hash, or (-1, free place in the table)."""
        table, hashes = self._table, self._key_hash
        mask = len(table) - 1
        at = key & mask
        while found := table[at]:
            if hashes[found - 1] == key:
                return found - 1, at
            at = (at + 1) & mask
        return -1, at

    def _make_room(self, slots: int) -> None:
        """A table that is at most three fifths full with this many slots."""
        size = len(self._table)
        while slots * 5 > size * 3:
            size *= 2
        if size == len(self._table):
            return
        self._table = table = array("I", bytes(4 * size))
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
            for column in self._columns():
                grow(column, size)

    def _find(self, key: str) -> int:
        """The slot of a key, -1 if there is none."""
        if self.by_position:
            return slot if (slot := int(key) // self._stride) < self._slots else -1
        return self._look_up(key_hash(key))[0]

    # --- asking --------------------------------------------------------------------------------

    def claim(self, key: str, position: int, row_hash: str, epoch: int) -> Claim:
        """What the journal has of the record that the input now delivers. Raises DuplicateKey the second time."""
        if self.by_position and position // self._stride >= self._slots:
            return _NEW  # positions cannot come twice: nothing to remember, however many there are
        slot = self._slot(int(key) if self.by_position else key_hash(key))
        flags = self._flags[slot]
        if flags & _CLAIMED:
            raise DuplicateKey(
                f"the key {key!r} comes twice in the input, the second time at row {position}",
                hint="Keys must be unique: remove the duplicate, choose another id column, or use row positions.",
            )
        self._flags[slot] = flags & ~DROPPED | _CLAIMED
        if not flags & KNOWN:
            self._position[slot] = position
            return Claim()
        status = flags & STATUS
        same = self._final_epoch[slot] == epoch and self._row_hash[slot] == int(row_hash, 16)
        moved = bool(flags & DROPPED) or self._position[slot] != position
        self._position[slot] = position
        steps = {name: where for name, column in self._steps.items() if slot < len(column) and (where := column[slot])}
        lost_rows = bool(self._endings[self._ending[slot]].failed)
        ended = bool(status) and not flags & DROPPED and self._final_epoch[slot] == epoch
        return Claim(bool(status) and same, status == FAILED, lost_rows, moved, ended, steps or _NO_STEPS)

    def final_of(self, key: str) -> int | None:
        """The location of a record's last final entry, None if it has none."""
        slot = self._find(key)
        return (self._final_at[slot] or None) if slot >= 0 else None

    def steps_of(self, key: str) -> dict[str, int]:
        """Step fingerprint -> location of the record's last results of it."""
        slot = self._find(key)
        if slot < 0:
            return {}
        return {name: where for name, column in self._steps.items() if slot < len(column) and (where := column[slot])}

    def is_current(self, key: str, where: int, fingerprint: str | None = None) -> bool:
        """Whether the entry at `where` is the latest one of a record in the input: of its end, or of a step."""
        slot = self._find(key)
        if slot < 0 or self._flags[slot] & DROPPED:
            return False
        column = self._final_at if fingerprint is None else self._steps.get(fingerprint, ())
        return slot < len(column) and column[slot] == where

    def finals(self, epoch: int | None = None) -> Iterator[int]:
        """Locations of the final entries in the order of the input; of one epoch, or each record's last."""
        return (self._final_at[slot] for slot in self._in_order(epoch))

    def finals_with_failures(self, epoch: int) -> Iterator[int]:
        """As `finals`, of the records that have failed rows."""
        lost = [bool(ending.failed) for ending in self._endings]
        return (self._final_at[slot] for slot in self._in_order(epoch) if lost[self._ending[slot]])

    def first_failures(self, epoch: int) -> Iterator[int]:
        """As `finals_with_failures`, but only records that are the first with a step and reason."""
        left = {(step, reason) for step, reason in self.counts(epoch).failed_rows}
        kinds = [{(step, reason) for step, reason, _ in ending.failed} for ending in self._endings]
        for slot in self._in_order(epoch) if left else ():
            if not left.isdisjoint(kinds[self._ending[slot]]):
                left -= kinds[self._ending[slot]]
                yield self._final_at[slot]
                if not left:
                    return

    def final_rows(self, leaf: str, epoch: int | None = None) -> Iterator[tuple[int, int, int]]:
        """As `finals`, (position, location, rows of the leaf) of those that have any."""
        rows = [next((n for name, n in ending.rows if name == leaf), 0) for ending in self._endings]
        for slot in self._in_order(epoch):
            if count := rows[self._ending[slot]]:
                yield self._position[slot], self._final_at[slot], count

    def _in_order(self, epoch: int | None) -> Iterator[int]:
        """The slots of the final entries, in the order of the input."""
        if self.by_position:
            yield from (slot for slot in range(self._slots) if self._counts(slot, epoch))
            return
        chosen = array("I", (slot for slot in range(self._slots) if self._counts(slot, epoch)))
        position = self._position
        by_place = array("I", bytes(4 * (max((position[slot] for slot in chosen), default=-1) + 1)))
        for slot in chosen:
            if by_place[position[slot]]:
                # Two records with one position: a run stopped before it had read all of its reordered input.
                yield from sorted(chosen, key=lambda slot: (position[slot], slot))
                return
            by_place[position[slot]] = slot + 1
        yield from (slot - 1 for slot in by_place if slot)

    def _counts(self, slot: int, epoch: int | None) -> bool:
        flags = self._flags[slot]
        return bool(flags & STATUS and not flags & DROPPED) and epoch in (None, self._final_epoch[slot])

    def counts(self, epoch: int | None = None) -> Counts:
        """The entries of `finals(epoch)`, in numbers."""
        counts = Counts()
        for (flags, of_epoch, number), n in self._kinds().items():
            status = flags & STATUS
            if not status or flags & DROPPED or epoch not in (None, of_epoch):
                continue
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

    def any_ended_well(self, epoch: int) -> bool:
        """Whether a record in the input ended in this epoch with no failed row."""
        return any(
            flags & STATUS == OK and not flags & DROPPED and of_epoch == epoch and not self._endings[number].failed
            for flags, of_epoch, number in self._kinds()
        )

    def unclaimed_ended(self, epoch: int) -> int:
        """Of `finals(epoch)`, the records that have not been claimed."""
        return sum(
            n
            for (flags, of_epoch, _), n in self._kinds().items()
            if flags & STATUS and not flags & (DROPPED | _CLAIMED) and of_epoch == epoch
        )

    def _kinds(self) -> Counter[tuple[int, int, int]]:
        """How many records have the same flags, epoch and ending."""
        return Counter(zip(memoryview(self._flags)[: self._slots], self._final_epoch, self._ending, strict=False))

    def partial(self) -> int:
        """Records in the input that the journal knows and that have not ended."""
        return self._flags.count(KNOWN) + self._flags.count(KNOWN | _CLAIMED)

    def step_count(self, fingerprint: str) -> int:
        """How many records have results of a step."""
        column = self._steps.get(fingerprint)
        return len(column) - column.count(0) if column is not None else 0

    def step_sample(self, fingerprint: str, most: int) -> list[int]:
        """Locations of entries with results of a step, `most` of them, evenly over the run."""
        there = [where for where in self._steps.get(fingerprint, ()) if where]
        return there[:: -(-len(there) // most)] if there else []

    def unclaimed_keys(self, key_of: Callable[[int], str]) -> Iterator[str]:
        """Keys of the records that the input had before and did not deliver this time.

        `key_of`: the key in the entry at a location.
        """
        for slot in range(self._slots):
            if self._flags[slot] & (_CLAIMED | DROPPED | KNOWN) != KNOWN:
                continue
            if self.by_position:
                yield str(self._position[slot])
            elif where := self._any_entry(slot):
                yield key_of(where)

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


def _run_ends(slots: array[int], *, ordered: bool) -> Iterator[int]:
    """Where runs of consecutive slots end, as indices. No slot comes twice."""
    if not ordered or slots[-1] - slots[0] != len(slots) - 1:
        before = slots[0] - 1
        for at, slot in enumerate(slots):
            if slot != before + 1:
                yield at
            before = slot
    yield len(slots)
