"""Rows from Parquet, saved data sets and the Hub. What needs the extra `datasets` is skipped without it."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncsynth import Deduplicate, LoadDisk, LoadHub, LoadParquet
from asyncsynth.errors import ConfigurationError, InputError
from asyncsynth.inputs.reader import BadRow, Reader, SourceRow
from asyncsynth.pipeline import Graph

ROWS = [{"id": "a", "prompt": "p"}, {"id": "b", "prompt": "q"}]


def read(reader: Reader) -> list[Any]:
    return [item.row if isinstance(item, SourceRow) else item for item in reader]


# --- Parquet -----------------------------------------------------------------------------------


def write_parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def test_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    step = LoadParquet(path, id_column="id", output_mappings={"prompt": "instruction"})
    assert step.known_columns() == ("id", "instruction")
    reader = step.open()
    assert list(reader)[1] == SourceRow(1, "b", {"id": "b", "instruction": "q"})
    assert read(reader) == read(reader), "from the first row again"
    assert reader.size_hint() == 2
    assert str(tmp_path) not in str(step.settings()), "a moved file is the same input"


def test_parquet_rows_added_are_the_same_input_continued(tmp_path: Path) -> None:
    old = LoadParquet(write_parquet(tmp_path / "a.parquet", ROWS)).open().identity()
    more = LoadParquet(write_parquet(tmp_path / "b.parquet", [*ROWS, {"id": "c", "prompt": "r"}])).open()
    other = LoadParquet(write_parquet(tmp_path / "c.parquet", ROWS[::-1])).open()
    assert more.extends(old)
    assert not other.extends(old)


def test_a_directory_of_parquet_files_and_chosen_columns(tmp_path: Path) -> None:
    for number in (2, 1):
        write_parquet(tmp_path / "parts" / f"part-{number}.parquet", [{"n": number, "binary": b"\xff"}] * 700)
    with pytest.raises(InputError, match=r"parts\[0\]: binary is of type bytes"):
        read(LoadParquet(tmp_path / "parts").open())
    step = LoadParquet(tmp_path / "parts", columns="n")
    assert read(step.open()) == [{"n": 1}] * 700 + [{"n": 2}] * 700
    assert step.open().size_hint() == 1400
    with pytest.raises(InputError, match=r"part-1\.parquet: has no column 'm'"):
        read(LoadParquet(tmp_path / "parts", columns=["m"]).open())


def test_a_long_parquet_file_is_not_read_whole(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "long.parquet", [{"n": n} for n in range(50_000)], row_group_size=1000)
    rows = iter(LoadParquet(path).open())
    assert next(rows) == SourceRow(0, None, {"n": 0})


def test_parquet_values_that_json_lacks(tmp_path: Path) -> None:
    when = datetime.datetime(2025, 5, 1, 12, 30)
    path = write_parquet(tmp_path / "t.parquet", [{"when": when, "list": [{"day": when.date()}], "x": 0.5}])
    assert read(LoadParquet(path).open()) == [
        {"when": "2025-05-01T12:30:00", "list": [{"day": "2025-05-01"}], "x": 0.5}
    ]
    path = write_parquet(tmp_path / "nan.parquet", [{"x": 1.0}, {"x": float("nan")}])
    assert isinstance(read(LoadParquet(path, on_bad_row="skip").open())[1], BadRow)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"{}\n"), "cannot be read"),
        (lambda path: path.mkdir(), r"holds no \*\.parquet files"),
    ],
)
def test_what_is_no_parquet(tmp_path: Path, make: Any, message: str) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    make(path)
    with pytest.raises(InputError, match=message):
        LoadParquet(path).known_columns()


@pytest.mark.parametrize("path", ["", None, [{"a": 1}]])
def test_a_path_of_a_wrong_type(path: Any) -> None:
    with pytest.raises(InputError, match="the path of a Parquet file was expected"):
        LoadParquet(path)


# --- datasets ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(str(tmp_path / "one"))
    step = LoadDisk(tmp_path / "one", id_column="id")
    assert step.known_columns() == ("id", "prompt")
    assert read(step.open()) == read(step.open()) == ROWS
    assert step.open().size_hint() == 2
    with pytest.raises(InputError, match="without splits"):
        read(LoadDisk(tmp_path / "one", split="train").open())

    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "two"))
    assert read(LoadDisk(tmp_path / "two", split="test").open()) == ROWS
    with pytest.raises(InputError, match="a split must be named"):
        read(LoadDisk(tmp_path / "two").open())
    with pytest.raises(InputError, match=r"no split 'tests' \(did you mean 'test'\?\)"):
        read(LoadDisk(tmp_path / "two", split="tests").open())
    with pytest.raises(InputError, match="is no data set that can be read"):
        read(LoadDisk(tmp_path / "three").open())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("streaming", [True, False])
def test_a_local_folder_in_the_hubs_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_parquet(tmp_path / "data" / "train-00000.parquet", ROWS)
    step = LoadHub(str(tmp_path / "data"), streaming=streaming)
    assert read(step.open()) == ROWS
    with pytest.raises(InputError, match="cannot be read from the Hub"):
        read(LoadHub(str(tmp_path / "nothing"), streaming=streaming).open())


def test_what_the_hub_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Iterator[dict[str, Any]]:
        asked.append((arguments, options))
        return iter(ROWS)

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    step = LoadHub("owner/name", config="small", split="test", revision="abc", load=load, id_column="id")
    reader = step.open()
    assert asked == [], "nothing is fetched before it is asked for"
    assert step.known_columns() == ("id", "prompt")
    assert [item.key for item in reader if isinstance(item, SourceRow)] == ["a", "b"]
    assert asked[0] == (
        ("owner/name", "small"),
        {"split": "test", "revision": "abc", "streaming": True, "token": "hf_secret"},
    )
    assert reader.identity()["name"] == "owner/name/small/test@abc"
    assert "hf_secret" not in f"{vars(step)} {step.settings()}"
    assert reader.size_hint() is None


def test_the_hub_fails_midway() -> None:
    def load(*_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        yield ROWS[0]
        raise ConnectionResetError("peer went away")

    with pytest.raises(InputError, match="peer went away") as failed:
        read(LoadHub("owner/name", load=load).open())
    assert "HF_TOKEN" in failed.value.hint


@pytest.mark.parametrize(
    ("module", "step"),
    [
        ("pyarrow.parquet", LoadParquet("rows.parquet")),
        ("datasets", LoadDisk("folder")),
        ("datasets", LoadHub("owner/name")),
    ],
)
def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch, module: str, step: Any) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, module.split(".")[0], None)
    with Graph("extra") as graph:
        step._graph = None
        graph.connect(step, Deduplicate("text"))
    with pytest.raises(ConfigurationError, match="which is not installed") as refused:
        graph.plan()
    assert "asyncsynth[datasets]" in refused.value.hint
