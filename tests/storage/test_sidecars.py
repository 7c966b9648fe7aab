"""Sidecars written during a run, when they are trusted, and half-written files after a kill."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncsynth.errors import CorruptJournal, StorageError
from asyncsynth.storage.entries import DroppedEntry, Entry, MovedEntry
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.facts import SegmentFacts, sidecar_path
from asyncsynth.storage.files import REAL, atomic_write, remove_stale, temporary_path
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.run_journal import RunJournal
from asyncsynth.storage.segments import Segment, list_segments
from asyncsynth.storage.verify import verify
from tests.kit.entries import HASH, final, index_of, journal_of, lost, manifest, step
from tests.kit.journals import SMALL, FailingFS

SEED = 11
NOTED: dict[str, Any] = {**SMALL, "min_sidecar_bytes": 0}


class Unnoted:
    """An entry whose facts are not known."""

    def __init__(self, entry: Entry) -> None:
        self.encode = entry.encode

    def note(self, facts: SegmentFacts, where: int) -> None:
        pass


async def noted(run: Path, keys: str, count: int, *, forget: bool = False) -> None:
    """A run of every kind of entry that notes what it appends, as the engine does, in small segments."""
    rng = random.Random(SEED)
    async with RunJournal.create(run, keys=keys, segment_bytes=4000, **NOTED) as journal:
        for n in range(count):
            key = str(rng.randrange(count // 2))
            entry: Entry = rng.choice([final, step, lost, MovedEntry, lambda key, _: DroppedEntry(key)])(key, n)
            journal.append(Unnoted(entry) if forget and n == 0 else entry)
            if n % 9 == 0:
                await journal.flushed()


@pytest.mark.parametrize("keys", ["position", "id"])
def test_every_segment_has_its_sidecar_when_the_run_ends_and_it_says_what_a_reading_says(
    tmp_path: Path, keys: str
) -> None:
    run = tmp_path / "run"
    asyncio.run(noted(run, keys, 300))
    segments = list_segments(run, REAL)
    assert len(segments) > 5
    assert all(sidecar_path(segment.path).exists() for segment in segments)
    made = manifest()
    made.run_id, made.keys = JournalView(run).run_id or "", keys
    made.save(run)
    found = verify(run)
    assert found.findings == []
    assert found.sidecars == len(segments)
    fast, plain = index_of(run, keys), RunIndex(keys=keys)
    for path in run.glob("*.idx"):
        path.unlink()
    with JournalView(run) as view:
        view.walk(plain)
    assert fast.counts() == plain.counts()
    assert list(fast.finals()) == list(plain.finals())
    for n in range(150):
        assert fast.claim(str(n), n, HASH, 0) == plain.claim(str(n), n, HASH, 0)


def test_an_entry_that_was_not_noted_costs_its_segment_the_sidecar_only(tmp_path: Path) -> None:
    run = tmp_path / "run"
    asyncio.run(noted(run, "position", 300, forget=True))
    missing = [segment.number for segment in list_segments(run, REAL) if not sidecar_path(segment.path).exists()]
    assert missing == [1]


def test_the_first_sidecar_is_there_before_the_run_ends(tmp_path: Path) -> None:
    run = tmp_path / "run"

    async def scene() -> None:
        async with RunJournal.create(run, keys="position", segment_bytes=500, **NOTED) as journal:
            for n in range(12):
                journal.append(final(str(n), n))
                await journal.flushed()
            while not (run / "seg-000001.idx").exists():
                await journal.flushed()
                await asyncio.sleep(0)
            segment = list_segments(run, REAL)[0]
            assert SegmentFacts.load(segment, by_position=True) is not None

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_segment_that_did_not_reach_the_disk_gets_no_sidecar(tmp_path: Path) -> None:
    run, fs = tmp_path / "run", FailingFS()

    async def scene() -> None:
        sizes = {"min_sidecar_bytes": 0, "segment_bytes": 1, "group_entries": 1, "group_delay_s": 0.0}
        journal = RunJournal.create(run, keys="position", fs=fs, **sizes)
        fs.fail_at = len(fs.calls)
        for n in range(3):  # the first is being written when the second begins the next segment
            journal.append(final(str(n), n))
        with pytest.raises(StorageError):
            await journal.flushed()
        with pytest.raises(StorageError):
            await journal.close()

    asyncio.run(scene())
    assert not list(run.glob("*.idx"))


def with_sidecars(run: Path) -> list[Segment]:
    for start in range(0, 60, 20):  # each session begins a segment
        journal_of(run, [final(str(n), n) for n in range(start, start + 20)])
    index_of(run, sidecar_min_bytes=0)
    return list_segments(run, REAL)


@pytest.mark.row(2)
def test_a_sidecar_is_not_trusted_when_its_segment_changed(tmp_path: Path) -> None:
    """Longer, shorter, with a hole, or with another last line of the same length: then the segment is read."""
    run = tmp_path / "run"
    segment = with_sidecars(run)[1]
    data = segment.path.read_bytes()
    assert SegmentFacts.load(segment, by_position=True) is not None
    last_line = data.rfind(b"\n", 0, -1) + 1
    flipped = bytearray(data)
    flipped[last_line + 12] ^= 1
    lines = data.splitlines(keepends=True)
    hole = b"".join(lines[:5] + lines[6:])
    for changed in (data + b"\n", data[:last_line], hole, bytes(flipped)):
        segment.path.write_bytes(changed)
        now = list_segments(run, REAL)[1]
        assert SegmentFacts.load(now, by_position=True) is None


def test_a_bit_that_flips_behind_a_sidecar_is_found_when_its_line_is_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    segment = with_sidecars(run)[1]
    where = list(index_of(run).finals())
    with JournalView(run) as view:
        chosen = next(at for at in where if at >> 40 == 2)
        view.read(chosen)
        data = bytearray(segment.path.read_bytes())
        data[(chosen & ((1 << 40) - 1)) + 60] ^= 1
        segment.path.write_bytes(bytes(data))
        assert list(index_of(run).finals()) == where
        with pytest.raises(CorruptJournal, match=r"seg-000002\.jsonl:\d+: there is no good line"):
            view.read(chosen)
    assert [finding.path.name for finding in verify(run).findings] == ["MANIFEST.json", "seg-000002.jsonl"]


def test_the_last_line_is_found_however_long_it_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    entries = [final("0", 0), lost("1" * 200_000, 1)]
    journal_of(run, entries)
    path = run / "seg-000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))  # without the closing mark, as after a crash
    index_of(run, "id", sidecar_min_bytes=0)
    assert SegmentFacts.load(list_segments(run, REAL)[0], by_position=False) is not None


def test_a_sidecar_that_checks_and_lies_is_found_by_verify(tmp_path: Path) -> None:
    run = tmp_path / "run"
    segment = with_sidecars(run)[0]
    made = manifest()
    made.run_id = segment.header.run_id if segment.header else ""
    made.save(run)
    assert verify(run).findings == []
    loaded = SegmentFacts.load(segment, by_position=True)
    assert loaded is not None
    facts, last_seq, entries = loaded
    facts.final_at[0] += 1
    facts.save(segment, last_seq, entries)
    (finding,) = verify(run).findings
    assert finding.path == sidecar_path(segment.path)


# --- what a kill leaves -------------------------------------------------------------------------


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_half_written_files_of_dead_processes_of_this_machine_are_removed(tmp_path: Path) -> None:
    mine = temporary_path(tmp_path / "result.jsonl")
    host = mine.name.partition("@")[2]
    stale = tmp_path / f".result.jsonl.{dead_pid()}@{host}"
    other_name = tmp_path / f".rows.csv.{dead_pid()}@{host}"
    elsewhere = tmp_path / f".result.jsonl.{dead_pid()}@00000000.tmp"
    foreign = tmp_path / ".notes.tmp"
    for path in (mine, stale, other_name, elsewhere, foreign):
        path.write_bytes(b"x")
    assert remove_stale(tmp_path, of="result.jsonl") == [stale]
    assert remove_stale(tmp_path) == [other_name]
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, elsewhere.name, foreign.name}


def test_opening_a_run_removes_what_a_kill_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    journal_of(run, [final("0", 0)])
    host = temporary_path(run / "x").name.partition("@")[2]
    stale = run / f".seg-000001.idx.{dead_pid()}@{host}"
    stale.write_bytes(b"x")
    index_of(run)
    assert not stale.exists()


@pytest.mark.row(5)
def test_a_file_that_is_replaced_is_never_seen_half_written(tmp_path: Path) -> None:
    target, fs = tmp_path / "f", FailingFS()
    atomic_write(target, b"old")
    atomic_write(target, b"new", fs=fs)
    assert fs.calls == ["open", "write", "fdatasync", "rename", "fsync_dir"]
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
