"""Tasks: prompts, samples, re-asks, and failures that say what they are."""

from typing import Any

import pytest

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import ChatRequest, Choice, Message
from asyncsynth.errors import ConfigurationError, ParseFailure, RequestFailed, ServerRefused, TaskFailure
from asyncsynth.pipeline import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task
from asyncsynth.tasks.text_generation import TextGeneration
from tests.kit.models import Model, generate

M = LLM(model="m")


class Count(Task):
    """Wants a number."""

    inputs = ("instruction",)
    outputs = ("number", "model_name")

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        return [{"role": "user", "content": row["instruction"]}]

    def parse(self, choice: Choice, row: Row) -> Row:
        if not choice.text.isdigit():
            raise ParseFailure(f"no number in {choice.text!r}")
        return {"number": int(choice.text)}


def test_one_answer_with_the_model_that_gave_it() -> None:
    model = Model("  4 \n")
    task = TextGeneration(M, system_prompt="Be brief.")
    assert generate(task, {"instruction": "2 + 2?"}, model) == [
        {"generation": "4", "model_name": "model-that-answered"}
    ]
    [request] = model.requests
    assert request.model == "m"
    assert request.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
    ]
    assert request.params["max_tokens"] == 1024
    assert request.params["seed"] == model.ctx().seed(0)


def test_a_rows_system_prompt_wins() -> None:
    model = Model("a", "b")
    task = TextGeneration(M, system_prompt="the task's")
    generate(task, {"instruction": "x", "system_prompt": "the row's"}, model)
    generate(task, {"instruction": "x", "system_prompt": None}, model)
    assert [request.messages[0]["content"] for request in model.requests] == ["the row's", "the task's"]
    assert task.view({"instruction": "x", "system_prompt": "y", "z": 1}) == {
        "instruction": "x",
        "system_prompt": "y",
    }


def test_several_answers_expanded_and_grouped() -> None:
    def by(request: ChatRequest) -> str:
        return str(request.params["seed"])

    model = Model(by=by)
    expanded = generate(TextGeneration(M, num_generations=3), {"instruction": "x"}, model)
    texts = [row["generation"] for row in expanded]
    assert len(set(texts)) == 3
    assert texts == [str(model.ctx().seed(sample)) for sample in range(3)]
    [grouped] = generate(
        TextGeneration(M, num_generations=3, group_generations=True), {"instruction": "x"}, Model(by=by)
    )
    assert grouped == {"generation": texts, "model_name": ["model-that-answered"] * 3}


def test_seeds_depend_on_run_seed_and_key_alone() -> None:
    model = Model()
    assert model.ctx("a").seed() == model.ctx("a").seed() != model.ctx("b").seed()
    assert model.ctx("a").seed() != model.ctx("a", run_seed=1).seed()
    assert model.ctx("a").rng("x").random() == model.ctx("a").rng("x").random() != model.ctx("a").rng().random()


def test_an_answer_that_cannot_be_read_is_asked_for_again_with_another_seed() -> None:
    model = Model("four", "IV", "4")
    ctx = model.ctx()
    [row] = generate(Count(M), {"instruction": "2 + 2?"}, model, ctx)
    assert row["number"] == 4
    assert len({request.params["seed"] for request in model.requests}) == 3
    facts = ctx.provenance()
    assert (facts["parse_failures"], facts["calls"]) == (2, 3)
    assert (facts["prompt_tokens"], facts["completion_tokens"]) == (9, 15)


def test_a_re_ask_says_what_was_wrong() -> None:
    model = Model("four", "IV", "4")
    generate(Count(M, system_prompt="Be brief."), {"instruction": "2 + 2?"}, model)
    first, second, third = (request.messages for request in model.requests)
    assert second == [
        *first,
        {"role": "assistant", "content": "four"},
        {
            "role": "user",
            "content": "That answer could not be read: no number in 'four'. "
            "Answer again, in the format that was asked for.",
        },
    ]
    assert third[: len(first)] == first
    assert [message["content"][:40] for message in third[len(first) :]] == [
        "IV",
        "That answer could not be read: no number",
    ]
    again = Model("four", "IV", "4")
    generate(Count(M, system_prompt="Be brief."), {"instruction": "2 + 2?"}, again)
    assert again.requests == model.requests


@pytest.mark.parametrize("way", ["option", "cut", "prefilled", "long"])
def test_a_re_ask_that_cannot_explain_repeats_the_request(way: str) -> None:
    class Prefilled(Count):
        def messages(self, row: Row, ctx: Context) -> list[Message]:
            return [*super().messages(row, ctx), {"role": "assistant", "content": "= "}]

    kind = Prefilled if way == "prefilled" else Count
    said = "four" * 5000 if way == "long" else "four"
    model = Model(Choice(said, "length" if way == "cut" else "stop"), "4")
    generate(kind(M, explain_reasks=way != "option"), {"instruction": "2 + 2?"}, model)
    first, second = model.requests
    assert first.messages == second.messages
    assert first.params["seed"] != second.params["seed"]


def test_several_choices_in_one_answer_are_refused_when_the_task_is_made() -> None:
    with pytest.raises(ConfigurationError, match=r"TextGeneration: extra_body asks for n=3(.|\n)*num_generations"):
        TextGeneration(LLM(model="m", extra_body={"n": 3}))
    TextGeneration(LLM(model="m", extra_body={"n": 1}))


@pytest.mark.parametrize("reasks", [0, 2])
def test_asking_again_is_bounded_and_the_text_is_kept(reasks: int) -> None:
    model = Model(*["one"] * reasks, "four")
    with pytest.raises(ParseFailure) as caught:
        generate(Count(M, max_reasks=reasks), {"instruction": "2 + 2?"}, model)
    assert caught.value.reason == "parse_failure"
    assert caught.value.raw == "four"
    assert caught.value.attempts == reasks + 1 == len(model.requests)


def failing(*errors: Exception) -> Model:
    waiting = list(errors)

    def by(request: ChatRequest) -> str:
        raise waiting.pop(0)

    return Model(by=by)


def test_an_error_comes_out_as_it_is_and_a_fatal_one_first() -> None:
    task = TextGeneration(M, num_generations=2)
    with pytest.raises(RequestFailed):
        generate(task, {"instruction": "x"}, failing(RequestFailed("a"), RequestFailed("b")))
    with pytest.raises(ServerRefused):
        generate(task, {"instruction": "x"}, failing(RequestFailed("a"), ServerRefused("b")))


@pytest.mark.parametrize("instruction", [None, "", " \n", 3, ["x"]])
def test_an_instruction_that_is_no_text_is_not_sent(instruction: Any) -> None:
    model = Model()
    with pytest.raises(TaskFailure, match="'instruction'") as caught:
        generate(TextGeneration(M), {"instruction": instruction}, model)
    assert caught.value.reason == "bad_input"
    assert not model.requests


def test_a_template_over_columns_where_rows_are_values_and_never_source() -> None:
    model = Model("a")
    task = TextGeneration(M, template="{{ topic }} in {{ language }}.")
    assert task.inputs == ("language", "topic")
    generate(task, {"topic": "{{ 7 * 7 }}", "language": "<b>fr</b>"}, model)
    assert model.prompts() == ["{{ 7 * 7 }} in <b>fr</b>."]


@pytest.mark.parametrize("template", ["{{ x.__class__.__mro__ }}", "{{ x + 1 }}", "{{ x.missing }}"])
def test_a_template_that_cannot_be_filled_fails_its_row(template: str) -> None:
    with pytest.raises(TaskFailure) as caught:
        generate(TextGeneration(M, template=template), {"x": "text"}, Model())
    assert caught.value.reason == "template"


def test_settings_that_cannot_work_are_refused_when_the_task_is_made() -> None:
    with pytest.raises(ConfigurationError, match="does not compile"):
        TextGeneration(M, template="{{ x")
    with pytest.raises(ConfigurationError, match="wants an LLM, got str"):
        TextGeneration("Qwen/Qwen2.5-1.5B-Instruct")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="num_generations"):
        TextGeneration(M, num_generations=0)
    with pytest.raises(ConfigurationError, match="max_reasks"):
        TextGeneration(M, max_reasks=-1)


# --- provenance as columns ---------------------------------------------------------------------------


def test_provenance_columns_of_each_answer() -> None:
    said = [Choice("one", "stop", reasoning="I thought."), Choice("two", "length")]
    answers = iter(said)
    task = TextGeneration(
        LLM(model="m"), num_generations=2, provenance=["finish_reason", "reasoning", "completion_tokens"]
    )
    model = Model(by=lambda _: next(answers))
    made = generate(task, {"instruction": "Hi"}, model)
    assert [row["finish_reason"] for row in made] == ["stop", "length"]
    assert [row["reasoning"] for row in made] == ["I thought.", None]
    assert [row["completion_tokens"] for row in made] == [5, 5]  # of each answer, not of both
    answers = iter(said)
    task = TextGeneration(LLM(model="m"), num_generations=2, group_generations=True, provenance=["finish_reason"])
    ctx = model.ctx()
    [grouped] = generate(task, {"instruction": "Hi"}, model, ctx)
    assert grouped["finish_reason"] == ["stop", "length"]
    assert ctx.provenance()["calls"] == 2
    assert ctx.provenance()["cut"] == ["two"]


def test_provenance_names_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'finish_reason'"):
        TextGeneration(LLM(model="m"), provenance=["finish_reson"])
    with pytest.raises(ConfigurationError, match="twice"):
        TextGeneration(LLM(model="m"), provenance=["calls", "calls"])
    assert TextGeneration(LLM(model="m"), provenance=["calls"]).own_outputs == ("generation", "model_name")


def test_a_task_without_provenance_columns_has_the_settings_that_it_always_had() -> None:
    """Results from before there was such an option are not paid again."""
    assert "provenance" not in TextGeneration(LLM(model="m")).settings()
    assert TextGeneration(LLM(model="m"), provenance=["calls"]).settings()["provenance"] == ["calls"]
