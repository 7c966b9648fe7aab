"""One server as the scheduler knows it: what it serves, how busy it is, how it fares."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asyncsynth.core.breaker import CLOSED, HALF_OPEN, Breaker
from asyncsynth.core.calls import Call
from asyncsynth.core.limiter import Limiter
from asyncsynth.core.load import ServerLoad
from asyncsynth.core.outcomes import Outcome
from asyncsynth.core.rates import RateGate, RateLimits
from asyncsynth.core.retry import RetryBudget

if TYPE_CHECKING:
    from asyncsynth.core.balancer import Group

LOAD_FRESH_S = 5.0  #: a server's own report of its load counts for so long
KV_FREE = 0.5  #: below this share of the KV cache in use, a server's queue drains quickly (vLLM's balancer)
KV_WEIGHT = 6.0  #: what a waiting request weighs when the cache is full (vLLM's balancer: 6 * (kv - 0.5))


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One server, as the scheduler is told of it. `models` are the names that calls ask for."""

    name: str
    models: frozenset[str]
    limiter: Limiter
    rates: RateLimits | None = None  #: published rates of a hosted API


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """One replica, for a person or a progress display. `waiting`: calls that it could serve and that wait."""

    name: str
    in_flight: int
    limit: int
    waiting: int
    state: str
    why: str


class Health:
    """What is known about a replica's crashes; see core.suspects."""

    __slots__ = ("accused", "alive", "candidates", "deaths", "examiner", "fallen_at", "solo", "trials")

    def __init__(self) -> None:
        self.alive = True  # it has answered since its last fall
        self.deaths: deque[tuple[float, Call]] = deque()  # who failed lately as in a crash
        self.fallen_at = float("-inf")
        self.candidates: set[int] = set()  # ids of those in flight at that fall
        self.examiner = False  # has crashed; tries suspects alone when it is back
        self.trials: set[int] = set()  # suspects of the first degree in flight as such
        self.solo: Call | None = None  # the suspect that is tried alone
        self.accused: tuple[Call, Outcome] | None = None  # failed alone; did the server die of it?


class Replica:
    """A server's state in the scheduler."""

    __slots__ = (
        "alarms",
        "asked_at",
        "blocked",
        "breaker",
        "budget",
        "extra",
        "gate",
        "gated_for",
        "group",
        "health",
        "heard_at",
        "held",
        "in_flight",
        "index",
        "limiter",
        "models",
        "name",
        "overloads",
        "press",
        "probers",
        "queue",
        "quiet",
        "refusals",
        "report",
        "seen",
        "stalls",
        "starved",
        "troubled",
        "watched",
    )  # fmt: skip

    def __init__(self, index: int, spec: ReplicaSpec, budget: RetryBudget) -> None:
        self.index = index
        self.name = spec.name
        self.models = tuple(sorted(spec.models))
        self.limiter = spec.limiter
        self.budget = budget
        self.breaker = Breaker()
        self.group: Group | None = None
        self.in_flight = 0
        self.alarms: dict[str, float] = {}  # kind of timer -> when it is due
        self.overloads = 0  # since the last success
        self.refusals: dict[str, tuple[str, int | None, int]] = {}  # model -> reason, status, times in a row
        self.probers: list[Call] = []  # calls that failed as probes in this outage; they let the others go first
        self.starved: deque[Call] = deque()  # retries that are due when the budget has a token
        self.held: list[tuple[Call, Outcome]] = []
        self.troubled = False  # something of the above needs resetting at the next success
        self.gate = None if spec.rates is None else RateGate(spec.rates)
        self.gated_for: Call | None = None  # the call that waits for the gate
        self.quiet = False  # kept free for a call that is tried alone
        self.blocked = False  # gated or quiet
        self.report: ServerLoad | None = None  # its own report, while fresh
        self.extra = 0  # by that report: requests there that are not ours
        self.press = 0.0  # by that report: weight of a request in the server's queue
        self.queue = 0  # by that report: its queue, less our requests in flight then
        self.heard_at = 0.0  # the last sign of life
        self.health = Health()
        self.seen: tuple[int | None, float | None] = (None, None)  # running and KV use as last reported
        self.asked_at = float("-inf")  # when the driver was last asked to probe it, since it was silent
        self.stalls = 0  # how often it was found hung
        self.watched = False  # an alarm looks at heard_at

    def can_take(self) -> bool:
        """Whether a call may start here now."""
        if self.in_flight >= self.limiter.limit or self.blocked:
            return False
        breaker = self.breaker
        return breaker.state is CLOSED or (breaker.state is HALF_OPEN and breaker.probe is None)

    def load(self) -> float:
        """How busy, relative to the limit, so that all replicas compare; one that wants a probe goes first.

        With a fresh report this is vLLM's own score, max(in flight, waiting + running) + 6 waiting max(0, kv - 0.5):
        the report gives what others have there, and our own part is counted as it is now, not as it was then.
        """
        if self.breaker.state is not CLOSED:
            return -1.0
        busy = self.in_flight + self.extra
        if self.press:
            # Its queue was not empty: what we sent since stands in it, what was answered since made room.
            return (busy + self.press * max(0, self.in_flight + self.queue)) / self.limiter.limit
        return busy / self.limiter.limit

    def take_report(self, load: ServerLoad | None) -> None:
        """A fresh report, or None: the last one is too old."""
        self.report = load
        self.extra, self.press, self.queue = 0, 0.0, 0
        if load is not None:
            self.extra = max(0, load.waiting + (load.running or 0) - self.in_flight)
            if load.waiting and load.kv is not None:
                self.press = KV_WEIGHT * max(0.0, load.kv - KV_FREE)
                self.queue = load.waiting - self.in_flight

    def block(self, *, gated_for: Call | None, quiet: bool) -> None:
        """Take no calls for one of these reasons; neither: take calls again."""
        self.gated_for = gated_for
        self.quiet = quiet
        self.blocked = quiet or gated_for is not None

    def stats(self, waiting: int) -> ReplicaStats:
        """For a person."""
        state = self.breaker.state
        why = self.limiter.explain() if state is CLOSED else f"{state}: {self.breaker.cause}"
        if state is CLOSED and self.gated_for is not None:
            why = f"waits for its published rate; {why}"
        return ReplicaStats(self.name, self.in_flight, self.limiter.limit, waiting, state, why)
