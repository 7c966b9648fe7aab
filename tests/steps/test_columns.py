"""KeepColumns, RenameColumns, ExpandColumns, MergeColumns; and that each one's check agrees with what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsynth.errors import PipelineError, RecordError
from asyncsynth.pipeline import Dropped, RowStep
from asyncsynth.steps import ExpandColumns, KeepColumns, MergeColumns, RenameColumns

ROW = {"a": 1, "b": [1, 2], "c": ["x", "y"], "d": None}


@pytest.mark.parametrize(
    ("make", "made"),
    [
        (lambda: KeepColumns(["c", "a"]), {"c": ["x", "y"], "a": 1}),
        (lambda: KeepColumns("d"), {"d": None}),
        (lambda: RenameColumns({"a": "z"}), {"z": 1, "b": [1, 2], "c": ["x", "y"], "d": None}),
        (lambda: RenameColumns({"a": "b", "b": "a"}), {"b": 1, "a": [1, 2], "c": ["x", "y"], "d": None}),
        (lambda: RenameColumns({"a": "a"}), ROW),
        (
            lambda: ExpandColumns(["b", "c"]),
            [{"a": 1, "d": None, "b": 1, "c": "x"}, {"a": 1, "d": None, "b": 2, "c": "y"}],
        ),
        (
            lambda: ExpandColumns({"b": "item"}),
            [
                {"a": 1, "c": ["x", "y"], "d": None, "item": 1},
                {"a": 1, "c": ["x", "y"], "d": None, "item": 2},
            ],
        ),
        (lambda: MergeColumns(["a", "b", "d"]), {"c": ["x", "y"], "merged_column": [1, 1, 2, None]}),
        (lambda: MergeColumns(["c", "a"], "c"), {"b": [1, 2], "d": None, "c": ["x", "y", 1]}),
    ],
)
def test_what_a_step_makes(make: Callable[[], RowStep], made: Any) -> None:
    row = {key: list(value) if isinstance(value, list) else value for key, value in ROW.items()}
    step = make()
    result = step.apply(row)
    assert result == made
    assert row == ROW, "the row may be shared with another branch"
    first = result if isinstance(result, dict) else result[0]
    assert list(step.flow([dict.fromkeys(ROW, "load")])) == list(first)


@pytest.mark.parametrize(
    "make",
    [
        lambda: KeepColumns("no"),
        lambda: RenameColumns({"no": "x"}),
        lambda: ExpandColumns("no"),
        lambda: MergeColumns("no"),
    ],
)
def test_a_missing_column_is_found_before_the_run_and_in_it(make: Callable[[], RowStep]) -> None:
    with pytest.raises(PipelineError, match="needs the column 'no', which nothing before it makes"):
        make().flow([{"a": "load"}])
    with pytest.raises(KeyError, match="no"):
        make().apply(dict(ROW))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RenameColumns({"a": "b"}),
        lambda: ExpandColumns({"b": "a"}),
        lambda: MergeColumns(["b", "c"], "a"),
    ],
)
def test_no_column_is_overwritten(make: Callable[[], RowStep]) -> None:
    with pytest.raises(PipelineError, match=r"made by 'load'"):
        make().flow([dict.fromkeys(ROW, "load")])


def test_rename_into_a_column_that_only_this_row_has() -> None:
    with pytest.raises(RecordError, match="two columns of one name") as caught:
        RenameColumns({"a": "b"}).apply({"a": 1, "b": 2})
    assert caught.value.reason == "column_exists"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"b": "text", "c": ["x"]}, "not_a_list"),
        ({"b": None, "c": ["x"]}, "not_a_list"),
        ({"b": [1], "c": ["x", "y"]}, "unequal_lists"),
    ],
)
def test_expand_fails_the_row(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        ExpandColumns(["b", "c"]).apply(row)
    assert caught.value.reason == reason


def test_expand_of_nothing_is_counted() -> None:
    with pytest.raises(Dropped) as caught:
        ExpandColumns("b").apply({"b": []})
    assert caught.value.reason == "empty_list"


@given(st.lists(st.integers(), min_size=1))
def test_expand_loses_nothing(items: list[int]) -> None:
    assert [row["b"] for row in ExpandColumns("b").apply({"b": items, "a": 0})] == items


@pytest.mark.parametrize("mappings", [{}, {"a": ""}, {"a": "x", "b": "x"}, {"a": 1}, ["a"], "a"])
def test_rename_arguments(mappings: Any) -> None:
    with pytest.raises(PipelineError):
        RenameColumns(mappings)


def test_the_columns_are_fingerprinted() -> None:
    settings = [step.settings() for step in (KeepColumns("a"), KeepColumns("b"), KeepColumns(["b", "a"]))]
    assert len({str(setting) for setting in settings}) == 3
