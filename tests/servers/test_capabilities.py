"""What a server really does is found by asking it, over real sockets; what cannot work is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import orjson
import pytest

from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.llm import LLM
from asyncsynth.client.needs import Feature, Need, features_of, needs_of
from asyncsynth.errors import ServerError
from asyncsynth.servers.capabilities import Capabilities, lacks, require, survey
from asyncsynth.servers.capability_probes import (
    Finding,
    read_logprobs,
    read_prefill,
    read_schema,
    read_stop,
)
from asyncsynth.servers.inspection import all_needs
from asyncsynth.serving.binding import open_pool
from asyncsynth.serving.embedded import EmbeddedServer, EmbeddedSpec
from asyncsynth.testing import Abilities, Fault, FaultServer

MODEL = "test-model"
LLM_ = LLM(model=MODEL, max_tokens=100)
ALL = (
    LLM_.chat([], schema={}, logprobs=True, top_logprobs=5, n=2),
    LLM_.complete("", stop=["x"], skip_special_tokens=False),
)


def needs(*requests: Any, optional: Iterable[Feature] = ()) -> tuple[Need, ...]:
    return needs_of(requests or ALL, step="judge", optional=frozenset(optional))


def surveyed(
    wanted: Iterable[Need], abilities: Abilities | None = None, *, chats: bool = False, **options: Any
) -> tuple[Capabilities, FaultServer]:
    async def scenario() -> tuple[Capabilities, FaultServer]:
        async with FaultServer(abilities=abilities, keep_requests=True, **options) as server:
            pool = Http11Pool(server.base_url)
            try:
                chatted = frozenset([MODEL]) if chats else frozenset[str]()
                [found] = await survey(pool, [MODEL], tuple(wanted), server="s1", chats=chatted)
            finally:
                await pool.aclose()
            return found, server

    return asyncio.run(scenario())


def states(found: Capabilities) -> dict[str, str]:
    return {str(feature): finding.state for feature, finding in found.findings.items()}


def test_a_server_that_does_all() -> None:
    found, server = surveyed(needs(), Abilities(context=4096, version="0.33.0"))
    assert set(states(found).values()) == {"yes"}
    assert set(found.findings) == {*Feature} - {Feature.PREFILL}
    assert (found.software, found.context) == ("vLLM 0.33.0", 4096)
    assert server.requests <= 6
    require([found], needs())


def test_only_what_is_needed_is_tried() -> None:
    _, server = surveyed(needs(LLM_.chat([])), chats=True)
    assert server.requests == 0
    _, server = surveyed(needs(LLM_.chat([], schema={})), chats=True)
    assert server.log is not None
    assert [("response_format" in info.json) for info in server.log] == [True]
    _, server = surveyed(())
    assert server.requests == 0


@pytest.mark.parametrize(
    ("abilities", "feature", "words"),
    [
        (Abilities(ignored=frozenset({"response_format"})), Feature.SCHEMA, "is ignored: the answer was '"),
        (Abilities(refused=frozenset({"response_format"})), Feature.SCHEMA, "HTTP 400: Unrecognized"),
        (Abilities(ignored=frozenset({"logprobs"})), Feature.LOGPROBS, "no logprobs"),
        (Abilities(ignored=frozenset({"top_logprobs"})), Feature.LOGPROBS, "without top_logprobs"),
        (Abilities(ignored=frozenset({"n"})), Feature.CHOICES, "1 choice"),
        (Abilities(ignored=frozenset({"stop"})), Feature.STOP, "stop is ignored: the text was"),
        (Abilities(completions=False), Feature.COMPLETIONS, "HTTP 404"),
        (Abilities(chat=False), Feature.CHAT, "HTTP 404"),
        (
            Abilities(refused=frozenset({"skip_special_tokens"})),
            Feature.COMPLETIONS,
            "refuses `skip_special_tokens`: HTTP 400",
        ),
        (Abilities(context=100), Feature.CONTEXT, "leaves no room"),
    ],
)
def test_a_server_that_lacks_something(abilities: Abilities, feature: Feature, words: str) -> None:
    found, _ = surveyed(needs(), abilities)
    assert found.findings[feature].state == "no"
    assert words in found.findings[feature].said
    with pytest.raises(ServerError) as refused:
        require([found], needs())
    text = str(refused.value)
    assert "step 'judge' needs of test-model at s1 (http://127.0.0.1:" in text
    assert words in text
    optional = needs(optional=[*Feature])
    require([found], optional)  # told, not refused
    assert feature in {lack.need.feature for lack in lacks([found], optional)}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_unknown_and_not_refused(status: int) -> None:
    found, _ = surveyed(needs(), script=lambda info: Fault("status", status=status))
    tried = states(found)
    assert set(tried.values()) == {"unknown"}
    assert str(status) in found.findings[Feature.SCHEMA].said
    require([found], needs())


@pytest.mark.parametrize("kind", ["bad_json", "null_content", "reset", "truncate", "deep"])
def test_broken_answers_are_no_verdict(kind: Any) -> None:
    found, _ = surveyed(needs(LLM_.chat([], schema={})), script=lambda info: Fault(kind))
    assert states(found)["schema"] == "unknown"


def test_context_near_its_limit_is_told() -> None:
    found, _ = surveyed(needs(LLM_.chat([])), Abilities(context=300), chats=True)
    assert found.findings[Feature.CONTEXT].state == "limited"
    assert "leaves 200 tokens for prompts" in found.line()
    require([found], needs(LLM_.chat([])))
    found, _ = surveyed(needs(LLM_.chat([])), chats=True)
    assert found.findings[Feature.CONTEXT].state == "unknown"  # it does not say


def test_each_step_has_its_own_measure_of_the_context() -> None:
    short = needs_of([LLM_.chat([])], step="short")
    long = needs_of([LLM(model=MODEL, max_tokens=4096).chat([])], step="long")
    found, _ = surveyed((*short, *long), Abilities(context=2048), chats=True)
    [lack] = lacks([found], (*short, *long))
    assert lack.need.step == "long"
    with pytest.raises(ServerError, match="max_tokens 4,096 of step 'long' leaves no room for a prompt in 2,048"):
        require([found], (*short, *long))


def test_fields_of_the_user_are_tried_as_they_will_be_sent() -> None:
    llm = LLM(model=MODEL, temperature=0.3, extra_body={"top_k": 20, "min_p": 0.1})
    found, server = surveyed(needs(llm.chat([])), chats=True)
    assert server.log is not None
    [info] = server.log
    assert (info.json["top_k"], info.json["min_p"], info.json["temperature"]) == (20, 0.1, 0.3)
    assert found.unset == ("repetition_penalty",)
    found, _ = surveyed(needs(llm.chat([])), Abilities(refused=frozenset({"top_k"})), chats=True)
    finding = found.findings[Feature.CHAT]
    assert finding.said.startswith("refuses `top_k`: HTTP 400")
    assert "take top_k out of extra_body" in finding.todo


def test_unset_fields_are_told_with_what_may_fill_them() -> None:
    found, _ = surveyed(needs(LLM_.chat([])), Abilities(version="0.33.0"), chats=True)
    assert found.unset == ("min_p", "repetition_penalty", "top_k")
    assert "unset: min_p, repetition_penalty, top_k (the model's generation_config.json" in found.line()
    told = json.loads(orjson.dumps(found.as_json()))
    assert told["unset"] == ["min_p", "repetition_penalty", "top_k"]
    assert told["features"]["chat"]["state"] == "yes"


def test_every_sampling_field_of_the_user_is_sent() -> None:
    fields: dict[str, Any] = {
        "temperature": 0.1,
        "top_p": 0.2,
        "max_tokens": 3,
        "stop": ["x"],
        "presence_penalty": 0.4,
        "frequency_penalty": 0.5,
    }
    sent = LLM(model="m", **fields, extra_body={"top_k": 6}).chat([]).params
    assert sent == {**fields, "top_k": 6}


def test_needs_of_several_requests_are_the_largest() -> None:
    few = LLM_.chat([{"role": "user", "content": "x" * 400}], logprobs=True, top_logprobs=2)
    many = LLM_.chat([], logprobs=True, top_logprobs=20, max_tokens=7)
    made = {need.feature: need for need in needs(few, many)}
    assert made[Feature.LOGPROBS].amount == 20
    assert made[Feature.CONTEXT].amount == 100
    assert made[Feature.CONTEXT].prompt_tokens == 356
    assert features_of(LLM_.chat([{"role": "assistant", "content": "a"}]))[Feature.PREFILL] == 1


def chat(text: str | None, finish: str = "stop", **more: Any) -> list[dict[str, Any]]:
    return [{"message": {"content": text}, "finish_reason": finish, **more}]


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (chat('{"probe": "zq-17"}'), "yes"),
        (chat('{\n "probe" : "zq-17"\n}'), "yes"),
        (chat("The sea, the sea"), "no"),
        (chat('{"poem": "The sea"}'), "no"),
        (chat("{" + " \n" * 30, "length"), "limited"),
        (chat("The", "length"), "no"),
        (chat('<think>\nA poem?\n</think>\n\n{"probe": "zq-17"}'), "yes"),
        (chat("<think>\nA poem?\n</think>\n\nThe sea"), "no"),
        ([{"message": {"role": "assistant"}, "finish_reason": "length"}], "unknown"),
        (chat(None), "unknown"),
        (chat("  "), "unknown"),
    ],
)
def test_reading_the_schema_probe(answer: list[dict[str, Any]], state: str) -> None:
    assert read_schema(answer).state == state


@pytest.mark.row(32)
@pytest.mark.parametrize("thinks", ["tags", "field"])
def test_a_probe_that_ends_within_a_thought_proves_nothing(thinks: Any) -> None:
    found, _ = surveyed(needs(LLM_.chat([], schema={})), Abilities(thinks=thinks, thinking_tokens=500))
    assert states(found)["schema"] == "unknown"
    assert "thinking" in found.findings[Feature.SCHEMA].said
    assert found.thinks == {"tags": "text", "field": "field"}[thinks]


def test_reading_the_other_probes() -> None:
    three = {"content": [{"token": "a", "top_logprobs": [{}] * 3}, {"token": "b", "top_logprobs": [{}] * 5}]}
    assert read_logprobs(chat("ab", logprobs=three), 5) == Finding("limited", "3 of 5 top_logprobs a token")
    assert read_logprobs(chat("ab", logprobs=three), 3).state == "yes"
    assert read_stop([{"text": "", "finish_reason": "stop"}]).state == "yes"
    assert read_stop([{"text": "abc", "finish_reason": "length"}]).state == "unknown"
    assert read_prefill(chat("17"), repeats=False).state == "yes"
    assert read_prefill(chat("zq-17"), repeats=False).state == "no"
    assert read_prefill(chat("zq-17"), repeats=True).state == "yes"
    assert read_prefill(chat("Hello"), repeats=False).state == "unknown"


# --- a real server ---------------------------------------------------------------------------------


@pytest.mark.embedded
def test_what_is_told_of_llama_cpp_is_true() -> None:
    async def scenario() -> None:
        async with EmbeddedServer(EmbeddedSpec(slots=2, context=256)) as server:
            name = server.name
            llm = LLM(model=name, max_tokens=1024)
            wanted = (*all_needs(name), *needs_of([llm.chat([])], step="long"))
            pool = Http11Pool(server.base_url)
            try:
                [found] = await survey(pool, [name], wanted, server=name, dialect="llamacpp")
                assert states(found) == {
                    **dict.fromkeys(["chat", "completions", "stop", "schema", "logprobs", "n", "prefill"], "yes"),
                    "context": "limited",
                }
                assert found.software.startswith("llama.cpp")
                assert found.context == 256
                assert found.load == ()  # its metrics are off
                assert found.unset == ("min_p", "repetition_penalty", "top_k")
                assert found.defaults == {"min_p": 0.05, "repetition_penalty": 1.0, "top_k": 40}
                require([found], wanted)
                # "limited": max_tokens over the context is taken, and the answer ends where the context does.
                body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1024, "ignore_eos": True}
                answer = await pool.post("/chat/completions", orjson.dumps(body))
                assert answer.status == 200
                assert orjson.loads(answer.body)["usage"]["total_tokens"] <= 256
            finally:
                await pool.aclose()

    asyncio.run(scenario())


@pytest.mark.embedded
def test_a_pipelines_needs_on_the_embedded_model() -> None:
    async def scenario() -> list[Capabilities]:
        told: list[Capabilities] = []
        llm = LLM(model="any/model", max_tokens=64)
        wanted = needs_of([llm.chat([], schema={})], step="s")
        spec = EmbeddedSpec(slots=2, context=512)
        async with open_pool([llm], servers=[], embedded=spec, needs=wanted, on_found=told.extend):
            return told

    [found] = asyncio.run(scenario())
    assert (found.model, states(found)["schema"], states(found)["context"]) == ("any/model", "yes", "yes")
