"""The journal's ordinary life: append, acknowledge, read, roll, lock, and reading beside a writer."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from asyncsynth.errors import CorruptJournal, RunLockedError, StorageError
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.journal import Journal
from tests.kit.journals import SMALL, FailingFS, body, keys, reopen, write


def test_what_was_appended_is_read_back_in_order_by_location_and_after_reopening(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Journal.create(tmp_path / "run", **SMALL) as journal:
            places = [journal.append(body(n)) for n in range(600)]
            assert journal.read(places[3])["k"] == "3"  # before it is written
            await journal.flushed()
            assert [journal.read(place)["k"] for place in places[::100]] == [
                "0",
                "100",
                "200",
                "300",
                "400",
                "500",
            ]
            assert journal.read(places[5]) == orjson.loads(body(5))
        again = Journal.open(tmp_path / "run")
        assert again.report.entries == 600
        assert again.report.bytes_cut == 0
        assert again.read(places[599])["k"] == "599"
        await again.close()

    asyncio.run(scene())
    assert keys(tmp_path / "run") == list(range(600))


def test_lines_are_json_and_the_directory_is_private(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path / "run", 0, 20))
    segment = tmp_path / "run" / "seg-000001.jsonl"
    lines = [orjson.loads(line) for line in segment.read_bytes().splitlines()]
    assert [line["_q"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[0]["t"] == "seg"
    assert lines[1]["t"] == "mark"
    assert stat.S_IMODE(os.stat(tmp_path / "run").st_mode) == 0o700
    assert {stat.S_IMODE(os.stat(p).st_mode) for p in (tmp_path / "run").iterdir()} == {0o600}


@pytest.mark.parametrize("bad", [b"", b"{}", b"[1]", b'{"a":1', b'{"a":\n1}'])
def test_a_body_of_another_shape_is_refused(tmp_path: Path, bad: bytes) -> None:
    async def scene() -> None:
        async with Journal.create(tmp_path / "run") as journal:
            with pytest.raises(ValueError, match="JSON object"):
                journal.append(bad)

    asyncio.run(scene())


def test_each_opening_continues_in_a_new_segment_and_large_ones_roll(tmp_path: Path) -> None:
    for start in (0, 50, 100):
        asyncio.run(write(tmp_path / "run", start, 50, segment_bytes=2000))
    assert keys(tmp_path / "run") == list(range(150))
    assert len(list((tmp_path / "run").glob("seg-*.jsonl"))) > 6
    journal = reopen(tmp_path / "run")
    assert journal.report.entries == 150


def test_opening_and_closing_adds_nothing(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path / "run", 0, 5))
    before = sorted(tmp_path.rglob("*"))
    reopen(tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_segment_is_corruption(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path / "run", 0, 100, segment_bytes=1000))
    (tmp_path / "run" / "seg-000002.jsonl").unlink()
    with pytest.raises(CorruptJournal, match=r"seg-000002\.jsonl"):
        Journal.open(tmp_path / "run")


def test_create_refuses_a_run_that_is_there_and_lets_the_lock_go(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path / "run", 0, 1))
    with pytest.raises(StorageError, match="already"):
        Journal.create(tmp_path / "run")
    reopen(tmp_path / "run")


@pytest.mark.row(8)
def test_a_second_opener_is_told_the_holders_pid(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "run")
    with pytest.raises(RunLockedError, match=rf"pid {os.getpid()}\)"):
        Journal.open(tmp_path / "run")
    asyncio.run(journal.close())
    reopen(tmp_path / "run")
    assert (tmp_path / "run" / "LOCK").exists()


def test_one_commit_serves_all_who_wait_and_a_cancelled_waiter_harms_nobody(tmp_path: Path) -> None:
    fs = FailingFS()

    async def scene() -> None:
        async with Journal.create(tmp_path / "run", fs=fs, **SMALL) as journal:
            waiting = []
            for n in range(100):
                journal.append(body(n))
                waiting.append(asyncio.ensure_future(journal.flushed()))
            await asyncio.sleep(0)
            waiting[50].cancel()
            done = await asyncio.gather(*waiting, return_exceptions=True)
            assert sum(isinstance(d, asyncio.CancelledError) for d in done) == 1
            assert fs.calls.count("fdatasync") == 2  # the segment's header, the group
            await journal.flushed()  # nothing to wait for

    asyncio.run(scene())


def test_a_full_group_does_not_wait_for_the_timer(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Journal.create(tmp_path / "run", group_delay_s=1000.0) as journal:
            for n in range(256):
                journal.append(body(n))
            await asyncio.wait_for(journal.flushed(), 20)
            journal.append(body(256))  # and closing does not wait for it either

    asyncio.run(scene())
    assert keys(tmp_path / "run") == list(range(257))


def test_short_writes_go_on(tmp_path: Path) -> None:
    asyncio.run(write(tmp_path / "run", 0, 30, fs=FailingFS(short_writes=True)))
    assert keys(tmp_path / "run") == list(range(30))


def test_a_closed_journal_refuses_entries(tmp_path: Path) -> None:
    async def scene() -> None:
        journal = Journal.create(tmp_path / "run")
        await journal.close()
        await journal.close()
        with pytest.raises(StorageError, match="closed"):
            journal.append(body(1))

    asyncio.run(scene())


def test_a_reader_beside_the_writer_sees_a_prefix_and_changes_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Journal.create(tmp_path / "run", **SMALL) as journal:
            for n in range(300):
                journal.append(body(n))
                if n % 50 == 49:
                    await journal.flushed()
                    assert keys(tmp_path / "run") == list(range(n + 1))

    asyncio.run(scene())
    segment = tmp_path / "run" / "seg-000001.jsonl"
    torn = segment.read_bytes()[:-200]
    segment.write_bytes(torn)
    with JournalView(tmp_path / "run") as view:
        seen = [entry["k"] for _, entry in view.entries()]
        assert view.torn is not None
        assert view.torn.segment.path == segment
    assert seen == [str(n) for n in range(len(seen))]
    assert segment.read_bytes() == torn


def test_append_is_cheap(tmp_path: Path, record_property: Any) -> None:
    async def scene() -> float:
        async with Journal.create(tmp_path / "run", group_delay_s=10.0, group_entries=10**9) as journal:
            text = body(1, 1500)
            start = time.perf_counter()
            for _ in range(4000):
                journal.append(text)
            return (time.perf_counter() - start) / 4000 * 1e6

    micros = asyncio.run(scene())
    record_property("append_us", micros)
    print(f"append: {micros:.1f} us for a line of 1.5 KB")
