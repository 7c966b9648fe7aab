"""The fault server keeps its own promises: what it counts, refuses, and fails at."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter

import orjson

from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.transport import TransportFailure
from asyncsynth.testing import Fault, FaultServer, RequestInfo, random_faults
from tests.kit.loops import on_both_loops
from tests.kit.requests import CHAT, chat_body


@on_both_loops
async def test_both_completion_routes_and_a_schema() -> None:
    schema = {"type": "object", "properties": {"r": {"type": "integer", "minimum": 1, "maximum": 5}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    async with FaultServer() as server:
        pool = Http11Pool(server.base_url)
        ratings = Counter()
        for row in range(30):
            answer = await pool.post(CHAT, chat_body(str(row), response_format=wanted))
            text = orjson.loads(answer.body)["choices"][0]["message"]["content"]
            ratings[orjson.loads(text)["r"]] += 1
        assert set(ratings) == {1, 2, 3, 4, 5}
        raw = await pool.post("/completions", orjson.dumps({"model": "test-model", "prompt": "a"}))
        assert orjson.loads(raw.body)["choices"][0]["text"]
        await pool.aclose()


@on_both_loops
async def test_what_it_refuses() -> None:
    async with FaultServer(context_chars=500) as server:
        pool = Http11Pool(server.base_url)
        assert (await pool.post(CHAT, chat_body(model="other"))).status == 404
        long = await pool.post(CHAT, chat_body("x" * 500))
        assert long.status == 400
        assert b"maximum context length" in long.body
        assert (await pool.get("/nothing")).status == 404
        assert (await pool.post(CHAT, b"not json")).status == 400
        await pool.aclose()
    async with FaultServer(models=["only"], any_model=True) as server:
        pool = Http11Pool(server.base_url)
        answer = await pool.post(CHAT, chat_body())
        assert orjson.loads(answer.body)["model"] == "only"
        await pool.aclose()


@on_both_loops
async def test_it_counts_and_refuses_above_its_capacity() -> None:
    async with FaultServer(delay_s=0.02, max_in_flight=8) as server:
        pool = Http11Pool(server.base_url)
        answers = await asyncio.gather(*(pool.post(CHAT, chat_body(str(n))) for n in range(12)))
        assert Counter(answer.status for answer in answers) == {200: 8, 503: 4}
        assert (server.requests, server.answered, server.in_flight) == (12, 8, 0)
        assert server.highest_in_flight == 12
        await pool.aclose()


@on_both_loops
async def test_scripts_see_how_often_a_body_came() -> None:
    def second_time_lucky(info: RequestInfo) -> Fault | None:
        return Fault("status", status=429, retry_after="1") if info.seen == 1 else None

    async with FaultServer(script=second_time_lucky) as server:
        pool = Http11Pool(server.base_url)
        for text in ("a", "b"):
            first = await pool.post(CHAT, chat_body(text))
            assert (first.status, first.headers["retry-after"]) == (429, "1")
            assert (await pool.post(CHAT, chat_body(text))).status == 200
        assert server.faults == {"status": 2}
        await pool.aclose()


def test_random_faults_depend_on_the_request_and_not_on_its_time() -> None:
    infos = [RequestInfo(0, "POST", "/", {}, str(n).encode(), 0) for n in range(2000)]
    script = random_faults(0.2, seed=3)
    first = [script(info) for info in infos]
    assert first == [script(info) for info in infos]
    assert 300 < sum(fault is not None for fault in first) < 500
    assert first != [random_faults(0.2, seed=4)(info) for info in infos]


@on_both_loops
async def test_stop_resets_and_start_takes_the_same_port() -> None:
    async with FaultServer(script=lambda info: Fault("hang") if info.index == 0 else None) as server:
        pool = Http11Pool(server.base_url)
        task = asyncio.create_task(pool.post(CHAT, chat_body()))
        while not server.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0)
        url = server.base_url
        await server.stop()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        assert isinstance(outcome, TransportFailure)
        assert outcome.reason == "reset"
        await server.start()
        assert server.base_url == url
        assert (await pool.post(CHAT, chat_body())).status == 200
        await pool.aclose()


def test_it_runs_alone() -> None:
    command = [sys.executable, "-W", "error", "-m", "asyncsynth.testing.fault_server", "--tokens", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        url = child.stdout.readline().strip()

        async def scene() -> None:
            pool = Http11Pool(url)
            assert (await pool.post(CHAT, chat_body(model="anything"))).status == 200
            await pool.aclose()

        asyncio.run(scene())
        child.terminate()
        assert child.wait(timeout=10) == 0
