"""What the scheduler keeps about calls: their state, the queues they wait in, the timers they sleep on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from asyncsynth.core.outcomes import Outcome
from asyncsynth.core.retry import AttemptState

if TYPE_CHECKING:
    from asyncsynth.core.balancer import Replica

#: Call.state. One word each; a call is in exactly one.
WAITING = "waiting"  # for a slot
IN_FLIGHT = "in flight"  # holds a slot
SLEEPING = "sleeping"  # until a retry is due
STARVED = "starved"  # due, but the server's retry budget is empty
HELD = "held"  # out of attempts; its verdict waits for a sign whether the server is the one at fault
GONE = "gone"  # finished or cancelled


@dataclass(slots=True)
class Start:
    """Send this call to this replica now. `attempt` counts from 1."""

    call_id: int
    replica: int
    attempt: int


@dataclass(slots=True)
class Finish:
    """This call is over: its Ok, or the outcome of its last attempt. `attempts` were started in all."""

    call_id: int
    outcome: Outcome
    attempts: int


@dataclass(slots=True)
class Halt:
    """Nothing more will be started: every request would meet what this replica answers."""

    message: str
    replica: str


Action = Start | Finish | Halt


class Call:
    """One model call, from submit to finish."""

    __slots__ = (
        "affinity", "attempts", "entry", "first_attempt_at", "id", "model", "pays", "priority", "replica",
        "retry", "seq", "started_at", "state", "strikes", "turn", "wake_at",
    )  # fmt: skip

    def __init__(self, call_id: int, model: str, priority: int, affinity: int, seq: int) -> None:
        self.id = call_id
        self.model = model
        self.priority = priority
        self.affinity = affinity
        self.seq = seq
        self.state = WAITING
        self.attempts = 0
        self.first_attempt_at = 0.0
        self.started_at = 0.0
        self.strikes = 0  # how often it failed as the one call probing a server
        self.turn = 0  # the same in this outage: such calls go behind the others, to probe in turn
        self.entry: Entry | None = None  # its place in a WaitQueue
        self.wake_at = 0.0
        self.replica: Replica | None = None
        self.pays: Replica | None = None  # whose retry budget the next attempt takes from
        self.retry: AttemptState | None = None  # made at the first failure

    def failures(self) -> AttemptState:
        """The record of failures, made on demand."""
        if self.retry is None:
            self.retry = AttemptState(self.first_attempt_at)
        return self.retry


Entry = tuple[int, int, int, Call]  #: turn, priority, order of submit; comparable across queues


class WaitQueue:
    """Calls of one model waiting for a slot: lower priority value first, first come first served within.

    The entry of a call that left otherwise than by `pop` stays until it comes up or until such are the majority.
    """

    __slots__ = ("_heap", "live")

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self.live = 0

    def push(self, call: Call) -> None:
        """Let a call wait."""
        call.state = WAITING
        call.entry = entry = (call.turn, call.priority, call.seq, call)
        self.live += 1
        heappush(self._heap, entry)

    def head(self) -> Entry | None:
        """The next call's entry, or None."""
        heap = self._heap
        while heap:
            entry = heap[0]
            if entry[3].entry is entry:
                return entry
            heappop(heap)
        return None

    def pop(self) -> None:
        """Take away what `head` returned."""
        heappop(self._heap)[3].entry = None
        self.live -= 1

    def remove(self, call: Call) -> None:
        """A waiting call goes away."""
        call.entry = None
        self.live -= 1
        if len(self._heap) > 2 * self.live + 64:
            self._heap = [entry for entry in self._heap if entry[3].entry is entry]
            heapify(self._heap)


class Timers:
    """Wake-ups of sleeping calls and of replicas, in order of time. Stale ones are dropped as they come up."""

    __slots__ = ("_heap", "_seq")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Call | Replica]] = []
        self._seq = 0

    def add(self, due: float, target: Call | Replica) -> None:
        """Wake `target` at `due` seconds."""
        self._seq += 1
        heappush(self._heap, (due, self._seq, target))

    def next(self) -> float | None:
        """When the next valid timer is due."""
        heap = self._heap
        while heap:
            due, _, target = heap[0]
            if isinstance(target, Call):
                valid = target.state is SLEEPING and target.wake_at == due
            else:
                valid = due in (target.breaker.probe_at, target.budget_at)
            if valid:
                return due
            heappop(heap)
        return None

    def due(self, now: float) -> Iterator[Call | Replica]:
        """Remove and yield what is due, timers added meanwhile included."""
        while (at := self.next()) is not None and at <= now:
            yield heappop(self._heap)[2]
