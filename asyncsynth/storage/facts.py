"""The latest state of each record in one segment of the journal, as columns with one row per record.

The resume index takes these columns in whole slices. Beside a closed segment they are kept in a binary file
(`seg-000001.idx`), which is derived: it is made again when it is missing, damaged, or of another segment.
"""

from __future__ import annotations

import contextlib
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson

from asyncsynth.errors import StorageError
from asyncsynth.records import key_hash
from asyncsynth.storage.files import REAL, FileSystem, atomic_write
from asyncsynth.storage.framing import check
from asyncsynth.storage.segments import Segment

OPEN, OK, FAILED = 0, 1, 2  #: status of a record
STATUS = 0b0011  #: bits of a row's flags: OPEN, OK or FAILED
DROPPED = 0b0100  #: the record has left the input
KNOWN = 0b10000  #: there is an entry of this record
SIDECAR_MIN_BYTES = 1 << 20  #: reading a smaller segment again is cheaper than a sidecar

_FORMAT = 2
_STATUS = {None: OPEN, "ok": OK, "failed": FAILED}
_LAST_LINE = 1 << 14  #: bytes read at first to find a segment's last line


@dataclass(frozen=True, slots=True)
class Ending:
    """How a record ended, in numbers. Records that ended alike share one object."""

    rows: tuple[tuple[str, int], ...] = ()  #: (leaf, rows)
    failed: tuple[tuple[str, str, int], ...] = ()  #: (step, reason, rows)
    dropped: tuple[tuple[str, str, int], ...] = ()  #: (step, reason, rows)


NOTHING = Ending()
_NONE: dict[str, Any] = {}


class SegmentFacts:
    """The columns of one segment. Filled entry by entry, or from a sidecar (then nothing is added)."""

    def __init__(self, *, by_position: bool) -> None:
        self.by_position = by_position
        self.entries: int = 0  #: taken so far
        self.keys: array[int] = array("Q")  #: position, or hash of the key
        self.flags: bytearray = bytearray()
        self.position: array[int] = array("I")
        self.final_at: array[int] = array("Q")  #: location of the final entry, 0: none here
        self.final_epoch: array[int] = array("H")
        self.row_hash: array[int] = array("Q")  #: of the row that the final entry was made from
        self.ending: array[int] = array("I")  #: index into `endings`
        self.steps: dict[str, array[int]] = {}  #: fingerprint -> location of the entry with the step's results
        self.endings: list[Ending] = [NOTHING]
        self._count = 0  #: rows; the columns are longer until `settle`
        self._rows: dict[int, int] = {}
        self._ending_ids: dict[object, int] = {}

    def __len__(self) -> int:
        return self._count

    # --- taking entries ------------------------------------------------------------------------

    def add(self, where: int, entry: dict[str, Any]) -> None:
        """Adds one entry that was read back; kinds that the index does not know are only counted."""
        kind = entry["t"]
        if kind == "rec":
            steps = [(step["f"], step) for step in entry.get("s", ())]
            status = entry.get("st")
            if status is None:
                self.results(where, entry["k"], entry["i"], steps)
                return
            self.final(
                where, entry["k"], entry["i"], steps, entry["h"], entry.get("e") or 0, status,
                entry.get("rows", _NONE),
                [(row["step"], row["reason"]) for row in entry.get("bad", ())],
                entry.get("drop", _NONE),
            )  # fmt: skip
        elif kind == "pos":
            self.results(where, entry["k"], entry.get("i", 0), ())
        elif kind == "drop":
            self.drop(entry["k"])
        else:
            self.entries += 1

    def results(self, where: int, key: str, position: int, steps: Iterable[tuple[str, object]]) -> int:
        """Results of a record's steps, or with none of them its new position. Returns the record's row.

        `steps`: pairs that begin with a step's fingerprint.
        """
        self.entries += 1
        number = int(key) if self.by_position else key_hash(key)
        row = self._rows.get(number)
        if row is None:
            row = self._new_row(number)
            self.flags[row] = KNOWN
        else:
            self.flags[row] = self.flags[row] & ~DROPPED | KNOWN
        self.position[row] = position
        for step, _ in steps:
            try:
                self.steps[step][row] = where
            except (KeyError, IndexError):
                column = self.steps.setdefault(step, array("Q"))
                grow(column, len(self.keys))
                column[row] = where
        return row

    def final(
        self,
        where: int,
        key: str,
        position: int,
        steps: Iterable[tuple[str, object]],
        row_hash: str,
        epoch: int,
        status: str,
        rows: Mapping[str, Sized],
        failed: Sequence[tuple[str, str]],
        dropped: Mapping[str, Mapping[str, int]],
    ) -> None:
        """A record's end, with the results that its entry also holds. `failed`: (step, reason) of each failed row."""
        row = self.results(where, key, position, steps)
        self.flags[row] = self.flags[row] & ~STATUS | _STATUS[status]
        self.final_at[row] = where
        self.final_epoch[row] = epoch
        self.row_hash[row] = int(row_hash, 16)
        self.ending[row] = self._ending_id(rows, failed, dropped)

    def drop(self, key: str) -> None:
        """The record has left the input."""
        self.entries += 1
        number = int(key) if self.by_position else key_hash(key)
        row = self._rows.get(number)
        if row is None:
            row = self._new_row(number)
        self.flags[row] |= DROPPED

    def _new_row(self, number: int) -> int:
        row = self._rows[number] = self._count
        self._count += 1
        if row == len(self.keys):
            self._resize(2 * row + 64)
        self.keys[row] = number
        return row

    def _resize(self, rows: int) -> None:
        """Columns of this many rows: zeros if there is nothing yet."""
        self.flags.extend(bytes(max(0, rows - len(self.flags))))
        del self.flags[rows:]
        for column in (self.keys, *self.columns(), *self.steps.values()):
            grow(column, rows)
            del column[rows:]

    def _ending_id(
        self, rows: Mapping[str, Sized], failed: Sequence[tuple[str, str]], dropped: Mapping[str, Mapping[str, int]]
    ) -> int:
        if not failed and not dropped and len(rows) == 1:
            for leaf, made in rows.items():  # nearly every record: found without making an Ending
                found = self._ending_ids.get((leaf, len(made)))
                if found is not None:
                    return found
        return self._new_ending(rows, failed, dropped)

    def _new_ending(
        self, rows: Mapping[str, Sized], failed: Sequence[tuple[str, str]], dropped: Mapping[str, Mapping[str, int]]
    ) -> int:
        tally = Counter(failed)
        ending = Ending(
            tuple((leaf, len(made)) for leaf, made in rows.items()),
            tuple((step, reason, n) for (step, reason), n in tally.items()),
            tuple((step, why, n) for step, whys in dropped.items() for why, n in whys.items()),
        )
        found = self._ending_ids.get(ending)
        if found is None:
            found = self._ending_ids[ending] = len(self.endings)
            self.endings.append(ending)
        if len(ending.rows) == 1 and not ending.failed and not ending.dropped:
            self._ending_ids[ending.rows[0]] = found
        return found

    # --- as columns ----------------------------------------------------------------------------

    def columns(self) -> list[array[int]]:
        """Position, final location, epoch, row hash and ending, in the order the sidecar has them."""
        return [self.position, self.final_at, self.final_epoch, self.row_hash, self.ending]

    def settle(self) -> None:
        """Makes every column as long as the rows, which are sorted by position if that is the key. Nothing is added
        after it."""
        self._resize(self._count)
        self._rows = {}
        if not self.by_position or all(map(int.__le__, self.keys, self.keys[1:])):
            return
        order = sorted(range(len(self)), key=self.keys.__getitem__)
        self.flags = bytearray(map(self.flags.__getitem__, order))
        self.keys, self.position, self.final_at, self.final_epoch, self.row_hash, self.ending = (
            _ordered(column, order) for column in [self.keys, *self.columns()]
        )
        self.steps = {step: _ordered(column, order) for step, column in self.steps.items()}

    def same_as(self, other: SegmentFacts) -> bool:
        """Whether both have the same facts about the same records. Settles both."""
        self.settle()
        other.settle()
        mine, theirs = (
            [
                (facts.keys, facts.flags, *facts.columns()[:-1], facts.steps),
                [facts.endings[number] for number in facts.ending],
            ]
            for facts in (self, other)
        )
        return mine == theirs

    # --- the sidecar ---------------------------------------------------------------------------

    def save(self, segment: Segment, last_seq: int, entries: int, *, fs: FileSystem = REAL) -> None:
        """Writes the sidecar of a closed segment. A failure is ignored: the file only saves time."""
        self.settle()
        head = orjson.dumps(
            {
                **_identity(segment, self.by_position),
                "last_seq": last_seq,
                "entries": entries,
                "rows": len(self),
                "endings": [[e.rows, e.failed, e.dropped] for e in self.endings],
                "steps": list(self.steps),
            }
        )
        columns = [self.keys, *self.columns(), *self.steps.values()]
        body = b"".join([head, b"\n", self.flags, *(column.tobytes() for column in columns)])
        with contextlib.suppress(StorageError):
            atomic_write(sidecar_path(segment.path), body + crc32(body).to_bytes(4, "little"), fs=fs)

    @classmethod
    def load(
        cls, segment: Segment, *, by_position: bool, fs: FileSystem = REAL
    ) -> tuple[SegmentFacts, int, int] | None:
        """(facts, last seq, entries) from the sidecar; None if it cannot be used, for any reason.

        It checks the file's CRC, that it belongs to a segment of this size, salt, place and run, and that the
        segment's last line checks and is the last one that the file covers. It does not read the other lines.
        """
        try:
            data = sidecar_path(segment.path).read_bytes()
        except OSError:
            return None
        body = memoryview(data)[:-4]
        if len(data) < 5 or crc32(body) != int.from_bytes(data[-4:], "little"):
            return None
        at = data.find(b"\n")
        head = orjson.loads(body[:at])
        if any(head.get(name) != value for name, value in _identity(segment, by_position).items()):
            return None
        if last_seq_of(segment, fs) != head["last_seq"]:
            return None
        facts = cls(by_position=by_position)
        facts.entries = head["entries"]
        facts.steps = {step: array("Q") for step in head["steps"]}
        rows, at = head["rows"], at + 1
        facts._count = rows
        facts.flags[:] = body[at : at + rows]
        at += rows
        for column in [facts.keys, *facts.columns(), *facts.steps.values()]:
            size = rows * column.itemsize
            column.frombytes(body[at : at + size])
            at += size
        facts.endings = [Ending(*(tuple(map(tuple, part)) for part in ending)) for ending in head["endings"]]
        return facts, head["last_seq"], head["entries"]


def grow(column: array[int], size: int) -> None:
    """Zeros up to at least `size` items."""
    if size > len(column):
        column.frombytes(bytes((size - len(column)) * column.itemsize))


def _ordered(column: array[int], order: list[int]) -> array[int]:
    return array(column.typecode, map(column.__getitem__, order))


def last_seq_of(segment: Segment, fs: FileSystem) -> int:
    """The seq of a segment's last line, -1 if that line does not check or cannot be read."""
    assert segment.header is not None
    try:
        fd = fs.open(segment.path, 0)  # O_RDONLY
        try:
            size = _LAST_LINE
            while True:
                start = max(0, segment.size - size)
                tail = fs.pread(fd, segment.size - start, start)
                newline = tail.rfind(b"\n", 0, -1)
                if newline >= 0 or start == 0:
                    break
                size *= 8
        finally:
            fs.close(fd)
    except OSError:
        return -1
    return check(tail[newline + 1 : -1], segment.header.salt)[0] if tail.endswith(b"\n") else -1


def sidecar_path(segment_path: Path) -> Path:
    return segment_path.with_suffix(".idx")


def _identity(segment: Segment, by_position: bool) -> dict[str, Any]:
    """What a sidecar must agree on with its segment, its run and this machine."""
    assert segment.header is not None
    return {
        "format": _FORMAT,
        "run": segment.header.run_id,
        "n": segment.number,
        "salt": segment.header.salt,
        "prev": segment.header.prev,
        "size": segment.size,
        "by_position": by_position,
        "items": [[code, array(code).itemsize] for code in "QIH"] + [sys.byteorder],
    }
