"""Reads a segment that may be damaged: every line that checks, and the bytes between them.

Opening a run stops at the first bad line. Here, reading continues after it, for `journal verify` and `repair`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import orjson

from asyncsynth.errors import CorruptJournal
from asyncsynth.storage.files import FileSystem
from asyncsynth.storage.framing import FORMAT, MARK_START, Header, check, location, mark_durable_upto, parse_header
from asyncsynth.storage.segments import Segment, iter_lines, open_for_reading

_KEY = re.compile(rb'\{"t":"(?:rec|pos|drop)","k":("(?:[^"\\]|\\.)*")')
_START = re.compile(rb'\{"t":"')
_END = re.compile(rb',"_c":"[0-9a-f]{8}"\}')
_KIND = re.compile(rb'\{"t":"([a-z]{1,16})"')


class Line(NamedTuple):
    """A stretch of a segment: a line that checks, or (seq -1) bytes between such lines."""

    offset: int
    data: bytes  #: without the newline
    seq: int
    body_end: int  #: where `,"_q"` starts


@dataclass(slots=True)
class Damage:
    """Bytes that are not good lines, and the lines that are missing there."""

    offset: int
    size: int
    first: int  #: seq of the first line that is missing
    missing: int = 0  #: lines
    synced: bool = False  #: they were once on the disk: corruption, not the end of an unfinished write
    keys: list[str] = field(default_factory=list)  #: of records, as far as they can still be read


@dataclass(slots=True)
class SegmentCheck:
    """The contents of one segment."""

    number: int
    path: Path
    size: int = 0
    there: bool = True
    header: Header | None = None  #: as read, or rebuilt from the marks and the neighbours
    header_size: int = 0  #: bytes of the header as read; 0: it does not check
    last_seq: int = 0  #: of the last good line
    entries: int = 0
    marks: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    damages: list[Damage] = field(default_factory=list)
    wrong_marks: list[int] = field(default_factory=list)  #: offsets

    @property
    def segment(self) -> Segment:
        return Segment(self.number, self.path, self.size, self.header, self.header_size)


def good_lines(fs: FileSystem, fd: int, start: int, stop: int, salt: int) -> Iterator[Line]:
    """Every line of a segment that checks, wherever it begins, and the bytes between them."""
    for offset, data, whole in iter_lines(fs, fd, start, stop):
        seq, end = check(data, salt) if whole else (-1, -1)
        if seq >= 0:
            yield Line(offset, data, seq, end)
        else:
            yield from _salvage(Line(offset, data, -1, -1), salt)


def _salvage(bad: Line, salt: int) -> Iterator[Line]:
    """Good lines inside a bad one: where a newline was overwritten, two good ones became one."""
    done = 0
    for start in _START.finditer(bad.data):
        end = _END.search(bad.data, start.end())
        if start.start() < done or end is None:
            continue
        line = bad.data[start.start() : end.end()]
        seq, at = check(line, salt)
        if seq >= 0:
            if start.start() > done:
                yield Line(bad.offset + done, bad.data[done : start.start()], -1, -1)
            yield Line(bad.offset + start.start(), line, seq, at)
            done = end.end()
    if done < len(bad.data) or not bad.data:
        yield Line(bad.offset + done, bad.data[done:], -1, -1)


def read_header(fs: FileSystem, path: Path, size: int, run_id: str | None, number: int) -> tuple[Header | None, int]:
    """(header, bytes of it) if the first line is this segment's of this run; else what the marks tell.

    (header with prev -1, 0) when only the salt is known, (None, 0) when nothing is.
    Raises CorruptJournal for another format.
    """
    salt = -1
    with open_for_reading(fs, path) as fd:
        for offset, line, whole in iter_lines(fs, fd, 0, size):
            parsed = parse_header(line) if offset == 0 and whole else None
            if parsed is not None:
                header, version = parsed
                if version != FORMAT:
                    raise CorruptJournal(f"{path}: has format {version}; {FORMAT} was expected")
                good = header.segment == number and run_id in (None, header.run_id)
                return (header, len(line) + 1) if good else (None, 0)
            if mark_durable_upto(line, None) >= 0:
                salt = orjson.loads(line)["salt"]
                break
    return (Header(run_id or "", number, salt, -1) if salt >= 0 else None), 0


def check_segment(
    found: SegmentCheck, fs: FileSystem, prev: int, next_prev: int | None, entry: Callable[[int, bytes], None]
) -> None:
    """Reads the whole segment. `prev`: last seq before it. `next_prev`: the seq it must end with, None: the last one.

    `entry` is given the location and JSON bytes of every good entry.
    """
    header = found.header
    found.last_seq = prev + 1 if header is not None else prev
    open_damage: Damage | None = None
    if found.header_size == 0:
        open_damage = Damage(0, 0, prev + 1, synced=True)
        found.damages.append(open_damage)
    if header is None:
        if open_damage is not None:
            open_damage.size = found.size
    else:
        base = location(found.number, 0)
        with open_for_reading(fs, found.path) as fd:
            for line in good_lines(fs, fd, found.header_size, found.size, header.salt):
                if line.seq <= found.last_seq or (next_prev is not None and line.seq > next_prev):
                    open_damage = _extend(found, open_damage, line)
                    continue
                if line.seq > found.last_seq + 1 and open_damage is None:
                    found.damages.append(open_damage := Damage(line.offset, 0, found.last_seq + 1))
                if open_damage is not None:
                    open_damage.missing = max(0, line.seq - max(open_damage.first, found.last_seq + 1))
                    open_damage = None
                found.last_seq = line.seq
                _count(found, line, base, entry)
    _judge_end(found, open_damage, next_prev)


def _extend(found: SegmentCheck, damage: Damage | None, line: Line) -> Damage:
    if damage is None:
        damage = Damage(line.offset, 0, found.last_seq + 1)
        found.damages.append(damage)
    damage.size = line.offset + len(line.data) + 1 - damage.offset
    damage.keys += [orjson.loads(key) for key in _KEY.findall(line.data) if _is_text(key)]
    return damage


def _is_text(key: bytes) -> bool:
    try:
        orjson.loads(key)
    except ValueError:
        return False
    return True


def _count(found: SegmentCheck, line: Line, base: int, entry: Callable[[int, bytes], None]) -> None:
    if line.data.startswith(MARK_START):
        found.marks += 1
        upto = mark_durable_upto(line.data, None)
        if upto != line.seq - 1:
            found.wrong_marks.append(line.offset)
        for damage in found.damages:
            damage.synced = damage.synced or damage.first <= upto
        return
    found.entries += 1
    kind = _KIND.match(line.data)
    found.kinds[kind[1].decode() if kind else "?"] += 1
    entry(base + line.offset, line.data[: line.body_end] + b"}")


def _judge_end(found: SegmentCheck, open_damage: Damage | None, next_prev: int | None) -> None:
    """Another segment is begun only after all of this one is on the disk; the last may end in an unfinished write."""
    if next_prev is None:
        if found.there and found.header is None and found.damages:
            found.damages[0].synced = False  # nothing in it shows that it was ever synced
        return
    if found.last_seq < next_prev:
        if open_damage is None:
            found.damages.append(open_damage := Damage(found.size, 0, found.last_seq + 1))
        open_damage.missing = next_prev - max(found.last_seq, open_damage.first - 1)
    for damage in found.damages:
        damage.synced = True


def size_of(path: Path) -> int:
    return os.stat(path).st_size
