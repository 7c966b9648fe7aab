"""ServerPool: the asyncio driver of `core.scheduler`. It does what the scheduler decides, and decides nothing."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from asyncsynth.client.codec import DEFAULT_MAX_TOKENS, Dialect, decode, encode, outcome_of
from asyncsynth.client.messages import Completion, ModelRequest
from asyncsynth.client.transport import Exchange, Timeouts, TransportFailure
from asyncsynth.core.limiter import FixedLimit, Limiter
from asyncsynth.core.outcomes import Ok, Outcome, Overloaded, Permanent, Transient
from asyncsynth.core.retry import RetryPolicy, Rng
from asyncsynth.core.scheduler import Action, Finish, ReplicaSpec, Scheduler, Start
from asyncsynth.core.stats import Histogram, Tally
from asyncsynth.errors import ModelNotServed, RequestFailed, RunStopped

ANY_MODEL = "*"  #: in the scheduler: the name of whatever model no server offers by name
BASE_TIMEOUT_S = 120.0  #: of a request, for the server's queue and the prompt
TIMEOUT_PER_TOKEN_S = 0.5  #: and for each token that it may generate


@dataclass(slots=True)
class Server:
    """One place where models are served.

    `limit` bounds its requests in flight. `serves_any` is the display name of the model that answers whatever
    model is asked for (the embedded server); None for servers that answer for `models` only.
    """

    name: str
    base_url: str
    models: frozenset[str]
    exchange: Exchange
    limit: int = 64
    dialect: Dialect = "openai"
    serves_any: str | None = None
    limiter: Limiter | None = None  #: in place of FixedLimit(limit)


@dataclass(frozen=True, slots=True)
class ReplicaSnapshot:
    """One server now. `waiting`: requests that it could take and that wait for a slot; `why`: its limit or pause."""

    name: str
    in_flight: int
    limit: int
    waiting: int
    state: str  #: "closed" (in use) | "open" | "half-open" | "down"
    why: str


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """The pool now, and its totals since it was made."""

    replicas: list[ReplicaSnapshot]
    waiting: int  #: requests waiting for a slot anywhere
    ok: int  #: requests answered
    failed: int  #: requests given up, each a record's failure
    retries: dict[str, int]  #: attempts that were followed by another, by reason; 429/503/529 as "overloaded"
    overloads: int
    prompt_tokens: int
    completion_tokens: int
    answered_by: dict[str, int]  #: model that answered, as its server names it -> requests
    latency: Histogram  #: seconds, of attempts that answered


@dataclass(slots=True)
class _Totals:
    ok: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: Tally = field(default_factory=Tally)
    answered_by: dict[str, int] = field(default_factory=dict)
    latency: Histogram = field(default_factory=Histogram)


class ServerPool:
    """Sends requests to servers: as many at once as each takes, to the least busy, again when that may help.

    Belongs to one event loop. `rng` gives the jitter; `clock` returns monotonic seconds (default: the loop's).
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        policy: RetryPolicy | None = None,
        rng: Rng | None = None,
        clock: Callable[[], float] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._servers = list(servers)
        # Jitter needs no unpredictability.
        chance = rng if rng is not None else random.Random()  # noqa: S311
        specs = [
            ReplicaSpec(
                server.name,
                server.models | {ANY_MODEL} if server.serves_any is not None else server.models,
                server.limiter or FixedLimit(server.limit),
            )
            for server in self._servers
        ]
        self._scheduler = Scheduler(specs, policy or RetryPolicy(), chance)
        self._models = frozenset[str]().union(*(spec.models for spec in specs))
        self._clock = clock
        self._wall = wall_clock
        self._next_id = 0
        self._waiters: dict[int, asyncio.Future[Start | Finish]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._timeouts: dict[tuple[int, int], Timeouts] = {}
        self._totals = _Totals()
        self._closed = False
        self.halted: RunStopped | None = None  #: why nothing is sent any more, or None

    async def send(self, request: ModelRequest, *, priority: int = 0, affinity: int = 0) -> Completion:
        """The model's answer, after as many attempts as the policy allows.

        Args:
            request: it goes to a server of `request.model`.
            priority: the lower goes first when slots are short.
            affinity: requests with the same number (not 0) prefer the same server, for its prefix cache.

        Raises:
            RequestFailed: this request failed; `reason` is the last outcome's.
            RunStopped: the pool is halted: every request would fail.
            ModelNotServed: no server has the model.
        """
        if self._closed:
            raise RuntimeError("the pool is closed")
        if self.halted is not None:
            raise self._halt_error()
        clock = self._clock
        if clock is None:
            self._clock = clock = asyncio.get_running_loop().time
        self._next_id = call_id = self._next_id + 1
        scheduler = self._scheduler
        try:
            step = self._apply(
                scheduler.submit(call_id, self._route(request.model), priority, clock(), affinity), call_id
            )
            while True:
                if step is None:
                    step = await self._wait(call_id)
                if isinstance(step, Finish):
                    return self._conclude(step)
                outcome = await self._attempt(request, step, clock)
                step = self._apply(scheduler.outcome(call_id, outcome, clock()), call_id)
                if not isinstance(step, Finish) and not isinstance(outcome, Ok):
                    self._totals.retries["overloaded" if isinstance(outcome, Overloaded) else outcome.reason] += 1
        except BaseException:
            # Cancelled, or a fault of our own: give the slot back. Does nothing for a call that is over.
            self._waiters.pop(call_id, None)
            self._apply(scheduler.cancel(call_id, clock()), call_id)
            raise

    def snapshot(self) -> PoolSnapshot:
        """What the pool does and has done; cheap enough for a display once a second."""
        totals, stats = self._totals, self._scheduler.stats()
        replicas = [ReplicaSnapshot(s.name, s.in_flight, s.limit, s.waiting, s.state, s.why) for s in stats]
        return PoolSnapshot(
            replicas=replicas,
            waiting=self._scheduler.waiting,
            ok=totals.ok,
            failed=totals.failed,
            retries=dict(totals.retries),
            overloads=totals.retries["overloaded"],
            prompt_tokens=totals.prompt_tokens,
            completion_tokens=totals.completion_tokens,
            answered_by=dict(totals.answered_by),
            latency=totals.latency.copy(),
        )

    async def aclose(self) -> None:
        """End what waits with asyncio.CancelledError and close the servers' connections."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiter in self._waiters.values():
            waiter.cancel()
        self._waiters.clear()
        for server in self._servers:
            await server.exchange.aclose()

    # --- one attempt --------------------------------------------------------------------------

    def _route(self, model: str) -> str:
        if model in self._models:
            return model
        if ANY_MODEL in self._models:
            return ANY_MODEL
        offered = ", ".join(sorted(self._models)) or "nothing"
        raise ModelNotServed(f"no server has model {model!r}", hint=f"the servers of this run have: {offered}")

    async def _attempt(self, request: ModelRequest, start: Start, clock: Callable[[], float]) -> Outcome:
        server = self._servers[start.replica]
        path, body = encode(request, dialect=server.dialect)
        began = clock()
        try:
            response = await server.exchange.post(path, body, self._timeouts_for(server, request))
        except TransportFailure as failure:
            outcome = outcome_of(failure)
        else:
            outcome = decode(
                request,
                response.status,
                response.headers,
                response.body,
                self._wall(),
                dialect=server.dialect,
            )
            if type(outcome) is Ok:
                self._count_answer(server, outcome.value, clock() - began, start.attempt)
        return outcome

    def _timeouts_for(self, server: Server, request: ModelRequest) -> Timeouts:
        """The server's own, but for the total: it grows with what may be generated."""
        params = request.params
        tokens = params.get("max_tokens") or params.get("max_completion_tokens") or DEFAULT_MAX_TOKENS
        key = (id(server), tokens)
        found = self._timeouts.get(key)
        if found is None:
            if len(self._timeouts) > 1000:  # per-row max_tokens: do not keep one for each ever seen
                self._timeouts.clear()
            own = server.exchange.timeouts
            total = BASE_TIMEOUT_S + TIMEOUT_PER_TOKEN_S * tokens
            found = self._timeouts[key] = Timeouts(own.connect, own.idle, total)
        return found

    def _count_answer(self, server: Server, completion: Completion, latency: float, attempts: int) -> None:
        completion.server = server.name
        completion.latency_s = latency
        completion.attempts = attempts
        if server.serves_any is not None:
            completion.model = server.serves_any
        totals = self._totals
        totals.ok += 1
        totals.prompt_tokens += completion.usage.prompt_tokens
        totals.completion_tokens += completion.usage.completion_tokens
        totals.answered_by[completion.model] = totals.answered_by.get(completion.model, 0) + 1
        totals.latency.add(latency)

    def _conclude(self, finish: Finish) -> Completion:
        outcome = finish.outcome
        if type(outcome) is Ok:
            completion: Completion = outcome.value
            return completion
        if self.halted is not None:
            raise self._halt_error()
        self._totals.failed += 1
        if isinstance(outcome, Transient | Permanent):
            raise RequestFailed(outcome.message or outcome.reason, reason=outcome.reason, attempts=finish.attempts)
        raise RequestFailed(str(outcome), reason="overloaded", attempts=finish.attempts)

    # --- carrying out what was decided --------------------------------------------------------

    async def _wait(self, call_id: int) -> Start | Finish:
        if self.halted is not None:
            raise self._halt_error()
        waiter: asyncio.Future[Start | Finish] = asyncio.get_running_loop().create_future()
        self._waiters[call_id] = waiter
        return await waiter

    def _apply(self, actions: list[Action], mine: int) -> Start | Finish | None:
        """Pass actions on to the calls that wait for them; return the one for call `mine`, if any."""
        own: Start | Finish | None = None
        for action in actions:
            if isinstance(action, (Start, Finish)):
                if action.call_id == mine:
                    own = action
                    continue
                waiter = self._waiters.pop(action.call_id, None)
                # A cancelled waiter's task will give the slot back when it runs.
                if waiter is not None and not waiter.done():
                    waiter.set_result(action)
            elif self.halted is None:
                self._halt()
        due = self._scheduler.next_tick()
        if due is not None and (self._timer is None or due < self._timer_at):
            self._arm(due)
        return own

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        assert self._clock is not None
        self._timer_at = due
        delay = max(0.0, due - self._clock())
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        assert self._clock is not None
        self._timer = None
        # The loop may fire a little early; then nothing is due and the timer is set again.
        self._apply(self._scheduler.tick(self._clock()), 0)

    def _halt(self) -> None:
        self.halted = self._halt_error()
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            if not waiter.done():
                waiter.set_exception(self._halt_error())

    def _halt_error(self) -> RunStopped:
        halt = self._scheduler.halted
        assert halt is not None
        # A new one each time: an exception raised in many tasks would grow its traceback without end.
        return RunStopped(halt.message, hint="check the key, the model's name and the server; then resume")
