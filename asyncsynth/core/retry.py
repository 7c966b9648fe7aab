"""From a failed attempt to "again after d seconds" or "give up", and the budget that paces retries.

The rules, per kind of outcome (`decide`):

| outcome | again? | charged to the record? |
| --- | --- | --- |
| Overloaded | always, after Retry-After (capped) or full jitter | never |
| Transient, `free` | once per call, at once | no |
| Transient | until the stop strategy, `max_attempts` or the record's deadline | yes |
| Permanent, scope "server" | up to 3 attempts (`refused`: 1), if the server answers others (core.refusals) | yes |
| Permanent, scope "record" | never | - |

The scheduler decides whether a charge stays: it takes charges back when the *server* turns out to be at fault.
Wait and stop strategies are tenacity's; their objects are built after a failure only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import tenacity
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from asyncsynth.calling import checked_class
from asyncsynth.core.outcomes import Ok, Outcome, Overloaded, Permanent, Transient
from asyncsynth.core.states import Degree

#: Failures that may be the server's fault. The others (an empty answer) are the model's answer to this record.
SERVER_FAULTS = frozenset(
    {"connect", "reset", "timeout", "server_error", "truncated", "protocol", "bad_json", "bad_utf8"}
)
#: Of these, answers that came and could not be read.
UNREADABLE = frozenset({"bad_json", "bad_utf8"})
#: Attempts of one call that may meet a server-scope Permanent (401, 404, ...) while the server answers others: a
#: gateway may have one bad backend. A server that refuses a text (403, 451) refuses it again.
SERVER_REFUSALS, TEXT_REFUSALS = 3, 1
MACHINE = "machine"  #: reason of a failure that is this machine's: no open files, ports or memory for a connection
MACHINE_WAIT_S = 1.0  #: after it, the call waits for this long, and up to twice


class Rng(Protocol):
    """Where chance comes from: `random.Random` fits."""

    def random(self) -> float:
        """A float in [0, 1)."""
        ...


def _default_wait() -> wait_base:
    return tenacity.wait_exponential(multiplier=0.5, max=60)


def _default_stop() -> stop_base:
    return tenacity.stop_after_attempt(8)


@checked_class
@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed request is sent again. `wait` and `stop` are tenacity strategies over *charged* attempts.

    Only attempts that the record itself may have made fail are charged to it. An attempt at a server that is overloaded
    or down costs the record nothing.

    Args:
        wait: the upper bound of a full-jitter delay in seconds; by default 0.5 s, doubled for each charged attempt,
            at most 60 s.
        stop: when to give up; by default after 8 charged attempts.
        record_deadline_s: seconds from the first attempt's start (not from submit); it ends a record only at a
            charged failure.
        retry_after_cap_s: the longest ``Retry-After`` that is followed, in seconds. If a server answers 429 and asks
            for a longer wait, its requests go to another replica of the model. Without one the run halts, and the same
            command resumes it.
        budget_ratio: retries earned by each first attempt, per server. 0.25 carries one in five attempts failing at
            full rate; at 0.1 that would cut the rate to a sixth. An empty budget delays a retry, it never drops it.
        budget_per_s: retries earned by each second, per server.
        outage_limit_s: a server that gave no answer for this many seconds, with no other replica for one of its
            models, halts the run.

    Example::

        import tenacity

        from asyncsynth import RetryPolicy

        patient = RetryPolicy(stop=tenacity.stop_after_attempt(12), outage_limit_s=6 * 3600)
        print(patient.outage_limit_s)
        # pipeline.run(servers=[...], retry=patient)

    Result::

        21600
    """

    wait: wait_base = field(default_factory=_default_wait)
    stop: stop_base = field(default_factory=_default_stop)
    record_deadline_s: float = 3600.0
    retry_after_cap_s: float = 300.0
    budget_ratio: float = 0.25
    budget_per_s: float = 1.0
    outage_limit_s: float = 3600.0


@dataclass(slots=True)
class AttemptState:
    """What one call has met so far; made at its first failure."""

    first_attempt_at: float
    charged: int = 0
    overloads: int = 0  #: since its last charged failure
    free_used: bool = False
    degree: Degree = Degree.NONE  #: of suspicion that this record kills servers; see core.suspects
    solo_crashes: int = 0  #: crashes at which it was in flight alone


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Try again `delay_s` seconds from now."""

    delay_s: float
    charged: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No further attempt. `reason`: "permanent", "attempts" or "deadline"."""

    reason: str


Decision = RetryAt | GiveUp


class AttemptFailed(Exception):
    """How a failed outcome looks to a tenacity strategy: `retry_state.outcome.exception().outcome`."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(repr(outcome))
        self.outcome = outcome


def _call_state(
    policy: RetryPolicy, outcome: Outcome, number: int, state: AttemptState, now: float
) -> tenacity.RetryCallState:
    call = tenacity.RetryCallState(_RETRYING, None, (), {})
    call.attempt_number = number
    call.start_time = state.first_attempt_at
    call.outcome = tenacity.Future.construct(number, AttemptFailed(outcome), True)
    call.outcome_timestamp = now
    return call


_RETRYING = tenacity.Retrying()  # strategies may look at it; it never runs anything


def backoff(policy: RetryPolicy, outcome: Outcome, number: int, state: AttemptState, now: float, rng: Rng) -> float:
    """Full jitter in seconds: uniform in [0, wait(number)); a server's Retry-After (capped) is the least."""
    delay = rng.random() * policy.wait(_call_state(policy, outcome, number, state, now))
    asked = outcome.retry_after if isinstance(outcome, Overloaded | Transient) else None
    if asked is not None and asked > 0:
        # Some spread on top; else all requests with "5 s" come back at the same instant.
        return min(asked, policy.retry_after_cap_s) + rng.random()
    return delay


def out_of_attempts(policy: RetryPolicy, outcome: Outcome, number: int, state: AttemptState, now: float) -> bool:
    """Whether the stop strategy ends a call after `number` attempts that count."""
    return policy.stop(_call_state(policy, outcome, number, state, now))


def decide(policy: RetryPolicy, outcome: Outcome, state: AttemptState, now: float, rng: Rng) -> Decision:
    """What to do about a failed attempt. `state` holds the earlier failures and is not changed."""
    if isinstance(outcome, Ok):
        raise ValueError("decide() is about failed attempts; this one is Ok")
    if isinstance(outcome, Overloaded):
        return RetryAt(backoff(policy, outcome, state.overloads + 1, state, now, rng), charged=False)
    if isinstance(outcome, Permanent) and outcome.scope != "server":
        return GiveUp("permanent")
    if isinstance(outcome, Transient) and outcome.free and not state.free_used:
        return RetryAt(0.0, charged=False)
    number = state.charged + 1
    if isinstance(outcome, Permanent):
        cap: int | None = TEXT_REFUSALS if outcome.reason == "refused" else SERVER_REFUSALS
    else:
        cap = outcome.max_attempts
    if cap is not None and number >= cap:
        return GiveUp("attempts")
    if policy.stop(_call_state(policy, outcome, number, state, now)):
        return GiveUp("attempts")
    delay = backoff(policy, outcome, number, state, now, rng)
    if now + delay - state.first_attempt_at > policy.record_deadline_s:
        return GiveUp("deadline")
    return RetryAt(delay, charged=True)


class RetryBudget:
    """A token bucket per server: `ratio` tokens per first attempt plus `per_s` per second; a charged retry costs one.

    An empty bucket delays retries, it drops none. `burst` bounds what can be saved up.
    """

    __slots__ = ("_at", "_tokens", "burst", "per_s", "ratio")

    def __init__(self, ratio: float = 0.1, per_s: float = 1.0, *, burst: float = 100.0, start: float = 10.0) -> None:
        if per_s <= 0:
            raise ValueError("budget per_s must be positive, or a retry could wait for ever")
        self.ratio: float = ratio
        self.per_s: float = per_s
        self.burst: float = burst
        self._tokens = min(start, burst)
        self._at: float | None = None  # when time was last credited

    def on_first_attempt(self) -> None:
        """A call's first attempt started: credit `ratio`."""
        tokens = self._tokens + self.ratio
        self._tokens = tokens if tokens < self.burst else self.burst

    def try_take(self, now: float) -> bool:
        """Take one token for a retry, if there is one."""
        self._credit(now)
        # The epsilon forgives the rounding of many small credits, so that next_at(t) is kept at t.
        if self._tokens < 1.0 - 1e-6:
            return False
        self._tokens -= 1.0
        return True

    def next_at(self, now: float) -> float:
        """The time in seconds at which the next token is available, if no first attempt brings it sooner."""
        self._credit(now)
        return now + max(0.0, 1.0 - self._tokens) / self.per_s

    def _credit(self, now: float) -> None:
        if self._at is not None and now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.per_s)
        if self._at is None or now > self._at:
            self._at = now
