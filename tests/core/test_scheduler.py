"""The scheduler's rules, by simulation in virtual time. A failure names its seed."""

from __future__ import annotations

import random
import sys

import pytest
from tenacity import stop_after_attempt

from asyncsynth.core.limiter import FixedLimit, Limiter
from asyncsynth.core.outcomes import Ok, Outcome, Overloaded, Permanent, ServerLoad, Transient
from asyncsynth.core.retry import RetryBudget, RetryPolicy
from asyncsynth.core.scheduler import Finish, Halt, ReplicaSpec, Scheduler, Start
from tests.kit.simulation import CANARY, Script, Sim, SimServer, random_script
from tests.matrix.plugin import Tried

M = frozenset({"m"})


def fleet(n: int, **kwargs: object) -> list[SimServer]:
    return [SimServer(f"s{i}", M, **kwargs) for i in range(n)]  # type: ignore[arg-type]


@pytest.mark.row(12)
@pytest.mark.parametrize("seed", range(40))
def test_random_scripts_keep_the_rules(seed: int) -> None:
    """Several models, replicas, faults, cancellations: the rules hold after each event and nothing is lost."""
    rng = random.Random(seed)
    names = ["a", "b", "c"]
    servers = [
        SimServer(
            f"s{i}",
            frozenset(rng.sample(names, rng.randint(1, 3))) | ({"a", "b", "c"} if i == 0 else frozenset()),
            slots=rng.choice([2, 8, 10**9]),
            latency=(0.01, rng.choice([0.1, 3.0])),
            script=random_script(rng, rng.choice([0.0, 0.1, 0.4])),
        )
        for i in range(rng.randint(1, 5))
    ]
    limits: list[Limiter] = [FixedLimit(rng.randint(1, 12)) for _ in servers]
    sim = Sim([*servers], seed, limits, check_all=True)
    cancelled = 0
    for call in range(150):
        sim.submit(call, rng.choice(names), rng.randint(0, 3), rng.choice([0, 0, 7, 8]))
        for _ in range(rng.randint(0, 3)):
            sim.step(within=60.0)
        if rng.random() < 0.05 and sim.live:
            cancelled += 1
            sim.cancel(rng.choice(sorted(sim.live)))
        if rng.random() < 0.02:
            sim.act(sim.scheduler.replica_down(servers[-1].name, sim.now))
        if rng.random() < 0.05:
            sim.act(sim.scheduler.replica_up(servers[-1].name, sim.now))
        if rng.random() < 0.1:
            load = ServerLoad(rng.choice([0, 0, 5]), rng.randint(0, 20), rng.random(), sim.now)
            sim.act(sim.scheduler.report_load(rng.choice(servers).name, load, sim.now))
        if rng.random() < 0.02:
            sim.add(SimServer(f"joined{call}", frozenset({"a", "b"})), FixedLimit(3))
        if rng.random() < 0.02 and len(sim.scheduler._balancer.by_name) > 1:
            name = rng.choice([n for n in sim.scheduler._balancer.by_name if n.startswith("joined")] or [""])
            if name:
                sim.act(sim.scheduler.remove_replica(name, sim.now))
    sim.act(sim.scheduler.replica_up(servers[-1].name, sim.now))
    sim.run()
    assert len(sim.finished) == 150 - cancelled, f"seed={seed}"
    assert not sim.scheduler._calls
    assert not sim.flying


@pytest.mark.parametrize("seed", range(10))
def test_same_seed_same_run(seed: int) -> None:
    def once() -> list[tuple[int, int]]:
        sim = Sim(fleet(2, script=random_script(random.Random(seed), 0.3)), seed)
        sim.keep_window(200, 40)
        sim.run()
        return [(f.call_id, f.attempts) for f in sim.finished.values()]

    assert once() == once()


def test_lower_priority_value_first_then_in_order() -> None:
    scheduler = Scheduler([ReplicaSpec("s", M, FixedLimit(1))], RetryPolicy(), random.Random(0))
    assert scheduler.submit(0, "m", 5, 0.0) == [Start(0, 0, 1)]
    for call, priority in ((1, 9), (2, 3), (3, 3), (4, 1)):
        assert scheduler.submit(call, "m", priority, 0.0) == []
    order = []
    flying = 0
    while flying is not None:
        actions = scheduler.outcome(flying, Ok("x"), 1.0)
        starts = [a.call_id for a in actions if isinstance(a, Start)]
        flying = starts[0] if starts else None
        order += starts
    assert order == [4, 2, 3, 1]


def test_load_is_spread_evenly_and_affinity_kept() -> None:
    sim = Sim(fleet(4), 1, [FixedLimit(32) for _ in range(4)])
    for call in range(64):
        sim.submit(call, "m")
    assert [s.busy for s in sim.servers] == [16, 16, 16, 16]
    sim.run()
    for call in range(100, 106):
        sim.submit(call, "m", affinity=6)
    assert sorted(s.busy for s in sim.servers) == [0, 0, 0, 6]  # one server's cache has the prefix


def test_unknown_model_is_an_error() -> None:
    scheduler = Scheduler([ReplicaSpec("s", M, FixedLimit(1))], RetryPolicy(), random.Random(0))
    with pytest.raises(KeyError):
        scheduler.submit(0, "other", 0, 0.0)


# --- retries -----------------------------------------------------------------------------------


def always(outcome: Outcome, calls: set[int]) -> Script:
    return lambda call, attempt, now: (outcome, 0.05) if call in calls else None


def test_a_failing_record_is_charged_eight_times_and_its_neighbours_go_on() -> None:
    sim = Sim(fleet(1, script=always(Transient("server_error", "boom", status=500), {7})), 3)
    sim.keep_window(2000, 16)
    sim.run()
    assert sim.finished[7].attempts == 8
    assert isinstance(sim.finished[7].outcome, Transient)
    assert sum(isinstance(f.outcome, Ok) for f in sim.finished.values()) == 1999


def test_a_lone_failing_record_ends() -> None:
    """Without other records to compare with, a record that always fails is given up, not retried for ever."""
    sim = Sim(fleet(1, script=always(Transient("server_error", "boom", status=500), {0})), 3)
    sim.submit(0, "m")
    sim.run()
    assert sim.finished[0].attempts == 8


def test_a_tail_of_failing_records_ends() -> None:
    """Four poisonous records alone look like an outage; they take turns as tests and are given up in the end."""
    sim = Sim(fleet(1, script=always(Transient("server_error", "boom", status=500), {0, 1, 2, 3})), 3)
    for call in range(4):
        sim.submit(call, "m")
    sim.run()
    assert sim.halt is None
    assert len(sim.finished) == 4
    assert sim.now < 3600


def test_free_resend_once_then_charged() -> None:
    outcome = Transient("reset", "idle connection died", free=True)
    sim = Sim(fleet(1, script=lambda c, a, now: (outcome, 0.0) if a == 1 else None), 3)
    sim.submit(0, "m")
    sim.run()
    assert sim.finished[0].attempts == 2
    assert sim.now < 2.1  # no sleep in between


@pytest.mark.parametrize("reason", ["bad_json", "empty_content"])
def test_answers_that_repeat_have_their_own_cap(reason: str) -> None:
    sim = Sim(fleet(1, script=always(Transient(reason, max_attempts=3), {5})), 3)
    sim.keep_window(100, 10)
    sim.run()
    assert sim.finished[5].attempts == 3


def test_context_length_is_not_retried() -> None:
    sim = Sim(fleet(1, script=always(Permanent("context_length", status=400), {5})), 3)
    sim.keep_window(20, 10)
    sim.run()
    assert sim.finished[5].attempts == 1


class CountingBudget(RetryBudget):
    taken = 0

    def try_take(self, now: float) -> bool:
        got = super().try_take(now)
        self.taken += got
        return got


@pytest.mark.row(12)
def test_retry_budget_paces_charged_retries() -> None:
    """With 30 % failures, charged retries stay within 10 % of first attempts + 1/s + 10; none is dropped."""
    rng = random.Random(5)
    fault = (Transient("server_error", "boom", status=500), 0.05)
    sim = Sim(fleet(1, script=lambda c, a, now: fault if rng.random() < 0.3 else None), 5, [FixedLimit(64)])
    budget = sim.scheduler.replicas[0].budget = CountingBudget()
    sim.keep_window(3000, 128)
    sim.run()
    firsts, starts = len(sim.starts), sum(sim.starts.values())
    assert budget.taken <= 0.1 * firsts + sim.now + 10
    assert budget.taken > 0.5 * (starts - firsts), "most retries were charged"
    assert len(sim.finished) == 3000


# --- overload ----------------------------------------------------------------------------------


@pytest.mark.row(15)
def test_sustained_429_shrinks_to_the_minimum_and_recovers() -> None:
    refused = (Overloaded(429, "slow down", retry_after=2.0), 0.02)
    sim = Sim(fleet(1, script=lambda c, a, now: refused if 60 <= now < 600 else None), 2, [FixedLimit(64)])
    sim.keep_window(10**9, 256)
    limiter = sim.limits[0]
    sim.run(until=59)
    assert limiter.limit == 64
    sim.run(until=420)
    assert limiter.limit == 1, "six minutes of nothing but 429"
    # Most refused attempts belong to the episodes that shrank the limit; then one test call at a time asks.
    assert sim.servers[0].requests - len(sim.finished) < 256 + 4 * 64 + 300
    sim.run(until=660)
    assert sim.scheduler.replicas[0].breaker.state == "closed"
    sim.run(until=780)
    assert limiter.limit >= 58, f"only {limiter.limit} of 64 three minutes after"
    assert all(isinstance(f.outcome, Ok) for f in sim.finished.values())


@pytest.mark.parametrize("slots", [5, 40])
def test_limit_settles_near_the_capacity(slots: int) -> None:
    sim = Sim(fleet(1, slots=slots, latency=(1.0, 1.5)), 4, [FixedLimit(64)])
    sim.keep_window(10**9, 200)
    sim.run(until=120)
    done, at = len(sim.finished), sim.now
    sim.run(until=420)
    rate = (len(sim.finished) - done) / (sim.now - at)
    assert rate >= 0.8 * slots / 1.25


def test_no_calls_are_lost_to_503_however_long_the_retry_after() -> None:
    refused = (Overloaded(503, "busy", retry_after=1e9), 0.02)
    sim = Sim(fleet(2, script=lambda c, a, now: refused if now < 1000 else None), 6)
    sim.keep_window(100, 20)
    sim.run()
    assert all(isinstance(f.outcome, Ok) for f in sim.finished.values())
    assert sim.now < 3600


# --- outages -----------------------------------------------------------------------------------

OUTAGES = ("connect", "server_error", "reset")


@pytest.mark.row(13)
@pytest.mark.parametrize("reason", [*(pytest.param(one, marks=pytest.mark.slow) for one in OUTAGES), "mixed"])
@pytest.mark.parametrize("draining", [False, True], ids=["crash", "drain"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_half_hour_outage_with_256_in_flight_loses_nothing(seed: int, reason: str, draining: bool) -> None:
    down = (100.0, 1900.0)
    rng = random.Random(seed)

    def script(call: int, attempt: int, now: float) -> tuple[Outcome, float] | None:
        if not down[0] <= now < down[1]:
            return None
        kind = rng.choice(["connect", "server_error", "reset"]) if reason == "mixed" else reason
        return Transient(kind, "down"), 0.01

    def crash(outcome: Outcome, now: float) -> Outcome:
        return Transient("reset", "died") if down[0] <= now < down[0] + 3 and not draining else outcome

    sim = Sim(fleet(1, script=script, ending=crash), seed, [FixedLimit(256)])
    sim.keep_window(10**9, 512)
    sim.run(until=99)
    before = len(sim.finished) / 99
    sim.run(until=1899)
    requests = sim.servers[0].requests
    # Half an hour: tests, and what the drain earned in retries (25 % of its answers), under one in three seconds.
    assert requests - len(sim.finished) - 256 < 600, "the dead server was hammered"
    assert sim.scheduler.snapshots()[0].state in ("open", "half-open")
    charged = [c.retry.charged for c in sim.scheduler._calls.values() if c.retry]
    assert len(charged) >= 16
    # A server that answers some and fails others looks like one with bad records: a few charges are right.
    most = 4 if draining and reason != "connect" else 0
    assert max(charged) <= most, f"seed={seed}: a record was charged for the outage"
    sim.run(until=1960)  # 60 s after the return: full rate
    done = len(sim.finished)
    sim.run(until=1990)
    assert (len(sim.finished) - done) / 30 > 0.9 * before, f"seed={seed}"
    lost = [f for f in sim.finished.values() if not isinstance(f.outcome, Ok)]
    assert not lost, f"seed={seed}: {lost[:3]}"


@pytest.mark.row(13)
def test_a_server_that_drains_for_long_while_refusing_charges_nobody() -> None:
    """Old requests are answered for 20 s, new connections refused: the answers must not vouch for the server."""
    refused = (Transient("connect", "refused"), 0.001)
    sim = Sim(
        fleet(1, latency=(0.1, 20.0), script=lambda c, a, now: refused if 50 <= now < 200 else None),
        4,
        [FixedLimit(64)],
    )
    sim.keep_window(10**9, 256)
    sim.run(until=51)
    assert sim.scheduler.snapshots()[0].state != "closed"
    sim.run(until=190)
    assert not any(c.retry.charged for c in sim.scheduler._calls.values() if c.retry)
    assert sim.servers[0].requests - len(sim.finished) < 100


def test_a_cancelled_test_call_makes_room_for_another() -> None:
    dead = Transient("connect", "refused")
    scheduler = Scheduler([ReplicaSpec("s", M, FixedLimit(8))], RetryPolicy(), random.Random(0))
    for call in range(8):
        scheduler.submit(call, "m", 0, 0.0)
    for call in range(8):
        scheduler.outcome(call, dead, 1.0)
    due = scheduler.next_tick()
    tests: list[Start] = []
    while not tests:
        assert due is not None
        tests = [a for a in scheduler.tick(due) if isinstance(a, Start)]
        due = scheduler.next_tick()
    assert len(tests) == 1
    assert [type(a) for a in scheduler.cancel(tests[0].call_id, 20.0)] == [Start]


def test_a_held_verdict_falls_when_the_last_witness_leaves() -> None:
    """Out of attempts while another call hangs: the verdict waits for that one, and no longer."""
    policy = RetryPolicy(stop=stop_after_attempt(1))
    boom = Transient("server_error", "boom", status=500)
    for way in ("cancel", "answer", "fail"):
        scheduler = Scheduler([ReplicaSpec("s", M, FixedLimit(8))], policy, random.Random(0))
        scheduler.submit(0, "m", 0, 0.0)
        scheduler.submit(1, "m", 0, 0.0)
        assert scheduler.outcome(0, boom, 1.0) == [], "held"
        if way == "cancel":
            assert scheduler.cancel(1, 2.0) == [Finish(0, boom, 1)]
        elif way == "answer":
            assert [type(a) for a in scheduler.outcome(1, Ok(None), 2.0)] == [Finish, Finish]
        else:
            assert {a.call_id for a in scheduler.outcome(1, boom, 2.0) if isinstance(a, Finish)} == {0, 1}


def test_an_outage_takes_no_last_chance() -> None:
    """A record with seven honest failures behind it meets the outage as its eighth: it is not given up."""
    boom = Transient("server_error", "boom", status=500)

    def script(call: int, attempt: int, now: float) -> tuple[Outcome, float] | None:
        if call == 3 and attempt <= 7:
            return boom, 0.05
        if call == 3 and attempt == 8:
            down[0] = now
            return boom, 0.01
        return (boom, 0.5) if down[0] <= now < down[0] + 300 else None

    down = [1e9]

    def crash(outcome: Outcome, now: float) -> Outcome:
        return boom if down[0] <= now < down[0] + 3 else outcome

    sim = Sim(fleet(1, script=script, ending=crash), 8, [FixedLimit(64)])
    sim.keep_window(10**9, 128)
    while down[0] == 1e9 or sim.now < down[0] + 500:
        sim.run(until=sim.now + 10)
    assert isinstance(sim.finished[3].outcome, Ok)
    assert all(isinstance(f.outcome, Ok) for f in sim.finished.values())


def test_other_replicas_take_over_and_the_lost_one_returns() -> None:
    dead = (Transient("connect", "refused"), 0.001)
    servers = fleet(3)
    servers[1].script = lambda c, a, now: dead if 20 <= now < 200 else None
    sim = Sim(servers, 9, [FixedLimit(32) for _ in servers])
    sim.keep_window(10**9, 200)
    sim.run(until=30)
    assert sim.scheduler.snapshots()[1].state == "open"
    assert [s.busy for s in servers] == [32, 0, 32]
    sim.run(until=240)
    assert [s.busy for s in servers] == [32, 32, 32]
    assert all(isinstance(f.outcome, Ok) for f in sim.finished.values())


def test_a_lone_call_survives_a_refusing_server() -> None:
    dead = (Transient("connect", "refused"), 0.001)
    sim = Sim(fleet(1, script=lambda c, a, now: dead if now < 1800 else None), 9)
    sim.submit(0, "m")
    sim.run()
    assert isinstance(sim.finished[0].outcome, Ok)


def test_an_endless_outage_halts_the_run_and_fails_no_record() -> None:
    dead = (Transient("connect", "refused"), 0.001)
    sim = Sim(fleet(2, script=lambda c, a, now: dead), 9, policy=RetryPolicy(outage_limit_s=600))
    sim.keep_window(100, 100)
    sim.run()
    assert isinstance(sim.halt, Halt)
    assert "no answer for 10 min" in sim.halt.message
    assert 600 <= sim.now < 700
    assert not sim.finished


def test_down_and_up_by_a_supervisor() -> None:
    sim = Sim(fleet(2), 9, [FixedLimit(4), FixedLimit(4)])
    sim.act(sim.scheduler.replica_down("s0", 0.0, "restarting"))
    for call in range(6):
        sim.submit(call, "m")
    assert [s.busy for s in sim.servers] == [0, 4]
    assert sim.scheduler.snapshots()[0].why == "down: restarting"
    sim.act(sim.scheduler.replica_up("s0", 0.0))
    assert [s.busy for s in sim.servers] == [2, 4]
    sim.run()


# --- refusals ----------------------------------------------------------------------------------


REFUSALS = [("auth", 401), ("refused", 403), ("model_not_found", 404), ("redirect", 303), ("quota", 402)]


@pytest.mark.row(41)
@pytest.mark.parametrize(("reason", "status"), REFUSALS)
def test_a_server_that_refuses_all_halts(reason: str, status: int) -> None:
    refused = (Permanent(reason, "no", status=status, scope="server"), 0.05)
    sim = Sim(fleet(1, script=lambda c, a, now: refused), 9)
    sim.keep_window(100, 100)
    sim.run()
    assert sim.halt is not None
    assert "s0" in sim.halt.message
    assert str(status) in sim.halt.message
    assert "'m'" in sim.halt.message
    assert "run the same command again" in sim.halt.advice
    assert ("key" in sim.halt.advice) is (reason in ("auth", "refused"))
    # Calls whose refusals halted end with them; the driver reports that as the run's fault, not the records'.
    assert {f.outcome for f in sim.finished.values()} == {refused[0]}
    assert sum(sim.starts.values()) <= 2 * 16
    assert sim.now < 1.0
    assert sim.scheduler.submit(1000, "m", 0, sim.now) == [sim.halt]


@pytest.mark.row(41)
@pytest.mark.parametrize(("reason", "status"), REFUSALS)
def test_a_lone_call_halts_too(reason: str, status: int) -> None:
    refused = (Permanent(reason, "no", status=status, scope="server"), 0.05)
    sim = Sim(fleet(1, script=lambda c, a, now: refused), 9)
    sim.submit(0, "m")
    sim.run()
    assert sim.halt is not None
    assert (sim.starts[0], sim.canaries) == (3, 3)


@pytest.mark.row(41)
@pytest.mark.parametrize("share", [0.005, 0.05, 0.5])
@pytest.mark.parametrize(("reason", "status"), REFUSALS)
def test_a_refused_request_costs_itself_and_no_other(reason: str, status: int, share: float, tried: Tried) -> None:
    """Refusals come in milliseconds, answers in seconds: many refusals in a row are no sign about the server."""
    rng = random.Random(f"{reason} {share}")
    flagged = {call for call in range(400) if rng.random() < share} | {3}
    refused = (Permanent(reason, "your input was flagged", status=status, scope="server"), 0.003)
    # A quota that three different requests meet at once is a spent one; here they come one at a time.
    together = reason == "quota" and share > 0.005
    sim = Sim(fleet(1, script=lambda c, a, now: refused if c in flagged else None), 9, check_all=True)
    sim.keep_window(400, 1 if together else 64)
    sim.run()
    assert sim.halt is None
    assert len(sim.finished) == 400
    for call, finish in sim.finished.items():
        if call not in flagged:
            assert isinstance(finish.outcome, Ok)
            continue
        assert isinstance(finish.outcome, Permanent)
        assert finish.outcome.scope == "record"
        assert finish.outcome.reason == ("quota" if reason == "quota" else "refused")
        assert "your input was flagged" in finish.outcome.message
        assert f"HTTP {status}; the server answers other requests" in finish.outcome.message
        assert finish.attempts == (1 if reason == "refused" else 3)
    tried(len(flagged), "requests refused among others")


@pytest.mark.row(41)
@pytest.mark.parametrize(("reason", "status"), REFUSALS)
def test_a_model_that_one_server_refuses_goes_to_the_others_and_comes_back(reason: str, status: int) -> None:
    """Each server has both models. The first refuses `n`, for a while or for good, and keeps answering `m`."""
    refused = (Permanent(reason, "no", status=status, scope="server"), 0.003)
    both = frozenset({"m", "n"})

    def script(call: int, attempt: int, now: float) -> tuple[Outcome, float] | None:
        return refused if (call == CANARY or call % 2) and now < 20 else None

    for n_servers in (2, 1):
        servers = [SimServer(f"s{i}", both, latency=(1.0, 1.0)) for i in range(n_servers)]
        servers[0].script = script
        sim = Sim(servers, 9)
        for call in range(2000):
            sim.submit(call, "n" if call % 2 else "m")
        sim.run()
        if n_servers == 1:
            assert sim.halt is not None, "no other server takes them"
            continue
        assert sim.halt is None
        assert len(sim.finished) == 2000
        assert all(isinstance(finish.outcome, Ok) for finish in sim.finished.values())
        assert sim.scheduler.replicas[0].models == ("m", "n")
        assert max(finish.attempts for finish in sim.finished.values()) <= 6


@pytest.mark.row(41)
@pytest.mark.parametrize(("reason", "status"), REFUSALS)
def test_a_key_that_is_revoked_in_mid_run_halts_though_old_answers_still_come(reason: str, status: int) -> None:
    revoked = Permanent(reason, "revoked", status=status, scope="server")

    def script(call: int, attempt: int, now: float) -> tuple[Outcome, float] | None:
        return (revoked, 1.0 if call == CANARY else 0.003) if now > 20 else None

    sim = Sim(fleet(1, script=script), 9)
    sim.keep_window(2_000, 16)
    sim.run()
    assert sim.halt is not None
    assert 20 < sim.now < 24
    # What was answered is kept, and what the halt ended is pending: no record is charged.
    assert {f.outcome for f in sim.finished.values() if isinstance(f.outcome, Permanent)} <= {revoked}


@pytest.mark.row(41)
@pytest.mark.parametrize(("reason", "status"), REFUSALS)
@pytest.mark.parametrize("all_refuse", [False, True])
def test_one_replica_that_refuses_all_is_left_out(reason: str, status: int, all_refuse: bool) -> None:
    refused = (Permanent(reason, "no", status=status, scope="server"), 0.05)
    bad = SimServer("s0", M, script=lambda c, a, now: refused)
    good = SimServer("s1", M, script=lambda c, a, now: refused if all_refuse and now > 30 else None)
    sim = Sim([bad, good], 9, check_all=True)
    sim.keep_window(1_000, 32)
    sim.run()
    assert (sim.halt is not None) is all_refuse
    if not all_refuse:
        assert all(isinstance(f.outcome, Ok) for f in sim.finished.values())
        assert bad.requests < 100
        why = {stats.name: stats.why for stats in sim.scheduler.snapshots()}["s0"]
        assert f"refuses model 'm' (HTTP {status}): no" in why


@pytest.mark.row(41)
@pytest.mark.parametrize("canary", [Transient("timeout", "no"), Overloaded(429, "busy"), None])
def test_a_canary_that_shows_nothing_costs_an_attempt(canary: Outcome | None) -> None:
    """Neither does one that the driver never sends: nothing waits for ever."""
    refused = Permanent("auth", "no", status=401, scope="server")

    def script(call: int, attempt: int, now: float) -> tuple[Outcome, float] | None:
        if call == CANARY:
            return (canary, 0.01) if canary is not None else (Ok(None), 1e9)
        return (refused, 0.003)

    sim = Sim(fleet(1, script=script), 9)
    sim.submit(0, "m")
    sim.run()
    assert sim.halt is None
    assert sim.finished[0].outcome == refused
    assert sim.starts[0] == 3


def test_a_held_call_that_is_cancelled_is_gone() -> None:
    refused = (Permanent("refused", "no", status=403, scope="server"), 0.01)
    sim = Sim(fleet(1, script=lambda c, a, now: refused if c >= 0 else (Ok(None), 5.0)), 9, check_all=True)
    sim.submit(0, "m")
    sim.submit(1, "m")
    while sim.flying:
        sim.step()
    sim.cancel(0)
    sim.run()
    assert [(call, f.attempts) for call, f in sim.finished.items()] == [(1, 1)]


# --- quotas ------------------------------------------------------------------------------------


def quota(asked: float | None, status: int = 429) -> Outcome:
    return Overloaded(status, "you exceeded your quota, see billing", asked, quota=True)


@pytest.mark.row(43)
@pytest.mark.parametrize("calls", [3, 12, 100])
def test_a_wait_beyond_the_cap_halts_with_the_words(calls: int) -> None:
    sim = Sim(fleet(1, script=lambda c, a, now: (quota(43_200.0), 0.01) if c >= 0 else None), 9)
    sim.keep_window(calls, calls)
    sim.run()
    assert sim.halt is not None
    assert sim.now < 1.0
    assert "you exceeded your quota, see billing (the server asks to wait 12 h)" in sim.halt.message
    assert "Wait until the quota is back" in sim.halt.advice


@pytest.mark.row(43)
def test_another_replica_takes_what_one_without_quota_cannot() -> None:
    spent = SimServer("s0", frozenset({"m"}), script=lambda c, a, now: (quota(43_200.0), 0.01) if c >= 0 else None)
    sim = Sim([spent, SimServer("s1", frozenset({"m"}))], 9)
    sim.keep_window(200, 32)
    sim.run()
    assert sim.halt is None
    assert all(isinstance(f.outcome, Ok) for f in sim.finished.values())
    assert sim.now < 60
    assert spent.requests <= 40


@pytest.mark.row(43)
@pytest.mark.parametrize("calls", [1, 12, 100])
def test_a_quota_that_does_not_come_back_when_it_says_halts(calls: int) -> None:
    sim = Sim(fleet(1, script=lambda c, a, now: (quota(41.0), 0.01) if c >= 0 else None), 9)
    sim.keep_window(calls, calls)
    sim.run()
    assert sim.halt is not None
    assert 60 < sim.now < 200
    assert "you exceeded your quota, see billing (the server asks to wait 41 s)" in sim.halt.message
    assert not [f for f in sim.finished.values() if not isinstance(f.outcome, Overloaded)]


@pytest.mark.row(43)
def test_a_quota_by_the_minute_is_waited_for() -> None:
    def script(call: int, attempt: int, now: float) -> tuple[Outcome, float] | None:
        return (quota(60 - now % 60), 0.01) if now % 60 > 10 else None

    sim = Sim(fleet(1, script=script), 9)
    sim.keep_window(300, 32)
    sim.run()
    assert sim.halt is None
    assert all(isinstance(f.outcome, Ok) for f in sim.finished.values())
    assert sim.now < 600


def test_the_servers_words_are_why_it_is_paused() -> None:
    sim = Sim(fleet(1, script=lambda c, a, now: (Overloaded(429, "slow down, please", 41.0), 0.01)), 9)
    sim.keep_window(16, 16)
    while sim.flying:
        sim.step()
    [stats] = sim.scheduler.snapshots()
    assert stats.why == "open: overloaded (HTTP 429): slow down, please (the server asks to wait 41 s)"


# --- answers that cannot be read ---------------------------------------------------------------


@pytest.mark.parametrize("reason", ["bad_json", "bad_utf8"])
@pytest.mark.parametrize("calls", [1, 12, 100])
def test_a_server_whose_answers_were_never_readable_halts_with_a_sample(reason: str, calls: int) -> None:
    bad = (Transient(reason, "not a completion: <html>hello", max_attempts=3, paid=True), 0.05)
    sim = Sim(fleet(1, script=lambda c, a, now: bad), 9)
    sim.keep_window(calls, calls)
    sim.run()
    if calls == 1:  # nothing tells its fault from the server's
        assert isinstance(sim.finished[0].outcome, Transient)
        return
    assert sim.halt is not None
    assert sim.now < 60
    assert "<html>hello" in sim.halt.message
    assert not [f for f in sim.finished.values() if isinstance(f.outcome, Transient)][1:]


@pytest.mark.parametrize("share", [1, 2])
def test_unreadable_answers_are_charged_where_the_server_answers_others(share: int) -> None:
    """What is left at the end of a run may be unreadable all of it, and no good answer comes in between."""
    bad = (Transient("bad_json", "<html>blocked", max_attempts=3), 0.05)
    script: Script = lambda c, a, now: bad if c >= 0 and c % share == 0 else None  # noqa: E731
    sim = Sim(fleet(1, script=script), 9, check_all=True)
    sim.keep_window(200, 64)
    sim.run()
    assert sim.halt is None
    assert sim.now < 120
    for call, finish in sim.finished.items():
        assert finish.outcome == bad[0] if call % share == 0 else isinstance(finish.outcome, Ok)


def test_a_server_that_answered_well_before_is_waited_for() -> None:
    bad = (Transient("bad_json", "<html>maintenance", max_attempts=3), 0.05)
    sim = Sim(fleet(1, script=lambda c, a, now: bad if 10 < now < 1000 else None), 9)
    sim.keep_window(500, 16)
    sim.run()
    assert sim.halt is None
    assert all(isinstance(f.outcome, Ok) for f in sim.finished.values())


def test_a_stray_refusal_halts_nothing() -> None:
    refused = (Permanent("auth", "no", status=401, scope="server"), 0.05)
    sim = Sim(fleet(1, script=lambda c, a, now: refused if c % 10 == 0 and a == 1 else None), 9)
    sim.keep_window(500, 16)
    sim.run()
    assert sim.halt is None
    assert all(isinstance(f.outcome, Ok) for f in sim.finished.values())


def test_results_in_flight_at_a_halt_still_count() -> None:
    refused = (Permanent("auth", "no", status=401, scope="server"), 0.05)
    sim = Sim(fleet(1, script=lambda c, a, now: refused if c < 3 else None), 9)
    for call in range(10):
        sim.submit(call, "m")
    sim.run()
    assert sim.halt is not None
    while sim.flying:
        sim.step()
    assert {f.call_id for f in sim.finished.values()} >= set(range(3, 10))


# --- cost --------------------------------------------------------------------------------------


def lines_run(fn: object) -> int:
    """Python lines executed: a cost that does not depend on the machine."""
    count = 0

    def trace(frame: object, event: str, arg: object) -> object:
        nonlocal count
        count += event == "line"
        return trace

    old = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        fn()  # type: ignore[operator]
    finally:
        sys.settrace(old)
    return count


def cost_per_call(replicas: int, waiting: int, events: int = 400) -> float:
    sim = Sim(fleet(replicas), 0, [FixedLimit(4) for _ in range(replicas)])
    scheduler = sim.scheduler
    rng = random.Random(0)
    flying: list[int] = []
    ids = iter(range(10**9))

    def apply(actions: list[object]) -> None:
        flying.extend(a.call_id for a in actions if isinstance(a, Start))

    for _ in range(replicas * 4 - (2 if waiting == 0 else 0) + waiting):
        apply(scheduler.submit(next(ids), "m", rng.randrange(10), 0.0))

    def work() -> None:
        now = 0.0
        for _ in range(events):
            now += 0.1
            i = rng.randrange(len(flying))
            flying[i], flying[-1] = flying[-1], flying[i]
            call = flying.pop()
            bad = rng.random() < 0.1
            apply(scheduler.outcome(call, Transient("empty_content") if bad else Ok(None), now))
            apply(scheduler.submit(next(ids), "m", rng.randrange(10), now))
            apply(scheduler.tick(now))

    return lines_run(work) / events


@pytest.mark.parametrize("waiting", [0, 1])
def test_cost_of_an_event_does_not_grow_with_replicas(waiting: int) -> None:
    small, large = cost_per_call(4, 10 * waiting), cost_per_call(256, 10 * waiting)
    assert large < 2.0 * small, f"{small:.0f} lines with 4 replicas, {large:.0f} with 256"


@pytest.mark.slow
def test_cost_of_an_event_does_not_grow_with_waiting_calls() -> None:
    small, large = cost_per_call(8, 10), cost_per_call(8, 20_000)
    assert large < 1.5 * small, f"{small:.0f} lines with 10 waiting, {large:.0f} with 20,000"


def test_mass_cancellation_is_cheap() -> None:
    """Cancelling n waiting calls costs O(n) in all, and their entries do not stay behind."""

    def cost(n: int) -> float:
        scheduler = Scheduler([ReplicaSpec("s", M, FixedLimit(1))], RetryPolicy(), random.Random(0))
        for call in range(n):
            scheduler.submit(call, "m", 0, 0.0)
        total = lines_run(lambda: [scheduler.cancel(call, 0.0) for call in range(n - 1, 0, -1)])
        assert len(scheduler._queues["m"]._heap) <= 64
        return total / n

    assert cost(4000) < 2 * cost(500)


def test_finish_is_told_with_the_final_outcome() -> None:
    scheduler = Scheduler([ReplicaSpec("s", M, FixedLimit(1))], RetryPolicy(), random.Random(0))
    scheduler.submit(0, "m", 0, 0.0)
    ok = Ok("text")
    assert scheduler.outcome(0, ok, 1.0) == [Finish(0, ok, 1)]
    assert scheduler.outcome(0, ok, 1.0) == []
    assert scheduler.next_tick() is None
