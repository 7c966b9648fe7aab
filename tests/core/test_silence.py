"""A slow server is not a hung one: queues of minutes cost no paid answer, and a hang is found."""

from __future__ import annotations

import pytest

from asyncsynth.core.limiter import FixedLimit
from asyncsynth.core.outcomes import Ok, Outcome, ServerLoad, Transient
from asyncsynth.core.scheduler import Abort
from asyncsynth.core.silence import IDLE_CHECKS, SILENCE_S, UNKNOWN_S
from asyncsynth.testing.batching_server import BatchingServer
from tests.kit.batching import Job, lengths
from tests.kit.simulation import Sim, SimServer
from tests.matrix.plugin import Tried

M = frozenset({"m"})


@pytest.mark.row(17)
@pytest.mark.parametrize("report_s", [None, 1.0], ids=["no metrics", "metrics"])
@pytest.mark.parametrize(
    ("slots", "limit", "step_s", "equal"),
    [
        (16, 96, 0.06, None),  # a 72B judge with a queue six times as long as what it works on
        (4, 64, 0.3, None),  # a model on a CPU
        (4, 16, 0.1, 2000),  # all slots end together: 200 s of silence again and again
        (1, 8, 0.2, 3000),  # one request at a time, ten minutes each
    ],
)
def test_no_request_of_a_slow_server_is_cut(
    slots: int, limit: int, step_s: float, equal: int | None, report_s: float | None, tried: Tried
) -> None:
    """Health checks wait in the server's queue too, and answers take minutes: every answer is paid for once."""
    records = lengths(5, 200) if equal is None else [(200, equal)] * 24
    server = BatchingServer(slots, step_s=step_s, request_s=0.0005)
    job = Job(server, FixedLimit(limit), records, report_s=report_s)
    job.run(until=20_000)
    assert (job.cut, job.done) == (0, len(records))
    assert len(job.tokens) == len(records), "none was generated twice"
    if report_s is not None:
        assert not job.checks, "its counters move: there is nothing to ask"
    tried(len(records), "answers of slow servers")


@pytest.mark.row(17)
def test_a_server_that_hangs_after_slow_answers_is_found() -> None:
    """Answers took 100 s; without metrics the patience is as long as that."""
    hung = (Transient("timeout", "silence"), 1e9)
    server = SimServer("s", M, latency=(95.0, 105.0))
    server.script = lambda call, attempt, now: hung if 2000 <= now < 4000 else None
    sim = Sim([server], 3, [FixedLimit(16)])
    sim.keep_window(10**9, 64)
    sim.run(until=2000)
    sim.run(until=2000 + 105 + SILENCE_S + 110)
    assert sim.scheduler.snapshots()[0].state != "closed"
    sim.run(until=5000)
    assert sim.scheduler.snapshots()[0].state == "closed"
    assert all(isinstance(finish.outcome, Ok) for finish in sim.finished.values())


@pytest.mark.parametrize("moves", [True, False], ids=["counters move", "counters stand still"])
def test_counters_that_move_are_a_sign_of_life(moves: bool) -> None:
    """Nothing is answered for an hour, a health check neither. Only where the counters stand still is that a hang."""
    hung = (Transient("timeout", "silence"), 1e9)
    sim = Sim([SimServer("s", M, script=lambda call, attempt, now: hung)], 3, [FixedLimit(16)])
    for call in range(16):
        sim.submit(call, "m")
    for second in range(1, 3600 if moves else 130):
        while sim.step(within=max(0.0, second - sim.now)):
            pass
        sim.now = float(second)
        load = ServerLoad(0, 16, 0.5, sim.now, progress=float(second if moves else 7))
        sim.act(sim.scheduler.report_load("s", load, sim.now))
    assert (sim.scheduler.snapshots()[0].state == "closed") is moves


def test_a_server_that_was_never_heard_gets_ten_minutes_unless_a_peer_answers() -> None:
    hung = (Transient("timeout", "silence"), 1e9)
    for replicas, seconds in ((1, UNKNOWN_S), (2, 60.0)):
        servers = [SimServer(f"s{i}", M) for i in range(replicas)]
        servers[0].script = lambda call, attempt, now: hung
        sim = Sim(servers, 3, [FixedLimit(4) for _ in servers])
        sim.keep_window(10**9, 8 * replicas)
        sim.run(until=SILENCE_S + seconds - 1)
        assert sim.scheduler.snapshots()[0].state == "closed"
        if replicas == 1:
            assert sim.scheduler.waits(sim.now) == [
                f"an answer of s0, silent for {sim.now:.0f} s: it was sent a health check, and has 600 s to answer"
            ]
        sim.run(until=SILENCE_S + seconds + 1)
        assert sim.scheduler.snapshots()[0].state != "closed"


def test_requests_that_the_server_has_lost_are_found_by_its_own_report() -> None:
    """A connection died without a sign: the server answers health checks and has nothing to do."""
    aborted: list[Abort] = []
    lost = {0}

    def script(call: int, attempt: int, now: float) -> tuple[Outcome, float] | None:
        return (Ok(None), 1e9) if call in lost and attempt == 1 else None

    sim = Sim([SimServer("s", M, script=script)], 3, [FixedLimit(16)])
    act = sim.act
    sim.act = lambda actions: (aborted.extend(a for a in actions if isinstance(a, Abort)), act(actions))[1]  # type: ignore[method-assign]
    for call in range(8):
        sim.submit(call, "m")
    second = 0
    while sim.live:
        second += 1
        while sim.step(within=max(0.0, second - sim.now)):
            pass
        sim.now = float(second)
        load = ServerLoad(0, 0, 0.0, sim.now, progress=100.0)
        sim.act(sim.scheduler.report_load("s", load, sim.now))
        assert second < (IDLE_CHECKS + 2) * SILENCE_S, "never found"
    assert second > (IDLE_CHECKS - 2) * SILENCE_S, "a generation of minutes is not taken for a lost one"
    assert [(abort.call_id, abort.cause) for abort in aborted] == [(0, "lost")]
    assert sim.finished[0].attempts == 2
