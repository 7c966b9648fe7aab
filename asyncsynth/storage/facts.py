"""What the resume index needs to know of one segment, as columns; kept beside a closed segment in a binary file.

The file (`seg-000001.idx`) is derived: it is made again when it is missing, damaged, or of another segment.
"""

from __future__ import annotations

import contextlib
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson

from asyncsynth.errors import StorageError
from asyncsynth.storage.files import REAL, FileSystem, atomic_write
from asyncsynth.storage.framing import split_location
from asyncsynth.storage.segments import Segment

REC, POS, DROP = 0, 1, 2  #: kinds of entry
OPEN, OK, FAILED = 0, 1, 2  #: status of a record
SIDECAR_MIN_BYTES = 1 << 20  #: a smaller segment is read again faster than its sidecar is worth

_FORMAT = 1
_STATUS = {None: OPEN, "ok": OK, "failed": FAILED}
_KINDS = {"rec": REC, "pos": POS, "drop": DROP}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a record ended, in numbers. Records that ended alike share one."""

    rows: tuple[tuple[str, int], ...] = ()  #: (leaf, rows)
    failed: tuple[tuple[str, str, int], ...] = ()  #: (step, reason, rows)
    dropped: tuple[tuple[str, str, int], ...] = ()  #: (step, reason, rows)


NOTHING = Ending()
_NONE: dict[str, Any] = {}

#: kind, status, epoch, key, position, row hash, offset, ending (id), steps (id)
Fact = tuple[int, int, int, int, int, int, int, int, int]
_TYPES = "BBHQIQQII"


def key_hash(key: str) -> int:
    """64 bits of a key. Two of a billion keys agree with a chance of 3 %, of a million with 3 in 10^8."""
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class SegmentFacts:
    """Columns of one segment's entries, in order, and the tables their ids point into."""

    def __init__(self, *, by_position: bool) -> None:
        self.by_position = by_position
        self.columns = [array(code) for code in _TYPES]
        self._appends = [column.append for column in self.columns]
        self.endings: list[Ending] = [NOTHING]
        self.step_sets: list[tuple[str, ...]] = [()]
        self._ending_ids: dict[tuple[object, ...], int] = {((), (), ()): 0}
        self._step_ids: dict[tuple[str, ...], int] = {(): 0}

    def __len__(self) -> int:
        return len(self.columns[0])

    def __iter__(self) -> Iterator[Fact]:
        return zip(*self.columns, strict=True)

    def add(self, where: int, entry: dict[str, Any]) -> None:
        """Takes one entry; kinds that the index does not know are passed over."""
        kind = _KINDS.get(entry["t"])
        if kind is None:
            return
        key: str = entry["k"]
        status = _STATUS[entry.get("st")]
        fact = (
            kind,
            status,
            (entry.get("e") or 0) if status else 0,
            int(key) if self.by_position else key_hash(key),
            entry.get("i", 0),
            int(entry["h"], 16) if kind == REC else 0,
            split_location(where)[1],
            self._ending_id(entry) if status else 0,
            self._steps_id(entry),
        )
        for append, value in zip(self._appends, fact, strict=False):
            append(value)

    def _ending_id(self, entry: dict[str, Any]) -> int:
        rows = tuple([(leaf, len(rows)) for leaf, rows in entry.get("rows", _NONE).items()])
        failed: tuple[tuple[str, str, int], ...] = ()
        dropped: tuple[tuple[str, str, int], ...] = ()
        if "bad" in entry:
            tally = Counter((row["step"], row["reason"]) for row in entry["bad"])
            failed = tuple([(step, reason, n) for (step, reason), n in tally.items()])
        if "drop" in entry:
            dropped = tuple([(step, why, n) for step, whys in entry["drop"].items() for why, n in whys.items()])
        parts = (rows, failed, dropped)
        found = self._ending_ids.get(parts)
        if found is None:
            found = self._ending_ids[parts] = len(self.endings)
            self.endings.append(Ending(*parts))
        return found

    def _steps_id(self, entry: dict[str, Any]) -> int:
        saved = entry.get("s")
        if not saved:
            return 0
        steps = tuple([step["f"] for step in saved])
        found = self._step_ids.get(steps)
        if found is None:
            found = self._step_ids[steps] = len(self.step_sets)
            self.step_sets.append(steps)
        return found

    # --- the sidecar ---------------------------------------------------------------------------

    def save(self, segment: Segment, last_seq: int, entries: int, *, fs: FileSystem = REAL) -> None:
        """Writes the sidecar of a closed segment. A failure is passed over: the file only saves time."""
        head = orjson.dumps(
            {
                **_identity(segment, self.by_position),
                "last_seq": last_seq,
                "entries": entries,
                "facts": len(self),
                "endings": [[e.rows, e.failed, e.dropped] for e in self.endings],
                "steps": self.step_sets,
            }
        )
        body = b"".join([head, b"\n", *(column.tobytes() for column in self.columns)])
        with contextlib.suppress(StorageError):
            atomic_write(sidecar_path(segment.path), body + crc32(body).to_bytes(4, "little"), fs=fs)

    @classmethod
    def load(cls, segment: Segment, *, by_position: bool) -> tuple[SegmentFacts, int, int] | None:
        """(facts, last seq, entries) from the sidecar; None when it cannot be used, for whatever reason."""
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
        facts = cls(by_position=by_position)
        at += 1
        for column in facts.columns:
            size = head["facts"] * column.itemsize
            column.frombytes(body[at : at + size])
            at += size
        facts.endings = [Ending(*(tuple(map(tuple, part)) for part in ending)) for ending in head["endings"]]
        facts.step_sets = [tuple(steps) for steps in head["steps"]]
        return facts, head["last_seq"], head["entries"]


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
        "types": [_TYPES, [array(code).itemsize for code in _TYPES], sys.byteorder],
    }
