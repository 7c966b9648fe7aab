"""Which replica gets a call: reported loads, prefix caches, servers that join and leave, published rates."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest

from asyncsynth.core.calls import PASSES
from asyncsynth.core.limiter import FixedLimit, Limiter
from asyncsynth.core.outcomes import Ok, ServerLoad, Transient
from asyncsynth.core.rates import RateLimits
from asyncsynth.core.retry import RetryPolicy
from tests.kit.simulation import Sim, SimServer

M = frozenset({"m"})


def fleet(n: int, limit: int = 16, **kwargs: object) -> Sim:
    servers = [SimServer(f"s{i}", M, **kwargs) for i in range(n)]  # type: ignore[arg-type]
    limits: list[Limiter] = [FixedLimit(limit) for _ in range(n)]
    return Sim(servers, 3, limits)


def report(sim: Sim, name: str, waiting: int, running: int | None, kv: float | None) -> None:
    sim.act(sim.scheduler.report_load(name, ServerLoad(waiting, running, kv, sim.now), sim.now))


# --- reported loads ------------------------------------------------------------------------------


def test_a_server_that_others_keep_busy_gets_less() -> None:
    sim = fleet(2, limit=100)
    report(sim, "s0", 0, 40, 0.2)
    for call in range(40):
        sim.submit(call, "m")
    assert [s.busy for s in sim.servers] == [0, 40]
    for call in range(40, 60):
        sim.submit(call, "m")
    assert [s.busy for s in sim.servers] == [10, 50], "what we sent since the report counts"


def test_a_queue_weighs_more_the_fuller_the_cache_is() -> None:
    sim = fleet(2, limit=100)
    report(sim, "s0", 4, 6, 1.0)  # 10 + 6 * 4 * 0.5 = 22
    report(sim, "s1", 0, 20, 1.0)
    sim.submit(0, "m")
    sim.submit(1, "m")
    assert [s.busy for s in sim.servers] == [0, 2]
    sim.submit(2, "m")
    sim.submit(3, "m")
    assert sim.servers[0].busy >= 1


def test_loads_of_unequal_servers_compare_by_their_limits() -> None:
    servers = [SimServer("small", M), SimServer("large", M)]
    sim = Sim(servers, 3, [FixedLimit(10), FixedLimit(100)])
    report(sim, "large", 0, 20, 0.1)  # 0.2 of its limit; "small" reports nothing
    for call in range(5):
        sim.submit(call, "m")
    assert servers[0].busy == 2 or servers[0].busy == 3


def test_an_old_report_counts_no_more() -> None:
    sim = fleet(2, limit=100)
    report(sim, "s0", 0, 90, 0.2)
    sim.submit(0, "m")
    assert sim.scheduler.next_tick() == 5.0
    sim.now = 5.0
    sim.act(sim.scheduler.tick(5.0))
    sim.submit(1, "m")
    assert [s.busy for s in sim.servers] == [1, 1]
    late = ServerLoad(0, 90, 0.2, at=1.0)
    assert sim.scheduler.report_load("s0", late, 7.0) == []
    assert sim.scheduler.replicas[0].report is None
    assert sim.scheduler.report_load("unknown", late, 1.0) == []


def test_our_own_share_of_a_report_goes_with_our_calls() -> None:
    sim = fleet(2, limit=100)
    for call in range(20):
        sim.submit(call, "m")
    report(sim, "s0", 0, 10, 0.2)  # these are ours
    sim.now = 0.1
    for call in [c for c, where in sim.flying.items() if where == 0]:
        sim.flying.pop(call)
        sim.servers[0].busy -= 1
        sim.act(sim.scheduler.outcome(call, Ok(None), 0.1))
    assert sim.scheduler.replicas[0].load() == 0.0


# --- prefix caches -------------------------------------------------------------------------------


def hits(affine: bool, families: int, cache: int = 16) -> tuple[float, Sim]:
    """Share of calls that start on a replica which saw their family within its last `cache` families."""
    sim = fleet(4, limit=8)
    rng = random.Random(7)
    family = {call: rng.randrange(1, families + 1) for call in range(4000)}
    seen: list[deque[int]] = [deque(maxlen=cache) for _ in sim.servers]
    found = 0

    def script(i: int, call: int) -> None:
        nonlocal found
        found += family[call] in seen[i]
        if family[call] in seen[i]:
            seen[i].remove(family[call])
        seen[i].append(family[call])

    for i, server in enumerate(sim.servers):
        server.script = lambda call, attempt, now, i=i: script(i, call)  # type: ignore[misc]
    todo = iter(range(4000))

    def more(finish: object = None) -> None:
        call = next(todo, None)
        if call is not None:
            sim.submit(call, "m", priority=call, affinity=family[call] if affine else 0)

    sim.on_finish = more
    for _ in range(96):
        more()
    sim.run()
    return found / 4000, sim


def test_families_stay_together_when_slots_are_short() -> None:
    plain, before = hits(False, 60)
    with_affinity, after = hits(True, 60)
    assert plain < 0.35
    assert with_affinity > 0.6
    assert after.now < 1.03 * before.now, "and no slot was left idle for it"


def test_preference_for_a_prefix_starves_nobody() -> None:
    """One call belongs elsewhere, and calls of the free replica's own families keep coming: it still gets its turn."""
    sim = fleet(2, limit=1)
    balancer = sim.scheduler._balancer
    home = {n: r.index for n in range(1, 40) if (r := balancer.home("m", n)) is not None}
    own = next(n for n, i in home.items() if i == 0)
    other = next(n for n, i in home.items() if i == 1)
    sim.servers[1].script = lambda call, attempt, now: (Ok(None), 1e6)  # its home is busy for ever
    sim.submit(0, "m", affinity=other)
    sim.submit(1, "m", affinity=own)
    sim.submit(2, "m", affinity=other)  # waits
    sim.on_finish = lambda finish: sim.submit(finish.call_id + 100, "m", affinity=own)
    sim.submit(3, "m", affinity=own)
    while 2 not in sim.finished:
        sim.step()
    assert len(sim.finished) <= 20


def test_priorities_hold_within_a_family_and_bend_little_between_them() -> None:
    order: list[int] = []
    sim = fleet(2, limit=1, script=lambda call, attempt, now: order.append(call))
    sim.submit(0, "m")
    sim.submit(1, "m")
    for call in range(2, 200):
        sim.submit(call, "m", priority=call, affinity=call % 7 + 1)
    sim.run()
    for family in range(7):
        own = [call for call in order if call >= 2 and call % 7 == family]
        assert own == sorted(own)
    assert all(order.index(call) <= (PASSES + 1) * call for call in range(2, 200)), "the bound that WaitQueue promises"
    assert order.index(2) <= 2 + PASSES


def test_few_families_move_when_a_replica_joins() -> None:
    sim = fleet(4)
    balancer = sim.scheduler._balancer
    before = {n: balancer.home("m", n) for n in range(1, 2001)}
    spread = Counter(home.name for home in before.values() if home)
    assert min(spread.values()) > 250
    sim.add(SimServer("s4", M), FixedLimit(16))
    moved = [n for n in before if balancer.home("m", n) is not before[n]]
    assert 200 < len(moved) < 650
    assert {h.name for n in moved if (h := balancer.home("m", n))} == {"s4"}


# --- servers that join and leave -----------------------------------------------------------------


def test_a_joining_server_takes_what_waits() -> None:
    sim = fleet(1, limit=2)
    for call in range(6):
        sim.submit(call, "m")
    sim.add(SimServer("s1", M), FixedLimit(3))
    assert [s.busy for s in sim.servers] == [2, 3]
    with pytest.raises(ValueError, match="s1"):
        sim.add(SimServer("s1", M), FixedLimit(3))
    sim.servers.pop()
    sim.run()


def test_a_leaving_server_drains() -> None:
    sim = fleet(2, limit=2)
    for call in range(8):
        sim.submit(call, "m")
    sim.act(sim.scheduler.remove_replica("s0", 0.0))
    assert sim.servers[0].busy == 2
    sim.run()
    assert sim.servers[0].requests == 2
    assert all(isinstance(f.outcome, Ok) and f.attempts == 1 for f in sim.finished.values())
    assert [s.name for s in sim.scheduler.snapshots()] == ["s1"]
    with pytest.raises(KeyError):
        sim.scheduler.remove_replica("s0", 0.0)


def test_calls_of_a_model_without_servers_wait_for_one_and_not_for_ever() -> None:
    for joins in (True, False):
        sim = Sim([SimServer("s0", M), SimServer("o", frozenset({"o"}))], policy=RetryPolicy(outage_limit_s=600))
        sim.act(sim.scheduler.remove_replica("s0", 0.0))
        sim.submit(0, "m")
        sim.now = 300.0
        sim.act(sim.scheduler.tick(300.0))
        assert sim.halt is None
        if joins:
            sim.add(SimServer("s2", M), FixedLimit(2))
        sim.run()
        assert (sim.halt is None) is joins
        assert bool(sim.finished) is joins


def test_a_server_that_stays_down_ends_the_run_only_when_somebody_waits_for_it() -> None:
    sim = Sim([SimServer("s0", M)], policy=RetryPolicy(outage_limit_s=600))
    sim.act(sim.scheduler.replica_down("s0", 0.0))
    sim.now = 1000.0
    sim.act(sim.scheduler.tick(1000.0))
    assert sim.halt is None
    sim.submit(0, "m")
    sim.run()
    assert sim.halt is not None
    assert "no answer for 10 min" in sim.halt.message


@pytest.mark.parametrize("others", ["none", "ready", "restarting", "lost"])
def test_a_server_that_is_given_up_ends_the_run_at_once_where_nobody_else_can_answer(others: str) -> None:
    names = ["s0"] if others == "none" else ["s0", "s1"]
    sim = Sim([SimServer(name, M) for name in names], 3, [FixedLimit(2) for _ in names])
    for call in range(8):
        sim.submit(call, "m")
    if others in ("restarting", "lost"):
        sim.act(sim.scheduler.replica_down("s1", 0.0, "crashed"))
    sim.act(sim.scheduler.replica_down("s0", 0.0, "crashed"))
    sim.act(sim.scheduler.replica_lost("s0", 1.0, "crashed too often"))
    assert (sim.halt is None) is (others != "none")
    if others == "lost":
        sim.act(sim.scheduler.replica_lost("s1", 1.0, "crashed too often"))
    elif others == "restarting":
        sim.act(sim.scheduler.replica_up("s1", 1.0))
    if others in ("none", "lost"):
        assert sim.halt is not None
        assert sim.halt.message == f"{names[-1]} is not started again: crashed too often"
    else:
        sim.run()
        assert sim.halt is None
        assert len(sim.finished) == 8


def test_what_was_in_flight_on_a_server_that_is_given_up_goes_to_the_last_one_at_once() -> None:
    dead: list[bool] = []
    dying = SimServer("s0", M, ending=lambda outcome, now: Transient("reset") if dead else outcome)
    sim = Sim([dying, SimServer("s1", M)], 3, [FixedLimit(8), FixedLimit(8)])
    for call in range(64):
        sim.submit(call, "m")
    sim.run(until=2.0)
    assert dying.busy
    dead.append(True)
    sim.act(sim.scheduler.replica_down("s0", sim.now, "killed"))
    sim.run(until=4.0)
    sim.act(sim.scheduler.replica_lost("s0", sim.now, "killed"))
    sim.run(until=60.0)
    assert len(sim.finished) == 64
    assert all(isinstance(finish.outcome, Ok) for finish in sim.finished.values())


def test_a_server_that_is_given_up_is_missed_only_when_a_call_comes() -> None:
    sim = Sim([SimServer("s0", M), SimServer("o", frozenset({"o"}))])
    sim.act(sim.scheduler.replica_lost("s0", 0.0, "crashed too often"))
    sim.submit(0, "o")
    while not sim.finished:
        sim.step()
    assert sim.halt is None
    sim.submit(1, "m")
    asked_at = sim.now
    sim.run()
    assert sim.halt is not None
    assert sim.now <= asked_at + 1.0


# --- published rates -----------------------------------------------------------------------------


def most_in_a_minute(starts: list[tuple[float, float]]) -> float:
    most, total, first = 0.0, 0.0, 0
    for at, amount in starts:
        total += amount
        while starts[first][0] <= at - 60:
            total -= starts[first][1]
            first += 1
        most = max(most, total)
    return most


@pytest.mark.parametrize("rpm", [3, 60, 1000])
def test_requests_never_exceed_the_rate_in_any_minute_and_come_near(rpm: int) -> None:
    starts: list[tuple[float, float]] = []
    server = SimServer("s0", M, script=lambda call, attempt, now: starts.append((now, 1.0)))  # type: ignore[func-returns-value]
    sim = Sim([server], 3, [FixedLimit(256)], rates=RateLimits(requests_per_minute=rpm))
    sim.keep_window(10**9, 300)
    sim.run(until=900)
    assert most_in_a_minute(starts) <= rpm
    assert len(starts) >= 0.95 * rpm * 15
    assert server.most < 256, "a call that waits for the rate holds no slot"


@pytest.mark.parametrize("seed", range(5))
def test_tokens_never_exceed_the_rate_in_any_minute(seed: int) -> None:
    """Estimates are upper bounds; what is not used is given back."""
    rng = random.Random(seed)
    size = {call: rng.choice([50, 400, 3000]) for call in range(10_000)}
    used = {call: int(n * rng.uniform(0.3, 1.0)) for call, n in size.items()}
    starts: list[tuple[float, float]] = []

    def script(call: int, attempt: int, now: float) -> tuple[Ok, float] | None:
        if rng.random() < 0.05:
            starts.append((now, size[call]))
            return Transient("empty_content"), 0.5  # type: ignore[return-value]
        starts.append((now, used[call]))
        return Ok(None, tokens=used[call] // 2, prompt_tokens=used[call] - used[call] // 2), rng.uniform(0.2, 3)

    sim = Sim([SimServer("s0", M, script=script)], seed, [FixedLimit(64)], rates=RateLimits(None, 30_000))
    todo = iter(size)

    def more(finish: object = None) -> None:
        call = next(todo)
        sim.submit(call, "m", call, tokens=size[call])

    sim.on_finish = more
    for _ in range(64):
        more()
    sim.run(until=900)
    assert most_in_a_minute(starts) <= 30_000, f"seed={seed}"
    assert sum(n for _, n in starts) >= 0.85 * 30_000 * 15, f"seed={seed}"


def test_an_underestimate_is_paid_for_afterwards() -> None:
    script = lambda call, attempt, now: (Ok(None, tokens=500, prompt_tokens=500), 1.0)  # noqa: E731
    sim = Sim([SimServer("s0", M, script=script)], 3, [FixedLimit(2)], rates=RateLimits(None, 10_000))
    sim.keep_window(10**9, 4)
    sim.run(until=600)
    assert len(sim.finished) <= 10 * 11 + 12


def test_the_next_tick_is_exactly_when_the_rate_allows() -> None:
    sim = Sim([SimServer("s0", M)], 3, [FixedLimit(8)], rates=RateLimits(requests_per_minute=6))
    for call in range(3):
        sim.submit(call, "m")
    due = sim.scheduler.next_tick()
    assert due is not None
    before = sim.servers[0].requests
    assert sim.scheduler.tick(due - 1e-3) == []
    sim.now = due
    sim.act(sim.scheduler.tick(due))
    assert sim.servers[0].requests == before + 1


def test_a_call_that_waits_for_the_rate_leaves_room_when_it_goes() -> None:
    """A large call closes the gate; when it is cancelled, small ones start at once."""
    sim = Sim([SimServer("s0", M)], 3, [FixedLimit(8)], rates=RateLimits(None, 1000))
    sim.submit(0, "m", tokens=100)
    sim.submit(1, "m", tokens=950)
    sim.submit(2, "m", tokens=50)
    assert set(sim.flying) == {0}
    sim.cancel(1)
    assert set(sim.flying) == {0, 2}


def test_rates_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="requests_per_minute"):
        RateLimits(0)
