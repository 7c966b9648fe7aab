"""Finding the knee, on a simulated batching server in virtual time: what is measured is what the server does."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import ChatRequest, ModelRequest
from asyncsynth.client.server_pool import Server
from asyncsynth.client.transport import DEFAULT_TIMEOUTS, Timeouts, WireResponse
from asyncsynth.core.adaptive import AdaptiveLimit
from asyncsynth.core.limiter import FixedLimit, Limiter
from asyncsynth.servers.load_test import BenchPlan, Finding, Level, bench, limited_by
from asyncsynth.testing.batching_server import BatchingServer
from asyncsynth.testing.virtual_time import run_virtually
from tests.kit.scripted_server import Asked, Reply, ScriptedServer

SLOTS = 64


class Simulated:
    """An exchange in front of a BatchingServer; answers have between `shortest` and `longest` tokens."""

    base_url = "http://simulated/v1"
    timeouts = DEFAULT_TIMEOUTS

    def __init__(self, server: BatchingServer, shortest: int, longest: int, *, tells: bool, way_s: float) -> None:
        self.server = server
        self.most = 0
        self.asked = 0
        self._lengths = random.Random(5)
        self._range = (shortest, longest)
        self._tells = tells
        self._way_s = way_s
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    async def post(self, path: str, body: bytes, timeout: Timeouts = DEFAULT_TIMEOUTS) -> WireResponse:
        self.asked += 1
        await asyncio.sleep(self._way_s)
        tokens = self._lengths.randint(*self._range)
        number = next(self._ids)
        if not self.server.submit(number, 20, tokens, self._loop.time()):
            return WireResponse(503, {}, b'{"error": {"message": "busy"}}')
        self._waiting[number] = self._loop.create_future()
        self.most = max(self.most, len(self._waiting))
        self._next()
        await self._waiting[number]
        usage = {"prompt_tokens": 20, "completion_tokens": tokens}
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        return WireResponse(200, {}, json.dumps({"model": "m", "choices": [choice], "usage": usage}).encode())

    def _next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        at = self.server.next_event()
        self._timer = None if at is None else self._loop.call_at(at, self._event, at)

    def _event(self, at: float) -> None:
        for number in self.server.advance(at):
            waiter = self._waiting.pop(number)
            if not waiter.done():
                waiter.set_result(None)
        self._next()

    async def get(self, path: str, timeout: Timeouts = DEFAULT_TIMEOUTS, *, at_origin: bool = False) -> WireResponse:
        if path != "/metrics" or not self._tells:
            return WireResponse(404)
        load = self.server.load(self._loop.time())
        lines = f"vllm:num_requests_waiting {load.waiting}\nvllm:num_requests_running {load.running}\n"
        return WireResponse(200, {}, lines.encode())

    async def aclose(self) -> None:
        return None


def requests() -> Iterator[ModelRequest]:
    return (LLM(model="m").chat([{"role": "user", "content": str(n)}]) for n in itertools.count())


def load(
    make: Callable[[], BatchingServer],
    *,
    seconds: float = 1000.0,
    lengths: tuple[int, int] = (10, 400),
    tells: bool = True,
    way_s: float = 0.0,
    cpu: Callable[[], float] = lambda: 0.0,
    most: int = 512,
    max_requests: int = 100_000,
    told: Callable[[Level], None] = lambda level: None,
) -> tuple[Finding, list[Simulated]]:
    """A bench of fresh simulated servers, one for each level."""
    made: list[Simulated] = []

    async def run() -> Finding:
        base = asyncio.get_running_loop().time

        def server(limiter: Limiter) -> Server:
            simulated = make()
            simulated.advance(base())
            made.append(Simulated(simulated, *lengths, tells=tells, way_s=way_s))
            return Server("s", "http://simulated/v1", frozenset({"m"}), made[-1], limiter=limiter)

        plan = BenchPlan(seconds=seconds, max_concurrency=most, max_requests=max_requests)
        return await bench(server, requests(), plan, adaptive=lambda: AdaptiveLimit(), on_level=told, cpu=cpu)

    return run_virtually(run()), made


@pytest.mark.slow
def test_the_knee_stands_where_the_slots_end() -> None:
    finding, made = load(lambda: BatchingServer(SLOTS))
    assert [level.concurrency for level in finding.levels] == [8, 16, 32, 64, 128, 256]
    assert [simulated.most for simulated in made[:6]] == [8, 16, 32, 64, 128, 256]  # the loop was closed, and full
    assert finding.knee is not None
    assert finding.knee.concurrency == SLOTS
    assert finding.ended == "more in flight brings no more tokens/s"
    assert f"runs {SLOTS} at once and queues the others" in limited_by(finding)
    rates = [level.tokens_per_s for level in finding.levels[:4]]
    assert rates == sorted(rates)
    best = SLOTS / (0.02 + 0.0002 * SLOTS)  # tokens/s of a full batch, before prefill
    assert finding.knee.tokens_per_s == pytest.approx(best, rel=0.03)
    assert finding.adaptive_share is not None
    assert finding.adaptive_share >= 0.95


def test_answers_of_one_length_end_together_and_are_counted_right() -> None:
    """In lockstep a window of a fixed time would hold three rounds or four."""
    finding, _ = load(lambda: BatchingServer(SLOTS, prefill_s=0.0), lengths=(200, 200), seconds=300.0, most=32)
    for level in finding.levels:
        size = level.concurrency
        assert level.tokens_per_s == pytest.approx(size / (0.02 + 0.0002 * size), rel=0.01)


@pytest.mark.slow
def test_a_server_whose_steps_grow_with_the_batch_is_limited_by_its_compute() -> None:
    finding, _ = load(lambda: BatchingServer(4096, step_s=0.002, request_s=0.001), lengths=(10, 80))
    assert "compute" in limited_by(finding)
    assert finding.knee is not None
    assert finding.knee.concurrency < finding.levels[-1].concurrency
    for level in finding.levels:
        size = level.concurrency
        assert level.tokens_per_s == pytest.approx(size / (0.002 + 0.001 * size), rel=0.05)


def test_what_is_on_its_way_is_told_as_that() -> None:
    """A proxy in front takes longer than the server: which runs few of what is in flight, and queues none."""
    finding, _ = load(
        lambda: BatchingServer(4096, step_s=0.001, request_s=0.0005), lengths=(10, 20), way_s=60.0, most=64
    )
    last = finding.levels[-1]
    assert last.running is not None
    assert last.running < 32
    flat = Finding(levels=[*finding.levels, finding.levels[-1]])  # and more in flight brings no more
    assert "network" in limited_by(flat)


def test_the_client_as_the_limit() -> None:
    ticks = itertools.count(step=1000.0)
    finding, _ = load(lambda: BatchingServer(SLOTS), cpu=lambda: float(next(ticks)), seconds=200.0, most=32)
    assert "this process's CPU" in limited_by(finding)


def test_refusals_end_the_growth() -> None:
    finding, _ = load(lambda: BatchingServer(8, queue=2), tells=False)
    assert finding.ended == "the server refuses more"
    assert finding.levels[-1].concurrency <= 32
    assert "refuses at" in limited_by(finding)


def test_rates_that_still_rise_are_no_knee() -> None:
    finding, _ = load(lambda: BatchingServer(4096), most=32, seconds=400.0)
    assert finding.knee is not None
    assert finding.knee.concurrency == 32
    assert "nothing yet" in limited_by(finding)


@pytest.mark.slow
def test_the_time_and_the_requests_are_bounded() -> None:
    spans: list[float] = []

    def make() -> BatchingServer:
        spans.append(asyncio.get_running_loop().time())
        return BatchingServer(SLOTS)

    load(make, seconds=600.0)
    assert spans[-1] < 600.0
    finding, made = load(lambda: BatchingServer(SLOTS), max_requests=300)
    sent = sum(level.answers for level in finding.levels) + (finding.adaptive.answers if finding.adaptive else 0)
    assert 0 < sent <= 300
    assert made


@pytest.mark.slow
def test_requests_that_run_out_leave_the_server_unjudged() -> None:
    finding, made = load(lambda: BatchingServer(4096), max_requests=3000)
    assert finding.ended == "--max-requests 3000 reached"
    sizes = [level.concurrency for level in finding.levels]
    assert len(sizes) > 1
    for level in finding.levels:
        assert level.settled
        size = level.concurrency
        assert level.tokens_per_s == pytest.approx(size / (0.02 + 0.0002 * size), rel=0.15)
    last = finding.levels[-1]
    assert last.cut_short
    assert last.answers == made[-1].asked - (last.concurrency - 1)  # with fewer in flight it was no such level any more
    assert finding.adaptive is None
    assert finding.adaptive_share is None
    limits = limited_by(finding)
    assert limits == f"nothing yet: tokens/s still rise at {sizes[-1]} in flight; --max-requests 3000 reached"


def test_fewer_requests_than_a_level_needs() -> None:
    finding, _ = load(lambda: BatchingServer(SLOTS), max_requests=10)
    assert (finding.levels, finding.adaptive) == ([], None)
    assert finding.ended == "--max-requests 10 reached"
    assert "--max-requests 10 reached" in limited_by(finding)


@pytest.mark.slow
def test_requests_that_run_out_just_after_a_level_add_no_empty_one() -> None:
    told: list[Level] = []
    whole, made = load(lambda: BatchingServer(SLOTS), lengths=(200, 200))
    finding, _ = load(
        lambda: BatchingServer(SLOTS), lengths=(200, 200), max_requests=made[0].asked + made[1].asked, told=told.append
    )
    assert finding.levels == told == whole.levels[:2]
    assert finding.ended == f"--max-requests {made[0].asked + made[1].asked} reached"


@pytest.mark.slow
def test_an_adaptive_limit_without_requests_is_not_measured() -> None:
    _, made = load(lambda: BatchingServer(SLOTS))
    asked = sum(simulated.asked for simulated in made[:-1])
    finding, _ = load(lambda: BatchingServer(SLOTS), max_requests=asked + 200)
    assert finding.ended == "more in flight brings no more tokens/s"
    assert finding.knee is not None
    assert finding.adaptive is None
    assert finding.used_up == f"--max-requests {asked + 200} reached"
    enough, _ = load(lambda: BatchingServer(SLOTS), max_requests=asked + made[-1].asked - 100)
    assert enough.adaptive is not None
    assert enough.adaptive.cut_short
    assert enough.adaptive_share is not None
    assert enough.adaptive_share >= 0.95


def test_the_adaptive_limit_keeps_to_the_most_in_flight_and_one_level_tells_no_limit() -> None:
    finding, made = load(lambda: BatchingServer(SLOTS), most=8)
    assert [simulated.most for simulated in made] == [8, 8]
    assert finding.adaptive_share == pytest.approx(1.0, rel=0.05)
    assert limited_by(finding).startswith("not known: only 8 in flight were measured")
    refused = Finding(levels=[level(concurrency=8, refused=50)])  # that is seen, and needs nothing to compare
    assert "refuses at 8 in flight" in limited_by(refused)


def test_a_server_too_slow_for_the_time_is_told() -> None:
    finding, _ = load(lambda: BatchingServer(SLOTS, step_s=5.0), seconds=60.0)
    assert finding.best is None
    assert finding.adaptive is None
    assert "too few" in finding.ended
    assert "--seconds" in limited_by(finding)


@pytest.mark.slow
def test_a_server_that_tells_nothing_is_not_guessed_about() -> None:
    finding, _ = load(lambda: BatchingServer(SLOTS), tells=False)
    assert finding.knee is not None
    assert finding.knee.concurrency == SLOTS
    assert "does not report its queue" in limited_by(finding)


def level(**changes: Any) -> Level:
    usual: dict[str, Any] = {
        "concurrency": 64, "settled": True, "answers": 100, "tokens_per_s": 1000.0, "requests_per_s": 10.0,
        "p50_s": 1.0, "p99_s": 2.0, "failed": 0, "refused": 0, "client_cpu": 0.1,
    }  # fmt: skip
    return Level(**{**usual, **changes})


def test_a_full_cache_is_named_before_the_queue_that_comes_of_it() -> None:
    finding = Finding(levels=[level(), level(concurrency=128, running=80, waiting=40.0, kv=0.97)])
    assert "KV cache (97% full)" in limited_by(finding)


def test_a_server_that_refuses_every_request_is_not_asked_for_the_whole_time() -> None:
    def script(asked: Asked) -> Reply | None:
        return (422, {"error": "`top_p` must be > 0.0 and < 1.0"}) if asked.generates else None

    async def scenario() -> tuple[Finding, int]:
        async with ScriptedServer(script) as server:

            def made(limiter: Limiter) -> Server:
                exchange = Http11Pool(server.base_url)
                return Server("s", server.base_url, frozenset(["m"]), exchange, limiter=limiter)

            requests = itertools.repeat(ChatRequest("m", [{"role": "user", "content": "Hi"}], {"top_p": 1.0}))
            finding = await bench(made, requests, BenchPlan(seconds=60.0), adaptive=lambda: FixedLimit(8))
            return finding, len(server.generations())

    finding, sent = asyncio.run(scenario())
    assert sent < 60
    assert (finding.best, finding.adaptive, finding.ended) == (None, None, "no request is answered")
    assert "bad_request: `top_p` must be > 0.0 and < 1.0" in limited_by(finding)
