"""Which state follows which, for a call, a replica and a suspicion: the rules first, then a table for each.

A *call* is in one state from submit to its end.

- It has a slot (IN_FLIGHT), waits for one (WAITING), or waits for something else and holds nothing (SLEEPING for a
  moment in time, STARVED for the server's retry budget, HELD for a sign of who is at fault).
- Whoever leaves a slot may get another one at once: START is allowed from everywhere but the end.
- A call ends once, by FINISH or by CANCEL, and is GONE. It finishes out of a slot, or out of HELD.
- Only an attempt can fail: SLEEP and HOLD come after IN_FLIGHT. A HELD call whose server turns out to live is charged
  like any other, so it may SLEEP too. STARVE is for calls that have slept.

A *replica* takes calls while it is CLOSED (its breaker lets everything through, as in an electric circuit).

- PAUSE opens it: it gets nothing. When the pause is over, TRY lets one call through (HALF_OPEN), whose ANSWER closes
  it and whose failure is the next PAUSE.
- A supervisor that knows more says TAKE_DOWN, always of a paused one, and its word holds until an ANSWER: nothing
  but that, or REMOVE, leads out of DOWN.
- REMOVE is for good, and takes down first.

A *suspicion* is about a record that may kill servers (`core.suspects` has the reasoning).

- A CRASH with the call in flight raises it by one degree, to two at most.
- An ANSWER of any kind, or the conviction of another call (EXPLAIN), ends it.

`after(table, event)` is one column of a table, as a dictionary from state to state. A state that has no entry there
raises `IllegalMove`: it is a fault of the scheduler's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum, StrEnum
from typing import Final, TypeVar

State = TypeVar("State", bound=Enum)
Event = TypeVar("Event", bound=Enum)


class CallState(StrEnum):
    """Where a call is."""

    NEW = "new"  # just submitted
    WAITING = "waiting"  # for a slot
    IN_FLIGHT = "in flight"  # holds a slot
    SLEEPING = "sleeping"  # until a retry is due
    STARVED = "starved"  # due, but the server's retry budget is empty
    HELD = "held"  # its verdict waits for a sign whether the server is the one at fault
    GONE = "gone"  # finished or cancelled


class CallEvent(StrEnum):
    """What is decided about a call."""

    START = "start"  # it gets a slot
    QUEUE = "queue"  # no slot is free for it
    SLEEP = "sleep"  # it failed, and is tried again later
    STARVE = "starve"  # it is due, and the retry budget is empty
    HOLD = "hold"  # it failed for the last time, or alone on its server
    FINISH = "finish"  # the driver gets its outcome
    CANCEL = "cancel"  # the driver has forgotten it


class ReplicaState(StrEnum):
    """Whether a replica gets calls. `ReplicaStats` shows these words."""

    CLOSED = "closed"  # in use
    OPEN = "open"  # paused for a while
    HALF_OPEN = "half-open"  # one call may try
    DOWN = "down"  # paused by its supervisor, until it says otherwise
    REMOVED = "removed"  # gets nothing new; what is in flight may end


class ReplicaEvent(StrEnum):
    """What happens to a replica."""

    PAUSE = "pause"  # it fails
    TRY = "try"  # its pause is over
    TAKE_DOWN = "take down"  # its supervisor says that it is gone
    ANSWER = "answer"  # it answers its probe, or its supervisor says that it is back
    REMOVE = "remove"  # it leaves the fleet


class Degree(IntEnum):
    """How much a call is suspected of killing servers."""

    NONE = 0
    FIRST = 1  # in flight at one crash
    SECOND = 2  # in flight at two or more


class SuspicionEvent(StrEnum):
    """What raises or ends a suspicion."""

    CRASH = "crash"  # a server fell with the call in flight
    ANSWER = "answer"  # a server answered the call
    EXPLAIN = "explain"  # another call was convicted


NEW: Final = CallState.NEW
WAITING: Final = CallState.WAITING
IN_FLIGHT: Final = CallState.IN_FLIGHT
SLEEPING: Final = CallState.SLEEPING
STARVED: Final = CallState.STARVED
HELD: Final = CallState.HELD
GONE: Final = CallState.GONE

_START: Final = CallEvent.START
_QUEUE: Final = CallEvent.QUEUE
_SLEEP: Final = CallEvent.SLEEP
_STARVE: Final = CallEvent.STARVE
_HOLD: Final = CallEvent.HOLD
_FINISH: Final = CallEvent.FINISH
_CANCEL: Final = CallEvent.CANCEL

CALL: Final[Mapping[tuple[CallState, CallEvent], CallState]] = {
    (NEW, _START): IN_FLIGHT,
    (NEW, _QUEUE): WAITING,
    (WAITING, _START): IN_FLIGHT,
    (WAITING, _QUEUE): WAITING,  # another place: it became a suspect, or has probed in vain and the outage is over
    (WAITING, _CANCEL): GONE,
    (IN_FLIGHT, _START): IN_FLIGHT,  # the next attempt at once, perhaps on another replica
    (IN_FLIGHT, _QUEUE): WAITING,
    (IN_FLIGHT, _SLEEP): SLEEPING,
    (IN_FLIGHT, _HOLD): HELD,
    (IN_FLIGHT, _FINISH): GONE,
    (IN_FLIGHT, _CANCEL): GONE,
    (SLEEPING, _START): IN_FLIGHT,
    (SLEEPING, _QUEUE): WAITING,
    (SLEEPING, _STARVE): STARVED,
    (SLEEPING, _CANCEL): GONE,
    (STARVED, _START): IN_FLIGHT,
    (STARVED, _QUEUE): WAITING,
    (STARVED, _CANCEL): GONE,
    (HELD, _START): IN_FLIGHT,  # the server was at fault
    (HELD, _QUEUE): WAITING,  # the same, and there is no slot; or it is tried alone a second time
    (HELD, _SLEEP): SLEEPING,  # it failed alone, and the server lives: an ordinary failure
    (HELD, _FINISH): GONE,
    (HELD, _CANCEL): GONE,
}

CLOSED: Final = ReplicaState.CLOSED
OPEN: Final = ReplicaState.OPEN
HALF_OPEN: Final = ReplicaState.HALF_OPEN
DOWN: Final = ReplicaState.DOWN
REMOVED: Final = ReplicaState.REMOVED

REPLICA: Final[Mapping[tuple[ReplicaState, ReplicaEvent], ReplicaState]] = {
    (CLOSED, ReplicaEvent.PAUSE): OPEN,
    (CLOSED, ReplicaEvent.ANSWER): CLOSED,  # its supervisor says so of one that was never down
    (OPEN, ReplicaEvent.PAUSE): OPEN,  # what was in flight there hangs
    (OPEN, ReplicaEvent.TRY): HALF_OPEN,
    (OPEN, ReplicaEvent.TAKE_DOWN): DOWN,
    (OPEN, ReplicaEvent.ANSWER): CLOSED,
    (HALF_OPEN, ReplicaEvent.PAUSE): OPEN,
    (HALF_OPEN, ReplicaEvent.ANSWER): CLOSED,
    (DOWN, ReplicaEvent.ANSWER): CLOSED,
    (DOWN, ReplicaEvent.REMOVE): REMOVED,
}

SUSPICION: Final[Mapping[tuple[Degree, SuspicionEvent], Degree]] = {
    (Degree.NONE, SuspicionEvent.CRASH): Degree.FIRST,
    (Degree.FIRST, SuspicionEvent.CRASH): Degree.SECOND,
    (Degree.FIRST, SuspicionEvent.ANSWER): Degree.NONE,
    (Degree.FIRST, SuspicionEvent.EXPLAIN): Degree.NONE,
    (Degree.SECOND, SuspicionEvent.CRASH): Degree.SECOND,
    (Degree.SECOND, SuspicionEvent.ANSWER): Degree.NONE,
    (Degree.SECOND, SuspicionEvent.EXPLAIN): Degree.NONE,
}


class IllegalMove(RuntimeError):
    """The scheduler has done what its tables do not allow; a fault in asyncsynth, not in a pipeline."""


class _Column(dict[State, State]):
    """The entries of one event. A lookup is all that a move costs."""

    def __init__(self, event: Enum, entries: Mapping[State, State]) -> None:
        super().__init__(entries)
        self._event = event

    def __missing__(self, state: State) -> State:
        allowed = ", ".join(f"{one.name}" for one in self)
        raise IllegalMove(f"{type(state).__name__} {state.name}: {self._event.name} is allowed after {allowed} only")


def after(table: Mapping[tuple[State, Event], State], event: Event) -> Mapping[State, State]:
    """The column of one event: state before -> state after. A state that is not in it raises IllegalMove."""
    return _Column(event, {state: following for (state, what), following in table.items() if what is event})


#: The columns of a call, by what was decided: `call.state = started[call.state]`.
started: Final = after(CALL, _START)
queued: Final = after(CALL, _QUEUE)
asleep: Final = after(CALL, _SLEEP)
starving: Final = after(CALL, _STARVE)
held_back: Final = after(CALL, _HOLD)
finished: Final = after(CALL, _FINISH)
cancelled: Final = after(CALL, _CANCEL)

#: Those of a replica.
paused: Final = after(REPLICA, ReplicaEvent.PAUSE)
tried: Final = after(REPLICA, ReplicaEvent.TRY)
taken_down: Final = after(REPLICA, ReplicaEvent.TAKE_DOWN)
answering: Final = after(REPLICA, ReplicaEvent.ANSWER)
removed: Final = after(REPLICA, ReplicaEvent.REMOVE)

#: Those of a suspicion.
suspected: Final = after(SUSPICION, SuspicionEvent.CRASH)
cleared: Final = after(SUSPICION, SuspicionEvent.ANSWER)
explained: Final = after(SUSPICION, SuspicionEvent.EXPLAIN)
