"""@task: an async function with all that tasks have."""

import asyncio
from typing import Any

import pytest

from asyncsynth import LLM, TaskContext, task
from asyncsynth.client.messages import Completion
from asyncsynth.errors import ConfigurationError, ParseFailure, PipelineError, TaskFailure
from asyncsynth.pipeline.step import Step
from asyncsynth.records import Row
from asyncsynth.tasks.task_decorator import FunctionTask
from tests.kit.models import Model, generate

M = LLM(model="m")
PROMPT = "Write a title: "


def asked(text: str) -> str:
    return PROMPT + text


@task(llm=M, inputs=["text"], outputs=["title", "model_name"], optional_inputs=["style"])
async def make_title(row: Row, ctx: TaskContext) -> Row:
    """A title."""
    completion: Completion = await ctx.chat(asked(row["text"]), max_tokens=30)
    if not completion.text.strip():
        raise ParseFailure("blank")
    return {"title": completion.text.strip() + row.get("style", "")}


def test_it_is_a_task() -> None:
    title = make_title()
    assert isinstance(title, FunctionTask)
    assert (title.name, title.inputs, title.outputs) == ("make_title", ("text",), ("title", "model_name"))
    assert make_title.__doc__ == "A title."
    model = Model(" Rain ")
    assert generate(title, {"text": "It rained.", "style": "!"}, model) == [
        {"title": "Rain!", "model_name": "model-that-answered"}
    ]
    [request] = model.requests
    assert request.params["max_tokens"] == 30
    assert request.params["seed"] == model.ctx().seed(0)
    assert model.prompts() == ["Write a title: It rained."]


def test_with_mappings_samples_and_another_model() -> None:
    title = make_title(
        llm=LLM(model="other"), num_generations=3, group_generations=True, input_mappings={"text": "body"}
    )
    assert title.view({"body": "x", "style": "?", "z": 1}) == {"text": "x", "style": "?"}
    model = Model(*"abc")
    [made] = generate(title, {"text": "x"}, model)
    assert sorted(made["title"]) == ["a", "b", "c"]
    assert {request.model for request in model.requests} == {"other"}
    assert len({request.params["seed"] for request in model.requests}) == 3


def test_parse_failures_are_asked_again_with_another_seed() -> None:
    model = Model(" ", "ok")
    ctx = model.ctx()
    assert generate(make_title(), {"text": "x"}, model, ctx)[0]["title"] == "ok"
    assert ctx.notes == {"parse_failures": 1}
    assert len({request.params["seed"] for request in model.requests}) == 2
    with pytest.raises(ParseFailure) as caught:
        generate(make_title(max_reasks=1), {"text": "x"}, Model(" ", "\n"))
    assert (caught.value.attempts, caught.value.raw) == (2, "\n")


def test_a_reask_tells_the_model_why_where_one_answer_is_to_blame() -> None:
    @task(inputs=[], outputs=["n"])
    async def number(row: Row, ctx: TaskContext) -> Row:
        said = await ctx.chat("How many?")
        if not said.text.isdigit():
            raise ParseFailure(f"{said.text!r} is no number")
        return {"n": int(said.text)}

    @task(inputs=[], outputs=["n"])
    async def twice(row: Row, ctx: TaskContext) -> Row:
        await ctx.chat("Think.")
        said = await ctx.chat("How many?")
        if not said.text.isdigit():
            raise ParseFailure("no number")
        return {"n": int(said.text)}

    first = {"role": "user", "content": "How many?"}
    model = Model("many", "few", "3")
    assert generate(number(llm=M), {}, model) == [{"n": 3}]
    assert [request.messages[0] for request in model.requests] == [first] * 3
    assert [len(request.messages) for request in model.requests] == [1, 3, 3]
    assert model.requests[2].messages[1] == {"role": "assistant", "content": "few"}
    assert "'few' is no number" in model.requests[2].messages[2]["content"]
    model = Model("many", "3")
    generate(number(llm=M, explain_reasks=False), {}, model)
    assert [len(request.messages) for request in model.requests] == [1, 1]
    model = Model("Hm.", "many", "Hm.", "3")
    generate(twice(llm=M), {}, model)
    assert [len(request.messages) for request in model.requests] == [1, 1, 1, 1]


def test_several_calls_have_seeds_of_their_own_and_choices_are_the_rows() -> None:
    chosen: list[float] = []

    @task(inputs=[], outputs=["words"])
    async def two(row: Row, ctx: TaskContext) -> Row:
        chosen.append(ctx.rng("x").random())
        ctx.notes["seen"] = ctx.key
        said = await asyncio.gather(ctx.chat("a"), ctx.chat([{"role": "user", "content": "b"}], seed=7))
        return {"words": [one.text for one in said]}

    model = Model("1", "2", "3", "4")
    ctx = model.ctx()
    generate(two(M), {}, model, ctx)
    generate(two(M), {}, model)
    first, second, third, _ = (request.params["seed"] for request in model.requests)
    assert second == 7
    assert first == third
    assert chosen[0] == chosen[1]
    assert ctx.notes == {"seen": "0"}
    with pytest.raises(ConfigurationError, match="two has no model"):
        two()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "is a `return` missing"),
        ("text", "returned str"),
        ({}, "lacks a"),
        ({"a": 1, "b": 2}, "has b, which outputs= does not declare"),
    ],
)
def test_what_is_returned_is_what_was_declared(made: Any, message: str) -> None:
    @task(llm=M, inputs=[], outputs=["a", "model_name"])
    async def wrong(row: Row, ctx: TaskContext) -> Row:
        return made  # type: ignore[no-any-return]

    with pytest.raises(TaskFailure, match=message) as caught:
        generate(wrong(), {}, Model())
    assert caught.value.reason == "bad_output"


def test_source_closure_constants_and_helpers_are_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_title().settings()
    assert settings["step"] == "make_title"
    assert settings == make_title().settings()
    assert settings["code"]["PROMPT"] == "Write a title: "
    assert "asked" in settings["code"]
    monkeypatch.setitem(globals(), "PROMPT", "Another: ")
    assert make_title().settings() != settings

    def made(word: str) -> dict[str, Any]:
        @task(llm=M, inputs=[], outputs=["a"])
        async def closing(row: Row, ctx: TaskContext) -> Row:
            return {"a": word}

        return closing().settings()

    assert made("x") == made("x")
    assert made("x") != made("y")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"inputs": "text", "outputs": ["a"]}, "list of column names"),
        ({"inputs": ["text", ""], "outputs": ["a"]}, "list of column names"),
        ({"inputs": [], "outputs": ["a", "a"]}, "twice"),
    ],
)
def test_declarations_that_cannot_work(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        task(llm=M, **columns)


def test_what_is_no_async_function() -> None:
    with pytest.raises(PipelineError, match="not an async function"):

        @task(llm=M, inputs=[], outputs=["a"])  # type: ignore[arg-type]
        def plain(row: Row, ctx: TaskContext) -> Row:
            return {}

    with pytest.raises(ConfigurationError, match="wants an LLM"):
        task(llm="m", inputs=[], outputs=["a"])  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="@task"):
        FunctionTask(M)
    assert issubclass(make_title, Step)
