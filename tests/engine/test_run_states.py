"""The states of a stage: its table read as rules, and each way through it."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from asyncsynth.engine import run_states
from asyncsynth.engine.run_states import (
    ALL_READ,
    BREAK,
    BROKEN,
    CLOSE,
    CLOSED,
    COMPLETE,
    END_OF_INPUT,
    FINISH,
    READING,
    RUN,
    STOP,
    STOPPING,
    STOPPING_ALL_READ,
    WHOLE_INPUT,
    RunEvent,
    RunState,
)

pytestmark = pytest.mark.row(27)

STATES: tuple[RunState, ...] = get_args(RunState)
EVENTS: tuple[RunEvent, ...] = get_args(RunEvent)
COLUMNS = {
    END_OF_INPUT: run_states.ended,
    STOP: run_states.stopped,
    BREAK: run_states.broken,
    CLOSE: run_states.closed,
    FINISH: run_states.completed,
}


def after(*events: RunEvent) -> RunState:
    state: RunState = READING
    for event in events:
        state = RUN[state, event]
    return state


def test_the_columns_are_the_table() -> None:
    assert {(state, event): to for event, column in COLUMNS.items() for state, to in column.items()} == RUN
    assert set(COLUMNS) == set(EVENTS)
    assert {state for state, _ in RUN} | set(RUN.values()) == set(STATES), "each state is used"


@pytest.mark.parametrize("state", STATES)
def test_a_stop_and_a_failing_disk_may_come_at_any_time(state: RunState) -> None:
    assert (state, STOP) in RUN
    assert (state, BREAK) in RUN


@pytest.mark.parametrize("state", STATES)
def test_a_stage_is_closed_once_and_from_every_other_state(state: RunState) -> None:
    assert ((state, CLOSE) in RUN) == (state not in (CLOSED, COMPLETE))


def test_only_a_closed_stage_completes() -> None:
    assert [state for state, event in RUN if event == FINISH] == [CLOSED]


@pytest.mark.parametrize("events", [(END_OF_INPUT, STOP), (STOP, END_OF_INPUT)])
def test_the_end_of_the_input_and_a_stop_are_both_remembered(events: tuple[RunEvent, ...]) -> None:
    assert after(*events) == after(*events, STOP) == STOPPING_ALL_READ


def test_each_way_ends_as_it_should() -> None:
    assert after() not in WHOLE_INPUT
    assert after(END_OF_INPUT) == ALL_READ
    assert after(STOP) == STOPPING
    assert after(END_OF_INPUT, CLOSE, FINISH) == COMPLETE
    assert after(END_OF_INPUT, STOP, CLOSE, FINISH, STOP, BREAK) == COMPLETE, "a late stop changes nothing"
    assert after(STOP, CLOSE, STOP, BREAK) == CLOSED
    assert {ALL_READ, STOPPING_ALL_READ} == WHOLE_INPUT


ORDERS = [order for length in (1, 2, 3) for order in itertools.permutations(EVENTS[:3], length)]


@pytest.mark.parametrize("events", ORDERS)
def test_a_broken_journal_is_never_forgotten(events: tuple[RunEvent, ...]) -> None:
    state = after(*events)
    assert (state == BROKEN) == (BREAK in events)
    assert RUN[state, CLOSE] == CLOSED


@pytest.mark.parametrize(("state", "event"), sorted(set(itertools.product(STATES, EVENTS)) - set(RUN)))
def test_any_other_move_is_a_fault(state: RunState, event: RunEvent) -> None:
    with pytest.raises(KeyError):
        COLUMNS[event][state]
