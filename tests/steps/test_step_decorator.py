"""@step: a row step made of a plain function."""

from pathlib import Path
from typing import Any

import pytest

from asyncsynth import LLM, Dropped, Filter, LoadDataFromDicts, Pipeline, TaskContext, TextGeneration, step, task
from asyncsynth.errors import PipelineError, RecordError
from asyncsynth.records import Row
from asyncsynth.steps.step_decorator import FunctionStep
from tests.kit.loops import run_async
from tests.kit.pipelines import server

LEAST = 2


@step(inputs=["instruction"], outputs=["words"])
def count_words(row: Row) -> Row:
    """How many words."""
    count = len(row["instruction"].split())
    if count < LEAST:
        raise Dropped("short")
    return {"words": count}


def test_it_sees_its_inputs_and_adds_its_outputs() -> None:
    assert count_words.__doc__ == "How many words."
    assert count_words().apply({"instruction": "a b c", "x": 1}) == {"instruction": "a b c", "x": 1, "words": 3}
    mapped = count_words(input_mappings={"instruction": "prompt"}, output_mappings={"words": "n"}, name="count")
    assert mapped.apply({"prompt": "a b"}) == {"prompt": "a b", "n": 2}
    assert mapped.name == "count"
    with pytest.raises(Dropped, match="short"):
        count_words().apply({"instruction": "a"})
    with pytest.raises(KeyError):
        count_words().apply({})


def test_a_row_may_become_several() -> None:
    @step(inputs=["text"], outputs=["line"], optional_inputs=["mark"])
    def lines(row: Row) -> list[Any]:
        return [{"line": row.get("mark", "") + line} for line in row["text"].split()]

    assert lines().apply({"text": "a b", "mark": "-"}) == [
        {"text": "a b", "mark": "-", "line": "-a"},
        {"text": "a b", "mark": "-", "line": "-b"},
    ]


@pytest.mark.parametrize(("made", "message"), [(None, "return"), ({"b": 1}, "lacks a and has b"), ([1], "int")])
def test_what_is_returned_is_what_was_declared(made: Any, message: str) -> None:
    @step(inputs=[], outputs=["a"])
    def wrong(row: Row) -> Row:
        return made  # type: ignore[no-any-return]

    with pytest.raises(RecordError, match=message):
        wrong().apply({})


def test_what_is_no_plain_function() -> None:
    with pytest.raises(PipelineError, match="is async"):

        @step(inputs=[], outputs=["a"], run_in="thread")
        async def waits(row: Row) -> Row:
            return {}

    async def hidden(row: Row) -> Row:
        return {}

    @step(inputs=[], outputs=["a"])
    def sneaky(row: Row) -> Any:
        return hidden(row)

    with pytest.raises(RecordError, match="awaitable"):
        sneaky().apply({})
    with pytest.raises(PipelineError, match="wants a function"):
        step(inputs=[], outputs=["a"])(3)  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="@step"):
        FunctionStep()
    with pytest.raises(PipelineError, match="list of column names"):
        step(inputs="instruction", outputs=["a"])


def test_the_function_and_its_constants_are_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = count_words().settings()
    assert settings["code"]["LEAST"] == 2
    monkeypatch.setitem(globals(), "LEAST", 3)
    assert count_words().settings() != settings


def test_a_pipeline_of_users_own_functions(tmp_path: Path) -> None:
    @task(llm=LLM(model="model-b"), inputs=["generation"], outputs=["verdict"])
    async def judged(row: Row, ctx: TaskContext) -> Row:
        completion = await ctx.chat(f"Is this good? {row['generation']}")
        return {"verdict": completion.text}

    with Pipeline(name="own") as pipeline:
        load = LoadDataFromDicts(data=[{"instruction": text} for text in ("one", "one two", "one two three")])
        chain = load >> count_words() >> TextGeneration(llm=LLM(model="model-a")) >> judged()
        chain >> Filter(lambda row: row["words"] == 3, columns=["words"])

    async def main() -> None:
        async with server() as fake:
            result = await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")
            [row] = list(result["default"]["train"])
            assert row["words"] == 3
            assert row["verdict"] != row["generation"]
            assert result.report.counts.ok == 3

    run_async(main())
    with Pipeline(name="wrong") as pipeline:
        LoadDataFromDicts(data=[{"prompt": "x"}]) >> count_words()
    with pytest.raises(PipelineError, match="needs the column 'instruction'"):
        pipeline.plan()
