"""Binding: each model is answered in one place, by itself or under its true name."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from pathlib import Path

import httpx
import orjson
import pytest

from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Completion
from asyncsynth.errors import (
    AsyncsynthError,
    ConfigurationError,
    ModelNotServed,
    ServerError,
    ServerRefused,
    ServerUnreachable,
)
from asyncsynth.servers.configs import ServerConfig, parse_servers
from asyncsynth.servers.readiness import FirstContact, ReadyPolicy
from asyncsynth.serving.binding import open_pool
from asyncsynth.serving.embedded import EmbeddedSpec
from asyncsynth.serving.placement import answering_models, make_plan
from asyncsynth.testing.fault_server import Fault, FaultServer

SMALL = "SmolLM2-135M-Instruct-Q4_1 (embedded)"
NO_PATIENCE = ReadyPolicy(connect_s=0)


# --- the plan: pure ----------------------------------------------------------------------------


def test_answering_models() -> None:
    llms = [LLM(model="a"), LLM(model="b", base_url="http://h:1"), LLM.embedded()]
    assert answering_models(llms) == {"a": "a", "b": "b", "SmolLM2-135M-Instruct": SMALL}
    flag = EmbeddedSpec()
    assert answering_models(llms, flag) == {"a": SMALL, "b": "b", "SmolLM2-135M-Instruct": SMALL}


def test_one_child_serves_one_model_under_all_its_names() -> None:
    llms = [LLM.embedded(), LLM.embedded("HuggingFaceTB/SmolLM2-135M-Instruct"), LLM(model="big")]
    plan = make_plan(llms, embedded=EmbeddedSpec(slots=4))
    assert plan.embedded == {EmbeddedSpec(slots=4): {llm.model for llm in llms}}


def test_embedded_choice_of_an_llm_wins_over_the_flag() -> None:
    llms = [LLM.embedded("Qwen2.5-0.5B-Instruct"), LLM(model="big")]
    assert answering_models(llms, EmbeddedSpec()) == {
        "Qwen2.5-0.5B-Instruct": "Qwen2.5-0.5B-Instruct-Q4_K_M (embedded)",
        "big": SMALL,
    }


@pytest.mark.parametrize(
    "llms",
    [
        [LLM(model="m"), LLM(model="m", base_url="http://h:1")],
        [LLM(model="m", base_url="http://h:2"), LLM(model="m", base_url="http://h:1")],
        [LLM(model="Qwen2.5-0.5B-Instruct"), LLM.embedded("Qwen2.5-0.5B-Instruct")],
    ],
)
@pytest.mark.parametrize("embedded", [None, EmbeddedSpec()])
def test_a_model_in_two_places_is_refused(llms: list[LLM], embedded: EmbeddedSpec | None) -> None:
    with pytest.raises(ConfigurationError, match="bound to two places"):
        answering_models(llms, embedded)


def test_unknown_embedded_model_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigurationError, match="no embedded weights"):
        answering_models([LLM.embedded("gpt-oss-120b")])


def test_embedded_with_an_address_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot have a base_url"):
        answering_models([LLM.embedded(base_url="http://h:1")])


def test_one_server_with_two_keys_is_refused() -> None:
    llms = [LLM(model=m, base_url="http://h:1/v1", api_key_env=f"KEY_{m}") for m in ("a", "b")]
    with pytest.raises(ConfigurationError, match="different clients or keys"):
        make_plan(llms)


def test_an_own_server_that_is_also_given_is_one_server() -> None:
    given = ServerConfig(base_url="http://h:1/v1", limit=7)
    plan = make_plan([LLM(model="a", base_url="http://h:1"), LLM(model="b")], servers=[given])
    [target] = plan.targets.values()
    assert (target.config.limit, target.own, plan.shared) == (7, {"a"}, {"b"})


# --- real sockets ------------------------------------------------------------------------------


def ask(
    llms: Sequence[LLM],
    *given: FaultServer,
    calls: int = 1,
    environ: dict[str, str] | None = None,
    started: Sequence[FaultServer] = (),
) -> list[Completion]:
    """Open a pool on `given` servers and send `calls` requests of each LLM."""

    async def scenario() -> list[Completion]:
        async with contextlib.AsyncExitStack() as stack:
            for server in (*given, *started):
                await stack.enter_async_context(server)
            pool = await stack.enter_async_context(
                open_pool(
                    [llm_at(llm, *started) for llm in llms],
                    servers=[ServerConfig(base_url=server.base_url, limit=4) for server in given],
                    rng=random.Random(1),
                    ready=NO_PATIENCE,
                    environ=environ or {},
                )
            )
            requests = [
                llm_at(llm, *started).chat([{"role": "user", "content": f"{i}"}], max_tokens=8)
                for llm in llms
                for i in range(calls)
            ]
            return list(await asyncio.gather(*(pool.send(request) for request in requests)))

    return asyncio.run(scenario())


def llm_at(llm: LLM, *started: FaultServer) -> LLM:
    """An LLM whose base_url says ``#0`` points to the first of `started`, whose port is known only now."""
    if not (llm.base_url or "").startswith("#"):
        return llm
    return LLM(model=llm.model, base_url=started[int((llm.base_url or "")[1:])].base_url, http_client=llm.http_client)


def test_models_find_their_servers_and_replicas_share() -> None:
    first, second = FaultServer(models=["a", "b"], delay_s=0.01), FaultServer(models=["b"], delay_s=0.01)
    answers = ask([LLM(model="a"), LLM(model="b")], first, second, calls=10)
    assert [c.model for c in answers] == ["a"] * 10 + ["b"] * 10
    assert len({c.server for c in answers[:10]}) == 1
    assert len({c.server for c in answers[10:]}) == 2


def test_own_server_answers_its_model_only() -> None:
    own, given = FaultServer(models=["m", "n"]), FaultServer(models=["n"])
    [m, n] = ask([LLM(model="m", base_url="#0"), LLM(model="n")], given, started=[own])
    assert m.server == own.base_url[len("http://") : -len("/v1")]
    assert n.server == given.base_url[len("http://") : -len("/v1")]


def test_users_httpx_client_is_adopted() -> None:
    own = FaultServer(models=["m"], keep_requests=True)
    client = httpx.AsyncClient(headers={"x-team": "blue"})
    ask([LLM(model="m", base_url="#0", http_client=client)], started=[own])
    asyncio.run(client.aclose())
    assert own.log is not None
    assert {info.headers["x-team"] for info in own.log} == {"blue"}


def test_key_comes_from_the_named_variable() -> None:
    server = FaultServer(models=["m"], api_key="s3cret")
    assert ask([LLM(model="m")], server, environ={"VLLM_API_KEY": "s3cret"})[0].model == "m"
    with pytest.raises(ServerRefused, match="export OPENAI_API_KEY="):
        ask([LLM(model="m")], server)
    with pytest.raises(ServerRefused, match="Check the key in VLLM_API_KEY") as caught:
        ask([LLM(model="m")], server, environ={"VLLM_API_KEY": "canary-key"})
    assert "canary-key" not in repr(caught.value)


def test_unknown_model_names_what_is_served() -> None:
    server = FaultServer(models=["Qwen2.5-1.5B-Instruct"])
    with pytest.raises(ModelNotServed) as caught:
        ask([LLM(model="Qwen2.5-1.5B-Instrukt")], server)
    assert "Did you mean 'Qwen2.5-1.5B-Instruct'?" in str(caught.value)
    assert server.base_url in str(caught.value)
    with pytest.raises(ModelNotServed, match="--embedded"):
        ask([LLM(model="m")])
    with pytest.raises(ModelNotServed, match="'x'"):
        ask([LLM(model="x", base_url="#0")], started=[server])


def test_nobody_at_the_port() -> None:
    server = FaultServer()

    async def unused_port() -> str:
        async with server:
            return server.base_url

    url = asyncio.run(unused_port())
    with pytest.raises(ServerUnreachable, match=url):
        ask([LLM(model="m", base_url=url)])


def test_a_server_that_fails_every_request_stops_the_start() -> None:
    broken = FaultServer(models=["m"], script=lambda info: Fault("status", status=400))
    with pytest.raises(ServerError, match="refuses a sample request: HTTP 400"):
        ask([LLM(model="m")], broken)


def test_a_server_that_comes_up_late_is_waited_for() -> None:
    server = FaultServer()
    pauses: list[float] = []

    async def scenario() -> None:
        async with server:
            pass  # now it has a port on which nothing listens
        exchange = Http11Pool(server.base_url)

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                await server.start()

        try:
            await FirstContact(exchange, sleep=sleep).wait_ready()
        finally:
            await exchange.aclose()
            await server.stop()

    asyncio.run(scenario())
    assert len(pauses) == 3


@pytest.mark.embedded
def test_embedded_answers_for_any_model_under_its_own_name() -> None:
    async def scenario() -> None:
        schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
        llm = LLM(model="Qwen/Qwen2.5-72B-Instruct", max_tokens=64, temperature=0.0)
        async with open_pool([llm], servers=[], embedded=EmbeddedSpec(slots=2, context=512)) as pool:
            chat = llm.chat([{"role": "user", "content": "A number"}], schema=schema)
            raw = llm.complete("<|im_start|>user\n")
            answers = await asyncio.gather(pool.send(chat), pool.send(raw))
        assert [answer.model for answer in answers] == [SMALL, SMALL]
        assert orjson.loads(answers[0].text)["n"] in (1, 2)

    asyncio.run(scenario())


def test_errors_are_of_one_tree() -> None:
    with pytest.raises(AsyncsynthError):
        ask([LLM(model="m", base_url="not a url")])


@pytest.mark.slow
def test_a_model_that_no_file_names_is_told_before_any_server_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("model: m\nport: 9\n")  # nothing answers
    given = parse_servers([str(file)])

    async def scenario(servers: Sequence[ServerConfig]) -> None:
        async with open_pool([LLM(model="Meta/Nope-8B")], servers=servers, ready=NO_PATIENCE, environ={}):
            pass

    with pytest.raises(ModelNotServed, match=r"'Meta/Nope-8B'\n  read: .*small\.yaml:1\n  served: m"):
        asyncio.run(scenario(given))
    with pytest.raises(ServerUnreachable):  # one with a URL alone may have it
        asyncio.run(scenario([*given, ServerConfig(base_url="http://127.0.0.1:19/v1")]))


@pytest.mark.slow
def test_a_server_that_could_be_started_is_not_only_called_absent(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("model: m\nport: 9\n")  # the discard port: nothing answers

    async def scenario() -> None:
        async with open_pool([LLM(model="m")], servers=parse_servers([str(file)]), ready=NO_PATIENCE, environ={}):
            pass

    with pytest.raises(ServerUnreachable, match=r"small\.yaml.*--start"):
        asyncio.run(scenario())
