"""ServerPool: the asyncio driver of `core.scheduler`. It carries out the scheduler's decisions and makes none."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from asyncsynth.client.codec import decode, encode, outcome_of
from asyncsynth.client.loads import ORCA_HEADER
from asyncsynth.client.machine_limits import RESERVE, connections_each, machine_limit, open_files, raise_open_files
from asyncsynth.client.messages import Completion, ModelRequest
from asyncsynth.client.replicas import (
    ANY_MODEL,
    Link,
    PoolSnapshot,
    Server,
    Totals,
    answers,
    canary_outcome,
    estimated_tokens,
    prompt_head,
)
from asyncsynth.client.transport import TransportFailure, WireResponse
from asyncsynth.core.outcomes import Ok, Outcome, Overloaded, Permanent, ServerLoad, Transient
from asyncsynth.core.retry import MACHINE, RetryPolicy, Rng
from asyncsynth.core.scheduler import Abort, Action, Canary, Finish, HealthCheck, Scheduler, Start
from asyncsynth.core.states import REMOVED
from asyncsynth.errors import ModelNotServed, RequestFailed, RunStopped, Withdrawn

__all__ = ["PoolSnapshot", "Server", "ServerPool"]

#: Names under which a server answers for one model that are noted, at most.
MOST_NAMES = 8


class ServerPool:
    """Sends requests to servers: as many at once as each takes, to the least busy one, again if a retry may help.

    Belongs to one event loop. `rng` gives the jitter; `clock` returns monotonic seconds (default: the loop's).
    `model_change`: what happens when a server's answers begin to name another model: "stop" sends it no more requests
    and refuses such answers; "note" only reports it.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        policy: RetryPolicy | None = None,
        rng: Rng | None = None,
        clock: Callable[[], float] | None = None,
        wall_clock: Callable[[], float] = time.time,
        model_change: str = "stop",
    ) -> None:
        # Jitter needs no unpredictability.
        chance = rng if rng is not None else random.Random()  # noqa: S311
        specs = [server.spec() for server in servers]
        self._scheduler = Scheduler(specs, policy or RetryPolicy(), chance)
        self._models = frozenset[str]().union(*(spec.models for spec in specs))
        self._links = [Link(server, self._report_load) for server in servers]  #: as the scheduler numbers them
        self._spread = len(servers) > 1  #: prefixes matter only if there is a choice
        self._rated = any(server.rates is not None for server in servers)
        self._accepts_other = model_change == "note"
        self._given_clock = clock
        self._clock: Callable[[], float] | None = None  #: set when the pool begins
        self._wall = wall_clock
        self._next_id = 0
        self._waiters: dict[int, asyncio.Future[Start | Finish]] = {}
        self._senders: dict[int, asyncio.Task[Any] | None] = {}  #: call -> the task that sends it
        self._aborted: dict[int, tuple[int, asyncio.Future[Start | Finish]]] = {}
        self._checks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._totals = Totals()
        self._closed = False
        self._advice: dict[str, str] = {}  #: what to do about servers that are lost, for the error
        self.notes: list[str] = []  #: events of servers, for the run's report
        self._told: set[str] = set()  #: notes that are given once
        self._counted: dict[tuple[str, str], tuple[int, int]] = {}  #: (server, cause) -> place in `notes`, requests
        self.halted: RunStopped | None = None  #: why nothing more is sent, or None
        self._refusal: Callable[[], BaseException] | None = None  #: what a call that is not at a server gets then

    async def send(self, request: ModelRequest, *, priority: int = 0, affinity: int = 0) -> Completion:
        """The model's answer, after as many attempts as the policy allows.

        Args:
            request: it goes to a server of `request.model`.
            priority: lower goes first when slots are short.
            affinity: requests with the same number (not 0) prefer the same server, for its prefix cache; 0 takes
                one from a long head of the prompt.

        Raises:
            RequestFailed: this request failed; `reason` is the last outcome's.
            RunStopped: the pool is halted: every request would fail.
            Withdrawn: the run stops (`withdraw`), and no server has the request.
            ModelNotServed: no server has the model.
        """
        if self._closed:
            raise RuntimeError("the pool is closed")
        if self._refusal is not None:
            raise self._refusal()
        clock = self._clock or self._begin()
        self._next_id = call_id = self._next_id + 1
        scheduler = self._scheduler
        if self._spread and not affinity:
            affinity = prompt_head(request)
        tokens = estimated_tokens(request) if self._rated else 0
        model = request.model if request.model in self._models else self._stand_in(request.model)
        self._senders[call_id] = asyncio.current_task()
        refused = ""  #: the reason of a refusal that another attempt may follow
        try:
            step = self._apply(scheduler.submit(call_id, model, priority, clock(), affinity, tokens), call_id)
            waiter: asyncio.Future[Start | Finish] | None = None  #: of an aborted call; it may know already
            while True:
                try:
                    if step is None:
                        step, waiter = await (waiter or self._waiter(call_id)), None
                        if self._refusal is not None and not isinstance(step, Finish):
                            raise self._refusal()
                    if isinstance(step, Finish):
                        return self._conclude(step)
                    if refused:
                        self._totals.retries[refused] += 1
                        refused = ""
                    link = self._links[step.replica]
                    server = link.server
                    began = clock()
                    # No local variable holds the body or the answer: it would stay in memory while the call waits for a
                    # retry.
                    sent = server.exchange.post(*encode(request, dialect=server.dialect), link.timeouts)
                    outcome = self._read(request, await sent, link, began, clock(), step.attempt)
                except TransportFailure as failure:
                    outcome = outcome_of(failure)
                    if words := machine_limit(failure):
                        outcome = self._no_room(words)
                    elif failure.reason == "timeout":
                        self._deadline_passed(server)
                except asyncio.CancelledError:
                    if (waiter := self._aborted_one(call_id)) is None:
                        raise
                    step = None
                    continue
                step = self._apply(scheduler.outcome(call_id, outcome, clock()), call_id)
                if not isinstance(step, Finish) and not isinstance(outcome, Ok):
                    if self._refusal is not None:
                        raise self._refusal()
                    if isinstance(outcome, Permanent):  # held until it is known which requests the server refuses
                        refused = outcome.reason
                    else:
                        self._totals.retries["overloaded" if isinstance(outcome, Overloaded) else outcome.reason] += 1
        except BaseException:
            # Cancelled, or a bug of ours: give the slot back. Does nothing for a call that is over.
            self._waiters.pop(call_id, None)
            self._apply(scheduler.cancel(call_id, clock()), call_id)
            raise
        finally:
            del self._senders[call_id]

    def withdraw(self) -> None:
        """Sends nothing more. Requests at the servers end; all others, and those to come, raise `Withdrawn`.

        This includes requests that wait for a slot, for their next attempt, or for a server that is away.
        """
        if self._refusal is None:
            self._refuse(Withdrawn)

    def _refuse(self, refusal: Callable[[], BaseException]) -> None:
        self._refusal = refusal
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            _fail(waiter, refusal)

    # --- servers that come and go -------------------------------------------------------------

    def add_server(self, server: Server) -> None:
        """Adds a server; call from the pool's event loop. ValueError: its name is taken."""
        clock = self._clock or self._begin()
        spec = server.spec()
        actions = self._scheduler.add_replica(spec, clock())
        link = Link(server, self._report_load)
        self._links.append(link)
        self._models |= spec.models
        self._spread = True
        self._rated = self._rated or server.rates is not None
        link.start(clock)
        self._bound_by_files()
        self._apply(actions, 0)

    def remove_server(self, name: str) -> None:
        """The server gets no new calls; those in flight may end. KeyError: no server has that name."""
        clock = self._clock or self._begin()
        self._apply(self._scheduler.remove_replica(name, clock()), 0)

    def server_down(self, name: str, why: str) -> None:
        """Its supervisor reports it gone: nothing is sent there, and no call is charged, until `server_up`."""
        clock = self._clock or self._begin()
        self._apply(self._scheduler.replica_down(name, clock(), why), 0)

    def server_lost(self, name: str, why: str, advice: str = "") -> None:
        """Its supervisor gives it up: the run continues with the others. If it needs this one, it ends now.

        `advice`: what to do, for the error of a run that ends. KeyError: no server has that name.
        """
        clock = self._clock or self._begin()
        actions = self._scheduler.replica_lost(name, clock(), why)
        self._advice[name] = advice
        self._apply(actions, 0)
        if self.halted is None:
            self.notes.append(f"{name} is not started again ({why}); the run continues without it")

    def server_up(self, name: str) -> None:
        """The server is back."""
        clock = self._clock or self._begin()
        self._apply(self._scheduler.replica_up(name, clock()), 0)

    def _begin(self) -> Callable[[], float]:
        """The pool's first moment in its event loop."""
        self._clock = clock = self._given_clock or asyncio.get_running_loop().time
        self._bound_by_files()
        for link in self._links:
            link.start(clock)
        return clock

    def _report_load(self, name: str, load: ServerLoad) -> None:
        self._apply(self._scheduler.report_load(name, load, load.at), 0)

    # --- what is reported -------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Requests that all servers together may have in flight now."""
        return sum(r.limiter.limit for r in self._scheduler.replicas if r.breaker.state is not REMOVED)

    def snapshot(self) -> PoolSnapshot:
        """The pool's current state and its totals; cheap enough for a display once a second."""
        now = self._clock() if self._clock is not None else None
        by_name = {link.server.name: link for link in self._links}
        replicas = [by_name[one.name].with_load(one, now) for one in self._scheduler.snapshots()]
        totals = self._totals
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
            wasted=totals.wasted,
            given_up=dict(totals.given_up),
            waits="" if now is None else "; ".join(self._scheduler.waits(now)),
        )

    async def aclose(self) -> None:
        """End waiting calls with asyncio.CancelledError and close the servers' connections."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiter in self._waiters.values():
            waiter.cancel()
        self._waiters.clear()
        for task in self._checks:
            task.cancel()
        await asyncio.gather(*self._checks, return_exceptions=True)
        for link in self._links:
            await link.stop()
        for link in self._links:
            await link.server.exchange.aclose()

    # --- one attempt --------------------------------------------------------------------------

    def _stand_in(self, model: str) -> str:
        """The server that answers for any model, for one that no server offers by name."""
        if ANY_MODEL in self._models:
            return ANY_MODEL
        offered = ", ".join(sorted(self._models)) or "nothing"
        raise ModelNotServed(f"no server has model {model!r}", hint=f"the servers of this run have: {offered}")

    def _read(
        self, request: ModelRequest, response: WireResponse, link: Link, began: float, now: float, attempts: int
    ) -> Outcome:
        """Counts an answer by its outcome."""
        server, headers = link.server, response.headers
        outcome = decode(request, response.status, headers, response.body, self._wall(), dialect=server.dialect)
        if ORCA_HEADER in headers and now >= link.read_at:
            link.hear(headers, now)
        if type(outcome) is Ok:
            completion: Completion = outcome.value
            if completion.model != link.answers_as.get(request.model) and server.serves_any is None:
                outcome = self._named(completion.model, request, link, outcome)
            if type(outcome) is Ok:
                self._count_answer(server, completion, now - began, attempts)
                return outcome
        if not isinstance(outcome, Ok):
            if outcome.paid:
                self._totals.wasted += 1
                self._totals.prompt_tokens += outcome.prompt_tokens
                self._totals.completion_tokens += outcome.tokens
            if isinstance(outcome, Permanent) and outcome.scope == "server":
                link.refused = request
        return outcome

    def _named(self, named: str, request: ModelRequest, link: Link, outcome: Ok) -> Outcome:
        """An answer names another model than this server named before, or it is the first one."""
        before = link.answers_as.setdefault(request.model, named)
        if named in (before, request.model):
            return outcome
        server = link.server.name
        why = f"its answers for {request.model!r} name the model {named!r}, and named {before!r} before"
        if self._accepts_other:
            link.answers_as[request.model] = named
            known = link.names.setdefault(request.model, {before})
            if named not in known and len(known) < MOST_NAMES:  # a gateway may go back and forth for a whole run
                known.add(named)
                self.notes.append(f"{server}: {why}")
            return outcome
        if not link.unusable:
            link.unusable = True
            self._advice[server] = (
                f"serve {before!r} there again and resume, or take what it answers: --model-change note"
            )
            assert self._clock is not None
            how = "answers as another model"
            self._apply(self._scheduler.replica_lost(server, self._clock(), why, how), 0)
            if self.halted is None:
                self.notes.append(f"{server} {how}, and gets no more requests: {why}")
        spent = outcome.tokens, outcome.prompt_tokens
        return Transient(
            "other_model", f"{server}: {why}", free=True, paid=True, tokens=spent[0], prompt_tokens=spent[1]
        )

    def _count_answer(self, server: Server, completion: Completion, latency: float, attempts: int) -> None:
        completion.server = server.name
        completion.latency_s = latency
        completion.attempts = attempts
        if server.serves_any is not None:
            completion.model = server.serves_any
        totals, usage = self._totals, completion.usage
        totals.ok += 1
        totals.prompt_tokens += usage.prompt_tokens
        totals.completion_tokens += usage.completion_tokens
        totals.answered_by[completion.model] += 1
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
            said, attempts = outcome.message or outcome.reason, finish.attempts
            failed = RequestFailed(said, reason=outcome.reason, attempts=attempts, raw=outcome.raw)
            failed.tokens = outcome.tokens
            raise failed
        raise RequestFailed(str(outcome), reason="overloaded", attempts=finish.attempts)

    # --- requests that were given up --------------------------------------------------------------------

    def _deadline_passed(self, server: Server) -> None:
        """A deadline that the user set has ended a request."""
        limit = server.request_timeout
        of = "the HTTP client's timeout" if limit is None else f"request_timeout {limit:g} s"
        said = f"no whole answer within {of}; the server may still have generated these answers"
        self._given_up("request_timeout", server.name, said)

    def _no_room(self, words: str) -> Transient:
        """This machine could not open a connection: the request waits, and the user is informed once."""
        if words not in self._told:
            self._told.add(words)
            self.notes.append(f"requests wait: {words}")
        return Transient(MACHINE, words)

    def _bound_by_files(self) -> None:
        """Limits the connections to the files that this process may open."""
        limiters = [r.limiter for r in self._scheduler.replicas if r.breaker.state is not REMOVED]
        wanted = sum(limiter.maximum for limiter in limiters)
        opened = open_files()
        may_open = raise_open_files(wanted + opened + RESERVE)
        each = connections_each(len(limiters), wanted, may_open, opened)
        if each is None:
            return
        for limiter in limiters:
            limiter.bound(each)
        said = f"this process may open {may_open:,} files, so at most {each:,} requests are in flight at each server"
        if said not in self._told:
            self._told.add(said)
            self.notes.append(f"{said}: raise the hard limit of open files (`ulimit -Hn`) for more")

    def _given_up(self, cause: str, server: str, why: str) -> None:
        """Count a request that was given up, and keep the server's note of it up to date."""
        self._totals.given_up[cause] += 1
        place, number = self._counted.get((server, cause), (len(self.notes), 0))
        number += 1
        self._counted[server, cause] = place, number
        said = f"{server}: {number:,} request{'' if number == 1 else 's'} given up: {why}"
        self.notes[place : place + 1] = [said]

    # --- carrying out decisions --------------------------------------------------------

    def _waiter(self, call_id: int) -> asyncio.Future[Start | Finish]:
        """The future on which the call waits for decisions."""
        if self._refusal is not None:
            raise self._refusal()
        waiter: asyncio.Future[Start | Finish] = asyncio.get_running_loop().create_future()
        self._waiters[call_id] = waiter
        return waiter

    def _abort(self, abort: Abort) -> None:
        """Cancel a call's exchange; the call itself waits for what is decided next, maybe in the same list."""
        call_id = abort.call_id
        self._given_up(abort.cause, self._links[abort.replica].server.name, abort.why)
        task = self._senders.get(call_id)
        if task is not None:
            waiter: asyncio.Future[Start | Finish] = asyncio.get_running_loop().create_future()
            if self._refusal is None:
                self._waiters[call_id] = waiter
            else:
                _fail(waiter, self._refusal)
            self._aborted[call_id] = (task.cancelling(), waiter)
            task.cancel()

    def _aborted_one(self, call_id: int) -> asyncio.Future[Start | Finish] | None:
        """What an aborted call waits for next; None if another party has (also) cancelled its task."""
        aborted = self._aborted.pop(call_id, None)
        task = self._senders[call_id]
        if aborted is None or task is None or task.uncancel() > aborted[0]:
            return None
        return aborted[1]

    def _check_health(self, check: HealthCheck) -> None:
        """Send a silent server a small request, outside its slots and the statistics."""
        server = self._links[check.replica].server

        async def ask() -> None:
            ok = await answers(server, check.timeout_s)
            assert self._clock is not None
            self._apply(self._scheduler.health_check_result(server.name, ok, self._clock(), check.number), 0)

        task = asyncio.get_running_loop().create_task(ask(), name="asyncsynth health check")
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    def _canary(self, canary: Canary) -> None:
        """Send a harmless request to a server that refused one, outside slots and statistics."""
        link = self._links[canary.replica]

        async def ask() -> None:
            outcome = await canary_outcome(link, canary.timeout_s, self._wall())
            assert self._clock is not None
            self._apply(self._scheduler.canary_result(canary.replica, canary.model, outcome, self._clock()), 0)

        task = asyncio.get_running_loop().create_task(ask(), name="asyncsynth canary")
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    def _apply(self, actions: list[Action], mine: int) -> Start | Finish | None:
        """Pass actions on to the calls that wait for them; return the one for call `mine`, if any."""
        own: Start | Finish | None = None
        for action in actions:
            if type(action) is Start or type(action) is Finish:
                if action.call_id == mine:
                    own = action
                    continue
                waiter = self._waiters.pop(action.call_id, None)
                # A cancelled waiter's task will give the slot back when it runs.
                if waiter is not None and not waiter.done():
                    waiter.set_result(action)
            elif isinstance(action, Abort):
                self._abort(action)
            elif isinstance(action, HealthCheck):
                self._check_health(action)
            elif isinstance(action, Canary):
                self._canary(action)
            elif self.halted is None:
                self._halt()
        if self._scheduler.ticks_before(self._timer_at):
            self._arm()
        return own

    def _arm(self) -> None:
        """Set the timer for the scheduler's next tick, unless it is set for an earlier moment."""
        due = self._scheduler.next_tick()
        if due is None or due >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        assert self._clock is not None
        self._timer_at = due
        delay = max(0.0, due - self._clock())
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        assert self._clock is not None
        self._timer, self._timer_at = None, inf
        # The loop may fire a little early; then nothing is due and the timer is set again.
        self._apply(self._scheduler.tick(self._clock()), 0)
        self._arm()  # `ticks_before` does not know what the tick has added

    def _halt(self) -> None:
        self.halted = self._halt_error()
        self._refuse(self._halt_error)

    def _halt_error(self) -> RunStopped:
        halt = self._scheduler.halted
        assert halt is not None
        # A new one each time: an exception raised in many tasks would grow its traceback without end.
        hint = self._advice.get(halt.replica) or halt.advice or "Check the server. Then run the same command again."
        return RunStopped(halt.message, hint=hint)


def _fail(waiter: asyncio.Future[Start | Finish], refusal: Callable[[], BaseException]) -> None:
    """Ends a wait. A call that was cancelled meanwhile does not read the error, which must not be logged as a fault."""
    if not waiter.done():
        waiter.set_exception(refusal())
        waiter.exception()
