"""What is said of calls that wait for something else than a slot."""

from __future__ import annotations

import pytest

from asyncsynth.core.limiter import FixedLimit
from asyncsynth.core.outcomes import Ok, Outcome, Overloaded, Transient
from tests.kit.simulation import Sim, SimServer

M = frozenset({"m"})


def fleet(replicas: int, outcome: Outcome | None = None, limit: int = 4) -> Sim:
    servers = [SimServer(f"s{i}", M) for i in range(replicas)]
    if outcome is not None:
        servers[0].script = lambda call, attempt, now: (outcome, 0.01)
    return Sim(servers, 3, [FixedLimit(limit) for _ in servers])


def test_a_full_fleet_needs_no_reason() -> None:
    sim = fleet(1)
    for call in range(40):
        sim.submit(call, "m")
    assert sim.scheduler.waiting == 36
    assert sim.scheduler.waits(sim.now) == []


def test_a_model_whose_servers_are_all_away_is_named_with_the_cause() -> None:
    sim = fleet(1)
    sim.act(sim.scheduler.replica_down("s0", 0.0, "restarting"))
    for call in range(3):
        sim.submit(call, "m")
    assert sim.scheduler.waits(1.0) == ["3 requests for m until a server answers again: s0 (restarting)"]
    sim.act(sim.scheduler.remove_replica("s0", 2.0))
    assert sim.scheduler.waits(3.0) == ["3 requests for m until a server answers again: none is left"]


def test_retries_say_when_the_next_attempt_is() -> None:
    sim = fleet(1, Overloaded(429, "busy", retry_after=40.0))
    sim.submit(0, "m")
    while sim.flying:
        sim.step()
    [said] = sim.scheduler.waits(sim.now)
    assert said.startswith("1 request for the next attempt, the first in 4"), said


@pytest.mark.parametrize("others", [0, 200])
def test_suspects_say_what_they_wait_for(others: int) -> None:
    """The last server in use is spared while it has other work; without any, no suspect waits."""
    sim = fleet(2)
    for call in range(8):
        sim.submit(call, "m")
    sim.act(sim.scheduler.replica_down("s0", 0.1, "killed"))
    for call in [call for call, where in sim.flying.items() if where == 0]:
        sim.flying.pop(call)
        sim.servers[0].busy -= 1
        sim.act(sim.scheduler.outcome(call, Transient("reset", "died"), 0.2))
    for call in range(100, 100 + others):
        sim.submit(call, "m")
    sim.run(until=3.0)
    said = sim.scheduler.waits(sim.now)
    if not others:
        assert said == []
        return
    assert len(said) == 1
    assert said[0].startswith(
        "4 requests that were in flight when a server failed, for s0 (killed) or an unused server"
    )
    assert "at most 117 s" in said[0]
    sim.run(until=120.0)
    assert all(isinstance(finish.outcome, Ok) for finish in sim.finished.values())
    assert len(sim.finished) == 8 + others
