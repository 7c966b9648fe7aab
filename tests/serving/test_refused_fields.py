"""A server that refuses a part of the run's requests is found out before a record is sent, with the setting to change;
with that setting, the run works. Over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from asyncsynth.client.llm import LLM
from asyncsynth.errors import ServerError
from asyncsynth.pipeline.context import Context
from asyncsynth.servers.configs import ServerConfig
from asyncsynth.servers.readiness import ReadyPolicy
from asyncsynth.serving.binding import open_pool
from asyncsynth.tasks.base import Task
from asyncsynth.tasks.task_decorator import task
from asyncsynth.tasks.text_generation import TextGeneration
from tests.kit.scripted_server import Asked, Reply, Script, ScriptedServer, completion, refusal

HASTY = ReadyPolicy(connect_s=0, load_s=0, grace_s=0)
Refuses = Callable[[dict[str, Any]], bool]


def refusing(is_refused: Refuses, body: Any, status: int = 400) -> Script:
    """A server with one thing against requests."""
    return lambda asked: (status, body) if asked.generates and is_refused(asked.json) else None


def reasoner(asked: Asked) -> Reply | None:
    """OpenAI's reasoning models: two fields of the usual ones are refused, one after the other is named."""
    if "max_tokens" in asked.json:
        return 400, refusal("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    if asked.json.get("temperature", 1) != 1:
        return 400, refusal("Unsupported value: 'temperature' does not support 0.7 with this model.")
    return None


def silent_thinker(asked: Asked) -> Reply | None:
    """mlx-lm: no content where the budget ends within the thought."""
    answer = completion(asked)
    if asked.generates and asked.json["max_tokens"] < 100:
        answer["choices"][0] |= {"message": {"role": "assistant", "reasoning": "Hm"}, "finish_reason": "length"}
    return (200, answer) if asked.generates else None


MISTRAL = {
    "object": "error",
    "message": {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
}
CASES: dict[str, tuple[Script, dict[str, Any], str]] = {
    "seed (Mistral)": (refusing(lambda b: "seed" in b, MISTRAL, 422), {"seed": None}, "refuses `seed`"),
    "max_tokens (OpenAI)": (
        refusing(lambda b: "max_tokens" in b, refusal("Unsupported parameter: 'max_tokens'")),
        {"max_tokens_field": "max_completion_tokens"},
        "refuses `max_tokens`",
    ),
    "any limit": (
        refusing(lambda b: "max_tokens" in b or "max_completion_tokens" in b, refusal("no limits: max_tokens")),
        {"max_tokens": None},
        "refuses `max_tokens`",
    ),
    "top_p of 1 (TGI)": (
        refusing(lambda b: b.get("top_p") == 1, {"error": "`top_p` must be > 0.0 and < 1.0"}, 422),
        {"top_p": None},
        "refuses `top_p`",
    ),
    "temperature": (
        refusing(lambda b: "temperature" in b, refusal("Unsupported value")),  # in words that name nothing
        {"temperature": None},
        "refuses `temperature`",
    ),
    "temperature beside top_p (Claude)": (
        refusing(
            lambda b: {"temperature", "top_p"} <= b.keys(), refusal("`temperature` and `top_p` exclude each other")
        ),
        {"top_p": None},
        "refuses `top_p`",
    ),
    "two fields (OpenAI's reasoning models)": (
        lambda asked: reasoner(asked) if asked.generates else None,
        {"max_tokens_field": "max_completion_tokens", "temperature": None},
        "refuses `max_tokens` and `temperature`",
    ),
    "a system role (Gemma 2)": (
        refusing(lambda b: b.get("messages", [{}])[0].get("role") == "system", refusal("System role not supported")),
        {"system_role": "user"},
        "refuses the system role",
    ),
    "a small limit": (refusing(lambda b: b["max_tokens"] < 16, refusal("integer below minimum value")), {}, ""),
    "a limit too small to think": (
        refusing(lambda b: b["max_tokens"] < 200, refusal("max_tokens or model output limit was reached")),
        {},
        "",
    ),
    "a thought without an answer (mlx-lm)": (silent_thinker, {}, ""),
}


def generate(made: Task, script: Script) -> tuple[list[dict[str, Any]], ScriptedServer]:
    """One record through a task on a scripted server, tried first."""

    async def scenario() -> tuple[list[dict[str, Any]], ScriptedServer]:
        async with ScriptedServer(script) as server:
            given = [ServerConfig(base_url=server.base_url)]
            async with open_pool(made.models(), servers=given, ready=HASTY, environ={}, needs=made.needs()) as pool:
                context = Context(key="0", run_seed=0, step_id="s", send=pool.send)
                return await made.generate({"instruction": "Say something."}, context), server

    return asyncio.run(scenario())


@pytest.mark.parametrize("name", CASES)
def test_what_a_server_refuses_is_named_with_the_setting_that_helps(name: str) -> None:
    script, settings, said = CASES[name]
    usual = TextGeneration(LLM(model="m"), system_prompt="Be brief.")
    if settings:
        with pytest.raises(ServerError) as caught:
            generate(usual, script)
        text = str(caught.value)
        assert said in text
        assert "no record was sent" in text
        for setting, value in settings.items():
            shown = f'"{value}"' if isinstance(value, str) else f"{value}"
            assert f"LLM({setting}={shown})" in text
    chosen = TextGeneration(LLM(model="m", **settings), system_prompt="Be brief.")
    [row], server = generate(chosen, script)
    assert row["generation"] == "An answer."
    sample, sent = server.generations()[0], server.generations()[-1]
    assert set(sample) == set(sent)
    assert [message["role"] for message in sample["messages"]] == [message["role"] for message in sent["messages"]]


def test_a_function_whose_requests_are_refused_is_told_too() -> None:
    @task(llm=LLM(model="m"), inputs=["instruction"], outputs=["answer"])
    async def answered(row: Any, ctx: Any) -> dict[str, Any]:
        return {"answer": (await ctx.chat(row["instruction"])).text}

    script = CASES["seed (Mistral)"][0]
    with pytest.raises(ServerError, match=r"refuses a sample request: refuses `seed`(.|\n)*LLM\(seed=None\)"):
        generate(answered(), script)
    [row], _ = generate(answered(llm=LLM(model="m", seed=None)), script)
    assert row == {"answer": "An answer."}


def test_probes_send_what_the_run_sends() -> None:
    llm = LLM(model="m", max_tokens_field="max_completion_tokens", temperature=None, seed=None, extra_body={"top_k": 4})

    class Judge(TextGeneration):
        def request_fields(self) -> dict[str, Any]:
            return {"logprobs": True, "top_logprobs": 2, "n": 2}

    with pytest.raises(ServerError, match="the answer has no logprobs"):
        generate(Judge(llm), lambda asked: None)

    async def scenario() -> list[dict[str, Any]]:
        async with ScriptedServer() as server:
            given = [ServerConfig(base_url=server.base_url)]
            needs = [need for need in Judge(llm).needs() if need.feature != "logprobs"]
            async with open_pool([llm], servers=given, ready=HASTY, environ={}, needs=needs):
                return server.generations()

    for body in asyncio.run(scenario()):
        assert body.keys() - {"n"} == {"model", "messages", "top_p", "max_completion_tokens", "top_k"}
        assert body["max_completion_tokens"] == 16


def test_each_kind_of_request_is_tried_once() -> None:
    strict = TextGeneration(LLM(model="m", temperature=0.0), name="strict")
    free = TextGeneration(LLM(model="m", temperature=1.5), name="free")

    async def scenario(script: Script) -> list[dict[str, Any]]:
        async with ScriptedServer(script) as server:
            given = [ServerConfig(base_url=server.base_url)]
            needs = [*strict.needs(), *free.needs(), *free.needs()]
            models = [*strict.models(), *free.models()]
            async with open_pool(models, servers=given, ready=HASTY, environ={}, needs=needs):
                return server.generations()

    sent = asyncio.run(scenario(lambda asked: None))
    assert [body["temperature"] for body in sent] == [0.0, 1.5]
    hot = refusing(lambda b: b.get("temperature", 0) > 1, refusal("temperature must be at most 1"))
    with pytest.raises(ServerError, match="refuses `temperature`"):
        asyncio.run(scenario(hot))
