"""`check` is bounded, says what it will send before it sends it, and calls no server fine that it has not tried."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncsynth.client.needs import Feature
from asyncsynth.servers.configs import ServerConfig
from asyncsynth.servers.inspection import AT_ONCE, Inspection, all_needs, inspect
from asyncsynth.servers.model_lists import Listing
from asyncsynth.servers.readiness import ReadyPolicy
from tests.kit.scripted_server import Asked, Reply, Script, ScriptedServer, completion, refusal

HASTY = ReadyPolicy(connect_s=0, load_s=0, canary_s=10)
_KINDS = (Feature.CHAT, Feature.COMPLETIONS)
MANY = [f"m{i}" for i in range(5)]


def inspected(script: Script, *chosen: str, **options: Any) -> tuple[Inspection, ScriptedServer]:
    """One server, tried for all that a task might need of these models."""

    async def scenario() -> tuple[Inspection, ScriptedServer]:
        async with ScriptedServer(script) as server:
            config = ServerConfig(base_url=server.base_url)
            models = frozenset(chosen)
            found = await inspect(config, lambda _: models, all_needs, ready=HASTY, environ={}, **options)
            return found, server

    return asyncio.run(scenario())


async def slowly(asked: Asked) -> Reply | None:
    """A server of many models that takes its time."""
    if asked.path == "/v1/models":
        return 200, {"data": [{"id": name} for name in MANY]}
    if asked.generates:
        await asyncio.sleep(0.002)
        return 200, completion(asked)
    return None


def test_requests_are_announced_and_bounded() -> None:
    told: list[tuple[frozenset[str], int]] = []
    found, server = inspected(slowly, *MANY, on_plan=lambda models, requests: told.append((models, requests)))
    [(models, most)] = told
    assert models == set(MANY)
    assert 0 < len(server.generations()) <= most
    assert server.most_in_flight <= AT_ONCE
    assert [one.model for one in found.found] == MANY
    paths = [one.path for one in server.asked]
    assert [paths.count(path) for path in ("/version", "/props", "/metrics")] == [1, 1, 1]  # once a server


def test_what_a_server_refuses_is_found_without_a_pipeline() -> None:
    def script(asked: Asked) -> Reply | None:
        return (422, refusal("Extra inputs: seed")) if "seed" in asked.json else None

    found, _ = inspected(script, "m")
    [one] = found.found
    finding = one.findings[Feature.CHAT]
    assert (finding.state, finding.todo) == ("no", "It answers with: LLM(seed=None)")
    others = {str(feature): found.said for feature, found in one.findings.items() if feature not in _KINDS}
    assert not [said for said in others.values() if "seed" in said]  # they are tried with what it takes


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_without_a_list_has_tried_nothing(status: int) -> None:
    def script(asked: Asked) -> Reply | None:
        return (status, refusal("no")) if asked.path == "/v1/models" else None

    found, server = inspected(script)
    assert (found.chosen, found.found, server.generations()) == (frozenset(), [], [])
    assert found.listing.names is None
    assert str(status) in found.listing.said()
    found, _ = inspected(script, "m", hint="m")  # with a name, it is tried
    assert [one.model for one in found.found] == ["m"]


def test_a_guess_that_fails_is_a_note() -> None:
    def guess(listing: Listing) -> frozenset[str]:
        assert listing.names == {"m"}
        return frozenset(["n"])

    found, _ = inspected(lambda asked: None, "m", guess=guess)
    assert found.errors == []
    assert "The model `n` does not exist." in found.notes[0]
