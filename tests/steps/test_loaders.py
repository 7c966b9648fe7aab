"""Loaders: thin over the readers; columns known before the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncsynth.errors import InputError, PipelineError
from asyncsynth.inputs.reader import SourceRow
from asyncsynth.pipeline import Graph
from asyncsynth.steps import KeepColumns, LoadDataFromDicts, LoadJSONL


def test_dicts() -> None:
    step = LoadDataFromDicts(data=[{"id": 7, "prompt": "p"}], id_column="id", output_mappings={"prompt": "q"})
    assert step.known_columns() == ("id", "q")
    assert list(step.open()) == list(step.open()) == [SourceRow(0, "7", {"id": 7, "q": "p"})]


def test_an_iterator_is_not_used_up_by_the_check() -> None:
    step = LoadDataFromDicts(iter([{"a": 1}, {"a": 2}]))
    assert step.known_columns() == ("a",)
    assert [item.row for item in step.open() if isinstance(item, SourceRow)] == [{"a": 1}, {"a": 2}]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "p"}\n')
    step = LoadJSONL(path, output_mappings={"prompt": "instruction"})
    assert step.known_columns() == ("instruction",)
    assert list(step.open()) == [SourceRow(1, None, {"instruction": "p"})]
    assert str(tmp_path) not in str(step.settings()), "a moved file is the same input"


def test_nothing_is_opened_before_it_is_asked_for(tmp_path: Path) -> None:
    step = LoadJSONL(str(tmp_path / "later.jsonl"))
    step.open()
    with pytest.raises(InputError, match=r"later\.jsonl: does not exist"):
        step.known_columns()


def test_a_mapping_of_a_column_that_is_not_there() -> None:
    step = LoadDataFromDicts([{"prompts": "p"}], output_mappings={"prompt": "instruction"})
    with pytest.raises(PipelineError, match="did you mean 'prompts'"):
        step.known_columns()


@pytest.mark.parametrize("path", ["", None, [{"a": 1}]])
def test_a_path_of_a_wrong_type(path: object) -> None:
    with pytest.raises(InputError, match="the path of a JSON Lines file was expected"):
        LoadJSONL(path)  # type: ignore[arg-type]


def test_in_a_graph() -> None:
    with Graph("g") as graph:
        LoadDataFromDicts([{"a": 1, "b": 2}]) >> KeepColumns("b")
    assert graph.plan().leaves == {"default": 1}
    with Graph("h") as graph:
        LoadDataFromDicts([{"a": 1}]) >> KeepColumns("b")
    with pytest.raises(PipelineError, match="needs the column 'b'"):
        graph.plan()


def test_a_bad_step_is_not_left_in_the_graph() -> None:
    with Graph("g") as graph, pytest.raises(InputError):
        LoadDataFromDicts("text")  # type: ignore[arg-type]
    assert graph.steps == []
