"""Servers that crash, for a record's sake or not, and servers that hang: by simulation in virtual time."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from asyncsynth.core.limiter import FixedLimit
from asyncsynth.core.outcomes import Ok, Permanent, Transient
from tests.kit.crashing import RESTART_S, Crashing
from tests.kit.simulation import Sim, SimServer

M = frozenset({"m"})


@pytest.mark.row(14)
@pytest.mark.parametrize("free", [False, True], ids=["500", "reset"])
@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("limit", [16, 64])
@pytest.mark.parametrize("window", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_exactly_the_poison_record_is_quarantined(
    seed: int, window: int, limit: int, replicas: int, free: bool
) -> None:
    """One poison record among 3,000; the window is once or twice the slots."""
    poison = random.Random(seed).randrange(500, 2500)
    fleet = Crashing(replicas, {poison}, seed, free=free, limit=limit)
    fleet.sim.keep_window(3000, window * limit * replicas)
    fleet.run()
    bad = {call: f.outcome for call, f in fleet.sim.finished.items() if not isinstance(f.outcome, Ok)}
    assert list(bad) == [poison], f"seed={seed}"
    outcome = bad[poison]
    assert isinstance(outcome, Permanent)
    assert (outcome.reason, outcome.scope) == ("poison", "record")
    assert 2 <= len(fleet.crashes) <= 4, f"seed={seed}: {fleet.crashes}"
    assert len(fleet.sim.finished) == 3000


@pytest.mark.parametrize("seed", range(4))
def test_a_poison_record_leaves_a_server_in_use(seed: int) -> None:
    fleet = Crashing(3, {1000}, seed)
    fleet.sim.keep_window(4000, 2 * 192)
    fleet.run()
    down = Counter[int]()
    for at, _ in fleet.crashes:
        down[sum(at - RESTART_S < other <= at for other, _ in fleet.crashes)] += 1
    assert max(down) <= 2, f"seed={seed}: all three down at once: {fleet.crashes}"


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("replicas", [1, 3])
def test_a_kill_from_outside_quarantines_nobody_and_costs_little(replicas: int, window: int) -> None:
    fleet = Crashing(replicas, set(), 5, limit=128)
    fleet.sim.keep_window(10**9, window * 128 * replicas)
    fleet.run(until=30)
    done = len(fleet.sim.finished)
    rate = done / 30
    fleet.kill(0)
    fleet.run(until=130)
    lost = 100 * rate - (len(fleet.sim.finished) - done)
    assert all(isinstance(f.outcome, Ok) for f in fleet.sim.finished.values())
    # The restart itself costs 20 s of one server; tests and the trials add less than as much again.
    assert lost < 2.0 * RESTART_S * rate / replicas, f"{lost / (rate / replicas):.1f} server-seconds"


def test_two_kills_from_outside_quarantine_nobody() -> None:
    fleet = Crashing(2, set(), 5)
    fleet.sim.keep_window(10**9, 256)
    for at in (30, 55, 80, 105, 130):
        fleet.run(until=at)
        fleet.kill(0)
    fleet.run(until=400)
    assert all(isinstance(f.outcome, Ok) for f in fleet.sim.finished.values())
    assert not fleet.sim.scheduler._room.suspects


# --- servers that hang ---------------------------------------------------------------------------


@pytest.mark.row(17)
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_hung_server_is_found_within_two_minutes(replicas: int) -> None:
    hung = (Transient("timeout", "no answer"), 2120.0)  # the driver's own deadline for 4,000 tokens
    servers = [SimServer(f"s{i}", M) for i in range(replicas)]
    servers[0].script = lambda call, attempt, now: hung if 50 <= now < 600 else None
    sim = Sim(servers, 3, [FixedLimit(16) for _ in servers])
    sim.keep_window(10**9, 64)
    sim.run(until=50 + 120)
    assert sim.scheduler.snapshots()[0].state in ("open", "half-open")
    if replicas == 2:
        assert servers[1].busy == 16
        done = len(sim.finished)
        sim.run(until=200)
        assert len(sim.finished) > done + 100
    sim.run(until=900)
    assert sim.scheduler.snapshots()[0].state == "closed"
    assert all(isinstance(f.outcome, Ok) for f in sim.finished.values())
    assert not any(call.retry.charged for call in sim.scheduler._calls.values() if call.retry), "a record was charged"


@pytest.mark.row(17)
def test_long_generations_are_not_taken_for_a_hang() -> None:
    """Nothing ends for five minutes, but a health check is answered."""
    server = SimServer("s0", M, script=lambda call, attempt, now: None if call < 0 else (Ok(None, 4000), 300.0))
    sim = Sim([server], 3, [FixedLimit(16)])
    for call in range(16):
        sim.submit(call, "m")
    sim.run()
    assert set(sim.starts.values()) == {1}


# --- a healthy server beside calls that wait ------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("hangs", [False, True], ids=["refuses", "hangs"])
@pytest.mark.parametrize("total", [60, 400])
def test_no_call_waits_beside_an_idle_healthy_server(total: int, hangs: bool, seed: int) -> None:
    """One of two servers dies for good: once the other has nothing else to do, it gets what was in flight there."""
    fleet = Crashing(2, set(), seed, limit=8)
    fleet.sim.keep_window(total, 64)
    fleet.run(until=3.0)
    fleet.kill(0)
    fleet.run(until=fleet.sim.now + 1e-6)
    fleet.down_until[0] = float("inf")
    fleet.silent = hangs
    idle, since = 0.0, fleet.sim.now
    sent_to_dead: set[int] = set()
    while fleet.sim.live:
        sim = fleet.sim
        was_idle = not sim.servers[1].busy and sim.scheduler.waiting
        assert sim.step(), "stuck"
        if was_idle:
            idle += sim.now - since
        since = sim.now
        if sim.scheduler.snapshots()[0].state != "closed":
            sent_to_dead.add(sim.servers[0].requests)
    assert len(sent_to_dead) == 1, "once it is known to be gone, the driver asks it, and no record's call"
    assert all(isinstance(finish.outcome, Ok) for finish in fleet.sim.finished.values())
    assert idle == 0.0, f"seed={seed}: idle for {idle:.1f} s"


@pytest.mark.parametrize("seed", range(3))
def test_records_that_killed_two_servers_are_tried_on_an_unused_third(seed: int) -> None:
    """Suspects of the second degree need a server of their own. One that nobody else wants is such a server."""
    fleet = Crashing(3, set(), seed, limit=8)
    for call in range(24):
        fleet.sim.submit(call, "m")
    for i in (0, 1):
        fleet.kill(i)
        fleet.run(until=fleet.sim.now + 0.01)
        fleet.down_until[i] = float("inf")
    started = fleet.sim.now
    while fleet.sim.live:
        assert fleet.sim.step()
    assert len(fleet.sim.finished) == 24
    assert all(isinstance(finish.outcome, Ok) for finish in fleet.sim.finished.values())
    assert fleet.sim.now - started < 60.0, f"seed={seed}"
