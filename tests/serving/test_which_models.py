"""Who says which models a server has, over real sockets: the user, then its list, then a real request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Completion
from asyncsynth.errors import ModelNotServed, ServerRefused
from asyncsynth.servers.configs import ServerConfig
from asyncsynth.servers.readiness import ReadyPolicy
from asyncsynth.serving.binding import open_pool
from tests.kit.scripted_server import Asked, Reply, Script, ScriptedServer, completion, refusal

HASTY = ReadyPolicy(connect_s=0, load_s=0.3, grace_s=0)


def at_models(status: int, body: Any) -> Script:
    """A script for the list alone."""
    return lambda asked: (status, body) if asked.path == "/v1/models" else None


def pages(asked: Asked) -> Reply | None:
    """Anthropic's: two names, then the rest."""
    if asked.path != "/v1/models":
        return None
    if "after_id=b" in asked.target:
        return 200, {"data": [{"id": "m"}], "has_more": False, "last_id": "m"}
    return 200, {"data": [{"id": "a"}, {"id": "b"}], "has_more": True, "last_id": "b"}


def health(status: int) -> Script:
    """A server whose /health is no part of it."""
    return lambda asked: (status, b"no upstream") if asked.path == "/health" else None


async def asked_for(
    script: Script,
    *,
    model: str = "m",
    named: frozenset[str] | None = None,
    own: bool = False,
    notes: list[str] | None = None,
) -> tuple[Completion, ScriptedServer]:
    """One request through a pool on a scripted server."""
    async with ScriptedServer(script) as server:
        llm = LLM(model=model, base_url=server.base_url if own else None)
        given = [] if own else [ServerConfig(base_url=server.base_url, models=named)]
        async with open_pool([llm], servers=given, ready=HASTY, environ={}) as pool:
            if notes is not None:
                notes.extend(pool.notes)
            return await pool.send(llm.chat([{"role": "user", "content": "Hello?"}])), server


LISTS: dict[str, tuple[Script, str]] = {
    "a bare list (Together)": (at_models(200, [{"id": "m"}]), ""),
    "names alone": (at_models(200, ["m"]), ""),
    "Ollama's own shape": (at_models(200, {"models": [{"name": "m"}]}), ""),
    "m:latest (Ollama)": (at_models(200, {"data": [{"id": "m:latest"}]}), ""),
    "models/m (Gemini)": (at_models(200, {"data": [{"id": "models/m"}]}), ""),
    "a wildcard (LiteLLM)": (at_models(200, {"data": [{"id": "*"}]}), ""),
    "pages": (pages, ""),
    "a byte order mark": (at_models(200, b'\xef\xbb\xbf{"data": [{"id": "m"}]}'), ""),
    "an alias": (at_models(200, {"data": [{"id": "gpt-x-2026"}]}), "does not list m"),
    "data: null": (at_models(200, {"data": None}), "does not list m"),
    "a restricted key (OpenAI)": (
        at_models(403, refusal("You have insufficient permissions. Missing scopes: api.model.read")),
        "Missing scopes: api.model.read",
    ),
    "a page of HTML": (at_models(200, b"<html>hello</html>"), "/models answered 200 (<html>"),
    "a fault": (at_models(500, refusal("boom")), "/models answered 500"),
    "no list": (at_models(404, refusal("no")), ""),
    "/health 500": (health(500), ""),
    "/health 503": (health(503), ""),
}


@pytest.mark.parametrize("how", ["shared", "named", "own"])
@pytest.mark.parametrize("name", LISTS)
def test_a_server_that_answers_is_used_whatever_it_lists(name: str, how: str) -> None:
    script, note = LISTS[name]
    notes: list[str] = []
    named = frozenset(["m"]) if how == "named" else None
    answer, _ = asyncio.run(asked_for(script, named=named, own=how == "own", notes=notes))
    assert answer.text == "An answer."
    if how == "shared":
        assert note in "\n".join(notes)
        assert bool(note) == bool(notes)


def test_variants_of_a_listed_model_are_the_owner_s_word() -> None:
    def script(asked: Asked) -> Reply | None:
        if asked.path == "/v1/models":
            return 200, {"data": [{"id": "owner/m"}]}
        return (200, completion(asked)) if asked.generates else None

    answer, server = asyncio.run(asked_for(script, model="owner/m:nitro"))
    assert answer.model == "owner/m:nitro"
    assert len(server.generations()) == 2  # the sample and the request: nothing was guessed


def test_health_is_not_asked_where_the_list_answers() -> None:
    _, server = asyncio.run(asked_for(lambda asked: None))
    assert "/health" not in [one.path for one in server.asked]


@pytest.mark.parametrize("own", [False, True])
def test_a_model_that_is_neither_listed_nor_answered_for_shows_both(own: bool) -> None:
    with pytest.raises(ModelNotServed) as caught:
        asyncio.run(asked_for(lambda asked: None, model="n", own=own))
    said = str(caught.value)
    assert "no server serves the model 'n'" in said
    assert "served: m\n" in said
    assert "The model `n` does not exist." in said
    assert "models: [...]" in said


def test_a_server_that_answers_to_any_name_has_what_it_lists() -> None:
    def script(asked: Asked) -> Reply | None:  # llama.cpp's
        return (200, {**completion(asked), "model": "m"}) if asked.generates else None

    with pytest.raises(ModelNotServed, match="answers to any name, so that only its list counts: m"):
        asyncio.run(asked_for(script, model="n"))
    answer, _ = asyncio.run(asked_for(script, model="n", named=frozenset(["n"])))  # the user's word
    assert answer.text == "An answer."


def test_a_key_that_is_refused_everywhere_is_the_key() -> None:
    def script(asked: Asked) -> Reply | None:
        return 401, refusal("Incorrect API key provided")

    with pytest.raises(ServerRefused, match="wants an API key, and none was sent"):
        asyncio.run(asked_for(script))


def test_a_model_that_the_key_may_not_use_is_not_called_a_bad_key() -> None:
    def script(asked: Asked) -> Reply | None:
        return (403, refusal("Project has no access to model m")) if asked.generates else None

    with pytest.raises(ServerRefused, match=r"HTTP 403\): Project has no access to model m\n.*may the key use this"):
        asyncio.run(asked_for(script))


def test_no_model_is_guessed_where_another_server_lists_it() -> None:
    async def scenario() -> None:
        async with ScriptedServer() as first, ScriptedServer(_only("n")) as second:
            llms = [LLM(model="m"), LLM(model="n")]
            given = [ServerConfig(base_url=server.base_url) for server in (first, second)]
            async with open_pool(llms, servers=given, ready=HASTY, environ={}):
                pass
            assert {body["model"] for body in first.generations()} == {"m"}
            assert {body["model"] for body in second.generations()} == {"n"}

    asyncio.run(scenario())


def _only(name: str) -> Callable[[Asked], Reply | None]:
    def script(asked: Asked) -> Reply | None:
        if asked.path == "/v1/models":
            return 200, {"data": [{"id": name}]}
        return (200, completion(asked)) if asked.generates else None

    return script


def test_waiting_is_told() -> None:
    async def scenario() -> list[str]:
        said: list[str] = []
        answers = iter([(503, refusal("Loading model"))] * 3)

        def script(asked: Asked) -> Reply | None:
            return next(answers, None)

        async with ScriptedServer(script) as server:
            ready = ReadyPolicy(connect_s=0, load_s=10, tell_s=0)
            given = [ServerConfig(base_url=server.base_url)]
            async with open_pool([LLM(model="m")], servers=given, ready=ready, environ={}, on_wait=said.append):
                return said

    [line] = asyncio.run(scenario())
    assert line.startswith("waiting for http://127.0.0.1:")
    assert line.endswith("up to 10 s: it still answers 503")
