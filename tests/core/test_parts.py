"""The scheduler's parts on their own: policy, budget, limiter, window, statistics."""

from __future__ import annotations

import math
import random

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from asyncsynth.core.calls import Call
from asyncsynth.core.limiter import FixedLimit
from asyncsynth.core.outcomes import Ok, Outcome, Overloaded, Permanent, Transient
from asyncsynth.core.retry import AttemptState, GiveUp, RetryAt, RetryBudget, RetryPolicy, decide
from asyncsynth.core.states import GONE, SLEEPING
from asyncsynth.core.stats import Histogram, Tally
from asyncsynth.core.timers import Timers
from asyncsynth.core.window import Window


class Top:
    """Always the top of the range, so that a delay shows its bound."""

    def random(self) -> float:
        return 1.0 - 1e-12


def verdict(outcome: Outcome, charged: int = 0, now: float = 0.0, **state: int) -> RetryAt | GiveUp:
    return decide(RetryPolicy(), outcome, AttemptState(0.0, charged, **state), now, Top())


def test_charged_delays_double_up_to_a_minute() -> None:
    delays = [verdict(Transient("reset"), charged).delay_s for charged in range(7)]  # type: ignore[union-attr]
    assert delays == pytest.approx([0.5, 1, 2, 4, 8, 16, 32])
    assert verdict(Transient("reset"), 7) == GiveUp("attempts")


def test_jitter_is_full() -> None:
    rng = random.Random(1)
    delays = [
        decide(RetryPolicy(), Transient("reset"), AttemptState(0.0, 3), 0.0, rng).delay_s  # type: ignore[union-attr]
        for _ in range(2000)
    ]
    assert min(delays) < 0.1
    assert max(delays) > 3.9
    assert sum(delays) / 2000 == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("outcome", "charged", "expected"),
    [
        (Permanent("bad_request"), 0, GiveUp("permanent")),
        (Permanent("auth", scope="server"), 0, "retry"),
        (Permanent("auth", scope="server"), 2, GiveUp("attempts")),
        (Transient("bad_json", max_attempts=3), 1, "retry"),
        (Transient("bad_json", max_attempts=3), 2, GiveUp("attempts")),
    ],
)
def test_who_gives_up_when(outcome: Outcome, charged: int, expected: GiveUp | str) -> None:
    got = verdict(outcome, charged)
    assert isinstance(got, RetryAt) if expected == "retry" else got == expected


def test_overload_is_never_charged_nor_given_up() -> None:
    got = verdict(Overloaded(429), charged=7, now=1e6, overloads=1000)
    assert isinstance(got, RetryAt)
    assert not got.charged
    assert got.delay_s <= 60


def test_retry_after_is_obeyed_and_capped() -> None:
    for asked, least in ((7.0, 7.0), (1e9, 300.0)):
        for outcome in (Overloaded(429, retry_after=asked), Transient("server_error", retry_after=asked)):
            got = verdict(outcome)
            assert isinstance(got, RetryAt)
            assert least <= got.delay_s <= least + 1


def test_free_once() -> None:
    outcome = Transient("reset", free=True)
    assert verdict(outcome) == RetryAt(0.0, charged=False)
    again = decide(RetryPolicy(), outcome, AttemptState(0.0, free_used=True), 0.0, Top())
    assert isinstance(again, RetryAt)
    assert again.charged


def test_the_deadline_ends_a_record() -> None:
    assert verdict(Transient("reset"), charged=1, now=3599.5) == GiveUp("deadline")


def test_the_users_tenacity_strategies_are_asked() -> None:
    def stop_on_500(state: tenacity.RetryCallState) -> bool:
        assert state.outcome is not None
        return state.outcome.exception().outcome.status == 500  # type: ignore[union-attr]

    policy = RetryPolicy(wait=tenacity.wait_fixed(3), stop=tenacity.stop_any(stop_on_500))  # type: ignore[arg-type]
    assert decide(policy, Transient("server_error", status=500), AttemptState(0.0), 0.0, Top()) == GiveUp("attempts")
    got = decide(policy, Transient("server_error", status=502), AttemptState(0.0), 0.0, Top())
    assert got == RetryAt(pytest.approx(3.0), charged=True)
    late = RetryPolicy(stop=tenacity.stop_after_delay(10))
    assert decide(late, Transient("reset"), AttemptState(5.0), 15.5, Top()) == GiveUp("attempts")


def test_an_ok_is_not_decided_about() -> None:
    with pytest.raises(ValueError, match="failed attempts"):
        verdict(Ok(None))


@given(st.lists(st.tuples(st.sampled_from(["first", "take"]), st.floats(0, 5)), max_size=200))
def test_a_budget_is_never_overdrawn(events: list[tuple[str, float]]) -> None:
    budget, now, firsts, taken = RetryBudget(0.1, 1.0), 0.0, 0, 0
    budget.next_at(0.0)
    for what, dt in events:
        now += dt
        if what == "first":
            firsts += 1
            budget.on_first_attempt()
        else:
            promised = budget.next_at(now)
            got = budget.try_take(now)
            assert got == (promised <= now + 1e-5)
            taken += got
        assert taken <= 10 + 0.1 * firsts + now + 1e-3


def test_a_budget_keeps_its_promise() -> None:
    budget = RetryBudget(0.1, 0.3)
    while budget.try_take(0.0):
        pass
    assert budget.try_take(budget.next_at(0.0))


def test_fixed_limit_cuts_once_per_episode() -> None:
    limit = FixedLimit(100)
    for started in (0.0, 0.5, 0.9):
        limit.on_overload(1.0, started)
    assert limit.limit == 80
    limit.on_overload(2.0, 1.5)
    assert limit.limit == 64


def test_fixed_limit_grows_only_while_it_binds() -> None:
    limit = FixedLimit(10)
    limit.on_overload(1.0, 0.0)
    for _ in range(100):
        limit.on_ok(2.0, 7, 1)
    assert limit.limit == 8
    for _ in range(8):
        limit.on_ok(2.0, limit.limit, 1)
    assert limit.limit == 9
    for _ in range(100):
        limit.on_ok(2.0, limit.limit, 1)
    assert limit.limit == 10
    assert "fixed" not in limit.explain()


def test_fixed_limit_never_leaves_its_bounds() -> None:
    rng = random.Random(3)
    limit, now = FixedLimit(20), 0.0
    for _ in range(5000):
        now += 1
        if rng.random() < 0.05:
            limit.on_overload(now, now - 0.5)
        else:
            limit.on_ok(now, rng.randint(1, 20), 1)
        assert 1 <= limit.limit <= 20
    with pytest.raises(ValueError, match="at least 1"):
        FixedLimit(0)


@pytest.mark.row(19)
@given(st.integers(1, 5), st.integers(1, 100), st.lists(st.tuples(st.booleans(), st.integers(0, 150)), max_size=60))
def test_a_window_admits_within_its_bounds(records: int, size: int, events: list[tuple[bool, int]]) -> None:
    window, held = Window(records, size), list[int]()
    for take, nbytes in events:
        if take:
            room, full, alone = window.room, window.held >= size, window.in_flight == 0
            got = window.try_take()
            assert got == (room > 0)
            assert got or not alone, "one record is always admitted"
            assert not got or alone or not full
            if got:
                window.charge(nbytes)
                held.append(nbytes)
        elif held:
            window.release(held.pop())
        assert window.in_flight == len(held) <= records
        assert window.held == sum(held)


def test_a_window_refuses_wrong_accounts() -> None:
    window = Window(2, 10)
    for wrong in (lambda: window.release(0), lambda: window.charge(1), lambda: Window(0, 1)):
        with pytest.raises(ValueError, match=r"without|at least"):
            wrong()
    assert window.try_take()
    window.charge(5)
    with pytest.raises(ValueError, match="held"):
        window.release(6)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200), st.floats(0, 1))
def test_quantiles_are_within_five_percent(values: list[float], q: float) -> None:
    exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    assert Histogram(values).quantile(q) == pytest.approx(exact, rel=0.05)


@given(st.lists(st.floats(0, 1e6)), st.lists(st.floats(0, 1e6)))
def test_merged_histograms_are_the_histogram_of_all(left: list[float], right: list[float]) -> None:
    merged = Histogram(left)
    merged.merge(Histogram(right))
    whole = Histogram(left + right)
    assert (merged.buckets, merged.count, merged.minimum, merged.maximum) == (
        whole.buckets, whole.count, whole.minimum, whole.maximum,
    )  # fmt: skip
    assert merged.total == pytest.approx(whole.total)


def test_histogram_edges() -> None:
    empty = Histogram()
    assert (empty.quantile(0.5), empty.mean) == (0.0, 0.0)
    with pytest.raises(ValueError, match="finite"):
        empty.add(math.nan)
    with pytest.raises(ValueError, match="between 0 and 1"):
        empty.quantile(2)


def test_tallies_merge() -> None:
    tally = Tally({"reset": 2})
    tally.merge(Tally({"reset": 1, "timeout": 4}))
    assert tally == {"reset": 3, "timeout": 4}


@given(
    st.lists(st.tuples(st.sampled_from(["wake", "gone", "tick"]), st.integers(0, 5), st.floats(0.0, 10.0)), max_size=60)
)
def test_a_driver_that_asks_only_after_something_was_added_misses_no_timer(
    events: list[tuple[str, int, float]],
) -> None:
    """How the pool uses `soonest`: its timer is never later than the next timer that is due."""
    timers = Timers()
    calls = [Call(number, "m", 0, 0, 0, number) for number in range(6)]
    now, set_for = 0.0, math.inf

    def arm() -> None:
        nonlocal set_for
        due = timers.next()
        if due is not None and due < set_for:
            set_for = due

    for what, number, delay in events:
        call = calls[number]
        if what == "wake":
            call.state = SLEEPING
            timers.wake(call, now + delay)
        elif what == "gone":
            call.state = GONE
        else:
            now += delay
            if set_for <= now:
                set_for = math.inf
                for target, _ in timers.due(now):
                    assert isinstance(target, Call)
                    target.state = GONE
                arm()
        if timers.soonest < set_for:
            arm()
        sleeping = [call.wake_at for call in calls if call.state is SLEEPING]
        assert set_for <= min(sleeping, default=math.inf)
