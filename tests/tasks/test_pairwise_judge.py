"""PairwiseJudge: both orders, their combined verdict, and verdicts in sloppy answers."""

import json

import pytest

from asyncsynth import LLM, PairwiseJudge
from asyncsynth.client.messages import ChatRequest
from asyncsynth.errors import ParseFailure, TaskFailure
from asyncsynth.records import Row
from asyncsynth.tasks.pairwise_judge import read_verdict
from tests.kit.models import Model, generate

M = LLM(model="judge")
ROW = {"instruction": "Name a river.", "generations": ["The Nile.", "Rivers are long."]}


def judge(says: dict[str, str], **settings: object) -> tuple[Row, Model]:
    """`says`: the first answer shown -> verdict."""

    def by(request: ChatRequest) -> str:
        shown = request.messages[-1]["content"].split("<answer_A>\n")[1].split("\n</answer_A>")[0]
        return json.dumps({"rationale": f"saw {shown}", "verdict": says[shown]})

    model = Model(by=by)
    [made] = generate(PairwiseJudge(M, **settings), ROW, model)  # type: ignore[arg-type]
    return made, model


def test_an_answer_that_wins_in_both_orders_is_preferred() -> None:
    made, model = judge({"The Nile.": "A", "Rivers are long.": "B"})
    assert made == {
        "preference": 0,
        "position_bias": None,
        "ratings": [1.0, 0.0],
        "rationales": ["saw The Nile.", "saw Rivers are long."],
        "judge_model": "model-that-answered",
    }
    first, second = model.requests
    assert first.params["seed"] != second.params["seed"]
    assert "Name a river." in first.messages[0]["content"]
    made, _ = judge({"The Nile.": "B", "Rivers are long.": "A"})
    assert (made["preference"], made["ratings"]) == (1, [0.0, 1.0])


@pytest.mark.parametrize(
    ("first", "second", "bias"),
    [("A", "A", "first"), ("B", "B", "second"), ("tie", "tie", None), ("A", "tie", None), ("tie", "B", None)],
)
def test_a_judge_that_follows_the_place_prefers_none(first: str, second: str, bias: str | None) -> None:
    made, _ = judge({"The Nile.": first, "Rivers are long.": second})
    assert (made["preference"], made["position_bias"], made["ratings"]) == (None, bias, [0.5, 0.5])


def test_no_rationales_and_no_ties() -> None:
    made, model = judge({"The Nile.": "A", "Rivers are long.": "B"}, rationales=False, allow_ties=False)
    assert made["rationales"] == ["", ""]
    [request, _] = model.requests
    assert request.schema is not None
    assert request.schema["required"] == ["verdict"]
    assert request.schema["properties"]["verdict"]["enum"] == ["A", "B"]
    assert "tie" not in request.messages[0]["content"]


@pytest.mark.parametrize(
    ("generations", "preference"), [(["", "x"], 1), (["x", " "], 0), (["", " "], None), (["same", "same "], None)]
)
def test_blank_and_equal_answers_are_not_asked_about(generations: list[str], preference: int | None) -> None:
    model = Model()
    [made] = generate(PairwiseJudge(M), {**ROW, "generations": generations}, model)
    assert (made["preference"], made["position_bias"], made["rationales"]) == (preference, None, ["", ""])
    assert not model.requests


@pytest.mark.parametrize("generations", [["one"], ["a", "b", "c"], "ab", ["a", None]])
def test_two_texts_are_wanted(generations: object) -> None:
    with pytest.raises(TaskFailure, match="two texts"):
        generate(PairwiseJudge(M), {**ROW, "generations": generations}, Model())


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ('{"rationale": "r", "verdict": "A"}', 0),
        ('Sure!\n```json\n{"verdict": "b"}\n```', 1),
        ('{"winner": "Answer B"}', 1),
        ("A", 0),
        ("**B**", 1),
        ("(A)", 0),
        ("Tie.", None),
        ("Neither", None),
        ("Both are right. [[C]]", None),
        ("Answer A is longer, but wrong. [[B]]", 1),
        ("My final verdict is: A", 0),
        ("**Verdict:** Answer B", 1),
        ("Preferred answer: A", 0),
        ("Response A is clearly better because it names one.", 0),
        ("The facts: Assistant B wins.", 1),
        ("Winner: tie", None),
    ],
)
def test_verdicts(text: str, winner: int | None) -> None:
    assert read_verdict(text).winner == winner


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A is a letter and so is B",
        '{"verdict": "C"}',
        "Answer A is better. Answer B is better.",
        "Verdict: A\nVerdict: B",
        "Both answers name rivers.",
        "A river is long.",
    ],
)
def test_no_verdict(text: str) -> None:
    with pytest.raises(ParseFailure) as caught:
        read_verdict(text)
    assert caught.value.raw == text


def test_a_tie_that_was_not_offered() -> None:
    with pytest.raises(ParseFailure, match="not offered"):
        read_verdict('{"verdict": "tie"}', allow_ties=False)


def test_the_rationale_is_what_stands_before_the_verdict() -> None:
    assert read_verdict("The first names one.\nVerdict: A").rationale == "The first names one."
