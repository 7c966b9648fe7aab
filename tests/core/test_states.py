"""Every row of the tables of states, reached through the scheduler's events; and nothing that is not in a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
from tenacity import stop_after_attempt

from asyncsynth.core import states
from asyncsynth.core.calls import Call
from asyncsynth.core.limiter import FixedLimit
from asyncsynth.core.outcomes import Ok, Outcome, Overloaded, Transient
from asyncsynth.core.retry import RetryBudget, RetryPolicy
from asyncsynth.core.scheduler import ReplicaSpec, Scheduler
from asyncsynth.core.states import (
    ANSWER,
    CALL,
    CANCEL,
    CLOSED,
    CRASH,
    DOWN,
    EXPLAIN,
    FINISH,
    GONE,
    HALF_OPEN,
    HELD,
    HOLD,
    IN_FLIGHT,
    NEW,
    OPEN,
    PAUSE,
    QUEUE,
    REMOVE,
    REMOVED,
    REPLICA,
    SLEEP,
    SLEEPING,
    START,
    STARVE,
    STARVED,
    SUSPICION,
    TAKE_DOWN,
    TRY,
    WAITING,
    Degree,
)

RESET = Transient("reset", "died")
ERROR = Transient("server_error", "500", status=500)
FREE = Transient("reset", "died", free=True)
ONCE = RetryPolicy(stop=stop_after_attempt(1))
PATIENT = RetryPolicy(stop=stop_after_attempt(99))

Act = Callable[[], object]


class Never:
    """The shortest delay there is."""

    def random(self) -> float:
        return 0.0


class Desk:
    """A scheduler whose events are made by hand, and its calls, also those that are over."""

    def __init__(self, limit: int = 1, replicas: int = 1, policy: RetryPolicy = PATIENT) -> None:
        specs = [ReplicaSpec(f"s{i}", frozenset({"m", f"only-s{i}"}), FixedLimit(limit)) for i in range(replicas)]
        self.scheduler = Scheduler(specs, policy, Never())
        self.now = 0.0
        self.calls: dict[int, Call] = {}
        self.ticks = 0

    def submit(self, *ids: int, model: str = "m", priority: int = 0) -> None:
        for call_id in ids:
            self.scheduler.submit(call_id, model, priority, self.now)
            self.calls[call_id] = self.scheduler._calls[call_id]

    def end(self, call_id: int, outcome: Outcome) -> None:
        self.scheduler.outcome(call_id, outcome, self.now)

    def tick(self) -> None:
        self.ticks += 1
        due = self.scheduler.next_tick()
        assert due is not None and self.ticks < 300, "what it waits for does not come"  # noqa: PT018
        self.now = max(self.now, due)
        self.scheduler.tick(self.now)

    def down(self, i: int = 0) -> None:
        self.scheduler.replica_down(f"s{i}", self.now)

    def up(self, i: int = 0) -> None:
        self.scheduler.replica_up(f"s{i}", self.now)

    def state(self, i: int = 0) -> str:
        return self.scheduler.replicas[i].breaker.state

    def degree(self, call_id: int) -> Degree:
        retry = self.calls[call_id].retry
        return Degree.NONE if retry is None else retry.degree

    def refuse(self, call_id: int, times: int) -> None:
        """The server refuses it several times as full, and it comes back each time."""
        for _ in range(times):
            while self.calls[call_id].state != IN_FLIGHT:
                self.tick()
            self.end(call_id, Overloaded(503, "busy"))

    def open(self, *others: int) -> None:
        """Open the one replica's breaker: call 0 is refused three times; `others` wait meanwhile."""
        self.submit(0)
        self.refuse(0, 3)
        self.submit(*others)
        assert self.state() == OPEN

    def crash(self, *ids: int) -> None:
        """The server dies with these in flight, and is back at once; then they are due."""
        for call_id in ids:
            assert self.calls[call_id].state == IN_FLIGHT
            self.end(call_id, RESET)
        self.down()
        self.up()
        while any(self.calls[call_id].state == SLEEPING for call_id in ids):
            self.tick()

    def convict(self, call_id: int) -> Act:
        """It has died alone twice but for the last event."""
        self.die_alone(call_id)
        self.down()
        self.up()
        self.die_alone(call_id)
        return self.down

    def die_alone(self, call_id: int) -> None:
        assert self.scheduler.replicas[0].health.solo is self.calls[call_id]
        self.end(call_id, RESET)
        assert self.calls[call_id].state == HELD

    # --- calls in a state -------------------------------------------------------------------------

    def sleeping(self) -> None:
        self.submit(0)
        self.end(0, ERROR)

    def starved(self) -> None:
        self.scheduler.replicas[0].budget = RetryBudget(0.0, 0.01, start=0.0)
        self.sleeping()
        self.tick()

    def held(self) -> None:
        self.submit(0, 1)
        self.end(0, ERROR)


def scenario_call(row: tuple[str, str]) -> tuple[Desk, int, Act]:
    """A desk, a call in the row's first state, and the event that moves it."""
    match row:
        case (states.NEW, states.START):
            desk = Desk()
            return desk, 0, lambda: desk.submit(0)
        case (states.NEW, states.QUEUE):
            desk = Desk()
            desk.submit(0)
            return desk, 1, lambda: desk.submit(1)
        case (states.WAITING, states.START):
            desk = Desk()
            desk.submit(0, 1)
            return desk, 1, lambda: desk.end(0, Ok(None))
        case (
            states.WAITING,
            states.QUEUE,
        ):  # both have tested a server in vain; one of them starts when the server is back
            desk = Desk()
            desk.open(1)
            for call_id in (0, 1):
                while desk.calls[call_id].state != IN_FLIGHT:
                    desk.tick()
                desk.end(call_id, ERROR)
            return desk, 1, desk.up
        case (states.WAITING, states.CANCEL):
            desk = Desk()
            desk.submit(0, 1)
            return desk, 1, lambda: desk.scheduler.cancel(1, 0.0)
        case (states.IN_FLIGHT, states.START):
            desk = Desk()
            desk.submit(0)
            return desk, 0, lambda: desk.end(0, FREE)
        case (states.IN_FLIGHT, states.QUEUE):
            desk = Desk()
            desk.submit(0)
            desk.submit(1, priority=-1)
            return desk, 0, lambda: desk.end(0, FREE)
        case (states.IN_FLIGHT, states.SLEEP):
            desk = Desk()
            desk.submit(0)
            return desk, 0, lambda: desk.end(0, ERROR)
        case (states.IN_FLIGHT, states.HOLD):
            desk = Desk(2, policy=ONCE)
            desk.submit(0, 1)
            return desk, 0, lambda: desk.end(0, ERROR)
        case (states.IN_FLIGHT, states.FINISH):
            desk = Desk()
            desk.submit(0)
            return desk, 0, lambda: desk.end(0, Ok(None))
        case (states.IN_FLIGHT, states.CANCEL):
            desk = Desk()
            desk.submit(0)
            return desk, 0, lambda: desk.scheduler.cancel(0, 0.0)
        case (states.SLEEPING, states.START):
            desk = Desk()
            desk.sleeping()
            return desk, 0, desk.tick
        case (states.SLEEPING, states.QUEUE):
            desk = Desk()
            desk.sleeping()
            desk.submit(1)
            return desk, 0, desk.tick
        case (states.SLEEPING, states.STARVE):
            desk = Desk()
            desk.scheduler.replicas[0].budget = RetryBudget(0.0, 0.01, start=0.0)
            desk.sleeping()
            return desk, 0, desk.tick
        case (states.SLEEPING, states.CANCEL):
            desk = Desk()
            desk.sleeping()
            return desk, 0, lambda: desk.scheduler.cancel(0, 0.0)
        case (states.STARVED, states.START):
            desk = Desk()
            desk.starved()
            return desk, 0, lambda: desk.scheduler.tick(1000.0)
        case (states.STARVED, states.QUEUE):
            desk = Desk()
            desk.starved()
            desk.submit(1)
            return desk, 0, lambda: desk.scheduler.tick(1000.0)
        case (states.STARVED, states.CANCEL):
            desk = Desk()
            desk.starved()
            return desk, 0, lambda: desk.scheduler.cancel(0, 0.0)
        case (states.HELD, states.START):
            desk = Desk(4, replicas=2, policy=ONCE)
            desk.submit(0, 1, 2, 3)
            desk.end(0, Transient("timeout", "no answer"))  # says nothing of a crash, so that it is no suspect
            return desk, 0, lambda: desk.down(desk.calls[0].replica)
        case (states.HELD, states.QUEUE):
            desk = Desk(2, policy=ONCE)
            desk.held()
            return desk, 0, desk.down
        case (states.HELD, states.SLEEP):
            desk = Desk()
            desk.submit(0)
            desk.crash(0)
            desk.crash(0)
            desk.die_alone(0)
            return desk, 0, desk.up
        case (states.HELD, states.FINISH):
            desk = Desk(2, policy=ONCE)
            desk.held()
            return desk, 0, lambda: desk.end(1, Ok(None))
        case (states.HELD, states.CANCEL):
            desk = Desk(2, policy=ONCE)
            desk.held()
            return desk, 0, lambda: desk.scheduler.cancel(0, 0.0)
    raise AssertionError(f"the table has a row without a scenario: {row}")


CALL_ROWS = [
    (NEW, START), (NEW, QUEUE),
    (WAITING, START), (WAITING, QUEUE), (WAITING, CANCEL),
    (IN_FLIGHT, START), (IN_FLIGHT, QUEUE), (IN_FLIGHT, SLEEP), (IN_FLIGHT, HOLD), (IN_FLIGHT, FINISH),
    (IN_FLIGHT, CANCEL),
    (SLEEPING, START), (SLEEPING, QUEUE), (SLEEPING, STARVE), (SLEEPING, CANCEL),
    (STARVED, START), (STARVED, QUEUE), (STARVED, CANCEL),
    (HELD, START), (HELD, QUEUE), (HELD, SLEEP), (HELD, FINISH), (HELD, CANCEL),
]  # fmt: skip


@pytest.mark.parametrize("row", CALL_ROWS, ids=" ".join)
def test_each_move_of_a_call(row: tuple[Any, Any]) -> None:
    desk, call_id, act = scenario_call(row)
    if row[0] == NEW:
        assert call_id not in desk.calls
        assert Call(7, "m", 0, 0, 0, 7).state == NEW
    else:
        assert desk.calls[call_id].state == row[0]
    attempts = desk.calls[call_id].attempts if call_id in desk.calls else 0
    act()
    call = desk.calls[call_id]
    assert call.state == CALL[row]
    assert call.attempts == attempts + (row[1] == START)
    assert (call_id in desk.scheduler._calls) is (call.state != GONE)


def scenario_replica(row: tuple[str, str]) -> tuple[Desk, Act, str]:
    """A desk whose replica is in the row's first state, the event that moves it, and where that ends."""
    desk = Desk()
    match row:
        case (states.CLOSED, states.PAUSE):
            desk.submit(0)
            desk.refuse(0, 2)
            while desk.calls[0].state != IN_FLIGHT:
                desk.tick()
            return desk, lambda: desk.refuse(0, 1), OPEN
        case (states.CLOSED, states.ANSWER):
            return desk, desk.up, CLOSED
        case (states.OPEN, states.PAUSE):  # paused once more, and then taken down
            desk.open()
            return desk, desk.down, DOWN
        case (states.OPEN, states.TRY):
            desk.open()

            def until_tried() -> None:
                while desk.state() == OPEN:
                    desk.tick()

            return desk, until_tried, HALF_OPEN
        case (states.OPEN, states.TAKE_DOWN):
            desk.open()
            return desk, desk.down, DOWN
        case (states.OPEN, states.ANSWER):
            desk.open()
            return desk, desk.up, CLOSED
        case (states.HALF_OPEN, (states.PAUSE | states.ANSWER) as event):
            desk.open(1)
            while desk.calls[0].state != IN_FLIGHT:
                desk.tick()
            return desk, lambda: desk.end(0, ERROR if event == PAUSE else Ok(None)), OPEN if event == PAUSE else CLOSED
        case (states.DOWN, states.ANSWER):
            desk.down()
            return desk, desk.up, CLOSED
        case (states.DOWN, states.REMOVE):
            desk.down()
            return desk, lambda: desk.scheduler.remove_replica("s0", 0.0), REMOVED
    raise AssertionError(f"the table has a row without a scenario: {row}")


REPLICA_ROWS = [
    (CLOSED, PAUSE), (CLOSED, ANSWER),
    (OPEN, PAUSE), (OPEN, TRY), (OPEN, TAKE_DOWN), (OPEN, ANSWER),
    (HALF_OPEN, PAUSE), (HALF_OPEN, ANSWER),
    (DOWN, ANSWER), (DOWN, REMOVE),
]  # fmt: skip


@pytest.mark.parametrize("row", REPLICA_ROWS, ids=" ".join)
def test_each_move_of_a_replica(row: tuple[Any, Any]) -> None:
    desk, act, end = scenario_replica(row)
    assert desk.state() == row[0]
    act()
    assert desk.state() == end
    assert REPLICA[row] in (end, OPEN), "what a supervisor takes down is paused on the way"


def scenario_suspicion(row: tuple[Degree, str]) -> tuple[Desk, int, Act]:
    """A desk, a call suspected to the row's first degree, and the event that changes that."""
    match row:
        case (Degree.NONE, states.CRASH):
            desk = Desk()
            desk.submit(0)
            desk.end(0, RESET)
            return desk, 0, desk.down
        case (Degree.FIRST, states.CRASH):
            desk = Desk()
            desk.submit(0)
            desk.crash(0)
            desk.end(0, RESET)
            return desk, 0, desk.down
        case (Degree.SECOND, states.CRASH):  # it has failed on three servers, and all of them fall
            desk = Desk(replicas=3)
            desk.submit(0)
            for number, others in enumerate(((1, 2), (0, 2), (0, 1))):
                for other in others:
                    desk.submit(10 * number + other + 10, model=f"only-s{other}")
                while desk.calls[0].state != IN_FLIGHT:
                    desk.tick()
                assert desk.calls[0].replica == number
                desk.end(0, RESET)
                for other in others:
                    desk.end(10 * number + other + 10, Ok(None))
            desk.down(0)
            desk.down(1)
            return desk, 0, lambda: desk.down(2)
        case (Degree.FIRST, states.ANSWER):
            desk = Desk()
            desk.submit(0)
            desk.crash(0)
            return desk, 0, lambda: desk.end(0, Ok(None))
        case (Degree.SECOND, states.ANSWER):
            desk = Desk()
            desk.submit(0)
            desk.crash(0)
            desk.crash(0)
            return desk, 0, lambda: desk.end(0, Ok(None))
        case (Degree.FIRST, states.EXPLAIN):
            desk = Desk(2)
            desk.submit(0)
            desk.crash(0)
            desk.submit(1)
            desk.crash(0, 1)
            return desk, 1, desk.convict(0)
        case (Degree.SECOND, states.EXPLAIN):
            desk = Desk(2)
            desk.submit(0, 1)
            desk.crash(0, 1)
            desk.crash(0, 1)
            return desk, 1, desk.convict(0)
    raise AssertionError(f"the table has a row without a scenario: {row}")


SUSPICION_ROWS = [
    (Degree.NONE, CRASH),
    (Degree.FIRST, CRASH), (Degree.FIRST, ANSWER), (Degree.FIRST, EXPLAIN),
    (Degree.SECOND, CRASH), (Degree.SECOND, ANSWER), (Degree.SECOND, EXPLAIN),
]  # fmt: skip


@pytest.mark.parametrize("row", SUSPICION_ROWS, ids=lambda row: f"{row[0].name} {row[1]}")
def test_each_move_of_a_suspicion(row: tuple[Any, Any]) -> None:
    desk, call_id, act = scenario_suspicion(row)
    assert desk.degree(call_id) is row[0]
    candidates = [len(replica.health.candidates) for replica in desk.scheduler.replicas]
    act()
    assert desk.degree(call_id) is SUSPICION[row]
    if row[1] == CRASH:
        assert [len(replica.health.candidates) for replica in desk.scheduler.replicas] != candidates or row[0]
    if row[1] == EXPLAIN:
        assert desk.calls[0].state == GONE, "another call was convicted"


def test_the_tables_have_the_rows_that_are_tested_and_no_others() -> None:
    assert set(CALL) == set(CALL_ROWS)
    assert set(REPLICA) == set(REPLICA_ROWS)
    assert set(SUSPICION) == set(SUSPICION_ROWS)


def test_every_state_and_event_is_in_its_table() -> None:
    assert {state for state, _ in CALL} | set(CALL.values()) == set(get_args(states.CallState))
    assert {event for _, event in CALL} == set(get_args(states.CallEvent))
    assert {state for state, _ in REPLICA} | set(REPLICA.values()) == set(get_args(states.ReplicaState))
    assert {event for _, event in REPLICA} == set(get_args(states.ReplicaEvent))
    assert {state for state, _ in SUSPICION} == set(Degree)
    assert {event for _, event in SUSPICION} == set(get_args(states.SuspicionEvent))


def test_the_end_is_the_end() -> None:
    assert not [row for row in CALL if row[0] == GONE]
    assert not [row for row in REPLICA if row[0] == REMOVED]


def test_a_move_that_no_table_has_raises() -> None:
    desk = Desk()
    desk.submit(0)
    call = desk.calls[0]
    desk.end(0, Ok(None))
    with pytest.raises(KeyError, match=GONE):
        desk.scheduler._slots.start_or_wait(call, 1.0, [])
    with pytest.raises(KeyError, match=CLOSED):
        desk.scheduler.replicas[0].breaker.half_open()
