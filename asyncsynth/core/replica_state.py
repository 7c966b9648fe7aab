"""One server as the scheduler knows it: what it serves, how busy it is, and how healthy."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from asyncsynth.core.breaker import Breaker
from asyncsynth.core.calls import Call
from asyncsynth.core.limiter import Limiter
from asyncsynth.core.outcomes import Outcome, Permanent, ServerLoad
from asyncsynth.core.rates import RateGate, RateLimits
from asyncsynth.core.retry import RetryBudget
from asyncsynth.core.states import CLOSED, HALF_OPEN, ReplicaState

LOAD_FRESH_S = 5.0  #: a server's own report of its load counts for this long
KV_FREE = 0.5  #: below this share of the KV cache in use, a server's queue drains quickly (vLLM's balancer)
KV_WEIGHT = 6.0  #: what a waiting request weighs when the cache is full (vLLM's balancer: 6 * (kv - 0.5))


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One server, as the scheduler knows it. `models` are the names that calls ask for."""

    name: str
    models: frozenset[str]
    limiter: Limiter
    rates: RateLimits | None = None  #: published rates of a hosted API


@dataclass(frozen=True, slots=True)
class ReplicaSnapshot:
    """One server now. `waiting`: calls that it could serve and that wait for a slot; `why`: its limit or pause."""

    name: str
    in_flight: int
    limit: int
    waiting: int
    state: ReplicaState
    why: str
    load: ServerLoad | None = None  #: what the server itself said, in the last seconds; the pool fills it in


class Alarm(StrEnum):
    """What to check on a replica when a timer is due; one timer of each kind at a time."""

    PAUSE = "pause"  # its pause is over
    BUDGET = "budget"  # its retry budget has a token again
    RATE = "rate"  # its published rate lets the next call through
    REPORT = "report"  # its report of its load is too old
    OUTAGE = "outage"  # has it been away for too long?
    STALL = "stall"  # has it been silent for too long?
    SPARE = "spare"  # suspects have waited for another replica long enough
    CHECK = "check"  # the driver was asked for a health check and has not reported
    REFUSED = "refused"  # models that it refused are tried there again
    CANARY = "canary"  # the driver was asked to send canaries and has not reported


class Health:
    """What is known about a replica's crashes. `core.suspects` alone changes it, and has the reasoning."""

    __slots__ = ("accused", "alive", "candidates", "deaths", "examiner", "fallen_at", "solo", "trials")

    def __init__(self) -> None:
        self.alive: bool = True  # it has answered since its last fall
        self.deaths: deque[tuple[float, Call]] = deque()  # calls that failed lately as in a crash
        self.fallen_at: float = float("-inf")
        self.candidates: set[int] = set()  # ids of those in flight at that fall
        self.examiner: bool = False  # has crashed; tries suspects alone when it is back
        self.trials: set[int] = set()  # suspects of the first degree in flight as such
        self.solo: Call | None = None  # the suspect that is tried alone
        self.accused: tuple[Call, Outcome] | None = None  # failed alone; did the server die of it?


Held = tuple[Call, Permanent]


@dataclass(slots=True)
class Refused:
    """What a replica refused for one model, since it last answered a later call. `core.refusals` alone changes it."""

    refused_at: dict[int, float] = field(default_factory=dict)  #: call id -> when it was last refused, in seconds
    pending: list[Held] = field(default_factory=list)  #: calls that wait for a verdict, in the order of their refusals
    asked: bool = False  #: a canary is out
    covered: int = 0  #: how many of `pending` were refused before it was sent
    canaries: int = 0  #: refused in a row


class Replica:
    """A server's state in the scheduler. Each part has one owner, named beside it; all may read it.

    State that several places change is changed by methods of this class.
    """

    __slots__ = (
        "alarms", "asked_at", "blocked", "breaker", "budget", "busy_since", "casualties", "checks_sent",
        "doubted", "extra", "failed_tests", "fell_at", "gate", "gated_for", "health", "heard_at", "held",
        "idle_checks", "in_flight", "index", "left_out", "limiter", "models", "name", "overloads", "press",
        "proven", "queue", "quiet", "readable_until", "refusals", "report", "seen", "served_s", "shared",
        "slowest", "spent", "spent_at", "spent_until", "stalls", "starved", "survivors", "troubled",
        "turned_away",
    )  # fmt: skip

    def __init__(self, index: int, spec: ReplicaSpec, budget: RetryBudget) -> None:
        self.index: int = index
        self.name: str = spec.name
        self.limiter: Limiter = spec.limiter
        self.budget: RetryBudget = budget
        self.breaker: Breaker = Breaker()
        self.gate: RateGate | None = None if spec.rates is None else RateGate(spec.rates)
        # core.balancer
        self.models: tuple[str, ...] = tuple(sorted(spec.models))  # those that it takes calls for
        self.left_out: dict[str, str] = {}  # models that it refuses -> why; it takes none for a while
        self.shared: bool = False  # others serve the same models
        # core.timers
        self.alarms: dict[Alarm, float] = {}  # when each is due
        # core.dispatch
        self.in_flight: int = 0
        self.heard_at: float = 0.0  # the last sign of life
        self.slowest: float = 0.0  # the longest that an answer took, in seconds
        self.served_s: float = 0.0  # seconds that all answers took together
        self.busy_since: float = 0.0  # calls have been in flight without a break since then
        self.starved: deque[Call] = deque()  # retries that are due when the budget has a token
        self.held: list[tuple[Call, Outcome]] = []  # out of attempts; finished, unless it is the server's fault
        self.gated_for: Call | None = None  # the call that waits for the gate
        # core.suspects
        self.health: Health = Health()
        self.quiet: bool = False  # kept free for a call that is tried alone
        # core.refusals
        self.refusals: dict[str, Refused] = {}  # by model
        self.spent: int = 0  # quota refusals since its last answer, each after the wait that the last one asked for
        self.spent_at: float | None = None  # when the first of them came
        self.spent_until: float = 0.0  # when that wait is over
        # core.blame
        self.overloads: int = 0  # since the last success
        self.proven: bool = False  # it has answered a call
        self.doubted: bool = False  # its test call got an unreadable answer, and a canary asks whether it always does
        self.readable_until: float = float("-inf")  # until then, unreadable answers are the records' fault
        self.fell_at: float = float("-inf")  # when it was last paused for failures
        self.turned_away: int = 0  # since the last good time: connections refused at once
        self.casualties: int = 0  # other failures of the server
        self.survivors: int = 0  # answers after it was paused
        self.failed_tests: list[Call] = []  # calls that failed as tests in this outage; they let the others go first
        # core.silence
        self.asked_at: float = float("-inf")  # when the driver was last asked to check it, since it was silent
        self.checks_sent: int = 0  # how often that was
        self.stalls: int = 0  # how often it was found hung
        self.idle_checks: int = 0  # how often in a row it was found with nothing to do while calls were in flight
        # its own
        self.troubled: bool = True  # the next success must reset something
        self.blocked: bool = False  # gated or quiet
        self.report: ServerLoad | None = None  # its own report, while fresh
        self.extra: int = 0  # by that report: requests there that are not ours
        self.press: float = 0.0  # by that report: weight of a request in the server's queue
        self.queue: int = 0  # by that report: its queue, less our requests in flight then
        self.seen: tuple[float | None, int | None, float | None] = (None, None, None)  # last reported progress

    def can_take(self) -> bool:
        """Whether a call may start here now."""
        return self.in_flight < self.limiter.limit and self.is_open()

    def is_open(self) -> bool:
        """Whether a call may start here as soon as a slot is free."""
        if self.blocked:
            return False
        breaker = self.breaker
        return breaker.state is CLOSED or (breaker.state is HALF_OPEN and breaker.test_call is None)

    def load(self) -> float:
        """How busy, relative to the limit, so that all replicas compare; one that wants a test goes first.

        With a fresh report this is vLLM's own score, max(in flight, waiting + running) + 6 waiting max(0, kv - 0.5):
        the report gives what others have there, and our own part is counted as it is now, not as it was then.
        """
        if self.breaker.state is not CLOSED:
            return -1.0
        busy = self.in_flight + self.extra
        if self.press:
            # Its queue was not empty: requests sent since are in it, answers since made room.
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

    def works_on(self, load: ServerLoad) -> bool:
        """Whether this report shows that it has done something since the last one."""
        before, self.seen = self.seen, (load.progress, load.running, load.kv)
        return before != self.seen

    def gate_for(self, call: Call | None) -> None:
        """Take no calls until this one passes the gate; None: take calls again."""
        self.gated_for = call
        self.blocked = self.quiet or call is not None

    def keep_free(self, quiet: bool) -> None:
        """Take no calls, so that one can be tried alone; or take calls again."""
        self.quiet = quiet
        self.blocked = quiet or self.gated_for is not None

    def trouble(self, troubled: bool) -> None:
        """Whether the next success has something to reset."""
        self.troubled = troubled

    def snapshot(self, waiting: int) -> ReplicaSnapshot:
        """The replica now, without its load."""
        state = self.breaker.state
        why = self.limiter.explain() if state is CLOSED else f"{state}: {self.breaker.cause}"
        if state is CLOSED and self.gated_for is not None:
            why = f"waits for its published rate; {why}"
        if state is CLOSED and self.left_out:
            why = f"{'; '.join(self.left_out.values())}; {why}"
        return ReplicaSnapshot(self.name, self.in_flight, self.limiter.limit, waiting, state, why)
