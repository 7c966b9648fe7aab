"""`journal repair`: recovers a damaged journal. Every entry that still checks is kept, and so are the original files.

A damaged segment is rewritten beside its place and then takes its name; the original is kept in `damaged/` by
then. Lost lines get a line `{"t":"lost"}` under their number, so that the count of lines stays whole and the other
segments stay as they are. Their contents are lost: the next run does that work again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncsynth.errors import StorageError
from asyncsynth.storage import layout
from asyncsynth.storage.damage import SegmentCheck, good_lines
from asyncsynth.storage.exports import NewFile
from asyncsynth.storage.extent import reopen
from asyncsynth.storage.facts import sidecar_path
from asyncsynth.storage.files import REAL, FileSystem, make_directory, storage_error
from asyncsynth.storage.framing import Header, frame, header_line
from asyncsynth.storage.lock import RunLock
from asyncsynth.storage.segments import open_for_reading
from asyncsynth.storage.verify import Finding, Verified, run_directories, verify

DAMAGED = layout.DAMAGED  #: folder of the originals
LOST = b'{"t":"lost"}'
_COPY = 1 << 20


@dataclass(slots=True)
class Repaired:
    """The repairs in one run directory, done or, with `dry_run`, needed."""

    directory: Path
    dry_run: bool
    kept: int = 0  #: entries that check, in all segments
    lost: int = 0  #: lines that do not check, entries and marks
    keys: list[str] = field(default_factory=list)  #: records of lost lines, as far as known: partly read, so a guess
    rewritten: list[Path] = field(default_factory=list)
    set_aside: list[Path] = field(default_factory=list)  #: originals, under `damaged/`
    left: list[Finding] = field(default_factory=list)  #: what cannot be repaired here
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "directory": str(self.directory),
            "dry_run": self.dry_run,
            "entries_kept": self.kept,
            "lines_lost": self.lost,
            "records": self.keys,
            "rewritten": list(map(str, self.rewritten)),
            "set_aside": list(map(str, self.set_aside)),
            "left": list(map(str, self.left)),
            "notes": self.notes,
        }


def repair(directory: Path, *, dry_run: bool = False, fs: FileSystem = REAL) -> list[Repaired]:
    """Repairs a run's journals; a second call finds nothing to do.

    Raises RunLockedError while a process writes the run, ConfigurationError if there is none, StorageError.
    """
    places = run_directories(directory)
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.callback(RunLock(place, fs=fs).release)
        done = [_repair(place, dry_run, fs) for place in places]
        if not dry_run and any(each.rewritten for each in done):
            for place in {directory, *places}:
                reopen(place)
        return done


def _repair(directory: Path, dry_run: bool, fs: FileSystem) -> Repaired:
    found = verify(directory, fs=fs)
    done = Repaired(directory, dry_run, kept=sum(s.entries for s in found.segments), notes=found.notes)
    prev = 0
    for at, segment in enumerate(found.segments):
        end = _end(found, at)
        header = segment.header
        if segment.header_size and header is not None and header.prev < prev:
            raise StorageError(
                f"{segment.path}:0: begins after line {header.prev}, the segment before it ends with {prev}: two"
                " journals are mixed here, and what belongs together is not known",
                hint="Restore the run directory from a copy; nothing was altered.",
            )
        bad = [damage for damage in segment.damages if damage.synced]
        if bad or (not segment.there and end is not None):
            done.rewritten.append(segment.path)
            done.lost += sum(damage.missing for damage in bad)
            done.keys += [key for damage in bad for key in damage.keys if key not in done.keys]
            last = _rewrite(segment, prev, end, _run_id(found), done, fs)
        else:
            last = segment.last_seq
        prev = last
    for path in found.wrong_sidecars:
        _set_aside(path, done, fs, move=True)
    barrier = directory / layout.BARRIER_FACTS
    if barrier.exists() and any(finding.path.name == layout.BARRIER_ROWS for finding in found.findings):
        _set_aside(barrier, done, fs, move=True)  # without it, the rows are made again
    done.left = [finding for finding in found.findings if finding.path.suffix == ".json"]
    return done


def _end(found: Verified, at: int) -> int | None:
    """The seq that a segment must end with: the next one's header says it. None: it is not known."""
    following = found.segments[at + 1 : at + 2]
    return next((s.header.prev for s in following if s.header is not None and s.header_size), None)


def _run_id(found: Verified) -> str:
    headers = [s.header.run_id for s in found.segments if s.header is not None and s.header_size]
    run_id = found.manifest.run_id if found.manifest is not None else next(iter(headers), "")
    if not run_id:
        raise StorageError(
            f"{found.directory}: neither the manifest nor any segment says which run this is",
            hint="Restore MANIFEST.json from a copy; nothing was altered.",
        )
    return run_id


def _rewrite(segment: SegmentCheck, prev: int, end: int | None, run_id: str, done: Repaired, fs: FileSystem) -> int:
    """Writes the segment's good lines; returns its last seq."""
    known = segment.header
    if known is not None and segment.header_size:
        prev = known.prev
    header = Header(run_id, segment.number, known.salt if known is not None else secrets.randbits(32), prev)
    if segment.there:
        _set_aside(segment.path, done, fs, move=False)
        if sidecar_path(segment.path).exists():
            _set_aside(sidecar_path(segment.path), done, fs, move=True)
    if done.dry_run:
        return max(segment.last_seq, end or 0, prev + 1)
    seq = prev + 1
    with NewFile(segment.path, fs) as file:
        file.write(header_line(header))
        for number, data in _kept(segment, seq, end, fs):
            for lost in range(seq + 1, number):
                file.write(frame(LOST, lost, header.salt))
            file.write(data + b"\n")
            seq = number
        for lost in range(seq + 1, (end or 0) + 1):
            file.write(frame(LOST, lost, header.salt))
    return max(seq, end or 0)


def _kept(segment: SegmentCheck, seq: int, end: int | None, fs: FileSystem) -> Iterator[tuple[int, bytes]]:
    """(seq, line) of the good lines in their order, after `seq`."""
    if segment.header is None or not segment.there:
        return
    with open_for_reading(fs, segment.path) as fd:
        for line in good_lines(fs, fd, segment.header_size, segment.size, segment.header.salt):
            if line.seq > seq and (end is None or line.seq <= end):
                seq = line.seq
                yield seq, line.data


def _set_aside(path: Path, done: Repaired, fs: FileSystem, *, move: bool) -> None:
    """Puts a copy into `damaged/`, on the disk before anything else happens; with `move` the file itself."""
    folder = path.parent / DAMAGED
    target, n = folder / path.name, 1
    while target.exists():
        n += 1
        target = folder / f"{path.stem}-{n}{path.suffix}"
    done.set_aside.append(target)
    if done.dry_run:
        return
    make_directory(fs, folder)
    try:
        if move:
            fs.rename(path, target)
            fs.fsync_dir(folder)
            fs.fsync_dir(path.parent)
            return
        source = fs.open(path, os.O_RDONLY)
        try:
            with NewFile(target, fs) as copy:
                at = 0
                while chunk := fs.pread(source, _COPY, at):
                    copy.write(chunk)
                    at += len(chunk)
        finally:
            fs.close(source)
    except OSError as error:
        raise storage_error(error, path, f"set the file aside as {target}") from error
