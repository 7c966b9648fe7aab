"""The journal after crashes: cut anywhere, flipped bits, garbage, failing and forgetful disks, kill -9.

ASYNCSYNTH_FULL_MATRIX=1 runs the long form (see docs/reliability.md).
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncsynth.errors import CorruptJournal, StorageError
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.journal import Journal
from asyncsynth.storage.recovery import NoVisitor, recover
from tests.kit.journals import SMALL, FailingFS, ForgetfulFS, body, keys, reopen, write
from tests.matrix.plugin import FULL, Tried

SEED = int(os.environ.get("ASYNCSYNTH_SEED", "20"))


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one, for tests that make thousands of files and need no disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


def crashed(tmp_path: Path, entries: int, size: int = 60, groups: int = 7) -> tuple[Path, bytes]:
    """A run that was written in groups and then lost its closing mark, as after a crash; its only segment."""
    run = tmp_path / "run"
    asyncio.run(write(run, 0, entries, size=size, group=groups))
    segment = run / "seg-000001.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    return run, b"".join(lines[:-1])


def put(run: Path, data: bytes) -> None:
    for path in run.iterdir():
        path.unlink()
    (run / "seg-000001.jsonl").write_bytes(data)


def whole_entries(data: bytes) -> list[int]:
    """Keys of the entry lines that are whole in `data`."""
    lines = data.split(b"\n")[:-1]
    return [int(line.split(b'"k":"')[1].split(b'"')[0]) for line in lines if line.startswith(b'{"t":"rec"')]


class Bodies(NoVisitor):
    """Collects the entries that recovery shows."""

    def __init__(self) -> None:
        self.found: list[bytes] = []

    def entry(self, where: int, body: bytes) -> None:
        self.found.append(body)


@pytest.mark.slow
@pytest.mark.row(1)
def test_cut_at_every_byte_recovers_the_exact_prefix(quick: Path, tried: Tried) -> None:
    run, data = crashed(quick, 480 if FULL else 120, size=80)
    assert len(data) > (60_000 if FULL else 17_000)
    segment = run / "seg-000001.jsonl"
    fs = FailingFS()  # does not sync, which would only take time here
    everything = [body(n, 80) for n in range(480)]
    end = entries = 0  # of the whole lines before the cut
    for cut in range(len(data)):
        if cut and data[cut - 1] == ord("\n"):
            entries += data.startswith(b'{"t":"rec"', end)
            end = cut
        segment.write_bytes(data[:cut])
        bodies = Bodies()
        report = recover(run, fs, bodies).report
        assert bodies.found == everything[:entries], f"cut at {cut}"
        assert report.entries == entries
        assert report.bytes_cut == cut - end
        if end:
            assert segment.read_bytes() == data[:end], f"cut at {cut}"
        if report.tail_file is not None:
            assert report.tail_file.read_bytes() == data[end:cut]
            report.tail_file.unlink()
            assert f"cut {cut - end} bytes" in str(report)
        if cut % 500 == 0 and end:
            assert reopen(run).report.entries == entries
    tried(len(data), "cuts")


def test_a_recovered_journal_goes_on_and_is_whole(tmp_path: Path) -> None:
    run, data = crashed(tmp_path, 60)
    put(run, data[:-30])
    kept = len(whole_entries(data[:-30]))
    asyncio.run(write(run, kept, 60 - kept))
    assert keys(run) == list(range(60))
    assert reopen(run).report.bytes_cut == 0


@pytest.mark.slow
@pytest.mark.row(2)
def test_every_flipped_bit_is_noticed(quick: Path, tried: Tried) -> None:
    """Refused as corruption, or cut and reported; never read as if it were good."""
    run, data = crashed(quick, 140)
    rng = random.Random(SEED)
    want = whole_entries(data)
    refused = 0
    flips = 20_000 if FULL else 2_000
    for _ in range(flips):
        bit = rng.randrange(len(data) * 8)
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        put(run, bytes(flipped))
        with JournalView(run) as view:
            try:
                seen = [int(entry["k"]) for _, entry in view.entries()]
            except CorruptJournal:
                refused += 1
                continue
            assert view.torn is not None, f"seed {SEED}: bit {bit} went unnoticed"
            assert seen == want[: len(seen)]
            assert len(seen) < len(want)
    assert refused > 1_000
    tried(flips, "bits flipped")


@pytest.mark.row(2)
def test_after_a_clean_end_every_flipped_bit_before_the_last_mark_is_refused(quick: Path, tried: Tried) -> None:
    run = quick / "run"
    asyncio.run(write(run, 0, 20))
    data = (run / "seg-000001.jsonl").read_bytes()
    last_line = data.rfind(b"\n", 0, -1)
    rng = random.Random(SEED)
    for _ in range(300):
        flipped = bytearray(data)
        flipped[rng.randrange(last_line)] ^= 1 << rng.randrange(8)
        put(run, bytes(flipped))
        with pytest.raises(CorruptJournal):
            Journal.open(run)
        assert (run / "seg-000001.jsonl").read_bytes() == bytes(flipped)  # nothing was altered
    tried(300, "bits flipped in journals that ended well")


@pytest.mark.row(3)
@pytest.mark.parametrize("junk", ["zeros", "garbage", "newlines"])
def test_cut_and_then_junk(quick: Path, junk: str, tried: Tried) -> None:
    run, data = crashed(quick, 60)
    rng = random.Random(f"{SEED}{junk}")
    times = 1_000 if FULL else 60
    for _ in range(times):
        cut, size = rng.randrange(len(data)), rng.randrange(1, 5000)
        tail = {"zeros": bytes(size), "garbage": rng.randbytes(size), "newlines": b"\n" * size}[junk]
        put(run, data[:cut] + tail)
        reopen(run)
        # A newline of the junk may be exactly at the place of the cut line's own.
        assert keys(run) in (whole_entries(data[:cut]), whole_entries(data[: cut + 1])), f"seed {SEED}: cut {cut}"
    tried(times, f"cuts and {junk}")


def test_a_bad_line_in_an_earlier_segment_is_refused_with_file_and_offset(tmp_path: Path) -> None:
    run = tmp_path / "run"
    asyncio.run(write(run, 0, 20))
    asyncio.run(write(run, 20, 20))
    segment = run / "seg-000001.jsonl"
    data = segment.read_bytes()
    segment.write_bytes(data[:-10])
    with pytest.raises(CorruptJournal, match=r"seg-000001\.jsonl:\d+: "):
        Journal.open(run)
    segment.write_bytes(data[: data.rfind(b"\n", 0, -1) + 1])  # whole lines, one too few
    with pytest.raises(CorruptJournal, match=r"seg-000002\.jsonl:0: "):
        Journal.open(run)


# --- failing disks -----------------------------------------------------------------------------


async def append_until_failure(directory: Path, fs: FailingFS, acknowledged: list[int]) -> None:
    journal = Journal.create(directory, fs=fs, segment_bytes=600, **SMALL)
    try:
        for n in range(24):
            journal.append(body(n, 50))
            if n % 4 == 3:
                await journal.flushed()
                acknowledged.extend(range(n - 3, n + 1))
    finally:
        await journal.close()


@pytest.mark.row(5)
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_failure_of_any_call_stops_writing_and_acknowledges_nothing_false(
    quick: Path, error: int, tried: Tried
) -> None:
    seen: set[str] = set()
    for at in itertools.count():
        run = quick / f"run{at}"
        fs, acknowledged = FailingFS(at, error), []
        try:
            asyncio.run(append_until_failure(run, fs, acknowledged))
        except StorageError as raised:
            failure = raised
        else:
            assert len(fs.calls) <= at, "a failed call went unnoticed"
            break
        seen.add(fs.calls[at])
        assert str(run) in str(failure)
        assert failure.hint
        assert failure.exit_code == 5
        after = fs.calls[at + 1 :]
        assert after.count("fdatasync") == 0, "a sync was tried again"
        assert after.count("write") == 0, "written to after a failure"
        if not (run / "LOCK").exists():
            continue
        reopen(run)
        kept = keys(run)
        assert kept == list(range(len(kept)))
        assert set(acknowledged) <= set(kept)
    assert seen == {"mkdir", "open", "write", "fdatasync", "fsync_dir"}
    tried(at, "calls made to fail")


@pytest.mark.row(5)
def test_a_latched_journal_refuses_everything_with_the_same_message(tmp_path: Path) -> None:
    fs = FailingFS()
    told: list[StorageError] = []

    async def scene() -> None:
        journal = Journal.create(tmp_path / "run", fs=fs, **SMALL)
        journal.watch(lambda _: None, told.append)
        journal.append(body(0))
        await journal.flushed()
        fs.fail_at = len(fs.calls)
        journal.append(body(1))
        waits = [asyncio.ensure_future(journal.flushed()) for _ in range(3)]
        errors = await asyncio.gather(*waits, return_exceptions=True)
        assert all(isinstance(error, StorageError) for error in errors)
        fs.fail_at = -1  # the disk comes back: too late
        with pytest.raises(StorageError, match=r"seg-000001\.jsonl: cannot write the journal"):
            journal.append(body(2))
        with pytest.raises(StorageError, match=r"seg-000001\.jsonl: cannot write the journal"):
            await journal.flushed()
        with pytest.raises(StorageError):
            await journal.close()

    asyncio.run(scene())
    assert len(told) == 1
    assert reopen(tmp_path / "run").report.entries == 1


@pytest.mark.row(7)
def test_a_full_disk_is_cut_back_to_the_last_good_line(tmp_path: Path) -> None:
    class Full(FailingFS):
        def ftruncate(self, fd: int, size: int) -> None:
            os.ftruncate(fd, size)

    fs = Full(error=errno.ENOSPC)

    async def scene() -> None:
        journal = Journal.create(tmp_path / "run", fs=fs, **SMALL)
        journal.append(body(0))
        await journal.flushed()
        fs.fail_at = len(fs.calls)
        journal.append(body(1, 300))
        with pytest.raises(StorageError, match="ENOSPC"):
            await journal.flushed()
        with pytest.raises(StorageError, match="resumes"):
            await journal.close()

    asyncio.run(scene())
    assert reopen(tmp_path / "run").report.bytes_cut == 0
    assert keys(tmp_path / "run") == [0]


@pytest.mark.row(5)
@pytest.mark.parametrize("at_start", [True, False])
def test_recovery_that_fails_anywhere_can_be_done_again(quick: Path, at_start: bool, tried: Tried) -> None:
    run, data = crashed(quick, 30)
    torn = data[:20] if at_start else data[:-15]
    put(run, torn)
    probe = FailingFS()
    asyncio.run(Journal.open(run, fs=probe).close())
    assert len(probe.calls) > 2
    for at in range(len(probe.calls)):
        put(run, torn)
        with pytest.raises(StorageError):
            Journal.open(run, fs=FailingFS(at))
        journal = reopen(run)
        assert keys(run) == whole_entries(torn)
        tails = [path.read_bytes() for path in run.glob("tail-*")]
        assert torn[torn.rfind(b"\n") + 1 :] in tails
        assert journal.report.entries == len(whole_entries(torn))
    tried(len(probe.calls), "calls of a recovery made to fail")


@pytest.mark.row(5)
def test_a_tail_is_on_the_disk_before_it_is_cut(tmp_path: Path) -> None:
    run, data = crashed(tmp_path, 21)
    put(run, data[:-15])
    fs = FailingFS()
    asyncio.run(Journal.open(run, fs=fs).close())
    before_cut = fs.calls[: fs.calls.index("ftruncate")]
    assert before_cut[-3:] == ["write", "fdatasync", "fsync_dir"]
    assert "fdatasync" in fs.calls[len(before_cut) :]


@pytest.mark.row(5)
def test_recovery_writes_the_last_group_again(tmp_path: Path) -> None:
    """After a failed sync the pages count as clean: a sync alone would acknowledge what is not there."""
    run, data = crashed(tmp_path, 21)
    put(run, data)
    fs = FailingFS()
    asyncio.run(Journal.open(run, fs=fs).close())
    assert [call for call in fs.calls if call != "open"] == ["write", "fdatasync", "fsync_dir"]
    assert (run / "seg-000001.jsonl").read_bytes() == data


@pytest.mark.slow
@pytest.mark.row(6)
def test_a_power_cut_that_drops_unsynced_pages_loses_nothing_acknowledged(quick: Path, tried: Tried) -> None:
    rng = random.Random(SEED)
    rounds = 2_000 if FULL else 80
    for round_ in range(rounds):
        run = quick / f"run{round_}"
        fs = ForgetfulFS()
        acknowledged: list[int] = []
        asyncio.run(power_cut_scene(run, fs, rng, acknowledged))
        journal = Journal.open(run)
        kept = keys(run)
        asyncio.run(journal.close())
        assert kept == list(range(len(kept))), f"seed {SEED}, round {round_}"
        assert set(acknowledged) <= set(kept), f"seed {SEED}, round {round_}"
    tried(rounds, "power cuts")


async def power_cut_scene(run: Path, fs: ForgetfulFS, rng: random.Random, acknowledged: list[int]) -> None:
    """Writes, and pulls the plug while one group is written but not synced."""
    stop = rng.randrange(2, 40)
    journal = Journal.create(run, fs=fs, segment_bytes=rng.choice([700, 10**6]), **SMALL)
    real_sync = fs.fdatasync
    for n in range(60):
        journal.append(body(n, rng.randrange(120)))
        if rng.random() < 0.3:
            if n > stop:
                fs.fdatasync = lambda fd: None  # type: ignore[method-assign]
                fs.fsync_dir = lambda path: None  # type: ignore[method-assign]
            await journal.flushed()
            if fs.fdatasync != real_sync:
                break
            acknowledged[:] = range(n + 1)
    fs.power_cut(run, lambda: rng.random() < 0.5)
    journal._lock.release()
    journal._release()


CHILD = """
import asyncio, sys
from pathlib import Path
from asyncsynth.storage.journal import Journal

async def main(run, start):
    journal = Journal.open(run) if run.exists() else Journal.create(run, segment_bytes=50_000)
    n = start
    while True:
        mine = range(n, n + 1 + n % 37)
        for n in mine:
            journal.append(b'{"t":"rec","k":"%d","x":"%b"}' % (n, b"z" * (n % 400)))
        n += 1
        await journal.flushed()
        sys.stdout.write("".join(f"{k}\\n" for k in mine))
        sys.stdout.flush()

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.row(4)
def test_kill_9_loses_nothing_acknowledged(tmp_path: Path, tried: Tried) -> None:
    rng = random.Random(SEED)
    run = tmp_path / "run"
    acknowledged: set[int] = set()
    start = 0
    kills = 30 if FULL else 5
    for _ in range(kills):
        wanted = rng.randrange(50, 2000)
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(run), str(start)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        with child, child.stdout as lines:
            for line in lines:
                if line.endswith("\n"):
                    acknowledged.add(int(line))
                if len(acknowledged) >= start + wanted:
                    child.kill()
                    wanted = 10**9
        reopen(run)
        kept = keys(run)
        assert kept == list(range(len(kept))), f"seed {SEED}"
        assert acknowledged <= set(kept), f"seed {SEED}"
        start = len(kept)
        acknowledged = set(kept)
    tried(kills, "kills of a bare journal")
