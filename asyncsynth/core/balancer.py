"""Which replica: breakers, one per replica, and the choice of the least loaded ready one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace

from asyncsynth.core.calls import Call
from asyncsynth.core.limiter import Limiter
from asyncsynth.core.outcomes import Outcome
from asyncsynth.core.retry import RetryBudget, Rng

CLOSED = "closed"  # in use
OPEN = "open"  # paused until probe_at
HALF_OPEN = "half-open"  # one call may try
DOWN = "down"  # paused by its supervisor, until it says otherwise

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One server, as the scheduler knows it. `models` are the names that calls ask for."""

    name: str
    models: frozenset[str]
    limiter: Limiter


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """One replica, for a person or a progress display. `waiting`: calls that it could serve and that wait."""

    name: str
    in_flight: int
    limit: int
    waiting: int
    state: str
    why: str


class Breaker:
    """Pauses a server that only fails: *different* calls fail, and none succeeds (a record fault is the opposite).

    Closed, it notes who failed since the last success. When these are many enough (`blame`), it opens: a pause of
    0.5 s, doubling to 30 s, jittered, then one call as a probe. An answer to the probe closes the breaker, a
    failure opens it again.
    """

    __slots__ = (
        "cause",
        "failures",
        "opened_at",
        "probe",
        "probe_at",
        "refused",
        "refused_since",
        "state",
        "streak",
        "tries",
    )

    def __init__(self) -> None:
        self.state = CLOSED
        self.streak: dict[int, int] = {}  # call id -> charges since the last success
        self.refused: dict[int, int] = {}  # the same for refused connections
        self.refused_since = 0.0
        self.failures = 0  # the sum of both
        self.tries = 0
        self.opened_at: float | None = None  # start of the outage, kept over probes
        self.probe_at: float | None = None
        self.probe: int | None = None  # the call that probes
        self.cause = ""

    def blame(self, call_id: int, now: float, connect: bool, limit: int, *, others: int) -> bool:
        """Note a failure while closed; True when the server is to blame and the breaker should open.

        `others`: calls in flight there. They may yet succeed, so as many different ones must have failed; a dead
        server fails them all soon. Or else the same few fail over and over, while the others hang.
        """
        if connect and not self.refused:
            self.refused_since = now
        notes = self.refused if connect else self.streak
        notes[call_id] = notes.get(call_id, 0) + 1
        self.failures += 1
        if connect and sum(self.refused.values()) >= max(5, min(16, limit // 8)):
            return True
        different = len(self.streak) + len(self.refused)
        return different >= max(3, others) or (different >= 3 and self.failures >= 2 * limit)

    def settle(self, started_at: float) -> bool:
        """A call that started then has succeeded: what failed before it was not this server's fault.

        But a server that shuts down refuses new connections while it still answers old requests: only the success
        of a later call outweighs a refused connection. False when such notes remain.
        """
        self.streak.clear()
        if self.refused and started_at > self.refused_since:
            self.refused.clear()
        self.failures = sum(self.refused.values())
        return not self.refused

    def take_notes(self) -> list[tuple[int, int]]:
        """Hand over who was charged how much since the last success, and forget it."""
        notes = [*self.streak.items(), *self.refused.items()]
        self.streak.clear()
        self.refused.clear()
        self.failures = 0
        return notes

    def open(self, now: float, cause: str, rng: Rng, at_least: float = 0.0) -> float:
        """Pause, or pause again; returns when to probe."""
        if self.opened_at is None:
            self.opened_at = now
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self.tries, 16)) * (0.5 + 0.5 * rng.random())
        self.tries += 1
        self.state = OPEN
        self.probe = None
        self.cause = cause
        self.probe_at = now + max(pause, at_least)
        return self.probe_at

    def half_open(self) -> None:
        """The pause is over: one call may try."""
        self.state = HALF_OPEN
        self.probe = None
        self.probe_at = None

    def close(self) -> None:
        """The server answers."""
        self.state = CLOSED
        self.probe = None
        self.probe_at = None
        self.opened_at = None
        self.tries = 0
        self.cause = ""


class Replica:
    """A server's state in the scheduler."""

    __slots__ = (
        "breaker", "budget", "budget_at", "group", "held", "in_flight", "index", "limiter", "models", "name",
        "overloads", "probers", "refusals", "starved", "troubled",
    )  # fmt: skip

    def __init__(self, index: int, spec: ReplicaSpec, budget: RetryBudget) -> None:
        self.index = index
        self.name = spec.name
        self.models = tuple(sorted(spec.models))
        self.limiter = spec.limiter
        self.budget = budget
        self.budget_at: float | None = None  # when the budget's next token is due, if somebody waits for it
        self.breaker = Breaker()
        self.group: Group | None = None
        self.in_flight = 0
        self.overloads = 0  # since the last success
        self.refusals: dict[str, tuple[str, int | None, int]] = {}  # model -> reason, status, times in a row
        self.probers: list[Call] = []  # calls that failed as probes in this outage; they let the others go first
        self.starved: deque[Call] = deque()  # retries that are due when the budget has a token
        self.held: list[tuple[Call, Outcome]] = []
        self.troubled = False  # something of the above needs resetting at the next success

    def can_take(self) -> bool:
        """Whether a call may start here now."""
        if self.in_flight >= self.limiter.limit:
            return False
        breaker = self.breaker
        return breaker.state is CLOSED or (breaker.state is HALF_OPEN and breaker.probe is None)

    def load(self) -> float:
        """How busy, as a share of the limit; a replica that wants a probe goes first."""
        return self.in_flight / self.limiter.limit if self.breaker.state is CLOSED else -1.0

    def stats(self, waiting: int) -> ReplicaStats:
        """For a person."""
        state = self.breaker.state
        why = self.limiter.explain() if state is CLOSED else f"{state}: {self.breaker.cause}"
        return ReplicaStats(self.name, self.in_flight, self.limiter.limit, waiting, state, why)


class Group:
    """Replicas that serve the same models, as a lazy heap by load: O(log n) whatever changes.

    A replica that became freer gets a new entry (`freed`); one that became busier is corrected when it comes up.
    """

    __slots__ = ("_heap", "_seq", "replicas")

    def __init__(self) -> None:
        self.replicas: list[Replica] = []
        self._heap: list[tuple[float, int, Replica]] = []
        self._seq = 0

    def freed(self, replica: Replica) -> None:
        """A replica can take a call that it could not take, or has become less loaded."""
        if len(self.replicas) == 1:
            return
        if len(self._heap) > 4 * len(self.replicas) + 16:
            self.rebuild()
            return
        self._seq += 1
        heappush(self._heap, (replica.load(), self._seq, replica))

    def rebuild(self) -> None:
        """Start afresh with one entry for each replica that can take a call."""
        ready = [replica for replica in self.replicas if replica.can_take()]
        self._heap = [(replica.load(), self._seq + i, replica) for i, replica in enumerate(ready)]
        self._seq += len(ready)
        heapify(self._heap)

    def least(self) -> Replica | None:
        """The least loaded replica that can take a call."""
        if len(self.replicas) == 1:
            only = self.replicas[0]
            return only if only.can_take() else None
        heap = self._heap
        while heap:
            key, _, replica = heap[0]
            if not replica.can_take():
                heappop(heap)
                continue
            load = replica.load()
            if load <= key:
                return replica
            self._seq += 1  # a later number among equals: equals take turns
            heapreplace(heap, (load, self._seq, replica))
        return None


class Balancer:
    """All replicas, and the choice among those of a model."""

    def __init__(self, specs: Sequence[ReplicaSpec], budgets: Iterable[RetryBudget]) -> None:
        self.replicas = [Replica(i, spec, budget) for i, (spec, budget) in enumerate(zip(specs, budgets, strict=True))]
        self.by_name = {replica.name: replica for replica in self.replicas}
        if len(self.by_name) != len(self.replicas):
            raise ValueError("replicas need different names")
        groups: dict[frozenset[str], Group] = {}
        for replica, spec in zip(self.replicas, specs, strict=True):
            replica.group = groups.setdefault(spec.models, Group())
            replica.group.replicas.append(replica)
        self.groups: dict[str, list[Group]] = {}
        self.of_model: dict[str, list[Replica]] = {}
        for models, group in groups.items():
            group.rebuild()
            for model in models:
                self.groups.setdefault(model, []).append(group)
                self.of_model.setdefault(model, []).extend(group.replicas)

    def pick(self, model: str, affinity: int = 0) -> Replica | None:
        """A replica for a call that starts now, or None when none can take it.

        With an affinity (not 0), the same number goes to the same replica while that one is not much busier than
        the least busy: requests with one prefix find it in that server's cache.
        """
        best: Replica | None = None
        for group in self.groups[model]:
            replica = group.least()
            if replica is not None and (best is None or replica.load() < best.load()):
                best = replica
        if affinity and best is not None and best.breaker.state is CLOSED:
            family = self.of_model[model]
            home = family[affinity % len(family)]
            if home.breaker.state is CLOSED and home.can_take() and home.load() <= best.load() + 0.25:
                return home
        return best

    def hopeless(self, replica: Replica, now: float, limit_s: float) -> bool:
        """Whether one of its models has had no answer from any of its servers for `limit_s` seconds."""

        def dead(other: Replica) -> bool:
            opened = other.breaker.opened_at
            return other.breaker.state is OPEN and opened is not None and now - opened > limit_s

        return dead(replica) and any(all(map(dead, self.of_model[model])) for model in replica.models)
