"""Magpie: what goes out to the model, what is taken for the user's turn, and which system prompt is chosen."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncsynth import LLM, FormSFT, KeepColumns, LoadDataFromDicts, Magpie, MagpieGenerator, Pipeline
from asyncsynth.client.messages import ChatRequest, Choice, Completion, CompletionRequest, ModelRequest, Usage
from asyncsynth.client.needs import SAMPLE_SEED
from asyncsynth.errors import ConfigurationError, ParseFailure, PipelineError, RequestFailed
from asyncsynth.pipeline import Context
from asyncsynth.records import Row
from asyncsynth.tasks.magpie import read_user_turn
from tests.kit.loops import run_async
from tests.kit.pipelines import server

QWEN = LLM(model="Qwen/Qwen2.5-1.5B-Instruct")
STOP = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")


class Users:
    """A model that says "question N" where the user speaks, and "answer N" where it answers."""

    def __init__(self, users: Callable[[int], str | Choice | Exception] | None = None) -> None:
        self.raw: list[CompletionRequest] = []
        self.chats: list[ChatRequest] = []
        self._users = users or (lambda number: f" question {number}\n")

    async def send(self, request: ModelRequest) -> Completion:
        await asyncio.sleep(0)
        if isinstance(request, ChatRequest):
            self.chats.append(request)
            said: str | Choice | Exception = f"answer {len(self.chats)} "
        else:
            self.raw.append(request)
            said = self._users(len(self.raw))
        if isinstance(said, Exception):
            raise said
        choice = said if isinstance(said, Choice) else Choice(said, "stop")
        return Completion([choice], model="model-that-answered", usage=Usage(3, 5), server="s")

    def ctx(self, key: str = "0", run_seed: int = 0) -> Context:
        return Context(key=key, run_seed=run_seed, step_id="step", send=self.send)


def ask(task: Magpie, row: Row, model: Users, key: str = "0") -> Row:
    [outputs] = asyncio.run(task.generate(row, model.ctx(key)))
    return outputs


def test_one_turn_from_the_template_up_to_the_user() -> None:
    model = Users()
    made = ask(Magpie(llm=QWEN), {}, model)
    assert made == {
        "instruction": "question 1",
        "response": "answer 1",
        "conversation": [
            {"role": "user", "content": "question 1"},
            {"role": "assistant", "content": "answer 1"},
        ],
        "model_name": "model-that-answered",
    }
    [raw] = model.raw
    assert raw.prompt.startswith("<|im_start|>system\nYou are Qwen")  # as Qwen2.5's own template has it
    assert raw.prompt.endswith("<|im_end|>\n<|im_start|>user\n")
    assert raw.params["stop"] == list(STOP)
    assert raw.params["max_tokens"] == 512
    assert model.chats[0].messages == [{"role": "user", "content": "question 1"}]
    assert model.chats[0].params["seed"] != raw.params["seed"]


def test_several_turns_with_the_conversation_so_far() -> None:
    model = Users()
    task = Magpie(llm=QWEN, n_turns=2, include_system_prompt=True, system_prompt="S")
    made = ask(task, {}, model)
    assert task.outputs == ("conversation", "model_name")
    assert [(m["role"], m["content"]) for m in made["conversation"]] == [
        ("system", "S"),
        ("user", "question 1"),
        ("assistant", "answer 1"),
        ("user", "question 2"),
        ("assistant", "answer 2"),
    ]
    assert model.raw[1].prompt == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nquestion 1<|im_end|>\n"
        "<|im_start|>assistant\nanswer 1<|im_end|>\n<|im_start|>user\n"
    )
    seeds = [request.params["seed"] for request in [*model.raw, *model.chats]]
    assert len(set(seeds)) == 4


def test_the_system_prompt_is_left_out_unless_asked_for_and_the_last_answer_on_demand() -> None:
    made = ask(Magpie(llm=QWEN, n_turns=2, end_with_user=True, system_prompt="S"), {}, Users())
    assert [message["role"] for message in made["conversation"]] == ["user", "assistant", "user"]


def test_only_the_instruction() -> None:
    model = Users()
    assert ask(Magpie(llm=QWEN, only_instruction=True), {}, model) == {
        "instruction": "question 1",
        "model_name": "model-that-answered",
    }
    assert not model.chats


def test_a_rows_system_prompt_wins() -> None:
    model = Users()
    ask(Magpie(llm=QWEN, system_prompt="task's"), {"system_prompt": "row's"}, model)
    assert model.raw[0].prompt == "<|im_start|>system\nrow's<|im_end|>\n<|im_start|>user\n"
    assert model.chats[0].messages[0] == {"role": "system", "content": "row's"}


def test_system_prompts_by_weight_and_the_same_on_resume() -> None:
    prompts = {"maths": ("About maths.", 0.75), "code": ("About code.", 0.25), "never": ("Never.", 0)}
    task = Magpie(llm=QWEN, system_prompt=prompts, only_instruction=True)
    assert task.outputs == ("instruction", "system_prompt_key", "model_name")
    keys = [ask(task, {}, Users(), str(key))["system_prompt_key"] for key in range(400)]
    counts = Counter(keys)
    assert set(counts) == {"maths", "code"}
    assert 250 < counts["maths"] < 350
    turned = Magpie(llm=QWEN, system_prompt=dict(reversed(prompts.items())), only_instruction=True)
    assert keys == [ask(turned, {}, Users(), str(key))["system_prompt_key"] for key in range(400)]
    assert turned.settings() == task.settings()
    assert ask(task, {"system_prompt": "own"}, Users())["system_prompt_key"] is None


def test_a_list_of_system_prompts_and_samples_that_choose_for_themselves() -> None:
    model = Users()
    task = Magpie(llm=QWEN, system_prompt=["one", "two"], only_instruction=True, num_generations=20)
    rows = asyncio.run(task.generate({}, model.ctx()))
    assert len(rows) == 20
    assert {"one", "two"} == {request.prompt.split("\n")[1].removesuffix("<|im_end|>") for request in model.raw}
    assert len({request.params["seed"] for request in model.raw}) == 20


@pytest.mark.parametrize(
    ("said", "turn"),
    [
        ("What is a river?", "What is a river?"),
        ("  \nWhat?\n\n", "What?"),
        ("What?<|im_end|>\n<|im_start|>assistant\nThis.", "What?"),
        ("What?\nassistant\nThis.", "What?"),
        ("What?\n\nassistant", "What?"),
        ("Who is my\nassistant to be?", "Who is my\nassistant to be?"),
        (Choice("What?<|im_end|> and on", "length"), "What?"),
        ("¿Qué?\n申し訳", "¿Qué?\n申し訳"),
    ],
)
def test_the_users_turn(said: str | Choice, turn: str) -> None:
    assert read_user_turn(said if isinstance(said, Choice) else Choice(said, "stop"), STOP) == turn


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (Choice("Write on and on", "length"), "runaway_instruction"),
        (Choice("What is a river, and what is a lake? " * 9, "stop"), "runaway_instruction"),
        (Choice("<|im_end|>What?", "stop"), "empty_instruction"),
        (Choice("\nassistant\nThis.", "stop"), "empty_instruction"),
        (Choice(" ... \n", "stop"), "empty_instruction"),
    ],
)
def test_no_users_turn(choice: Choice, reason: str) -> None:
    with pytest.raises(ParseFailure) as caught:
        read_user_turn(choice, STOP)
    assert caught.value.reason == reason
    assert caught.value.raw == choice.text


def test_bad_instructions_are_asked_for_again_with_another_seed() -> None:
    bad = [Choice("on and on", "length"), RequestFailed("nothing", reason="empty_content")]
    model = Users(lambda number: bad[number - 1] if number <= 2 else "good")
    ctx = model.ctx()
    [made] = asyncio.run(Magpie(llm=QWEN).generate({}, ctx))
    assert made["instruction"] == "good"
    assert ctx.notes == {"parse_failures": 2}
    assert len({request.params["seed"] for request in model.raw}) == 3


def test_the_last_bad_instruction_is_told_and_other_failures_at_once() -> None:
    model = Users(lambda number: Choice("on and on", "length"))
    with pytest.raises(ParseFailure, match="no end") as caught:
        ask(Magpie(llm=QWEN, max_reasks=1), {}, model)
    assert (caught.value.reason, caught.value.attempts, caught.value.raw) == ("runaway_instruction", 2, "on and on")
    with pytest.raises(ParseFailure) as caught:
        ask(Magpie(llm=QWEN, max_reasks=0), {}, Users(lambda _: RequestFailed("", reason="empty_content")))
    assert caught.value.reason == "empty_instruction"
    model = Users(lambda number: RequestFailed("too long", reason="context_length"))
    with pytest.raises(RequestFailed, match="too long"):
        ask(Magpie(llm=QWEN), {}, model)
    assert len(model.raw) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_turns": 0}, "1 or more"),
        ({"only_instruction": True, "n_turns": 2}, "only_instruction"),
        ({"end_with_user": True}, "only_instruction=True"),
        ({"system_prompt": {"a": ("x",)}}, "pair"),
        ({"system_prompt": {"a": ("x", -1)}}, "weight"),
        ({"system_prompt": {"a": ("x", 0)}}, "over 0"),
        ({"system_prompt": ["", "x"]}, "no system prompt"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Magpie(llm=QWEN, **settings)


def test_an_unknown_models_template_is_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="tokenizer_config"):
        Magpie(llm=LLM(model="meta-llama/Llama-3.2-1B-Instruct"))
    Magpie(llm=LLM(model="my-tune"), chat_template="chatml")


# --- over sockets --------------------------------------------------------------------------------

MODEL = LLM(model="model-a")


def run(tmp_path: Path, make: Callable[[], Pipeline], **options: Any) -> list[Row]:
    async def main() -> list[Row]:
        async with server(keep_requests=True, **options) as fake:
            result = await make().arun(servers=[fake.base_url], output=tmp_path / "run")
            assert result.report.exit_code == 0
            assert fake.log is not None
            # What is sent at the start, to try the servers, has the seed of samples.
            sent = [
                info
                for info in fake.log
                if info.path.endswith("/v1/completions") and info.json.get("seed", SAMPLE_SEED) != SAMPLE_SEED
            ]
            assert all(info.json["prompt"].endswith("<|im_start|>user\n") for info in sent)
            assert len(sent) >= len(result["default"]["train"])
        return list(result["default"]["train"])

    return run_async(main())


def test_a_pipeline_of_one_turn(tmp_path: Path) -> None:
    def make() -> Pipeline:
        with Pipeline(name="magpie") as pipeline:
            load = LoadDataFromDicts(data=[{"system_prompt": f"Users ask about {n}."} for n in range(5)])
            load >> Magpie(llm=MODEL, chat_template="chatml")
        return pipeline

    rows = run(tmp_path, make)
    assert len({row["instruction"] for row in rows}) == 5
    assert all(row["conversation"][1] == {"role": "assistant", "content": row["response"]} for row in rows)


def test_a_generator_makes_its_rows_and_more_of_them_extend_the_run(tmp_path: Path) -> None:
    def make(count: int) -> Pipeline:
        with Pipeline(name="magpie") as pipeline:
            generator = MagpieGenerator(
                llm=MODEL, num_rows=count, n_turns=2, chat_template="chatml", system_prompt={"a": "A.", "b": "B."}
            )
            generator >> FormSFT(keep=["system_prompt_key"])
        return pipeline

    assert "magpie_generator_0" in make(3).draw()
    rows = run(tmp_path, lambda: make(12))
    assert len(rows) == 12
    assert {row["system_prompt_key"] for row in rows} == {"a", "b"}
    assert len({row["messages"][1]["content"] for row in rows}) == 12
    assert [message["role"] for message in rows[0]["messages"]] == ["system"] + ["user", "assistant"] * 2
    # The one under which the model answered, though the journal keeps only its name.
    assert all(row["messages"][0]["content"] == f"{row['system_prompt_key'].upper()}." for row in rows)
    again = run(tmp_path / "fresh", lambda: make(15))
    assert again[:12] == rows
    grown = make(15)

    async def main() -> None:
        async with server() as fake:
            result = await grown.arun(servers=[fake.base_url], output=tmp_path / "run")
            assert (result.report.counts.earlier, result.report.counts.ok) == (12, 3)

    run_async(main())


def test_a_generator_made_before_its_pipeline_or_alone_in_it() -> None:
    generator = MagpieGenerator(QWEN, num_rows=2)
    with Pipeline(name="late") as pipeline:
        generator >> [KeepColumns(["instruction"]), KeepColumns(["response"])]
    assert len(pipeline.plan().nodes) == 4
    with Pipeline(name="alone") as pipeline:
        MagpieGenerator(QWEN, num_rows=2, name="g", output_mappings={"instruction": "prompt"})
    assert [node.step.name for node in pipeline.plan().nodes] == ["g", "g_magpie"]
    with pytest.raises(PipelineError, match="outside a pipeline"):
        MagpieGenerator(QWEN, num_rows=2) >> KeepColumns(["instruction"])
    with pytest.raises(ConfigurationError, match="num_rows"):
        MagpieGenerator(QWEN, num_rows=0)


def test_the_seeds_block() -> None:
    """With a loop of its own, as at a prompt; the server's loop runs in another thread."""

    async def main() -> list[Row]:
        async with server() as fake:
            llm = LLM(model="model-a", base_url=fake.base_url)
            magpie = Magpie(llm=llm, chat_template="chatml")

            def block() -> list[Row]:
                magpie.load()
                return next(magpie.process([{"system_prompt": "You are a helpful assistant."}]))

            try:
                return await asyncio.to_thread(block)
            finally:
                await asyncio.to_thread(magpie.unload)

    [row] = run_async(main())
    assert [message["role"] for message in row["conversation"]] == ["user", "assistant"]


@pytest.mark.embedded
def test_the_seeds_block_on_a_real_model() -> None:
    pytest.importorskip("xllamacpp")
    magpie = Magpie(llm=LLM.embedded(max_tokens=32))
    magpie.load()
    try:
        [row] = next(magpie.process([{"system_prompt": "You are a helpful assistant."}]))
    finally:
        magpie.unload()
    assert [message["role"] for message in row["conversation"]] == ["user", "assistant"]
    assert row["model_name"] == "SmolLM2-135M-Instruct-Q4_1 (embedded)"
