"""GroupColumns and CombineOutputs: nothing is lost without a word, and no model is named for another's answer."""

from __future__ import annotations

import pytest

from asyncsynth.errors import PipelineError
from asyncsynth.steps import CombineOutputs, GroupColumns

A = {"instruction": "q", "generation": "a", "model_name": "m1"}
B = {"instruction": "q", "generation": "b", "model_name": "m2"}


def test_group_under_the_default_name() -> None:
    assert GroupColumns(columns=["generation"]).join([A, B]) == {
        "instruction": "q",
        "grouped_generation": ["a", "b"],
        "grouped_model_name": ["m1", "m2"],
    }


def test_group_under_names_of_the_users() -> None:
    step = GroupColumns(columns=["generation", "model_name"], output_columns=["generations", "models"])
    assert step.join([B, A]) == {"instruction": "q", "generations": ["b", "a"], "models": ["m2", "m1"]}


def test_group_keeps_rows_and_order_of_columns() -> None:
    step = GroupColumns("generation", "generation")
    first = {"x": 1, "generation": "a", "y": 2}
    second = {"z": 3, "generation": "b", "x": 1, "y": 2}
    assert list(step.join([first, second]).items()) == [
        ("x", 1),
        ("y", 2),
        ("z", 3),
        ("generation", ["a", "b"]),
    ]
    assert first == {"x": 1, "generation": "a", "y": 2}


def test_group_flow_agrees_with_join() -> None:
    step = GroupColumns("generation")
    flows = [
        {"instruction": "load", "generation": "gen_a", "model_name": "gen_a"},
        {"instruction": "load", "generation": "gen_b", "model_name": "gen_b"},
    ]
    assert set(step.flow(flows)) == set(step.join([A, B]))


def test_group_wants_its_column_in_every_branch() -> None:
    with pytest.raises(PipelineError, match="'generation'") as caught:
        GroupColumns("generation").flow([{"generation": "a"}, {"generations": "b"}])
    assert "did you mean 'generations'" in str(caught.value)


def test_group_refuses_to_lose_a_branchs_column() -> None:
    flows = [{"generation": "a", "score": "a"}, {"generation": "b", "score": "b"}]
    with pytest.raises(PipelineError, match="'score' comes from two branches, made by 'a' and by 'b'"):
        GroupColumns("generation").flow(flows)
    assert set(GroupColumns(["generation", "score"]).flow(flows)) == {"grouped_generation", "grouped_score"}


def test_group_refuses_to_overwrite() -> None:
    with pytest.raises(PipelineError, match="would overwrite the column 'generations' made by 'load'"):
        GroupColumns("generation", "generations").flow([{"generations": "load", "generation": "a"}])


@pytest.mark.parametrize(
    ("columns", "output_columns", "message"),
    [
        ([], None, "column names were expected"),
        (["a", 1], None, "column names were expected"),
        (3, None, "column names were expected"),
        (["a", "a"], None, "names the column 'a' twice"),
        (["a", "b"], ["c", "c"], "names the column 'c' twice"),
        (["a", "b"], ["c"], "2 columns, but 1 output_columns"),
    ],
)
def test_group_arguments(columns: object, output_columns: object, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        GroupColumns(columns, output_columns)  # type: ignore[arg-type]


def test_combine() -> None:
    step = CombineOutputs()
    assert step.join([{"q": 1, "a": 2, "model_name": "m1"}, {"q": 1, "b": 3, "model_name": "m2"}]) == {
        "q": 1,
        "a": 2,
        "b": 3,
        "model_name": "m2",
    }
    flow = step.flow([{"q": "load", "a": "s", "model_name": "s"}, {"q": "load", "b": "t", "model_name": "t"}])
    assert flow == {"q": "load", "a": "s", "b": "t", "model_name": "t"}


def test_combine_refuses_two_makers_of_a_column() -> None:
    with pytest.raises(PipelineError, match="'a' comes from two branches") as caught:
        CombineOutputs().flow([{"a": "s"}, {"a": "t"}])
    assert "GroupColumns" in caught.value.hint
