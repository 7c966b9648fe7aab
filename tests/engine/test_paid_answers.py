"""Paid answers are read again: edited readers pay nothing, edited questions pay in full, and nothing is mixed up."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

from asyncsynth import (
    LLM,
    Deduplicate,
    EvolInstruct,
    LoadDataFromDicts,
    Pipeline,
    StructuredGeneration,
    Task,
    TextGeneration,
    task,
)
from asyncsynth.client.messages import ChatRequest, Choice, Completion, CompletionRequest, Usage
from asyncsynth.engine.options import RunOptions
from asyncsynth.engine.paid_answers import KeptAnswers, completion_of, has_own_code, paid_answers, saved_form
from asyncsynth.errors import ConfigurationError, ParseFailure, RequestFailed, RunChangedError
from asyncsynth.pipeline import Plan
from asyncsynth.storage.kept_answers import AnswerStore
from asyncsynth.testing import Fault, FaultServer, RequestInfo
from tests.kit.loops import run_async
from tests.kit.pipelines import completions, rows, server
from tests.matrix.plugin import Tried

LLM_A = LLM(model="model-a")
Reader = Callable[[str], str]


class Sailor(pydantic.BaseModel):
    name: str


def upper(text: str) -> str:
    return text.upper()


def first_word(text: str) -> str:
    return text.split()[0]


def refuses(text: str) -> str:
    raise ParseFailure(f"not to be read: {text}")


def refuses_odd(text: str) -> str:
    if len(text) % 2:
        raise ParseFailure("odd")
    return text


# --- pipelines whose reader of answers can be edited -----------------------------------------------


def function_task(read: Reader, *, prompt: str = "Say: ", **settings: Any) -> Any:
    @task(llm=LLM_A, inputs=["instruction"], outputs=["read"])
    async def say(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
        return {"read": read((await ctx.chat(prompt + row["instruction"])).text)}

    return say(**settings)


def subclass_task(read: Reader, *, prompt: str = "Say: ", **settings: Any) -> Any:
    class Say(Task):
        inputs = ("instruction",)
        outputs = ("read",)

        def __init__(self, llm: LLM, **more: Any) -> None:
            self.reader, self.question = read, prompt  # settings are part of the fingerprint
            super().__init__(llm, **more)

        def messages(self, row: Any, ctx: Any) -> Any:
            return [{"role": "user", "content": self.question + row["instruction"]}]

        def parse(self, choice: Choice, row: Any) -> Any:
            return {"read": self.reader(choice.text)}

    return Say(LLM_A, **settings)


KINDS: dict[str, Callable[..., Any]] = {"@task": function_task, "Task": subclass_task}


def pipeline_of(make: Callable[..., Any], *, count: int = 8) -> Pipeline:
    with Pipeline(name="answers") as pipeline:
        LoadDataFromDicts(data=rows(count)) >> make()
    return pipeline


def read(result: Any) -> list[str]:
    return [row["read"] for row in result["default"]["train"]]


@pytest.mark.row(35)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("generations", [1, 3])
def test_an_edited_reader_pays_nothing(tmp_path: Path, kind: str, generations: int, tried: Tried) -> None:
    def made(reader: Reader, **more: Any) -> Pipeline:
        return pipeline_of(lambda: KINDS[kind](reader, num_generations=generations, **more))

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            first = read(await made(upper).arun(**options))
            paid = completions(fake)
            assert paid == 8 * generations
            edited_run = made(first_word).resolved(RunOptions(output=tmp_path / "run"))
            assert list(paid_answers(edited_run).values()) == [paid]

            with pytest.raises(RunChangedError, match=rf"\(kept answers: \w+ {paid}; an unchanged request"):
                await made(first_word).arun(**options)

            edited = await made(first_word).arun(**options, update=True)
            assert completions(fake) == paid
            assert edited.report.requests == 0
            assert edited.report.reread_answers == paid
            assert [text.upper() for text in read(edited)] == [text.split()[0] for text in first]

            asked = await made(first_word, prompt="Tell: ").arun(**options, update=True)
            assert completions(fake) == 2 * paid
            assert asked.report.reread_answers == 0
            tried(paid, "answers read again")

    run_async(main())


@pytest.mark.row(35)
def test_what_changes_the_request_is_paid_for(tmp_path: Path) -> None:
    """Each answer belongs to the model, the sampling fields and the seed that it was asked with."""

    def made(**llm: Any) -> Pipeline:
        with Pipeline(name="answers") as pipeline:
            LoadDataFromDicts(data=rows(4)) >> TextGeneration(LLM(**{"model": "model-a", **llm}))
        return pipeline

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            cache = tmp_path / "cache"
            changes: list[dict[str, Any]] = [
                {}, {"model": "model-b"}, {"temperature": 0.1}, {"max_tokens": 7}, {"top_p": 0.5},
                {"extra_body": {"top_k": 3}},
            ]  # fmt: skip
            for number, change in enumerate([*changes, *changes]):
                before = completions(fake)
                result = await made(**change).arun(
                    servers=[fake.base_url], output=tmp_path / str(number), answers=cache
                )
                again = number >= len(changes)
                assert completions(fake) - before == (0 if again else 4), change
                assert result.report.reread_answers == (4 if again else 0), change
            other = await made().arun(servers=[fake.base_url], output=tmp_path / "seed", answers=cache, seed=1)
            assert other.report.reread_answers == 0

    run_async(main())


@pytest.mark.row(35)
def test_a_version_raised_in_a_task_of_the_package_rereads_all_that_was_kept(tmp_path: Path) -> None:
    def made(version: int) -> Pipeline:
        return pipeline_of(lambda: type("TextGeneration", (TextGeneration,), {"version": version})(LLM_A))

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "answers": True}
            first = await made(1).arun(**options)
            again = await made(2).arun(**options, update=True)
            assert completions(fake) == 8
            assert again.report.reread_answers == 8
            assert [*again["default"]["train"]] == [*first["default"]["train"]]

    run_async(main())


@pytest.mark.row(35)
def test_the_choices_of_an_evolving_task_stay_when_its_reader_is_edited(tmp_path: Path) -> None:
    def made(judge: Any) -> Pipeline:
        class Evolve(EvolInstruct):
            def __init__(self, llm: LLM, **more: Any) -> None:
                self.judge = judge
                super().__init__(llm, **more)

            def fault(self, text: str, previous: str, mutation: str, choice: Choice) -> str | None:
                found: str | None = self.judge(text)
                return found

        return pipeline_of(lambda: Evolve(LLM_A, num_evolutions=1))

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await made(lambda text: None).arun(**options)
            paid = completions(fake)
            again = await made(lambda text: "too_short" if len(text) % 2 else None).arun(**options, update=True)
            assert completions(fake) == paid
            assert again.report.reread_answers == paid

    run_async(main())


@pytest.mark.row(35)
@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_failed_rows_are_read_again_too(tmp_path: Path, kind: str) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            failed = await pipeline_of(lambda: KINDS[kind](refuses)).arun(**options)
            assert failed.report.counts.failed == 8
            assert completions(fake) == 24  # each asked for three times
            mended = await pipeline_of(lambda: KINDS[kind](upper)).arun(**options, update=True)
            assert mended.report.counts.ok == 8
            assert mended.report.reread_answers == 8  # the first of each is good enough now
            assert completions(fake) == 24
            straight = await pipeline_of(lambda: KINDS[kind](upper)).arun(
                servers=[fake.base_url], output=tmp_path / "straight"
            )
            assert read(straight) == read(mended)

    run_async(main())


@pytest.mark.row(35)
def test_retrying_with_the_same_reader_really_asks_again(tmp_path: Path) -> None:
    def made(reader: Reader) -> Pipeline:
        return pipeline_of(lambda: function_task(reader, max_reasks=0))

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            first = await made(refuses_odd).arun(**options)
            lost = first.report.counts.failed
            assert 0 < lost < 8
            again = await made(refuses_odd).arun(**options, retry_failed=True)
            assert completions(fake) == 8 + lost
            assert again.report.reread_answers == 0
            # A mended reader is free, with --retry-failed or without.
            mended = await made(upper).arun(**options, update=True, retry_failed=True)
            assert completions(fake) == 8 + lost
            assert mended.report.counts.ok == 8

    run_async(main())


def test_a_row_that_failed_on_a_request_keeps_the_answers_before_it(tmp_path: Path) -> None:
    @task(llm=LLM_A, inputs=["instruction"], outputs=["read"])
    async def twice(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
        first = await ctx.chat("first " + row["instruction"])
        return {"read": first.text + (await ctx.chat("second " + row["instruction"])).text}

    broken = True

    def script(info: RequestInfo) -> Fault | None:
        return Fault("status", status=400) if broken and b"second" in info.body else None

    async def main() -> None:
        nonlocal broken
        async with server(keep_requests=True, script=script) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            first = await pipeline_of(twice).arun(**options)
            assert first.report.counts.failed == 8
            broken = False
            before = completions(fake)
            again = await pipeline_of(twice).arun(**options, retry_failed=True)
            assert again.report.counts.ok == 8
            assert completions(fake) - before == 8
            assert again.report.reread_answers == 8

    run_async(main())


@pytest.mark.parametrize("kind", KINDS)
def test_more_generations_pay_for_the_new_ones(tmp_path: Path, kind: str) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await pipeline_of(lambda: KINDS[kind](upper, num_generations=2)).arun(**options)
            more = await pipeline_of(lambda: KINDS[kind](upper, num_generations=3)).arun(**options, update=True)
            assert completions(fake) == 24
            assert more.report.reread_answers == 16

    run_async(main())


def test_a_body_edited_between_two_calls_pays_for_the_second(tmp_path: Path) -> None:
    def made(between: Reader) -> Any:
        @task(llm=LLM_A, inputs=["instruction"], outputs=["read"])
        async def twice(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
            first = await ctx.chat(row["instruction"])
            return {"read": (await ctx.chat("Again: " + between(first.text))).text}

        return twice()

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await pipeline_of(lambda: made(upper)).arun(**options)
            again = await pipeline_of(lambda: made(first_word)).arun(**options, update=True)
            assert completions(fake) == 16 + 8
            assert again.report.reread_answers == 8

    run_async(main())


def test_two_equal_steps_have_answers_of_their_own(tmp_path: Path) -> None:
    """Two samples of one request are two requests, before an edit and after it."""

    def made(reader: Reader) -> Pipeline:
        with Pipeline(name="answers") as pipeline:
            last: Any = LoadDataFromDicts(data=rows(4))
            for number in range(2):
                step = function_task(reader, name=f"say_{number}", output_mappings={"read": f"read_{number}"})
                last >> step
                last = step
        return pipeline

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await made(upper).arun(**options)
            again = await made(str.strip).arun(**options, update=True)
            assert completions(fake) == 8
            assert again.report.reread_answers == 8
            for row in again["default"]["train"]:
                assert row["read_0"] != row["read_1"]

    run_async(main())


def test_who_keeps_what(tmp_path: Path) -> None:
    """By default only where readers are edited; the user's choice otherwise."""

    async def run(fake: FaultServer, name: str, make: Callable[[], Any], **more: Any) -> bool:
        await pipeline_of(make).arun(servers=[fake.base_url], output=tmp_path / name, **more)
        return (tmp_path / name / "answers").is_dir()

    async def main() -> None:
        async with server() as fake:
            assert await run(fake, "1", lambda: function_task(upper))
            assert await run(fake, "2", lambda: subclass_task(upper))
            assert not await run(fake, "3", lambda: TextGeneration(LLM_A))
            assert await run(fake, "4", lambda: TextGeneration(LLM_A), answers=True)
            assert not await run(fake, "5", lambda: function_task(upper), answers=False)
            assert not await run(fake, "6", lambda: function_task(upper), answers=tmp_path / "cache")
            assert (tmp_path / "cache").is_dir()

    run_async(main())
    assert has_own_code(function_task(upper))
    for plain in (TextGeneration(LLM_A), StructuredGeneration(LLM_A, schema={"type": "object"}), EvolInstruct(LLM_A)):
        assert not has_own_code(plain), plain
    assert has_own_code(StructuredGeneration(LLM_A, schema=Sailor))
    held = TextGeneration(LLM_A)
    held.more = {"readers": [functools.partial(upper)]}  # type: ignore[attr-defined]
    assert has_own_code(held)
    for wrong in (5, "", ["x"]):
        with pytest.raises(ConfigurationError, match="answers must be"):
            RunOptions(answers=wrong)  # type: ignore[arg-type]


def test_no_answers_are_read_where_none_are_wanted_and_a_run_set_aside_has_none(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await pipeline_of(lambda: function_task(upper)).arun(**options)
            await pipeline_of(lambda: function_task(first_word)).arun(**options, update=True, answers=False)
            assert completions(fake) == 16
            await pipeline_of(lambda: function_task(upper)).arun(**options, use_cache=False)
            assert completions(fake) == 24

    run_async(main())


@pytest.mark.row(35)
def test_another_run_directory_reads_a_shared_cache(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "answers": str(tmp_path / "cache")}
            first = await pipeline_of(lambda: function_task(upper)).arun(**options, output=tmp_path / "one")
            second = await pipeline_of(lambda: function_task(first_word), count=11).arun(
                **options, output=tmp_path / "two"
            )
            assert completions(fake) == 11  # three rows more
            assert second.report.reread_answers == 8
            assert [text.upper() for text in read(second)][:8] == [text.split()[0] for text in read(first)]

    run_async(main())


@pytest.mark.row(35)
def test_a_run_stopped_in_the_middle_reads_what_it_had_paid_for(tmp_path: Path) -> None:
    """Interrupted equals straight, and answers of records in flight are not paid for twice."""

    def made() -> Pipeline:
        @task(llm=LLM_A, inputs=["instruction"], outputs=["read"])
        async def chain(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
            text = row["instruction"]
            for _ in range(4):
                text = (await ctx.chat(text)).text
            return {"read": text}

        return pipeline_of(chain, count=12)

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            straight = await made().arun(servers=[fake.base_url], output=tmp_path / "straight")
            assert completions(fake) == 48
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "window": 6}
            for stop_at in (1, 3, 5):
                seen = 0
                async with contextlib.aclosing(made().stream(**options)) as stream:
                    async for _ in stream:
                        if (seen := seen + 1) >= stop_at:
                            break
            before = completions(fake)
            rest = await made().arun(**options)
            assert read(rest) == read(straight)
            assert completions(fake) == before + rest.report.requests
            # Every answer that was read whole before a stop was kept; at most those in flight were paid for twice.
            assert completions(fake) - 48 <= 48 + 3 * 6

    run_async(main())


def test_steps_in_stages_share_one_store(tmp_path: Path) -> None:
    def made(reader: Reader) -> Pipeline:
        with Pipeline(name="answers") as pipeline:
            last = LoadDataFromDicts(data=rows(6)) >> function_task(upper, name="before")
            last = last >> Deduplicate(columns=["instruction"])
            last >> function_task(reader, name="after", output_mappings={"read": "last"})
        return pipeline

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await made(upper).arun(**options)
            paid = completions(fake)
            again = await made(first_word).arun(**options, update=True)
            assert completions(fake) == paid
            assert again.report.reread_answers == again.report.counts.rows > 0
            assert not (tmp_path / "run" / "stage-1" / "answers").exists()

    run_async(main())


def test_seeds_have_nothing_of_the_code_and_tell_steps_apart() -> None:
    def ids(*steps: Callable[[], Any]) -> list[str]:
        with Pipeline(name="answers") as pipeline:
            last: Any = LoadDataFromDicts(data=rows(1))
            for number, make in enumerate(steps):
                step = make()
                step.output_mappings = {name: f"{name}_{number}" for name in step.outputs}
                last >> step
                last = step
        return [node.seed_id for node in pipeline.checked().model_steps]

    def hot() -> Any:
        return TextGeneration(LLM(model="model-a", temperature=1.0))

    def cool() -> Any:
        return TextGeneration(LLM(model="model-a", temperature=0.2))

    assert ids(lambda: function_task(upper)) == ids(lambda: function_task(first_word, prompt="Other"))
    assert len(set(ids(hot, cool, hot, hot, lambda: function_task(upper)))) == 5
    assert ids(hot, cool) == ids(cool, hot)[::-1]


# --- one row's requests, without servers -----------------------------------------------------------


class Model:
    """Answers each request with a number of its own."""

    def __init__(self) -> None:
        self.sent = 0

    async def send(self, request: Any, **how: Any) -> Completion:
        self.sent += 1
        if "broken" in str(request):
            raise RequestFailed("no", reason="bad_request")
        choice = Choice(f"answer {self.sent}", "stop", {"tokens": [1]}, "thought")
        return Completion([choice], "m", Usage(3, 4), "server", 0.5, 2, ("replaced_surrogates",))


async def asked(
    place: Path, model: Model, requests: list[Any], *, row: str = "0", answering: dict[str, str] | None = None
) -> list[Any]:
    """One session, one row."""
    [node] = pipeline_of(lambda: function_task(upper)).checked().model_steps
    store = AnswerStore(place, [place])
    kept = KeptAnswers(store, Plan([node], {}, {}, "", answering or {}), run_seed=0, only_own=True, refused={})
    asker = kept.asker(node, row, row, model.send)
    assert asker is not None
    answers = []
    for request in requests:
        try:
            answers.append(await asker.send(request))
        except RequestFailed as error:
            answers.append(error)
    store.close()
    return answers


def chat(text: str, **params: Any) -> ChatRequest:
    return ChatRequest("m", [{"role": "user", "content": text}], params)


def test_an_answer_comes_back_whole(tmp_path: Path) -> None:
    model = Model()
    [first] = asyncio.run(asked(tmp_path, model, [chat("a", seed=1)]))
    [again] = asyncio.run(asked(tmp_path, model, [chat("a", seed=1)]))
    assert again == first
    assert model.sent == 1


@pytest.mark.row(35)
@pytest.mark.parametrize("params", [{"seed": 7}, {}, {"seed": None}])
def test_the_same_request_twice_is_two_answers_and_stays_two(tmp_path: Path, params: dict[str, Any]) -> None:
    model = Model()
    same = [chat("a", **params) for _ in range(3)]
    first = asyncio.run(asked(tmp_path, model, same))
    assert len({answer.text for answer in first}) == 3
    assert asyncio.run(asked(tmp_path, model, same)) == first
    assert model.sent == 3


@pytest.mark.row(35)
def test_every_field_of_a_request_tells_its_answer_from_others(tmp_path: Path, tried: Tried) -> None:
    user: Any = [{"role": "user", "content": "a"}]
    different: list[Any] = [
        chat("a", seed=1),
        chat("b", seed=1),
        chat("a", seed=2),
        chat("a", seed=1, temperature=0.1),
        chat("a", seed=1, temperature=0.2),
        chat("a", seed=1, logprobs=True),
        ChatRequest("other", user, {"seed": 1}),
        ChatRequest("m", [{"role": "system", "content": "s"}, *user], {"seed": 1}),
        ChatRequest("m", user, {"seed": 1}, {"type": "object"}),
        ChatRequest("m", user, {"seed": 1}, {"type": "array"}),
        CompletionRequest("m", "a", {"seed": 1}),
    ]
    model = Model()
    for request in different:
        asyncio.run(asked(tmp_path, model, [request]))
    assert model.sent == len(different)
    for number, request in enumerate(different):
        [again] = asyncio.run(asked(tmp_path, model, [request]))
        assert again.text == f"answer {number + 1}"
    [stand_in] = asyncio.run(asked(tmp_path, model, [chat("a", seed=1)], answering={"m": "a small model"}))
    assert stand_in.text == f"answer {len(different) + 1}"
    tried(len(different), "requests that differ in one field")


def test_without_a_seed_another_row_asks_for_itself(tmp_path: Path) -> None:
    model = Model()
    [one] = asyncio.run(asked(tmp_path, model, [chat("a")], row="0"))
    [two] = asyncio.run(asked(tmp_path, model, [chat("a")], row="1"))
    assert one.text != two.text


def test_failures_are_not_kept_and_what_is_no_json_goes_to_the_client(tmp_path: Path) -> None:
    model = Model()
    for _ in range(2):
        asyncio.run(asked(tmp_path, model, [chat("broken", seed=1), chat("a", seed=object())]))
    assert model.sent == 4


def test_an_answer_of_another_version_is_asked_for_again() -> None:
    whole = saved_form(Completion([Choice("t")], "m", Usage(1, 2), flags=("a",)))
    assert completion_of(whole) is not None
    for broken in ({**whole, "new": 1}, {**whole, "choices": []}, {**whole, "usage": None}, [], None, {}):
        assert completion_of(broken) is None


def test_the_disk_keeps_no_more_than_asked(tmp_path: Path) -> None:
    """A run that reads all its answers keeps none of them a second time."""

    async def main() -> None:
        async with server() as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await pipeline_of(lambda: function_task(upper)).arun(**options)
            names = sorted(os.listdir(tmp_path / "run" / "answers"))
            await pipeline_of(lambda: function_task(first_word)).arun(**options, update=True)
            assert sorted(os.listdir(tmp_path / "run" / "answers")) == names == ["ans-000001.idx", "ans-000001.jsonl"]

    run_async(main())
