"""Which state follows which, for a call, a replica and a suspicion: the rules first, then a table for each.

A *call* is in one state from submit to its end.

- It has a slot (IN_FLIGHT), waits for one (WAITING), or waits for something else and holds nothing (SLEEPING for a
  moment in time, STARVED for the server's retry budget, HELD for a sign of who is at fault).
- A call that leaves a slot may get another one at once: START is allowed from every state but the last.
- A call ends once, by FINISH or by CANCEL, and is GONE. It finishes out of a slot, or out of HELD.
- Only an attempt can fail: SLEEP and HOLD come after IN_FLIGHT. A HELD call whose server turns out to live is charged
  like any other, so it may SLEEP too. STARVE is for calls that have slept.

A *replica* takes calls while it is CLOSED (its breaker lets everything through, as in an electric circuit).

- PAUSE opens it: it gets nothing. When the pause is over, TRY lets one call through (HALF_OPEN), whose ANSWER closes
  it and whose failure is the next PAUSE.
- A supervisor may TAKE_DOWN a paused one. Only an ANSWER, or REMOVE, leads out of DOWN.
- REMOVE is final, and takes the replica down first.

A *suspicion* is about a record that may kill servers (`core.suspects` has the reasoning).

- A CRASH with the call in flight raises it by one degree, to two at most.
- An ANSWER of any kind, or the conviction of another call (EXPLAIN), ends it.

`after(table, event)` is one column of a table: state before -> state after. States change only by
these columns. A move that no table has is a KeyError with the state's name: a bug in the scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final, Literal, TypeVar

State = TypeVar("State")
Event = TypeVar("Event")

#: Where a call is. Words rather than an enum: a lookup by a plain word is cheaper, and each call makes two or three.
CallState = Literal["new", "waiting", "in flight", "sleeping", "starved", "held", "gone"]
NEW: Final = "new"  # just submitted
WAITING: Final = "waiting"  # for a slot
IN_FLIGHT: Final = "in flight"  # holds a slot
SLEEPING: Final = "sleeping"  # until a retry is due
STARVED: Final = "starved"  # due, but the server's retry budget is empty
HELD: Final = "held"  # until there is a sign whether the server is at fault
GONE: Final = "gone"  # finished or cancelled

#: What is decided about a call.
CallEvent = Literal["start", "queue", "sleep", "starve", "hold", "finish", "cancel"]
START: Final = "start"  # it gets a slot
QUEUE: Final = "queue"  # no slot is free for it
SLEEP: Final = "sleep"  # it failed, and is tried again later
STARVE: Final = "starve"  # it is due, and the retry budget is empty
HOLD: Final = "hold"  # it failed for the last time, or alone on its server
FINISH: Final = "finish"  # the driver gets its outcome
CANCEL: Final = "cancel"  # the driver has forgotten it

CALL: Final[Mapping[tuple[CallState, CallEvent], CallState]] = {
    (NEW, START): IN_FLIGHT,
    (NEW, QUEUE): WAITING,
    (WAITING, START): IN_FLIGHT,
    (WAITING, QUEUE): WAITING,  # another place: it became a suspect, or failed as a test and the outage is over
    (WAITING, CANCEL): GONE,
    (IN_FLIGHT, START): IN_FLIGHT,  # the next attempt at once, perhaps on another replica
    (IN_FLIGHT, QUEUE): WAITING,
    (IN_FLIGHT, SLEEP): SLEEPING,
    (IN_FLIGHT, HOLD): HELD,
    (IN_FLIGHT, FINISH): GONE,
    (IN_FLIGHT, CANCEL): GONE,
    (SLEEPING, START): IN_FLIGHT,
    (SLEEPING, QUEUE): WAITING,
    (SLEEPING, STARVE): STARVED,
    (SLEEPING, CANCEL): GONE,
    (STARVED, START): IN_FLIGHT,
    (STARVED, QUEUE): WAITING,
    (STARVED, CANCEL): GONE,
    (HELD, START): IN_FLIGHT,  # the server was at fault
    (HELD, QUEUE): WAITING,  # the same, and there is no slot; or it is tried alone a second time
    (HELD, SLEEP): SLEEPING,  # it failed alone, and the server lives: an ordinary failure
    (HELD, FINISH): GONE,
    (HELD, CANCEL): GONE,
}

#: Whether a replica gets calls. `ReplicaSnapshot` shows these words.
ReplicaState = Literal["closed", "open", "half-open", "down", "removed"]
CLOSED: Final = "closed"  # in use
OPEN: Final = "open"  # paused for a while
HALF_OPEN: Final = "half-open"  # one call may try
DOWN: Final = "down"  # paused by its supervisor, until it says otherwise
REMOVED: Final = "removed"  # gets nothing new; what is in flight may end

#: What happens to a replica.
ReplicaEvent = Literal["pause", "try", "take down", "answer", "remove"]
PAUSE: Final = "pause"  # it fails
TRY: Final = "try"  # its pause is over
TAKE_DOWN: Final = "take down"  # its supervisor says that it is gone
ANSWER: Final = "answer"  # it answers its test call, or its supervisor says that it is back; of a call: it was answered
REMOVE: Final = "remove"  # it leaves the fleet

REPLICA: Final[Mapping[tuple[ReplicaState, ReplicaEvent], ReplicaState]] = {
    (CLOSED, PAUSE): OPEN,
    (CLOSED, ANSWER): CLOSED,  # its supervisor reports back one that was never down
    (OPEN, PAUSE): OPEN,  # what was in flight there hangs
    (OPEN, TRY): HALF_OPEN,
    (OPEN, TAKE_DOWN): DOWN,
    (OPEN, ANSWER): CLOSED,
    (HALF_OPEN, PAUSE): OPEN,
    (HALF_OPEN, ANSWER): CLOSED,
    (DOWN, ANSWER): CLOSED,
    (DOWN, REMOVE): REMOVED,
}


class Degree(IntEnum):
    """How strongly a call is suspected of killing servers."""

    NONE = 0
    FIRST = 1  # in flight at one crash
    SECOND = 2  # in flight at two or more


#: What raises or ends a suspicion.
SuspicionEvent = Literal["crash", "answer", "explain"]
CRASH: Final = "crash"  # a server fell with the call in flight
EXPLAIN: Final = "explain"  # another call was convicted

SUSPICION: Final[Mapping[tuple[Degree, SuspicionEvent], Degree]] = {
    (Degree.NONE, CRASH): Degree.FIRST,
    (Degree.FIRST, CRASH): Degree.SECOND,
    (Degree.FIRST, ANSWER): Degree.NONE,
    (Degree.FIRST, EXPLAIN): Degree.NONE,
    (Degree.SECOND, CRASH): Degree.SECOND,
    (Degree.SECOND, ANSWER): Degree.NONE,
    (Degree.SECOND, EXPLAIN): Degree.NONE,
}


def after(table: Mapping[tuple[State, Event], State], event: Event) -> dict[State, State]:
    """The column of one event: state before -> state after."""
    return {state: following for (state, what), following in table.items() if what == event}


#: The columns of a call, by what was decided: `call.state = started[call.state]`.
started: Final[dict[CallState, CallState]] = after(CALL, START)
queued: Final[dict[CallState, CallState]] = after(CALL, QUEUE)
asleep: Final[dict[CallState, CallState]] = after(CALL, SLEEP)
starving: Final[dict[CallState, CallState]] = after(CALL, STARVE)
held_back: Final[dict[CallState, CallState]] = after(CALL, HOLD)
finished: Final[dict[CallState, CallState]] = after(CALL, FINISH)
cancelled: Final[dict[CallState, CallState]] = after(CALL, CANCEL)

#: Those of a replica.
paused: Final[dict[ReplicaState, ReplicaState]] = after(REPLICA, PAUSE)
tried: Final[dict[ReplicaState, ReplicaState]] = after(REPLICA, TRY)
taken_down: Final[dict[ReplicaState, ReplicaState]] = after(REPLICA, TAKE_DOWN)
answering: Final[dict[ReplicaState, ReplicaState]] = after(REPLICA, ANSWER)
removed: Final[dict[ReplicaState, ReplicaState]] = after(REPLICA, REMOVE)

#: Those of a suspicion.
suspected: Final[dict[Degree, Degree]] = after(SUSPICION, CRASH)
cleared: Final[dict[Degree, Degree]] = after(SUSPICION, ANSWER)
explained: Final[dict[Degree, Degree]] = after(SUSPICION, EXPLAIN)
