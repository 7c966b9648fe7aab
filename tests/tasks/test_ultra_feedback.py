"""UltraFeedback: as many ratings and rationales as answers, whatever the judge does."""

import json
import math
from typing import Any

import pytest

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import ChatRequest, Choice
from asyncsynth.errors import ConfigurationError, ParseFailure, TaskFailure
from asyncsynth.records import Row
from asyncsynth.tasks.aspects import ASPECTS
from asyncsynth.tasks.ultra_feedback import UltraFeedback
from asyncsynth.testing.answers import schema_instance
from tests.kit.models import Model, generate

M = LLM(model="judge")
ROW: Row = {"instruction": "What is synthetic data?", "generations": ["Made data.", "Data made by machines."]}


def obedient() -> Model:
    """Holds to the schema."""
    return Model(by=lambda request: json.dumps(schema_instance(request.schema, str(request.params).encode())))


def test_ratings_and_rationales() -> None:
    said = {"evaluations": [{"rationale": "vague", "rating": 4}, {"rationale": "right", "rating": 5}]}
    model = Model(json.dumps(said))
    assert generate(UltraFeedback(M), ROW, model) == [
        {"ratings": [4, 5], "rationales": ["vague", "right"], "judge_model": "model-that-answered"}
    ]
    [prompt] = model.prompts()
    for text in (ROW["instruction"], *ROW["generations"], ASPECTS["overall-rating"].question, "2 objects"):
        assert text in prompt
    entry = model.requests[0].schema["properties"]["evaluations"]  # type: ignore[index]
    assert entry["minItems"] == entry["maxItems"] == 2
    assert list(entry["items"]["properties"]) == ["rationale", "rating"]
    assert entry["items"]["properties"]["rating"] == {"type": "integer", "enum": [1, 2, 3, 4, 5]}


def test_the_cheap_mode_asks_for_numbers_only() -> None:
    model = Model('{"ratings": [2, 3]}')
    [row] = generate(UltraFeedback(M, rationales=False), ROW, model)
    assert (row["ratings"], row["rationales"]) == ([2, 3], ["", ""])
    assert "rationale" not in json.dumps(model.requests[0].schema) + model.prompts()[0]


@pytest.mark.parametrize("rationales", [True, False])
@pytest.mark.parametrize("one_call", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_lists_are_as_long_as_the_answers(count: int, one_call: bool, rationales: bool) -> None:
    task = UltraFeedback(M, one_call=one_call, rationales=rationales)
    model = obedient()
    [row] = generate(task, {**ROW, "generations": [f"answer {i}" for i in range(count)]}, model)
    assert len(row["ratings"]) == len(row["rationales"]) == count
    assert len(model.requests) == (min(count, 1) if one_call else count)
    assert len({request.params["seed"] for request in model.requests}) == len(model.requests)


def test_blank_answers_are_not_sent_and_keep_their_place() -> None:
    for one_call in (True, False):
        model = obedient()
        [row] = generate(UltraFeedback(M, one_call=one_call), {**ROW, "generations": ["a", None, "b", " "]}, model)
        assert [rating is None for rating in row["ratings"]] == [False, True, False, True]
        assert [bool(why) for why in row["rationales"]] == [True, False, True, False]
        assert "None" not in "".join(model.prompts())


@pytest.mark.parametrize("generations", [None, "text", [1, 2], {"a": "b"}])
def test_generations_that_are_no_list_of_texts(generations: Any) -> None:
    with pytest.raises(TaskFailure, match="generations"):
        generate(UltraFeedback(M), {**ROW, "generations": generations}, Model())


def test_a_server_that_ignores_the_schema() -> None:
    [row] = generate(UltraFeedback(M), ROW, Model("Both are fine.", "4 - could be more specific\n5 - good"))
    assert row["ratings"] == [4, 5]
    assert row["rationales"] == ["could be more specific", "good"]


def test_a_judge_that_cannot_be_read_fails_its_row_with_its_text() -> None:
    with pytest.raises(ParseFailure) as caught:
        generate(UltraFeedback(M, max_reasks=1), ROW, Model("7 - a\n8 - b", "9 - a\n9 - b"))
    assert caught.value.raw == "9 - a\n9 - b"
    assert caught.value.attempts == 2


@pytest.mark.parametrize("aspect", ASPECTS)
def test_every_aspect_has_its_prompt(aspect: str) -> None:
    model = obedient()
    generate(UltraFeedback(M, aspect=aspect), ROW, model)
    [prompt] = model.prompts()
    assert ASPECTS[aspect].title in prompt
    assert all(f"{number}: {line}" in prompt for number, line in enumerate(ASPECTS[aspect].scale, start=1))


def test_an_unknown_aspect_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'helpfulness'"):
        UltraFeedback(M, aspect="helpfullness")


def test_several_judgements_of_a_row() -> None:
    task = UltraFeedback(M, num_generations=3, group_generations=True, one_call=False)
    model = obedient()
    [row] = generate(task, ROW, model)
    assert [len(ratings) for ratings in row["ratings"]] == [2, 2, 2]
    assert len({request.params["seed"] for request in model.requests}) == 6


def with_logprobs(tokens: list[tuple[str, dict[str, float]]]) -> Choice:
    content = [
        {
            "token": token,
            "logprob": math.log(chances.get(token, 1.0)),
            "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in chances.items()],
        }
        for token, chances in tokens
    ]
    return Choice("".join(token for token, _ in tokens), "stop", {"content": content})


def test_expected_ratings_are_means_over_the_rating_tokens() -> None:
    choice = with_logprobs(
        [
            ('{"ratings"', {}),
            (": [", {}),
            ("4", {"4": 0.6, "5": 0.2, "6": 0.1, " 5": 0.1}),
            (", ", {}),
            ("2", {"2": 0.5, "1": 0.5}),
            ("]}", {}),
        ]
    )
    task = UltraFeedback(M, rationales=False, expected_rating=True)
    model = Model(by=lambda request: choice)
    [row] = generate(task, ROW, model)
    assert row["ratings"] == [4, 2]
    assert row["expected_ratings"] == [4.25, 1.5]
    assert model.requests[0].params["logprobs"] is True
    assert "expected_ratings" in task.outputs


@pytest.mark.parametrize("logprobs", [None, {}, {"content": []}, {"content": [{"token": "x"}]}])
def test_expected_ratings_without_probabilities_are_none(logprobs: Any) -> None:
    def by(request: ChatRequest) -> Choice:
        return Choice('{"ratings": [4, 2]}', "stop", logprobs)

    [row] = generate(UltraFeedback(M, rationales=False, expected_rating=True), ROW, Model(by=by))
    assert row["expected_ratings"] == [None, None]
