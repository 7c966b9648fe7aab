"""Verify, repair and stats: damage anywhere is reported with its place, and nothing that checks is lost."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asyncsynth.errors import ConfigurationError, CorruptJournal, RunLockedError, StorageError
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.journal import Journal
from asyncsynth.storage.journal_stats import journal_stats
from asyncsynth.storage.repair import repair
from asyncsynth.storage.verify import run_directories, verify
from tests.kit.entries import final, index_of, journal_of, lost, manifest, step
from tests.kit.journals import SMALL, reopen

SEED = int(os.environ.get("ASYNCSYNTH_SEED", "31"))


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: these tests need many files and no disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


def a_run(run: Path, records: int = 90) -> None:
    """Several closed segments, with a manifest."""

    async def scene() -> None:
        async with Journal.create(run, segment_bytes=6000, **SMALL) as journal:
            for n in range(records):
                journal.append(step(str(n), n).encode())
                journal.append(final(str(n), n).encode())
                if n % 4 == 3:
                    await journal.flushed()
            made = manifest()
            made.run_id = journal.run_id
            made.save(run)

    asyncio.run(scene())


def saved(run: Path) -> set[tuple[str, bool]]:
    """(key, whether it is the end) of every entry that can be read."""
    with JournalView(run) as view:
        return {(entry["k"], "st" in entry) for _, entry in view.entries() if entry["t"] == "rec"}


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def flip(path: Path, at: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(bytes(data))


def test_a_whole_run_verifies_and_needs_no_repair(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    index_of(tmp_path / "run", sidecar_min_bytes=0)
    found = verify(tmp_path / "run")
    assert found.findings == []
    assert found.notes == []
    assert found.kinds == {"rec": 180}
    assert found.sidecars == len(found.segments) > 3
    before = contents(tmp_path / "run")
    (done,) = repair(tmp_path / "run")
    assert (done.kept, done.lost, done.rewritten, done.set_aside, done.left) == (180, 0, [], [], [])
    after = contents(tmp_path / "run")
    assert {**after, "LOCK": b""} == {**before, "LOCK": b""}


def test_one_flipped_bit_costs_one_entry_and_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    a_run(run)
    everything = saved(run)
    path = run / "seg-000002.jsonl"
    data = path.read_bytes()
    start = data.index(b'{"t":"rec"', len(data) // 2)
    original = contents(run)
    flip(path, start + 150)
    damaged = path.read_bytes()
    with pytest.raises(CorruptJournal, match=rf"seg-000002\.jsonl:{start}: .*\n.*journal repair"):
        Journal.open(run)
    (finding,) = verify(run).findings
    assert (finding.path, finding.offset) == (path, start)
    assert "1 line(s) lost" in finding.what
    (told,) = repair(run, dry_run=True)
    assert (told.lost, told.rewritten) == (1, [path])
    assert path.read_bytes() == damaged
    assert not (run / "damaged").exists()
    (done,) = repair(run)
    assert (done.lost, done.kept, done.rewritten) == (1, 179, [path])
    gone = everything - saved(run)
    assert len(gone) == 1
    assert done.keys == [key for key, _ in gone]
    assert (run / "damaged" / path.name).read_bytes() == damaged
    assert {n: d for n, d in contents(run).items() if n in original and n not in (path.name, "LOCK")} == {
        n: d for n, d in original.items() if n not in (path.name, "LOCK")
    }
    assert verify(run).findings == []
    assert reopen(run).report.bytes_cut == 0
    again = contents(run)
    assert repair(run)[0].rewritten == []
    assert contents(run) == again


Damage = Callable[[random.Random, Path], None]


def flips(rng: random.Random, path: Path) -> None:
    for _ in range(rng.randrange(1, 6)):
        flip(path, rng.randrange(path.stat().st_size), 1 << rng.randrange(8))


def zeros(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    size = min(rng.randrange(1, 3000), len(data) - at)
    data[at : at + size] = bytes(size)
    path.write_bytes(bytes(data))


def cut(rng: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def hole(rng: random.Random, path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    at = rng.randrange(1, len(lines))
    path.write_bytes(b"".join(lines[:at] + lines[at + rng.randrange(1, 5) :]))


def gone(rng: random.Random, path: Path) -> None:
    path.unlink()


def untouched_lines(run: Path, original: dict[str, bytes]) -> set[tuple[str, bool]]:
    """What is undamaged in the run: whole lines of the original that are still in their file."""
    kept = set()
    for name, data in original.items():
        if not name.startswith("seg-") or not (run / name).exists():
            continue
        now = (run / name).read_bytes()
        for line in data.splitlines():
            if line.startswith(b'{"t":"rec"') and line in now:
                kept.add((line.split(b'"k":"')[1].split(b'"')[0].decode(), b'"st":' in line))
    return kept


@pytest.mark.parametrize("damage", [flips, zeros, cut, hole, gone])
def test_whatever_is_damaged_every_line_that_is_whole_is_kept(quick: Path, damage: Damage) -> None:
    rng = random.Random(f"{SEED}{damage.__name__}")
    a_run(quick / "whole")
    original = contents(quick / "whole")
    segments = sorted(name for name in original if name.startswith("seg-"))
    for round_ in range(12):
        run = quick / f"run{round_}"
        run.mkdir()
        for name, data in original.items():
            (run / name).write_bytes(data)
        target = run / rng.choice(segments[:-1])
        damage(rng, target)
        want = untouched_lines(run, original)
        where = f"seed {SEED}, round {round_}"
        if damage is not gone and target.read_bytes() == original[target.name]:
            continue
        assert verify(run).findings, where
        repair(run)
        assert verify(run).findings == [], where
        reopen(run)
        now = saved(run)
        assert want <= now <= saved(quick / "whole"), where
        assert repair(run)[0].rewritten == [], where


def test_damage_in_the_last_segment_before_its_last_mark_is_repaired_and_a_torn_tail_left_to_the_next_run(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    a_run(run)
    path = sorted(run.glob("seg-*.jsonl"))[-1]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1])[:-9])  # a crash in its last group
    assert verify(run).findings == []
    assert len(verify(run).notes) == 1
    assert repair(run)[0].rewritten == []
    flip(path, len(lines[0]) + len(lines[1]) + 40)
    assert len(verify(run).findings) == 1
    assert repair(run)[0].rewritten == [path]
    assert verify(run).findings == []
    reopen(run)


def test_a_header_is_made_again_from_the_marks(tmp_path: Path) -> None:
    run = tmp_path / "run"
    a_run(run)
    everything = saved(run)
    flip(run / "seg-000001.jsonl", 30)
    assert verify(run).findings[0].offset == 0
    repair(run)
    assert saved(run) == everything
    reopen(run)


def test_a_contradicting_sidecar_goes_and_comes_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    a_run(run)
    index_of(run, sidecar_min_bytes=0)
    segment = verify(run).segments[0].segment
    from asyncsynth.storage.facts import SegmentFacts, sidecar_path

    loaded = SegmentFacts.load(segment, by_position=True)
    assert loaded is not None
    loaded[0].row_hash[0] ^= 1
    loaded[0].save(segment, *loaded[1:])
    (done,) = repair(run)
    assert done.set_aside == [run / "damaged" / "seg-000001.idx"]
    assert not sidecar_path(segment.path).exists()
    index_of(run, sidecar_min_bytes=0)
    assert verify(run).findings == []


def test_repair_is_refused_while_a_process_writes_and_verify_is_not(tmp_path: Path) -> None:
    run = tmp_path / "run"
    a_run(run)
    journal = Journal.open(run)
    flip(run / "seg-000001.jsonl", 900)
    with pytest.raises(RunLockedError, match=f"pid {os.getpid()}"):
        repair(run)
    assert verify(run).findings
    asyncio.run(journal.close())
    assert repair(run)[0].rewritten


def test_a_foreign_segment_and_a_broken_manifest_are_told(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    a_run(run)
    a_run(other)
    (run / "seg-000002.jsonl").write_bytes((other / "seg-000002.jsonl").read_bytes())
    with pytest.raises(CorruptJournal):
        Journal.open(run)
    assert verify(run).findings[0].path == run / "seg-000002.jsonl"
    repair(run)
    assert verify(run).findings == []
    (run / "MANIFEST.json").write_bytes(b"{")
    assert verify(run).findings[0].path == run / "MANIFEST.json"
    assert repair(run)[0].left
    for path in run.glob("seg-*"):
        flip(path, 40)
    with pytest.raises(StorageError, match="which run this is"):
        repair(run)


def test_a_run_in_parts_is_gone_through(tmp_path: Path) -> None:
    run = tmp_path / "run"
    a_run(run)
    a_run(run / "stage-1")
    assert run_directories(run) == [run / "stage-1", run]
    flip(run / "stage-1" / "seg-000001.jsonl", 900)
    assert [bool(done.rewritten) for done in repair(run)] == [True, False]
    with pytest.raises(ConfigurationError, match="not a run directory"):
        run_directories(tmp_path)


def test_stats_count_records_and_what_was_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    entries = [step("0", 0), final("0", 0), step("1", 1), lost("2", 2), step("0", 0), final("0", 0)]
    journal_of(run, entries)
    made = manifest()
    made.epochs[0].steps = {"gen": "f" * 12}
    made.save(run)
    stats = journal_stats(run)
    assert (stats.final, stats.partial, stats.failed) == (1, 1, 1)
    assert stats.entries == {"rec": 6}
    assert stats.superseded == 2
    assert stats.superseded_bytes == len(entries[0].encode()) + len(entries[1].encode())
    assert stats.steps == {"gen": 2}
    assert stats.bytes == (run / "seg-000001.jsonl").stat().st_size
    assert stats.bytes_per_record == stats.bytes / 3
    (run / "MANIFEST.json").unlink()
    with pytest.raises(StorageError, match=r"MANIFEST\.json: is missing"):
        journal_stats(run)
