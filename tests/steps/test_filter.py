"""Filter keeps what its predicate says, and counts the rest."""

from __future__ import annotations

from typing import Any

import pytest

from asyncsynth.errors import PipelineError, RecordError
from asyncsynth.pipeline import Dropped
from asyncsynth.steps import Filter


def good(row: dict[str, Any]) -> bool:
    return bool(row["score"] >= 4)


async def asks(row: dict[str, Any]) -> bool:
    return True


def test_keeps_and_drops() -> None:
    step = Filter(good, reason="low_score")
    assert step.apply({"score": 4}) == {"score": 4}
    with pytest.raises(Dropped) as caught:
        step.apply({"score": 3})
    assert caught.value.reason == "low_score"
    with pytest.raises(KeyError):
        step.apply({})


def test_columns_are_checked() -> None:
    assert Filter(good, columns="score").flow([{"score": "judge"}]) == {"score": "judge"}
    with pytest.raises(PipelineError, match="did you mean 'scores'"):
        Filter(good, columns="score").flow([{"scores": "judge"}])
    assert Filter(good).flow([{"x": "load"}]) == {"x": "load"}


def test_async_predicates_are_refused() -> None:
    with pytest.raises(PipelineError, match="predicate is async"):
        Filter(asks)  # type: ignore[arg-type]
    with pytest.raises(RecordError, match="returned an awaitable"):
        Filter(lambda row: asks(row)).apply({})  # type: ignore[arg-type, return-value]
    with pytest.raises(PipelineError, match="a function of a row was expected"):
        Filter("score > 4")  # type: ignore[arg-type]


def test_an_edited_predicate_is_another_step() -> None:
    assert Filter(good).settings() != Filter(lambda row: bool(row["score"] >= 5)).settings()
