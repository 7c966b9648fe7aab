"""Calls, what is decided about them, and the queues they wait in. `core.states` has the table of their states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from asyncsynth.core.outcomes import Outcome
from asyncsynth.core.retry import AttemptState
from asyncsynth.core.states import NEW, CallState, queued

PASSES = 16  #: how often the first call in a queue may be passed over for one whose prefix the free replica knows


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
    """Nothing more will be started: every request would get this replica's answer."""

    message: str
    replica: str
    advice: str = ""  #: what to do, where that follows from the reason


@dataclass(slots=True)
class HealthCheck:
    """Send this replica a small request of the driver's own: a completion of one token, outside slots and statistics.

    Report by `Scheduler.health_check_result(name, ok, now, number)`: ok for an answer within `timeout_s` seconds that
    is no server's error (2xx, 4xx, 503, 529). If the driver never reports, only hung servers are not found.
    """

    replica: int
    timeout_s: float
    number: int = 0  #: tells the health checks of a silent server apart


@dataclass(slots=True)
class Canary:
    """Send this replica a request of the driver's own that is known to be harmless: it refused a call for this model.

    Report its outcome by `Scheduler.canary_result(replica, model, outcome, now)`. It takes no slot and counts nowhere.
    """

    replica: int
    model: str
    timeout_s: float


@dataclass(slots=True)
class Abort:
    """Cancel this call's exchange at `replica`, and report no outcome for it: no answer will come (`why`).

    The call itself continues: a Start (or Finish) for it may follow in the same list.
    """

    call_id: int
    replica: int
    cause: str  #: "hung" | "lost"
    why: str


Action = Start | Finish | Halt | HealthCheck | Canary | Abort


class Call:
    """One model call, from submit to finish."""

    __slots__ = (
        "affinity", "attempts", "entry", "first_attempt_at", "id", "model", "passed", "pays", "priority", "replica",
        "retry", "seq", "started_at", "state", "strikes", "tokens", "turn", "wake_at",
    )  # fmt: skip

    first_attempt_at: float  # these three do not exist before the first attempt: setting them would cost every call
    started_at: float
    wake_at: float

    def __init__(self, call_id: int, model: str, priority: int, affinity: int, tokens: int, seq: int) -> None:
        self.id: int = call_id
        self.model: str = model
        self.priority: int = priority
        self.affinity: int = affinity
        self.tokens: int = tokens  # estimate, for rates of tokens
        self.seq: int = seq
        self.state: CallState = NEW
        self.attempts: int = 0
        self.strikes: int = 0  # how often it failed as the one call that tests a server
        self.turn: int = 0  # the same in this outage: such calls go behind the others, to test in turn
        self.entry: Entry | None = None  # its place in a WaitQueue
        self.passed: int = 0  # how often it was first and another one was preferred
        self.replica: int = -1  # index of the replica of its last attempt
        self.pays: int | None = None  # index of the replica whose retry budget the next attempt uses
        self.retry: AttemptState | None = None  # made at the first failure

    def failures(self) -> AttemptState:
        """The record of failures, made on demand."""
        if self.retry is None:
            self.retry = AttemptState(self.first_attempt_at)
        return self.retry


Entry = tuple[int, int, int, Call]  #: turn, priority, order of submit; comparable across queues


class Count:
    """How many wait, in all queues that share it."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: int = 0


class WaitQueue:
    """Calls of one model waiting for a slot: lower priority value first, first come first served within.

    A call of a family has a home, the replica whose prefix cache knows the family; its entry is then in that
    home's own heap too. A free replica prefers its own calls (`best`), but passes over the first of all at most
    `PASSES` times: the call at place n of the queue waits for (PASSES + 1) n starts at most, and when no call of its
    own waits, a replica takes the first. The entry of a call that left stays in a heap until it comes up there or
    until such are the majority.
    """

    __slots__ = ("_all", "_heap", "_homes", "_homing", "live")

    def __init__(self, count: Count) -> None:
        self._all = count
        self._heap: list[Entry] = []
        self._homes: dict[int, list[Entry]] = {}  # index of a replica -> entries of its families
        self._homing = 0  # entries in them
        self.live: int = 0

    def push(self, call: Call, home: int | None = None) -> None:
        """Let a call wait."""
        call.state = queued[call.state]
        call.entry = entry = (call.turn, call.priority, call.seq, call)
        self.live += 1
        self._all.waiting += 1
        heappush(self._heap, entry)
        if home is not None:
            heappush(self._homes.setdefault(home, []), entry)
            self._homing += 1

    def head(self) -> Entry | None:
        """The first call's entry, or None."""
        heap = self._heap
        while heap:
            entry = heap[0]
            if entry[3].entry is entry:
                return entry
            heappop(heap)
        return None

    def best(self, home: int) -> Entry | None:
        """The entry that this replica should take next, or None."""
        heap = self._heap
        head = heap[0] if heap else None
        if head is not None and head[3].entry is not head:
            head = self.head()
        own = self._homes.get(home)
        if head is None or not own:
            return head
        while own and own[0][3].entry is not own[0]:
            heappop(own)
            self._homing -= 1
        if not own or own[0][0] != head[0] or head[3].passed >= PASSES:
            return head
        return own[0]

    def take(self, entry: Entry) -> None:
        """Take away what `head` or `best` returned."""
        heap = self._heap
        self.live -= 1
        self._all.waiting -= 1
        entry[3].entry = None
        if heap[0] is entry:
            heappop(heap)
        else:
            heap[0][3].passed += 1
            self._sweep()

    def remove(self, call: Call) -> None:
        """A waiting call goes away."""
        call.entry = None
        self.live -= 1
        self._all.waiting -= 1
        self._sweep()

    def rehome(self, home_of: Callable[[Call], int | None]) -> None:
        """Replicas came or went: find every waiting call's home again."""
        self._homes = {}
        self._homing = 0
        for entry in self._heap:
            if entry[3].entry is entry and (home := home_of(entry[3])) is not None:
                self._homes.setdefault(home, []).append(entry)
                self._homing += 1
        for own in self._homes.values():
            heapify(own)

    def _sweep(self) -> None:
        """Drop the entries of calls that are gone, once they are the majority."""
        most = 2 * self.live + 64
        if len(self._heap) > most:
            self._heap = [entry for entry in self._heap if entry[3].entry is entry]
            heapify(self._heap)
        if self._homing > most:
            kept = {home: [entry for entry in own if entry[3].entry is entry] for home, own in self._homes.items()}
            self._homes = {home: own for home, own in kept.items() if own}
            for own in self._homes.values():
                heapify(own)
            self._homing = sum(map(len, self._homes.values()))
