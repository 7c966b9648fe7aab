"""The store of answers: what was kept is read back or is missing, never wrong, whatever became of its files."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsynth.errors import ConfigurationError
from asyncsynth.storage.files import FileSystem
from asyncsynth.storage.kept_answers import AnswerStore, check_cache, count_kept, padded
from tests.matrix.plugin import Tried

TAG = padded(b"step")


def key(number: int) -> bytes:
    return number.to_bytes(2, "little") * 8


def keep(place: Path, answers: dict[int, Any], fs: FileSystem | None = None) -> AnswerStore:
    """One session that keeps these answers."""

    async def session() -> AnswerStore:
        store = AnswerStore(place, [place], **({} if fs is None else {"fs": fs}))
        for number, answer in answers.items():
            store.put(key(number), TAG, answer)
        store.close()
        return store

    return asyncio.run(session())


def test_what_is_kept_is_read_back_and_the_last_word_counts(tmp_path: Path) -> None:
    keep(tmp_path / "a", {1: "one", 2: ["two", 2.5, None]})
    keep(tmp_path / "a", {2: "second"})
    store = AnswerStore(None, [tmp_path / "a"])
    assert (store.get(key(1)), store.get(key(2)), store.get(key(3))) == ("one", "second", None)
    assert (store.count, store.damaged, store.notes()) == (2, 0, [])
    assert count_kept([tmp_path / "a", tmp_path / "missing"]) == {TAG: 3}
    store.close()


def test_files_and_directory_are_private_and_made_only_when_there_is_something(tmp_path: Path) -> None:
    keep(tmp_path / "deep" / "a", {})
    assert not (tmp_path / "deep").exists()
    keep(tmp_path / "deep" / "a", {1: "one"})
    assert (tmp_path / "deep" / "a").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "deep" / "a").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_long_answers_and_many_sessions(tmp_path: Path) -> None:
    for number in range(70):  # more files than are held open
        keep(tmp_path / "a", {number: f"{number} " * (number * 3000)})
    store = AnswerStore(None, [tmp_path / "a"])
    for number in range(70):
        assert store.get(key(number)) == f"{number} " * (number * 3000)
    store.close()


def test_two_writers_at_once_have_files_of_their_own(tmp_path: Path) -> None:
    async def both() -> None:
        stores = [AnswerStore(tmp_path / "a", [tmp_path / "a"]) for _ in range(2)]
        for number in range(100):
            stores[number % 2].put(key(number), TAG, number)
        for store in stores:
            store.close()

    asyncio.run(both())
    assert len(list((tmp_path / "a").glob("*.jsonl"))) == 2
    store = AnswerStore(None, [tmp_path / "a"])
    assert [store.get(key(number)) for number in range(100)] == list(range(100))
    store.close()


@pytest.mark.row(35)
def test_a_flipped_bit_costs_the_answer_and_never_changes_it(tmp_path: Path, tried: Tried) -> None:
    answers = {number: f"answer {number}" for number in range(5)}
    keep(tmp_path / "a", answers)
    [data], [index] = (list((tmp_path / "a").glob(f"*.{kind}")) for kind in ("jsonl", "idx"))
    flips = 0
    for path in (data, index):
        whole = path.read_bytes()
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            store = AnswerStore(None, [tmp_path / "a"])
            wrong = {n: found for n in answers if (found := store.get(key(n))) not in (answers[n], None)}
            assert not wrong, f"{path.name}, byte {at}"
            store.close()
            flips += 1
        path.write_bytes(whole)
    tried(flips, "bits of kept answers flipped")


@pytest.mark.row(35)
@settings(max_examples=60, deadline=None)
@given(
    sessions=st.lists(
        st.dictionaries(st.integers(0, 9), st.text(st.characters(exclude_categories=["Cs"]), max_size=40)), max_size=4
    ),
    seed=st.integers(0, 1 << 30),
)
def test_cut_anywhere_gives_an_answer_that_was_kept_or_none(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[dict[int, str]], seed: int
) -> None:
    place = tmp_path_factory.mktemp("answers")
    for answers in sessions:
        keep(place, answers)
    chance = random.Random(seed)
    for path in sorted(place.iterdir()):
        if chance.random() < 0.5:
            os.truncate(path, chance.randrange(path.stat().st_size + 1))
    keep(place, {10: "after the cut"})
    store = AnswerStore(None, [place])
    for number in range(10):
        kept = [answers[number] for answers in sessions if number in answers]
        assert store.get(key(number)) in (*kept, None)
    assert store.get(key(10)) == "after the cut"
    store.close()


class FullDisk(FileSystem):
    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, fd: int, data: memoryview) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = os.write(fd, data[: self.room])
        self.room -= written
        return written


def test_a_full_disk_stops_the_keeping_and_is_told(tmp_path: Path) -> None:
    store = keep(tmp_path / "a", dict.fromkeys(range(3), "x" * 300_000), FullDisk(450_000))
    [note] = store.notes()
    assert "no longer kept" in note
    assert "ENOSPC" in note
    again = AnswerStore(None, [tmp_path / "a"])
    assert [again.get(key(number)) for number in range(3)] == ["x" * 300_000, None, None]
    again.close()


def test_what_is_no_json_is_not_kept_and_counted(tmp_path: Path) -> None:
    store = keep(tmp_path / "a", {1: object(), 2: "two"})
    assert store.not_kept == 1
    assert "1 answers were not kept" in store.notes()[0]


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Two arrays of 64 bits a slot, the table at least a third full: 48 bytes an answer at most."""
    keep(tmp_path / "a", dict.fromkeys(range(5000), "x"))
    store = AnswerStore(None, [tmp_path / "a"])
    assert store.count == 5000
    assert 16 * len(store._keys) <= 48 * store.count
    store.close()


def test_a_cache_is_a_directory_of_answers_or_an_empty_one(tmp_path: Path) -> None:
    check_cache(tmp_path / "new")
    check_cache(tmp_path)
    keep(tmp_path / "a", {1: "one"})
    check_cache(tmp_path / "a")
    with pytest.raises(ConfigurationError, match="holds other files"):
        check_cache(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="is a file"):
        check_cache(tmp_path / "file")
    (tmp_path / "a" / "MANIFEST.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is a run directory"):
        check_cache(tmp_path / "a")
