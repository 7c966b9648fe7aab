"""Servers that are not there when a run starts, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import ChatRequest
from asyncsynth.client.server_pool import ServerPool
from asyncsynth.core.adaptive import AdaptiveLimit
from asyncsynth.core.limiter import FixedLimit
from asyncsynth.errors import ServerRefused, ServerUnreachable
from asyncsynth.servers.configs import ServerConfig
from asyncsynth.servers.readiness import ReadyPolicy
from asyncsynth.serving.binding import open_pool
from asyncsynth.testing.fault_server import FaultServer
from tests.kit.loops import run_async, until

HASTY = ReadyPolicy(connect_s=0, grace_s=0.05, retry_s=0.02)
LLMS = [LLM(model="test-model")]


async def absent(**options: Any) -> FaultServer:
    """A server whose port is known and free."""
    server = await FaultServer(**options).start()
    await server.stop()
    return server


@contextlib.asynccontextmanager
async def opened(*servers: FaultServer, llms: list[LLM] = LLMS, **fields: Any) -> AsyncIterator[ServerPool]:
    configs = [ServerConfig(base_url=server.base_url, **fields) for server in servers]
    async with open_pool(llms, servers=configs, ready=HASTY, environ={}, rng=random.Random(0)) as pool:
        yield pool


def ask() -> ChatRequest:
    return ChatRequest("test-model", [{"role": "user", "content": "hello"}])


def test_a_run_begins_without_a_server_that_it_can_do_without_and_takes_it_in() -> None:
    async def scene() -> None:
        late = await absent()
        async with FaultServer() as here, opened(here, late) as pool:
            assert [replica.name for replica in pool.snapshot().replicas] == [f"127.0.0.1:{here.port}"]
            [note] = pool.notes
            assert note.startswith(f"127.0.0.1:{late.port} is not ready yet (no server is ready at")
            async with late:
                await until(lambda: len(pool.notes) == 2)
                assert pool.notes[1] == f"127.0.0.1:{late.port} answers and has joined"
                answers = await asyncio.gather(*[pool.send(ask()) for _ in range(8)])
                assert {answer.server for answer in answers} == {f"127.0.0.1:{s.port}" for s in (here, late)}

    run_async(scene(), within_s=30)


def test_a_pool_closes_while_it_waits_for_a_latecomer() -> None:
    async def scene() -> None:
        late = await absent()
        async with FaultServer() as here, opened(here, late) as pool:
            await pool.send(ask())
            assert len(pool.notes) == 1

    run_async(scene(), within_s=30)


def test_without_the_only_server_of_a_model_nothing_begins() -> None:
    async def scene() -> None:
        late = await absent(models=("other",))
        async with FaultServer() as here:
            with pytest.raises(ServerUnreachable, match=str(late.port)):
                async with opened(here, late, llms=[*LLMS, LLM(model="other")]):
                    raise AssertionError("no server has the other model")

    run_async(scene(), within_s=30)


def test_a_server_that_an_llm_names_is_needed() -> None:
    async def scene() -> None:
        late = await absent()
        async with FaultServer() as here:
            with pytest.raises(ServerUnreachable, match=str(late.port)):
                async with opened(here, llms=[LLM(model="own", base_url=late.base_url), *LLMS]):
                    raise AssertionError("its only server is not there")

    run_async(scene(), within_s=30)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"models": ("another",)}, "is left out: it has none of the run's models, but another"),
        ({"api_key": "wanted"}, "is left out: http"),
    ],
)
def test_a_latecomer_of_no_use_is_left_out(options: dict[str, Any], said: str) -> None:
    async def scene() -> None:
        late = await absent(**options)
        async with FaultServer() as here, opened(here, late) as pool, late:
            await until(lambda: len(pool.notes) == 2)
            assert said in pool.notes[1]
            assert len(pool.snapshot().replicas) == 1

    run_async(scene(), within_s=30)


def test_a_server_that_refuses_is_told_at_once_though_others_are_there() -> None:
    async def scene() -> None:
        async with FaultServer() as here, FaultServer(api_key="wanted") as closed:
            with pytest.raises(ServerRefused):
                async with opened(here, closed):
                    raise AssertionError("the key is missing")

    run_async(scene(), within_s=30)


@pytest.mark.parametrize(
    ("fields", "concurrency", "kind", "limit"),
    [
        ({}, None, AdaptiveLimit, 16),
        ({"slots": 128}, None, AdaptiveLimit, 64),
        ({"max_concurrency": 5}, None, AdaptiveLimit, 5),
        ({"limit": 7}, None, FixedLimit, 7),
        ({"limit": 7}, 9, FixedLimit, 9),
        ({"slots": 128}, 9, FixedLimit, 9),
    ],
)
def test_limits_adapt_unless_a_number_is_said(
    fields: dict[str, Any], concurrency: int | None, kind: type, limit: int
) -> None:
    async def scene() -> None:
        async with FaultServer() as here:
            config = ServerConfig(base_url=here.base_url, **fields)
            async with open_pool(LLMS, servers=[config], ready=HASTY, environ={}, concurrency=concurrency) as pool:
                assert pool.snapshot().replicas[0].limit == limit
                assert type(pool._links[0].server.limiter) is kind

    run_async(scene(), within_s=30)


def test_a_servers_load_is_asked_for_only_where_the_user_said_so() -> None:
    async def scene() -> None:
        async with FaultServer(keep_requests=True) as plain, FaultServer(keep_requests=True) as asked:
            for server, orca in ((plain, False), (asked, True)):
                async with opened(server, orca=orca) as pool:
                    await pool.send(ask())
            wanted = [["endpoint-load-metrics-format" in info.headers for info in s.log or ()] for s in (plain, asked)]
        assert [set(one) for one in wanted] == [{False}, {True}]

    run_async(scene(), within_s=30)
