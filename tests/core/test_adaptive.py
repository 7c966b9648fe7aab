"""AdaptiveLimit against a simulated batching server, through the real Scheduler, in virtual time."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from asyncsynth.core.adaptive import STALE_S, AdaptiveLimit
from asyncsynth.core.limiter import FixedLimit
from asyncsynth.core.outcomes import ServerLoad
from asyncsynth.testing.batching_server import BatchingServer
from tests.kit.batching import Job, lengths
from tests.matrix.plugin import Tried

#: name -> (the server, records in the job, fixed limits among which the best is looked for)
SHAPES: dict[str, tuple[dict[str, Any], int, list[int]]] = {
    "64 slots": ({"slots": 64}, 6_000, [64, 96]),
    "256 slots": ({"slots": 256, "step_s": 0.015, "request_s": 0.0001}, 12_000, [256, 288]),
    "1024 slots": ({"slots": 1024, "request_s": 0.00004}, 24_000, [1024, 1088]),
    "KV binds": ({"slots": 1024, "request_s": 0.00004, "kv_tokens": 120_000}, 10_000, [100, 150, 200, 256, 1024]),
    "saturates early": ({"slots": 2048, "step_s": 0.01}, 15_000, [512, 1024, 2048]),
    "queue of 32, then 503": ({"slots": 256, "step_s": 0.015, "request_s": 0.0001, "queue": 32}, 12_000, [256, 288]),
}
SEED = 2


@cache
def best_fixed(shape: str) -> float:
    """Tokens/s of the best fixed limit over the whole job."""
    server, n, limits = SHAPES[shape]
    return max(Job(BatchingServer(**server), FixedLimit(f), lengths(SEED, n), SEED).run() for f in limits)


@pytest.mark.slow
@pytest.mark.row(16)
@pytest.mark.parametrize("knows", ["nothing", "metrics", "orca", "slots"])
@pytest.mark.parametrize("shape", SHAPES)
def test_reaches_95_percent_of_the_best_fixed_limit(shape: str, knows: str, tried: Tried) -> None:
    """Slow start included, for answers of 10 to 4,000 tokens."""
    server, n, _ = SHAPES[shape]
    limiter = AdaptiveLimit(slots=server["slots"] if knows == "slots" else None)
    job = Job(BatchingServer(**server), limiter, lengths(SEED, n), SEED)
    job.report_s = 2.0 if knows == "metrics" else None
    job.orca = knows == "orca"
    share = job.run() / best_fixed(shape)
    assert share >= 0.95, f"{share:.3f} (seed={SEED}): {limiter.explain()}; {job.limits[:: len(job.limits) // 20 + 1]}"
    tried(n, "answers", most=(round(100 * (1 - share), 2), "% of the best missed"))


@pytest.mark.parametrize("knows", ["metrics", "slots"])
def test_a_reported_queue_or_known_slots_bound_the_limit(knows: str) -> None:
    """More than the slots and a small buffer buys nothing."""
    limiter = AdaptiveLimit(slots=256 if knows == "slots" else None)
    job = Job(BatchingServer(256), limiter, lengths(SEED, 6_000), SEED, report_s=2.0 if knows == "metrics" else None)
    job.run(until=200.0)
    assert 256 <= limiter.limit <= 256 + 24, f"{limiter.explain()} (seed={SEED})"
    assert max(limit for _, limit in job.limits) <= 2.2 * 256


@pytest.mark.row(15)
@pytest.mark.parametrize("retry_after", [None, 20.0])
def test_sustained_429_reaches_the_minimum_and_recovers(retry_after: float | None, tried: Tried) -> None:
    """Half an hour of refusals; then at least 90 % of the tokens/s of before, soon."""
    begin, end = 400.0, 2200.0
    server = BatchingServer(64)
    limiter = AdaptiveLimit(minimum=2)
    job = Job(server, limiter, lengths(SEED, 8_000), SEED, retry_after=retry_after)
    job.refuse = lambda now: begin <= now < end
    job.run(until=begin)
    before = job.rate(200.0, begin)
    job.run(until=end)
    reached = [at for at, limit in job.limits if at > begin and limit == 2]
    assert min(reached, default=end) < begin + 900.0, f"{limiter.explain()} (seed={SEED})"
    assert "refus" in limiter.explain()
    job.run(until=end + 700.0)
    after = job.rate(end + 400.0, end + 700.0)
    assert after >= 0.9 * before, f"{after:.0f} of {before:.0f} (seed={SEED}): {limiter.explain()}"
    tried(1, "half-hours of refusals", most=(min(reached) - begin, "s to the minimum"))


@pytest.mark.parametrize("report_s", [None, 2.0])
def test_stalls_do_not_collapse_it(report_s: float | None) -> None:
    """A server that pauses for a minute now and then is not overloaded."""
    server = BatchingServer(64)
    limiter = AdaptiveLimit()
    job = Job(server, limiter, lengths(SEED, 5_000), SEED, report_s=report_s)
    job.at = [(float(at), lambda now: server.stall(60.0, now)) for at in (20, 200, 500, 530, 800)]
    job.run(until=1200.0)
    late = [limit for at, limit in job.limits if at > 150.0] + [limiter.limit]
    assert min(late) >= 60, f"{limiter.explain()} (seed={SEED})"


@pytest.mark.parametrize("report_s", [None, 2.0])
def test_a_server_that_becomes_faster_is_used(report_s: float | None) -> None:
    """Twice the speed, and twice the slots: the limit follows the slots."""
    server = BatchingServer(64, request_s=0.0001)
    limiter = AdaptiveLimit(initial=32)
    job = Job(server, limiter, lengths(SEED, 20_000), SEED, report_s=report_s)

    def faster(now: float) -> None:
        server.change_speed(2.0, now)
        server.slots = 128

    job.at = [(800.0, faster)]
    job.run(until=800.0)
    before = job.rate(400.0, 800.0)
    job.run(until=1500.0)
    after = job.rate(1200.0, 1500.0)
    ideal = 4.0 * (0.02 + 64 * 0.0001) / (0.02 + 128 * 0.0001)
    assert after >= 0.93 * ideal * before, f"{after / before:.2f} times, {ideal:.2f} ideal: {limiter.explain()}"


def serve(limiter: AdaptiveLimit, n: int, in_flight: int, start: float, gap: float = 0.1, tokens: int = 100) -> float:
    """`n` answers, one every `gap` seconds; returns the time of the last."""
    now = start
    for _ in range(n):
        now += gap
        limiter.on_start(in_flight, now)
        limiter.on_ok(now, in_flight, tokens)
    return now


def test_grows_only_while_the_limit_binds() -> None:
    limiter = AdaptiveLimit(initial=16)
    serve(limiter, 1_000, in_flight=12, start=0.0)
    assert limiter.limit == 16
    for i in range(16):
        serve(limiter, 1, in_flight=limiter.limit, start=200.0 + i)
    assert limiter.limit == 32


def test_slow_start_ends_when_answers_come_no_faster() -> None:
    """One answer every 0.1 s whatever the limit: more buys nothing."""
    limiter = AdaptiveLimit(initial=16)
    now = 0.0
    for _ in range(20_000):
        now += 0.1
        limiter.on_start(limiter.limit, now)
        limiter.on_ok(now, limiter.limit, 100)
    assert limiter.limit < 64, limiter.explain()


def test_reports_double_a_binding_limit_and_a_queue_stops_it() -> None:
    limiter = AdaptiveLimit(initial=16)
    limiter.on_load(ServerLoad(0, 16, 0.1, at=1.0))
    limiter.on_load(ServerLoad(0, 32, 0.1, at=1.1))
    assert limiter.limit == 32, "one step a second"
    limiter.on_load(ServerLoad(0, 20, 0.1, at=3.0))
    assert limiter.limit == 32, "it does not bind"
    limiter.on_load(ServerLoad(12, 20, 0.1, at=4.0))
    assert limiter.explain() == "32: the server queues 12 requests"
    limiter.on_load(ServerLoad(12, 20, 0.1, at=9.0))
    assert limiter.limit == 24
    limiter.on_load(ServerLoad(12, 12, 0.97, at=15.0))
    assert limiter.limit == 23, "gently: the KV cache is full"


def test_reports_that_stop_are_forgotten() -> None:
    limiter = AdaptiveLimit(initial=16)
    limiter.on_load(ServerLoad(9, 7, 0.2, at=1.0))
    now = serve(limiter, 100, 16, start=1.0, gap=0.1)
    assert limiter.limit == 16
    serve(limiter, 5_000, 16, start=now + STALE_S)
    assert "queues" not in limiter.explain()


def test_one_cut_for_an_episode() -> None:
    limiter = AdaptiveLimit(initial=100)
    serve(limiter, 1, 1, start=0.0)
    for _ in range(5):
        limiter.on_overload(2.0, started_at=1.0)
    assert limiter.limit == 80
    assert limiter.explain() == "cut to 80 after refusals; the server last refused at 100"
    limiter.on_overload(4.0, started_at=3.0)
    assert limiter.limit == 64


def test_bounds_are_kept_and_checked() -> None:
    assert AdaptiveLimit(initial=500, maximum=40).limit == 40
    assert AdaptiveLimit(slots=64).limit == 32
    assert AdaptiveLimit(slots=64).maximum == 72
    for wrong in ({"minimum": 0}, {"minimum": 5, "maximum": 4}, {"slots": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            AdaptiveLimit(**wrong)
