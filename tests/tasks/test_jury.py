"""A jury: one rating out of several, the spread kept, and judges that say nothing usable."""

import asyncio
import json
from collections.abc import Callable

import pytest

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import ChatRequest, Choice, Completion, ModelRequest
from asyncsynth.errors import ConfigurationError, ParseFailure, RecordError, RequestFailed, ServerRefused
from asyncsynth.pipeline import Context
from asyncsynth.records import Row
from asyncsynth.tasks.jury import Jury
from asyncsynth.tasks.ultra_feedback import UltraFeedback

JUDGES = [LLM(model=name) for name in ("strict", "fair", "mild")]
ROW: Row = {"instruction": "What are tides?", "generations": ["Water.", "The sea's rise and fall."]}
SAID = {"strict": [1, 4], "fair": [2, 4], "mild": [5, 5]}


def judged(task: UltraFeedback, row: Row = ROW, **said: object) -> tuple[Row, Context, list[ChatRequest]]:
    """Each judge gives its ratings, its own text, or an error."""
    requests: list[ChatRequest] = []

    async def send(request: ModelRequest) -> Completion:
        assert isinstance(request, ChatRequest)
        requests.append(request)
        await asyncio.sleep(0)
        ratings = {**SAID, **said}[request.model]
        if isinstance(ratings, Exception):
            raise ratings
        listed = ratings if isinstance(ratings, list) else []
        entries = [{"rationale": f"{request.model} says {rating}", "rating": rating} for rating in listed]
        text = ratings if isinstance(ratings, str) else json.dumps({"evaluations": entries})
        return Completion([Choice(text, "stop")], model=f"{request.model}-answered")

    ctx = Context(key="0", run_seed=0, step_id="s", send=send)
    [outputs] = asyncio.run(task.generate(row, ctx))
    return outputs, ctx, requests


def test_the_mean_is_the_default_and_the_spread_is_kept() -> None:
    for jury in (JUDGES, tuple(JUDGES), Jury(JUDGES)):
        row, ctx, requests = judged(UltraFeedback(jury))
        assert row == {
            "ratings": [2.6667, 4.3333],
            "rationales": ["fair says 2", "strict says 4"],
            "rating_spreads": [4, 1],
            "jury_ratings": [[1, 4], [2, 4], [5, 5]],
            "jury_models": ["strict-answered", "fair-answered", "mild-answered"],
            "judge_model": "strict-answered + fair-answered + mild-answered",
        }
        assert sorted(request.model for request in requests) == ["fair", "mild", "strict"]
        assert len({request.params["seed"] for request in requests}) == 3
        assert "abstained" not in ctx.notes


@pytest.mark.parametrize(("how", "ratings"), [("mean", [2.6667, 4.3333]), ("median", [2.0, 4.0]), ("majority", [2, 4])])
def test_ways_to_one_rating(how: str, ratings: list[float]) -> None:
    task = UltraFeedback(Jury(JUDGES, how=how))
    assert judged(task)[0]["ratings"] == ratings


@pytest.mark.parametrize(
    ("votes", "rating"),
    [
        ([1, 1, 5], 1),
        ([5, 5, 1, 1], 1),
        ([1, 3, 3, 5, 5], 3),
        ([1, 2, 5], 2),
        ([None, 4], 4),
        ([None], None),
        ([], None),
    ],
)
def test_majorities(votes: list[float | None], rating: float | None) -> None:
    assert Jury(JUDGES, how="majority").verdict(votes) == rating


@pytest.mark.parametrize(
    "failure", ["I like both.", RequestFailed("too long", reason="context_length")], ids=["unreadable", "failed"]
)
def test_a_judge_without_a_verdict_abstains(failure: object) -> None:
    row, ctx, _ = judged(UltraFeedback(JUDGES, max_reasks=0), mild=failure)
    assert row["ratings"] == [1.5, 4.0]
    assert row["jury_models"] == ["strict-answered", "fair-answered"]
    [absent] = ctx.notes["abstained"]
    assert (absent["judge"], absent["model"]) == (2, "mild")
    assert absent["reason"] in ("parse_failure", "context_length")


def test_the_row_fails_without_a_quorum() -> None:
    with pytest.raises(ParseFailure) as caught:
        judged(UltraFeedback(JUDGES, max_reasks=0), mild="Both.", fair="Hm.")
    assert caught.value.raw == "Hm."
    row, _, _ = judged(UltraFeedback(Jury(JUDGES, quorum=1), max_reasks=0), mild="Both.", fair="Hm.")
    assert row["ratings"] == [1.0, 4.0]
    with pytest.raises(RecordError):
        judged(UltraFeedback(Jury(JUDGES, quorum=3), max_reasks=0), mild="Both.")


def test_what_stops_the_run_stops_the_jury() -> None:
    with pytest.raises(ServerRefused):
        judged(UltraFeedback(JUDGES), mild=ServerRefused("wrong key"))


def test_blank_answers_and_declined_ratings() -> None:
    row, _, _ = judged(
        UltraFeedback(JUDGES), {**ROW, "generations": ["a", "", "b"]}, strict=[None, 4], fair=[None, 4], mild=[None, 5]
    )
    assert row["ratings"] == [None, None, 4.3333]
    assert row["rating_spreads"] == [None, None, 1]
    assert [len(ratings) for ratings in row["jury_ratings"]] == [3, 3, 3]
    assert row["rationales"][1] == ""
    row, _, requests = judged(UltraFeedback(JUDGES), {**ROW, "generations": [" "]})
    assert (row["ratings"], row["jury_models"], requests) == ([None], ["strict", "fair", "mild"], [])


def test_the_same_model_may_sit_twice_with_seeds_of_its_own() -> None:
    twice = [LLM(model="fair"), LLM(model="fair", temperature=1.0)]
    _, _, requests = judged(UltraFeedback(twice, one_call=False), fair=[3])
    assert len({request.params["seed"] for request in requests}) == len(requests) == 4
    assert {request.params["temperature"] for request in requests} == {0.7, 1.0}


def test_models_columns_and_fingerprint() -> None:
    task = UltraFeedback(JUDGES)
    assert [llm.model for llm in task.models()] == ["strict", "fair", "mild"]
    assert "rating_spreads" in task.outputs
    assert "rating_spreads" not in UltraFeedback(JUDGES[0]).outputs
    makers: list[UltraFeedback] = [
        UltraFeedback(JUDGES[0]),
        task,
        UltraFeedback(JUDGES[:2]),
        UltraFeedback(Jury(JUDGES, how="median")),
        UltraFeedback(Jury(JUDGES, quorum=1)),
    ]
    assert len({str(made.settings()) for made in makers}) == len(makers)
    assert str(UltraFeedback(Jury(JUDGES)).settings()) == str(task.settings())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Jury([]),
        lambda: Jury(JUDGES[:1]),
        lambda: Jury(["strict", "fair"]),  # type: ignore[list-item]
        lambda: Jury(JUDGES, how="vote"),
        lambda: Jury(JUDGES, quorum=4),
        lambda: UltraFeedback([]),
        lambda: UltraFeedback("strict"),  # type: ignore[arg-type]
    ],
)
def test_juries_that_cannot_sit(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError):
        make()
