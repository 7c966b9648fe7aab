"""Rows read lazily from the journal, and the files derived from it."""

from __future__ import annotations

import csv
import errno
import importlib.util
import io
import os
import tracemalloc
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsynth.errors import ConfigurationError, StorageError
from asyncsynth.storage.entries import DroppedEntry, MovedEntry
from asyncsynth.storage.exports import Exported, RunRows, _cell, export, leaves
from asyncsynth.storage.failures import export_failures
from tests.kit.entries import Rows, one_each, write_run
from tests.kit.files import read_rows
from tests.kit.journals import FailingFS


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", one_each(10)[::-1])


# --- rows ------------------------------------------------------------------------------------------


def test_rows_come_in_input_order(run: Path) -> None:
    rows = RunRows(run)
    assert len(rows) == 10
    assert rows[0] == {"n": 0, "text": "row 0"}
    assert rows[-1]["n"] == 9
    assert [row["n"] for row in rows] == list(range(10))
    assert rows.column_names == ["n", "text"]
    assert leaves(run) == ["default"]
    for at in (10, -11):
        with pytest.raises(IndexError, match=f"row {at} of 10"):
            rows[at]


def test_slices_are_rows(run: Path) -> None:
    rows = RunRows(run)
    part = rows[2:8][::-2]
    assert isinstance(part, RunRows)
    assert [row["n"] for row in part] == [7, 5, 3]
    assert part[1]["n"] == 5
    assert len(rows[20:]) == 0
    assert list(reversed(rows[:2])) == [rows[1], rows[0]]


def test_columns(run: Path) -> None:
    column = RunRows(run)["text"]
    assert len(column) == 10
    assert column[3] == "row 3"
    assert list(column[8:]) == ["row 8", "row 9"]
    assert "row 9" in column
    with pytest.raises(KeyError, match="'texts': the rows have n, text"):
        RunRows(run)["texts"]


def test_records_of_no_one_and_several_rows(tmp_path: Path) -> None:
    counts = [2, 0, 1, 3, 0, 1]
    records: list[tuple[int, Rows]] = [
        (n, {"default": [{"id": f"{n}.{i}"} for i in range(count)]}) for n, count in enumerate(counts)
    ]
    rows = RunRows(write_run(tmp_path / "run", records))
    expected = ["0.0", "0.1", "2.0", "3.0", "3.1", "3.2", "5.0"]
    assert [row["id"] for row in rows] == [rows[at]["id"] for at in range(7)] == expected
    assert [row["id"] for row in rows[::-1]] == expected[::-1]


def test_a_row_is_the_callers_own(tmp_path: Path) -> None:
    rows = RunRows(write_run(tmp_path / "run", [(0, {"default": [{"x": [1]}, {"x": [2]}]})]))
    rows[0]["x"].append(9)
    for row in rows:
        row["x"].append(9)
    assert list(rows) == [{"x": [1]}, {"x": [2]}]


def test_leaves(tmp_path: Path) -> None:
    made: Rows = {"a": [{"x": 1}], "b": [{"y": 1}, {"y": 2}]}
    run = write_run(tmp_path / "run", [(0, made)], names=["a", "b"])
    assert leaves(run) == ["a", "b"]
    assert list(RunRows(run, "b")["y"]) == [1, 2]
    with pytest.raises(ConfigurationError, match="no rows named 'default'") as caught:
        RunRows(run)
    assert caught.value.hint == "It has 'a', 'b'."


def test_moved_and_dropped_records(tmp_path: Path) -> None:
    extra = [MovedEntry("id-0", 3).encode(), DroppedEntry("id-1").encode()]
    run = write_run(tmp_path / "run", one_each(3), keys="id", extra=extra)
    assert list(RunRows(run)["n"]) == [2, 0]


def test_epochs_are_not_mixed(tmp_path: Path) -> None:
    write_run(tmp_path / "run", one_each(3))
    run = write_run(tmp_path / "run", [(1, {"default": [{"n": -1}]})], epoch=1, epochs=2)
    assert list(RunRows(run)["n"]) == [-1]
    assert list(RunRows(run, epoch=0)["n"]) == [0, 2]
    with pytest.raises(ConfigurationError, match="no epoch 2") as caught:
        RunRows(run, epoch=2)
    assert caught.value.hint == "There are 0 to 1."


def test_nothing_yet(tmp_path: Path) -> None:
    rows = RunRows(write_run(tmp_path / "run", []))
    assert (len(rows), list(rows), rows.column_names) == (0, [], [])
    assert list(rows["anything"]) == []
    assert export(tmp_path / "run", tmp_path / "empty.jsonl").rows == 0
    assert (tmp_path / "empty.jsonl").read_bytes() == b""


def test_rows_of_a_run_that_went_on(run: Path) -> None:
    before = RunRows(run)
    write_run(run, one_each(12)[10:])
    assert len(before) == len(list(before)) == 10
    assert len(RunRows(run)) == 12


def test_no_run_here(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigurationError, match="is not a run directory"):
            RunRows(directory)
        with pytest.raises(ConfigurationError, match="is not a run directory"):
            leaves(directory)


def test_reading_in_a_loop_does_not_read_the_journal_each_time(run: Path) -> None:
    first = RunRows(run)
    assert RunRows(run)._map is first._map
    assert RunRows(run)._map is first._map
    write_run(run, one_each(11)[10:])
    assert RunRows(run)._map is not first._map
    assert RunRows(run)[10]["n"] == 10


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path) -> None:
    count = 20_000
    filler = "x" * 500
    records: list[tuple[int, Rows]] = [(n, {"default": [{"n": n, "text": filler}]}) for n in range(count)]
    run = write_run(tmp_path / "run", records)
    rows = RunRows(run)
    tracemalloc.start()
    assert sum(1 for _ in rows) == count
    export(run, tmp_path / "rows.jsonl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "rows.jsonl").stat().st_size > 10_000_000
    assert peak < 4 << 20


# --- files -----------------------------------------------------------------------------------------


def test_jsonl(run: Path, tmp_path: Path) -> None:
    exported = export(run, tmp_path / "new" / "rows.jsonl")
    assert (exported.rows, exported.path) == (10, tmp_path / "new" / "rows.jsonl")
    assert read_rows(exported.path) == list(RunRows(run))
    first = exported.path.read_bytes()
    assert export(run, exported.path).path.read_bytes() == first
    assert os.listdir(exported.path.parent) == ["rows.jsonl"]


def test_the_same_bytes_in_whatever_order_records_ended(tmp_path: Path) -> None:
    one = export(write_run(tmp_path / "a", one_each(9)), tmp_path / "a.jsonl").path.read_bytes()
    other = export(write_run(tmp_path / "b", one_each(9)[::-1]), tmp_path / "b.jsonl").path.read_bytes()
    assert one == other


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.json", "rows.jsonl.zip"])
def test_an_unknown_suffix(run: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot export to") as caught:
        export(run, tmp_path / name)
    assert ".jsonl, .csv, .parquet" in caught.value.hint


@pytest.mark.parametrize("write", [export, export_failures])
def test_places_where_an_export_would_do_harm(
    run: Path, tmp_path: Path, write: Callable[[Path, Path], Exported]
) -> None:
    before = (run / "seg-000001.jsonl").read_bytes()
    for own in (run / "seg-000001.jsonl", run / "shard-0" / "seg-000001.jsonl"):
        with pytest.raises(ConfigurationError, match="the run's own files"):
            write(run, own)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ConfigurationError, match="is a directory"):
        write(run, tmp_path / "folder.jsonl")
    assert (run / "seg-000001.jsonl").read_bytes() == before
    assert export(run, run / "result.jsonl").rows == 10


def test_a_failure_leaves_the_old_file_and_no_other(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    target = out / "rows.jsonl"
    failures = 0
    while failures < 20:
        target.write_bytes(b"old")
        fs = FailingFS(failures, errno.ENOSPC, once=True)
        try:
            export(run, target, fs=fs)
        except StorageError as error:
            assert str(target) in error.message  # noqa: PT017
            has_moved = fs.calls[failures] == "fsync_dir"  # the new file is in place, whole
            assert target.read_bytes().count(b"\n") == (10 if has_moved else 0)
            assert os.listdir(out) == ["rows.jsonl"]
            failures += 1
        else:
            break
    assert failures >= 5  # open, write, fdatasync, rename, fsync_dir
    assert target.read_bytes().count(b"\n") == 10


# --- csv -------------------------------------------------------------------------------------------


def read_csv(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))


def test_csv(tmp_path: Path) -> None:
    made: Rows = {
        "default": [
            {"a": 'x,"y"\nz', "b": None, "c": [1, "é"]},
            {"a": -1.5, "d": True, "c": {"k": None}},
        ]
    }
    run = write_run(tmp_path / "run", [(0, made)])
    assert read_csv(export(run, tmp_path / "rows.csv").path) == [
        ["a", "b", "c", "d"],
        ['x,"y"\nz', "", '[1,"é"]', ""],
        ["-1.5", "", '{"k":null}', "true"],
    ]


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1", "\n=1", "\u3000=1", "\uff1d1", "\x00=1"]
)
def test_no_cell_is_a_formula(tmp_path: Path, text: str) -> None:
    run = write_run(tmp_path / "run", [(0, {"default": [{text: text}]})])
    cells = [cell for line in read_csv(export(run, tmp_path / "rows.csv").path) for cell in line]
    assert len(cells) == 2
    assert all(cell[0] in "'\ufffd" for cell in cells)


@given(st.text())
def test_cells_are_harmless_and_else_unchanged(text: str) -> None:
    cell = _cell(text)
    assert cell.lstrip()[:1] not in tuple("=+-@")
    assert not any(unicodedata.category(char) == "Cc" and char not in "\t\r\n" for char in cell)
    assert len(cell) - len(text) in (0, 1)
    assert all(new in (old, "\ufffd") for new, old in zip(cell[::-1], text[::-1], strict=False))


# --- parquet ---------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_names_what_to_install(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs the package pyarrow") as caught:
        export(run, tmp_path / "rows.parquet")
    assert "asyncsynth[datasets]" in caught.value.hint
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    records: list[tuple[int, Rows]] = [
        (n, {"default": [{"n": n, "late": None if n < 3000 else ["x"], "score": 1 if n % 2 else 0.5}]})
        for n in range(3001)
    ]
    run = write_run(tmp_path / "run", records)
    table = parquet.read_table(export(run, tmp_path / "rows.parquet").path)
    assert table.to_pylist() == list(RunRows(run))
    run = write_run(tmp_path / "mixed", [(0, {"default": [{"x": "text"}, {"x": 1}]})])
    with pytest.raises(
        ConfigurationError, match=r"the column .x. of row 1 does not fit into Parquet.s typed columns"
    ) as caught:
        export(run, tmp_path / "mixed.parquet")
    assert caught.value.hint is not None
    assert "FormSFT" in caught.value.hint
