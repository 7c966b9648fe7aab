"""Small servers that do not say that they are full: the limit finds how many requests they work on."""

from __future__ import annotations

import random
from collections import deque

import pytest

from asyncsynth.core.adaptive import AdaptiveLimit
from asyncsynth.core.limiter import FixedLimit, Limiter
from asyncsynth.core.outcomes import Ok, Outcome, Transient
from tests.kit.crashing import Crashing
from tests.kit.simulation import Sim, SimServer

M = frozenset({"m"})


class Threads:
    """Works on the requests of `threads` connections, and keeps them; all others wait unheard until these are idle.

    The client uses a connection again as soon as it has answered, the last one first.
    """

    def __init__(self, threads: int, latency_s: float, idle_s: float = 0.2) -> None:
        self.latency_s = latency_s
        self.idle_s = idle_s
        self.free = threads
        self.kept: list[float] = []  # idle connections that a thread waits on: since when
        self.unheard: deque[int] = deque()
        self.ends: dict[int, float] = {}

    def arrives(self, call: int, now: float) -> None:
        if self.kept:
            self.kept.pop()
        elif self.free:
            self.free -= 1
        else:
            self.unheard.append(call)
            return
        self.ends[call] = now + self.latency_s

    def answered(self, now: float) -> None:
        self.kept.append(now)

    def expire(self, now: float) -> None:
        """Idle connections are closed, and their threads hear what has waited."""
        while self.kept and self.kept[0] <= now - self.idle_s + 1e-9:
            self.kept.pop(0)
            if self.unheard:
                self.ends[self.unheard.popleft()] = now + self.latency_s
            else:
                self.free += 1


def serve(server: Threads, limiter: Limiter, records: int) -> tuple[Sim, float]:
    """All records through the scheduler; returns the seconds that it took."""
    sim = Sim([SimServer("s", M, script=lambda call, attempt, now: (Ok(None, 10), 1e9))], 3, [limiter])
    flying: set[int] = set()
    sim.keep_window(records, 5000)
    while sim.live:
        for call in sorted(set(sim.flying) - flying):
            server.arrives(call, sim.now)
        flying = set(sim.flying)
        ends = min(server.ends.items(), key=lambda end: end[1], default=None)
        expires = server.kept[0] + server.idle_s if server.kept else float("inf")
        if ends is not None and ends[1] <= expires:
            call, sim.now = ends
            del server.ends[call]
            sim.flying.pop(call)
            flying.discard(call)
            sim.servers[0].busy -= 1
            server.answered(sim.now)
            sim.act(sim.scheduler.outcome(call, Ok(None, 10), sim.now))
        else:
            sim.now = expires
            server.expire(sim.now)
    return sim, sim.now


@pytest.mark.row(16)
@pytest.mark.parametrize("latency_s", [0.05, 20.0])
@pytest.mark.parametrize("threads", [4, 8, 12])
def test_a_server_with_few_threads_is_found_out(threads: int, latency_s: float) -> None:
    limiter = AdaptiveLimit()
    records = 40 * threads
    _, took = serve(Threads(threads, latency_s, idle_s=4 * latency_s), limiter, records)
    best = records / threads * latency_s
    assert abs(limiter.limit - threads) <= 1, limiter.explain()
    assert took < 2.5 * best + 40 * latency_s, f"{took:.1f} s where {best:.1f} s are the best"
    assert "answered at a time" in limiter.explain()


@pytest.mark.row(16)
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("mix", ["lognormal", "two lengths", "one in ten takes 400 times as long"])
def test_long_answers_beside_short_ones_are_no_starvation(mix: str, seed: int) -> None:
    """A server that works on all it has, and has no metrics, whatever the lengths of its answers."""
    rng = random.Random(seed)

    def latency() -> float:
        if mix == "lognormal":
            return rng.lognormvariate(0.0, 1.5)
        return rng.choice([1.0, 40.0]) if mix == "two lengths" else 400.0 if rng.random() < 0.1 else 1.0

    server = SimServer("s", M, script=lambda call, attempt, now: (Ok(None, 10), latency()))
    limiter = AdaptiveLimit()
    sim = Sim([server], seed, [limiter])
    sim.keep_window(2000, 1000)
    while sim.live:
        assert sim.step()
        assert "answered at a time" not in limiter.explain(), f"seed={seed}"


class Doorman:
    """Takes so many connections and resets those beyond."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.server = SimServer("s", M, script=self.answer)
        self.sim: Sim | None = None

    def answer(self, call: int, attempt: int, now: float) -> tuple[Outcome, float] | None:
        if self.server.busy > self.most:
            return Transient("reset", "closed before the headers"), 0.001
        return Ok(None, 10), 0.2


@pytest.mark.row(15)
@pytest.mark.parametrize("limiter", [AdaptiveLimit, lambda: FixedLimit(32)], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("most", [3, 8, 12])
def test_connections_refused_beyond_a_number_are_a_limit_and_no_crash(most: int, limiter: type[AdaptiveLimit]) -> None:
    doorman, limit = Doorman(most), limiter()
    sim = Sim([doorman.server], 3, [limit])
    sim.keep_window(600, 300)
    sim.run()
    best = 600 / most * 0.2
    assert limit.limit == most, limit.explain()
    assert sim.now < 1.2 * best + 3.0, f"{sim.now:.1f} s where {best:.1f} s are the best"
    assert all(isinstance(finish.outcome, Ok) for finish in sim.finished.values())
    assert f"refused connections beyond {most}" in limit.explain()


def test_a_crash_is_no_limit() -> None:
    fleet = Crashing(1, set(), 5, limit=64)
    fleet.sim.keep_window(3000, 128)
    for at in (10.0, 60.0):
        fleet.run(until=at)
        fleet.kill(0)
        fleet.run(until=at + 0.01)
        fleet.down_until[0] = at + 1.0
    fleet.run()
    assert fleet.sim.limits[0].limit == 64, fleet.sim.limits[0].explain()
