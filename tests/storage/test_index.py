"""Entries, the resume index with its sidecars, and the manifest."""

from __future__ import annotations

import asyncio
import errno
import random
import time
from pathlib import Path

import orjson
import pytest

from asyncsynth.errors import CorruptJournal, InputError, StorageError
from asyncsynth.records import content_hash
from asyncsynth.storage.entries import DroppedEntry, MovedEntry, NotJson, RecordEntry
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.index import DuplicateKey, RunIndex
from asyncsynth.storage.journal import Journal
from asyncsynth.storage.manifest import Manifest, diff
from tests.kit.entries import HASH, dead, final, index_of, journal_of, lost, manifest, result, step
from tests.kit.journals import SMALL, FailingFS
from tests.matrix.plugin import Tried

SEED = 7
# --- entries -----------------------------------------------------------------------------------


def test_entries_hold_what_they_were_given_and_leave_out_what_is_empty() -> None:
    entry = orjson.loads(step("7", 7).encode())
    wire = {"k": "7", "h": HASH, "o": [{"generation": "x"}], "m": {"model": "m"}}
    assert entry == {"t": "rec", "k": "7", "i": 7, "h": HASH, "s": [{"f": "f" * 12, "r": [wire]}]}
    assert orjson.loads(final("7", 7).encode()) == {
        "t": "rec", "k": "7", "i": 7, "h": HASH, "e": 0, "st": "ok", "rows": {"default": [{"a": 1}]},
    }  # fmt: skip
    assert orjson.loads(lost("7", 7).encode())["bad"] == [dead("7").to_wire()]
    assert orjson.loads(lost("7", 7).encode())["drop"] == {"filter": {"short": 2}}
    assert orjson.loads(MovedEntry("k", 3).encode()) == {"t": "pos", "k": "k", "i": 3}
    assert orjson.loads(DroppedEntry("k").encode()) == {"t": "drop", "k": "k"}


@pytest.mark.parametrize("value", ["\ud800", 1 << 64, object()])
def test_what_is_not_json_is_refused_with_a_type(value: object) -> None:
    with pytest.raises(NotJson) as caught:
        RecordEntry("a", 0, HASH, epoch=0, status="ok", rows={"default": [{"a": value}]}).encode()
    assert isinstance(caught.value, TypeError)
    assert caught.value.reason == "not_json"


# --- the index ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["position", "id"])
def test_a_claim_tells_done_failed_partly_and_new(tmp_path: Path, keys: str) -> None:
    run = tmp_path / "run"
    where = journal_of(run, [step("0", 0), final("0", 0), lost("1", 1), step("2", 2, "a" * 12), step("2", 2, "b" * 12)])
    index = index_of(run, keys)
    done = index.claim("0", 0, HASH, 0)
    assert (done.done, done.failed, done.moved) == (True, False, False)
    assert done.steps == {"f" * 12: where[0]}
    failed = index.claim("1", 1, HASH, 0)
    assert (failed.done, failed.failed) == (True, True)
    partly = index.claim("2", 2, HASH, 0)
    assert not partly.done
    assert partly.steps == {"a" * 12: where[3], "b" * 12: where[4]}
    new = index.claim("3", 3, HASH, 0)
    assert (new.done, new.moved, new.steps) == (False, False, {})
    assert index.final_of("0") == where[1]
    assert index.final_of("2") is None
    assert index.final_of("99") is None
    assert index.step_count("f" * 12) == 1
    assert index.step_count("0" * 12) == 0


def test_another_row_or_another_epoch_is_not_done_but_keeps_its_steps(tmp_path: Path) -> None:
    run = tmp_path / "run"
    journal_of(run, [step("0", 0), final("0", 0), step("1", 1), final("1", 1)])
    index = index_of(run)
    other = index.claim("0", 0, content_hash({"a": 2}), 0)
    assert not other.done
    assert other.steps
    assert not index.claim("1", 1, HASH, 1).done


def test_results_of_a_changed_row_do_not_make_the_old_end_count(tmp_path: Path) -> None:
    """A crash after a changed row's first step and before its end."""
    run = tmp_path / "run"
    changed = content_hash({"a": 2})
    again = RecordEntry(key="0", position=0, row_hash=changed, steps=[("f" * 12, [result("0")])])
    journal_of(run, [final("0", 0), again])
    assert not index_of(run).claim("0", 0, changed, 0).done


def test_a_key_that_comes_twice_is_refused() -> None:
    index = RunIndex(keys="id")
    index.claim("5", 5, HASH, 0)
    with pytest.raises(DuplicateKey, match="'5' comes twice") as caught:
        index.claim("5", 6, HASH, 0)
    assert isinstance(caught.value, InputError)


def test_the_last_word_counts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    where = journal_of(run, [lost("0", 0), step("0", 0), final("0", 0), step("0", 0)])
    index = index_of(run)
    assert list(index.finals()) == [where[2]]
    counts = index.counts()
    assert (counts.ok, counts.failed, dict(counts.failed_rows)) == (1, 0, {})
    assert index.claim("0", 0, HASH, 0).steps == {"f" * 12: where[3]}


def test_counts_and_finals_by_epoch(tmp_path: Path) -> None:
    run = tmp_path / "run"
    where = journal_of(run, [final("0", 0), lost("1", 1), lost("2", 2), final("3", 3, epoch=1)])
    index = index_of(run)
    counts = index.counts()
    assert (counts.ok, counts.failed) == (2, 2)
    assert counts.failed_rows == {("gen", "timeout"): 2}
    assert counts.dropped_rows == {("filter", "short"): 4}
    assert counts.rows == {"default": 2}
    assert index.counts(1).ok == 1
    assert list(index.finals()) == where
    assert list(index.finals(1)) == where[3:]


def test_what_ended_is_known_before_the_input_brings_it(tmp_path: Path) -> None:
    journal_of(tmp_path / "run", [final("0", 0), lost("1", 1), final("2", 2), final("3", 3, epoch=1)])
    index = index_of(tmp_path / "run")
    assert (index.unclaimed_ended(0), index.unclaimed_ended(1)) == (3, 1)
    index.claim("0", 0, HASH, 0)
    assert (index.unclaimed_ended(0), index.unclaimed_ended(1)) == (2, 1)
    assert index.any_ended_well(0), "the claimed ones count"
    assert not index.any_ended_well(2)
    journal_of(tmp_path / "lost", [lost("0", 0), DroppedEntry("1")])
    assert not index_of(tmp_path / "lost").any_ended_well(0)


def test_finals_come_in_input_order_whatever_the_order_of_work(tmp_path: Path) -> None:
    run = tmp_path / "run"
    order = list(range(500))
    random.Random(SEED).shuffle(order)
    for keys in ("position", "id"):
        journal_of(run / keys, [final(f"{n}", n) for n in order])
        index = index_of(run / keys, keys)
        with JournalView(run / keys) as view:
            assert [view.read(where)["i"] for where in index.finals()] == list(range(500))


def test_moved_dropped_and_returned_records(tmp_path: Path) -> None:
    run = tmp_path / "run"
    journal_of(run, [final("a", 0), final("b", 1), final("c", 2), MovedEntry("a", 5), DroppedEntry("b")])
    index = index_of(run, "id")
    with JournalView(run) as view:
        assert [view.read(where)["k"] for where in index.finals()] == ["c", "a"]
        assert not index.claim("a", 5, HASH, 0).moved
        assert index.claim("c", 9, HASH, 0).moved
        assert list(index.unclaimed_keys(lambda where: view.record(where).key)) == []  # b was dropped before
    back = index.claim("b", 1, HASH, 0)
    assert (back.done, back.moved) == (True, True)
    journal_of(run, [MovedEntry("b", 1)])
    assert index_of(run, "id").counts().ok == 3


@pytest.mark.parametrize("keys", ["position", "id"])
def test_what_the_input_no_longer_brings_is_named(tmp_path: Path, keys: str) -> None:
    run = tmp_path / "run"
    journal_of(run, [final("0", 0), final("1", 1), step("2", 2)])
    index = index_of(run, keys)
    index.claim("1", 1, HASH, 0)
    index.claim("7", 7, HASH, 0)
    with JournalView(run) as view:
        assert list(index.unclaimed_keys(lambda where: view.record(where).key)) == ["0", "2"]


def test_two_records_at_one_position_keep_an_order(tmp_path: Path) -> None:
    run = tmp_path / "run"
    where = journal_of(run, [final("a", 1), final("b", 0), final("c", 1)])
    assert list(index_of(run, "id").finals()) == [where[1], where[0], where[2]]


def test_a_reader_beside_the_writer_builds_the_same_index_and_writes_no_sidecar(tmp_path: Path) -> None:
    run = tmp_path / "run"

    async def scene() -> None:
        async with Journal.create(run, segment_bytes=500, **SMALL) as journal:
            for n in range(50):
                journal.append(final(str(n), n).encode())
                await journal.flushed()
            index = RunIndex(keys="position", sidecar_min_bytes=0)
            with JournalView(run) as view:
                assert view.walk(index) == 50
            assert index.counts().ok == 50

    asyncio.run(scene())
    assert not list(run.glob("*.idx"))


# --- sidecars ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["position", "id"])
def test_sidecars_say_the_same_as_the_segments(tmp_path: Path, keys: str) -> None:
    run = tmp_path / "run"
    rng = random.Random(SEED)
    for session in range(3):
        entries = []
        for n in range(200):
            make = rng.choice([final, step, lost])
            entries.append(make(f"{rng.randrange(150)}", n))
        journal_of(run, [*entries, DroppedEntry(f"{session}")], segment_bytes=4000)
    plain = index_of(run, keys)
    index_of(run, keys, sidecar_min_bytes=0)  # writes them
    sidecars = list(run.glob("*.idx"))
    assert len(sidecars) == len(list(run.glob("seg-*.jsonl"))) > 5
    fast = index_of(run, keys, sidecar_min_bytes=0)
    finals = list(plain.finals())
    assert list(fast.finals()) == finals
    assert fast.counts() == plain.counts()
    for n in range(150):
        assert fast.claim(f"{n}", n, HASH, 0) == plain.claim(f"{n}", n, HASH, 0)

    for path in sidecars:  # damaged ones are found out and made again
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
    assert list(index_of(run, keys, sidecar_min_bytes=0).finals()) == finals


def test_a_sidecar_of_other_keys_or_another_segment_is_not_used(tmp_path: Path) -> None:
    run = tmp_path / "run"
    journal_of(run, [final("0", 0), final("1", 1)])
    index_of(run, "id", sidecar_min_bytes=0)
    assert index_of(run, "position").final_of("1")
    other = tmp_path / "other"
    journal_of(other, [final("0", 0)])
    (run / "seg-000001.idx").rename(other / "seg-000001.idx")
    assert index_of(other, "id").counts().ok == 1


def test_a_sidecar_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    journal_of(run, [final("0", 0)])
    index = RunIndex(keys="position", sidecar_min_bytes=0, fs=FailingFS(0, errno.ENOSPC))
    asyncio.run(Journal.open(run, visitor=index).close())
    assert index.counts().ok == 1
    assert not list(run.glob("*.idx"))


# --- size and speed ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("keys", ["position", "id"])
def test_memory_and_time_of_a_resume(tmp_path: Path, keys: str) -> None:
    run, records = tmp_path / "run", 100_000
    lines = [step("%d", 0).encode(), final("%d", 0).encode()]
    step_line, final_line = (line.replace(b'"i":0', b'"i":%d').replace(b'"%d"', b'"%d"') for line in lines)
    entries = (line % (n, n) for n in range(records // 2) for line in (final_line,))
    journal_of(run, entries)
    journal_of(run, (line % (n, n, n) if line is step_line else line % (n, n)
                     for n in range(records // 2, records) for line in (step_line, final_line)))  # fmt: skip
    start = time.perf_counter()
    index = index_of(run, keys)
    scanned = time.perf_counter() - start
    start = time.perf_counter()
    index = index_of(run, keys)
    loaded = time.perf_counter() - start
    start = time.perf_counter()
    for n in range(records):
        assert index.claim(str(n), n, HASH, 0).done
    claimed = time.perf_counter() - start
    per_record = index.nbytes / records
    print(f"{keys}: {per_record:.0f} B a record; {records} records: scan {scanned:.2f} s, sidecars {loaded:.2f} s,"
          f" claim {claimed / records * 1e6:.1f} us")  # fmt: skip
    assert per_record < 70


# --- the manifest ------------------------------------------------------------------------------


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    assert Manifest.load(tmp_path) is None
    assert not Manifest.exists(tmp_path)
    written = manifest()
    written.save(tmp_path)
    assert Manifest.load(tmp_path) == written
    assert written.version
    assert [path.name for path in tmp_path.iterdir()] == ["MANIFEST.json"]


def test_a_damaged_or_foreign_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "MANIFEST.json"
    for bad in (b"", b"{", b"[]", b"{}", b'{"format":1}'):
        path.write_bytes(bad)
        with pytest.raises(CorruptJournal, match=r"MANIFEST\.json"):
            Manifest.load(tmp_path)
    path.write_bytes(b'{"format":99}')
    with pytest.raises(StorageError, match="format 99"):
        Manifest.load(tmp_path)


@pytest.mark.row(5)
def test_saving_a_manifest_is_all_or_nothing(tmp_path: Path, tried: Tried) -> None:
    manifest().save(tmp_path)
    before = (tmp_path / "MANIFEST.json").read_bytes()
    probe = FailingFS()
    manifest().save(tmp_path, fs=probe)
    for at in range(len(probe.calls)):
        changed = manifest()
        changed.run_seed = 43
        with pytest.raises(StorageError, match=r"MANIFEST\.json"):
            changed.save(tmp_path, fs=FailingFS(at))
        now = (tmp_path / "MANIFEST.json").read_bytes()
        assert now == before or probe.calls[at] == "fsync_dir"
    assert "rename" in probe.calls
    tried(len(probe.calls), "calls of replacing a file made to fail")


def test_a_difference_names_the_field() -> None:
    old = {"steps": {"gen": {"model": "a", "n": [1, 2], "gone": 1, "same": (1,)}}, "seed": 1}
    new = {"steps": {"gen": {"model": "b", "n": [1, 3], "same": [1]}, "judge": {"model": "c"}}, "seed": 1.0}
    assert diff(old, new) == [
        'steps.gen.model: "a" -> "b"',
        "steps.gen.n[1]: 2 -> 3",
        "steps.gen.gone: 1 -> (absent)",
        'steps.judge: (absent) -> {"model":"c"}',
        "seed: 1 -> 1.0",
    ]
    assert diff(old, old) == []


def test_a_difference_of_user_code_is_readable() -> None:
    old = {"code": {"helper": "c6119754dbcea92c", "one": "c6119754dbcea92c", "PRICES": '{"a":1}'}}
    new = {"code": {"helper": "7c9c3c5769f54150", "other": "c6119754dbcea92c", "PRICES": '{"a":"it\'s"}'}}
    assert diff({"steps": old}, {"steps": new}) == [
        "steps.code.helper: edited",
        "steps.code.one: removed",
        'steps.code.PRICES: \'{"a":1}\' -> "{\\"a\\":\\"it\'s\\"}"',
        "steps.code.other: added",
    ]


def test_a_difference_deep_in_a_long_text_is_shown() -> None:
    (line,) = diff({"prompt": "x" * 500 + "old" + "y" * 500}, {"prompt": "x" * 500 + "new" + "y" * 500})
    assert "old" in line
    assert "new" in line
    assert len(line) < 200
