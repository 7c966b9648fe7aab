"""Row 12: two virtual hours in which one request in five fails: nothing is lost, and the same seed is the same run."""

from __future__ import annotations

import hashlib
import random

import pytest

from asyncsynth.core.limiter import FixedLimit
from asyncsynth.core.outcomes import Ok, Outcome, Overloaded, Transient
from asyncsynth.core.retry import RetryBudget
from tests.kit.simulation import Script, Sim, SimServer
from tests.matrix.plugin import FULL, Tried

SEEDS, RECORDS = (100, 20_000) if FULL else (4, 1_500)
RATE = 0.2


class Counting(RetryBudget):
    """What was taken from it, beside what it may give."""

    taken = 0

    def try_take(self, now: float) -> bool:
        got = super().try_take(now)
        self.taken += got
        return got


def faults(rng: random.Random) -> Script:
    """One request in five fails, in the ways a server has that say nothing of the record."""
    kinds: list[Outcome] = [
        Overloaded(503, "busy"),
        Overloaded(429, "busy", retry_after=2.0),
        Transient("connect", "refused"),
        Transient("reset", "died", free=True),
        Transient("reset", "died"),
        Transient("server_error", "500", status=500),
    ]

    def script(call: int, attempt: int, now: float) -> tuple[Outcome, float] | None:
        if rng.random() >= RATE:
            return None
        return rng.choice(kinds), rng.uniform(0.0, 0.3)

    return script


def run(seed: int) -> tuple[Sim, list[Counting], str]:
    """Two servers, 32 slots each, fewer where they refuse; 20,000 records fill two hours."""
    models = frozenset({"m"})
    servers = [
        SimServer(f"s{i}", models, latency=(2.5, 7.5), script=faults(random.Random(f"{seed}.{i}"))) for i in range(2)
    ]
    sim = Sim(servers, seed, [FixedLimit(32) for _ in servers])
    budgets = []
    for replica in sim.scheduler.replicas:
        replica.budget = budget = Counting(replica.budget.ratio, replica.budget.per_s)
        budgets.append(budget)
    sim.keep_window(RECORDS, 128)
    sim.run()
    told = repr([(f.call_id, f.attempts, type(f.outcome).__name__) for f in sim.finished.values()])
    return sim, budgets, hashlib.sha256(f"{told} {sim.now!r}".encode()).hexdigest()


@pytest.mark.row(12)
@pytest.mark.parametrize("part", range(4))
def test_two_hours_of_faults(part: int, tried: Tried) -> None:
    for seed in range(part, SEEDS, 4):
        sim, budgets, digest = run(seed)
        assert len(sim.finished) == RECORDS, f"seed={seed}"
        lost = [f for f in sim.finished.values() if not isinstance(f.outcome, Ok)]
        assert not lost, f"seed={seed}: {lost[:3]}"
        for server, budget in zip(sim.servers, budgets, strict=True):
            allowed = budget.ratio * server.requests + budget.per_s * sim.now + 10
            assert budget.taken <= allowed, f"seed={seed}: {budget.taken} retries of {allowed:.0f}"
        if seed % 10 == part:
            assert run(seed)[2] == digest, f"seed={seed}: the same seed is another run"
            tried(1, "seeds run twice, alike")
        tried(RECORDS, "records", f"{sim.now / 3600:.1f} virtual hours each" if seed == 0 else "")
        tried(1, "seeds")
