"""What a failure means: either the record is charged, or its server is paused.

`FaultJudge` decides, and changes the breakers. `core.dispatch` carries out its decisions about calls, `core.suspects`
keeps the calls that may have killed a server, and `core.refusals` those that were refused; both explain their terms.
The other terms: a failure is *charged* to a record (one attempt of those that it has), or *held* until the fault is
known. A replica is *paused* when its breaker opens, and *back* when it closes. A call *strikes* when it tests a paused
server and fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from asyncsynth.core.balancer import Balancer
from asyncsynth.core.breaker import DRIVER, DRIVER_FIRST
from asyncsynth.core.calls import Action, Call, Canary
from asyncsynth.core.dispatch import SMALL_REQUEST_S, Slots
from asyncsynth.core.outcomes import Outcome, Overloaded, Permanent, Transient, span
from asyncsynth.core.refusals import ADVICE, RESUME, RefusalBook, answers
from asyncsynth.core.replica_state import Alarm, Held, Replica
from asyncsynth.core.retry import SERVER_FAULTS, UNREADABLE, GiveUp, RetryPolicy, Rng, backoff, decide, out_of_attempts
from asyncsynth.core.states import CLOSED, DOWN, HALF_OPEN, HELD, OPEN, REMOVED
from asyncsynth.core.suspects import DEADLY, SuspectBook
from asyncsynth.core.timers import Timers
from asyncsynth.core.waiting import WaitingRoom

UNREADABLE_TRIES = 5  #: unreadable answers of a server that never gave a readable one: halt
REFUSING_S = 30.0  #: the pause of a replica that refuses every request, while others serve the model
READABLE_S = 30.0  #: after a canary whose answer is readable, unreadable ones are charged to their records
BURST_S = 0.25  #: connections that die within so short a time die together
AWAY_CHECK_S = 60.0  #: how often to check whether a replica has been away for too long
LOST_CHECK_S = 1.0  #: or, if its supervisor gave it up, whether a call waits for it
TURNED_AWAY_S = 0.25  #: a connection is refused within so short a time
FULL = 0.1  #: answers of a full server for each connection that it refused, at least; a dead one has hardly any
FULL_S = 5.0  #: a full server takes requests again within this time after its answers


class FaultJudge:
    """Failures: charged, forgiven, held, and the breakers. `now` is in seconds, monotonic."""

    def __init__(
        self,
        slots: Slots,
        book: SuspectBook,
        balancer: Balancer,
        room: WaitingRoom,
        timers: Timers,
        policy: RetryPolicy,
        rng: Rng,
    ) -> None:
        self._refusals = RefusalBook()
        self._slots = slots
        self._book = book
        self._balancer = balancer
        self._room = room
        self._timers = timers
        self._policy = policy
        self._rng = rng

    # --- attempts -----------------------------------------------------------------------------

    def recovered(self, call: Call, replica: Replica, now: float, out: list[Action]) -> None:
        """A call succeeded: failures since the last success were not this server's fault."""
        replica.proven = True
        for refused, outcome in self._refusals.answered(call, replica):
            self._refused_alone(refused, outcome, now, out)
        self._book.left(call, replica)
        self._book.clear(call)
        breaker = replica.breaker
        if breaker.state is CLOSED:
            replica.overloads = 0
            settled = breaker.settle(call.started_at)
            replica.turned_away = replica.casualties = 0
            if settled:
                self._slots.release_held(replica, out)
            health = replica.health
            replica.trouble(bool(replica.refusals or health.trials or health.solo) or not settled)
        elif breaker.test_call == call.id:
            # Only the test call counts: a server that dies may still have answers on the way.
            replica.overloads = 0
            self.back(replica, now, out)
        else:
            replica.survivors += 1

    def failed(self, call: Call, replica: Replica, outcome: Outcome, now: float, out: list[Action]) -> None:
        """An attempt failed: charge it, forgive it, or hold it; pause the server, or halt the run."""
        replica.trouble(True)
        breaker = replica.breaker
        is_test = breaker.test_call == call.id
        if is_test:
            breaker.tested_by(None)
        alone = replica.health.solo is call
        self._book.left(call, replica)
        if self._slots.halted is not None:
            self._slots.finish(call, outcome, out)
        elif alone and isinstance(outcome, Transient) and outcome.reason in DEADLY:
            self._failed_alone(call, replica, outcome, now, out)
        elif isinstance(outcome, Overloaded):
            self._overloaded(call, replica, outcome, is_test, now, out)
        elif isinstance(outcome, Transient) and outcome.free and not call.failures().free_used:
            call.failures().free_used = True
            self._resend(call, replica, outcome, now, out)
        elif isinstance(outcome, Transient) and outcome.reason in SERVER_FAULTS:
            self._server_fault(call, replica, outcome, is_test, now, out)
        else:  # the server did answer, though badly
            self._book.clear(call)
            if is_test:
                self.back(replica, now, out)
            if isinstance(outcome, Permanent) and outcome.scope == "server":
                self._refused(call, replica, outcome, now, out)
            else:
                self._charge(call, None, outcome, now, out)

    def _resend(self, call: Call, replica: Replica, outcome: Transient, now: float, out: list[Action]) -> None:
        """An idle connection died under a request: send the request again at once.

        If several die together, the server may have died, and one of the requests may be the cause: wait a moment.
        """
        deaths = replica.health.deaths
        burst = bool(deaths) and deaths[-1][0] > now - BURST_S
        self._book.note_death(call, replica, outcome, now)
        if burst and replica.breaker.state is CLOSED:
            self._slots.sleep(call, now + BURST_S * (1.0 + self._rng.random()))
        else:
            self._slots.place(call, now, out)

    def _failed_alone(self, call: Call, replica: Replica, outcome: Transient, now: float, out: list[Action]) -> None:
        """A suspect failed with nothing else in flight. A health check shows whether the server died of it."""
        self._slots.hold(call)
        self._book.accuse(call, replica, outcome, now)
        if replica.breaker.state in (DOWN, REMOVED):
            self.is_dead(replica, now, out)
        else:
            self.pause(replica, now, outcome.message or outcome.reason, out)

    def _overloaded(
        self, call: Call, replica: Replica, outcome: Overloaded, is_test: bool, now: float, out: list[Action]
    ) -> None:
        state = call.failures()
        asked, cap = outcome.retry_after or 0.0, self._policy.retry_after_cap_s
        cause = f"overloaded (HTTP {outcome.status})"
        cause += f": {outcome.message}" if outcome.message else ""
        if asked > cap and outcome.status == 429:
            self._too_long_a_wait(call, replica, outcome, cause, now, out)
            return
        cause += f" (the server asks to wait {span(asked)})" if asked >= 1.0 else ""
        if outcome.quota and self._refusals.is_spent(replica, asked, now) and not self._has_peer(replica, call.model):
            why = f"{replica.name} refused every request for {span(now - (replica.spent_at or now))}: {cause}"
            self._slots.halt(why, replica.name, out, ADVICE["quota"])
            self._slots.finish(call, outcome, out)
            return
        replica.limiter.on_overload(now, call.started_at)
        replica.overloads += 1
        refused_all = replica.breaker.state is CLOSED and replica.overloads >= max(3, replica.limiter.limit)
        if is_test or refused_all:
            self.pause(replica, now, cause, out, at_least=min(asked, cap))
        decision = decide(self._policy, outcome, state, now, self._rng)
        state.overloads += 1
        assert not isinstance(decision, GiveUp)
        self._slots.sleep(call, now + decision.delay_s)

    def _too_long_a_wait(
        self, call: Call, replica: Replica, outcome: Overloaded, cause: str, now: float, out: list[Action]
    ) -> None:
        """The server asks for a longer wait than the policy allows: another replica, or else the end of the run."""
        cap = self._policy.retry_after_cap_s
        if self._has_peer(replica, call.model):
            self.pause(replica, now, cause, out, at_least=cap)
            self._slots.place(call, now, out)
            return
        said = outcome.message or "overloaded"
        asked = span(outcome.retry_after or 0.0)
        said += "" if "asks to wait" in said else f" (the server asks to wait {asked})"
        said += f"; at most {span(cap)} is followed (RetryPolicy.retry_after_cap_s)"
        self._refused(call, replica, Permanent("quota", said, outcome.status, scope="server"), now, out)

    def _has_peer(self, replica: Replica, model: str) -> bool:
        """Whether another replica takes calls for a model."""
        return any(other is not replica and other.breaker.state is CLOSED for other in self._balancer.of_model[model])

    def _server_fault(
        self, call: Call, replica: Replica, outcome: Transient, is_test: bool, now: float, out: list[Action]
    ) -> None:
        """Charge the record, unless the server is known to be at fault, or now turns out to be."""
        breaker = replica.breaker
        if outcome.reason in UNREADABLE and now < replica.readable_until:
            self._charge(call, None, outcome, now, out)
            return
        refused = outcome.reason == "connect"
        self._book.note_death(call, replica, outcome, now)
        if outcome.reason in ("connect", "reset") and now - call.started_at < TURNED_AWAY_S:
            replica.turned_away += 1
        else:
            replica.casualties += 1
        what = f"{outcome.reason}: {outcome.message}" if outcome.message else outcome.reason
        if breaker.state is not CLOSED:
            if refused:
                self.is_dead(replica, now, out)
            if is_test:
                self.pause(replica, now, what, out)
                if self._is_unreadable(call, replica, outcome, what, out):
                    return
                if outcome.reason in UNREADABLE:
                    replica.doubted = True
                    out.append(Canary(replica.index, call.model, SMALL_REQUEST_S))
                # A refused connection says nothing about the call. Another failure, alone on the server, may do so:
                # such calls take turns with all others, and only one that fails alone again and again is given up.
                if not refused:
                    call.strikes += 1
                    call.turn += 1
                    replica.failed_tests.append(call)
                    if out_of_attempts(self._policy, outcome, call.strikes, call.failures(), now):
                        self._slots.finish(call, outcome, out)
                        return
            self._slots.place(call, now, out)
        elif breaker.blame(call.id, now, refused, replica.limiter.limit, others=replica.in_flight):
            # This call's note in the streak is taken back by `pause` with the others', so charge it first.
            call.failures().charged += 1
            self._book.fallen(replica, now)
            replica.fell_at = now
            self.pause(replica, now, what, out)
            self._slots.place(call, now, out)
        else:
            self._charge(call, replica, outcome, now, out)

    def _is_unreadable(self, call: Call, replica: Replica, outcome: Transient, what: str, out: list[Action]) -> bool:
        """Halts if no answer of this server could ever be read: such an outage does not pass."""
        tries = replica.breaker.tries
        if self._slots.halted is not None or outcome.reason not in UNREADABLE or replica.proven:
            return False
        if tries < UNREADABLE_TRIES or self._has_peer(replica, call.model):
            return False
        why = f"{replica.name} answers, but not one answer could be read ({what})"
        self._slots.halt(
            why, replica.name, out, f"Check that its base URL is that of an OpenAI-compatible API. {RESUME}"
        )
        self._slots.finish(call, outcome, out)
        return True

    def _charge(self, call: Call, blamed: Replica | None, outcome: Outcome, now: float, out: list[Action]) -> None:
        """Charge the record one attempt. `blamed`: the replica whose streak has this failure, if any."""
        state = call.failures()
        decision = decide(self._policy, outcome, state, now, self._rng)
        state.charged += 1
        state.overloads = 0
        if isinstance(decision, GiveUp):
            if blamed is not None and blamed.in_flight:
                self._slots.hold_back(call, outcome, blamed)
            else:
                self._slots.finish(call, outcome, out)
            return
        self._slots.sleep(call, now + decision.delay_s, blamed)

    # --- refusals -----------------------------------------------------------------------------

    def _refused(self, call: Call, replica: Replica, outcome: Permanent, now: float, out: list[Action]) -> None:
        """The refusal may be the call's fault or the server's: hold the call, and send a canary."""
        self._slots.hold(call)
        if self._refusals.note(call, replica, outcome, now):
            self._refuses_all(call.model, replica, outcome, now, out)
        else:
            self._send_canary(call.model, replica, now, out)

    def _send_canary(self, model: str, replica: Replica, now: float, out: list[Action]) -> None:
        if self._refusals.wants_canary(replica, model):
            out.append(Canary(replica.index, model, SMALL_REQUEST_S))
            self._timers.alarm(replica, Alarm.CANARY, now + 2 * SMALL_REQUEST_S)

    def canary(self, replica: Replica, model: str, answer: Outcome | None, now: float, out: list[Action]) -> None:
        """The result of the driver's `Canary`; None if there is none."""
        if replica.doubted and answers(answer):
            replica.readable_until = now + READABLE_S
            if replica.breaker.state in (OPEN, HALF_OPEN):
                self.back(replica, now, out)
        replica.doubted = False
        verdict, judged = self._refusals.judge(replica, model, answer)
        if verdict == "all" and judged and self._refusals.is_certain(replica, model):
            self._refuses_all(model, replica, judged[0][1], now, out, judged)
            return
        for call, outcome in judged:
            if call.state is not HELD:
                continue  # cancelled
            if verdict == "alone":
                self._refused_alone(call, outcome, now, out)
            elif verdict == "all":
                state = call.failures()
                delay = backoff(self._policy, outcome, state.charged + 1, state, now, self._rng)
                state.charged += 1
                self._slots.sleep(call, now + delay)
            else:
                self._charge(call, None, outcome, now, out)
        self._send_canary(model, replica, now, out)

    def canary_is_late(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The driver was asked to send canaries, and has not reported."""
        for model in [*replica.refusals]:
            self.canary(replica, model, None, now, out)

    def _refused_alone(self, call: Call, outcome: Permanent, now: float, out: list[Action]) -> None:
        """The server answers other requests: this refusal is about the call."""
        if call.state is not HELD:
            return
        status = f"HTTP {outcome.status}; " if outcome.status else ""
        said = f"{outcome.message or outcome.reason} ({status}the server answers other requests)"
        reason = "quota" if outcome.reason == "quota" else "refused"
        state = call.failures()
        decision = decide(self._policy, outcome, state, now, self._rng)
        state.charged += 1
        if isinstance(decision, GiveUp):
            self._slots.finish(call, replace(outcome, reason=reason, message=said, scope="record"), out)
        else:
            self._slots.sleep(call, now + decision.delay_s)

    def _refuses_all(
        self,
        model: str,
        replica: Replica,
        outcome: Permanent,
        now: float,
        out: list[Action],
        judged: Sequence[Held] = (),
    ) -> None:
        """Send a model's calls elsewhere where others serve it, and pause a replica that has no other model; else end
        the run, to be resumed."""
        code = f"HTTP {outcome.status}" if outcome.status else outcome.reason
        why = f"refuses model {model!r} ({code}): {outcome.message}"
        spared = model in replica.left_out or self._has_peer(replica, model)
        if model in replica.left_out:
            pass  # these calls were on their way
        elif spared and len(replica.models) == 1:
            self.pause(replica, now, why, out, at_least=REFUSING_S)
        elif spared:
            self._balancer.leave_out(replica, model, why)
            self._room.rehome((model,))
            self._timers.alarm(replica, Alarm.REFUSED, now + REFUSING_S)
        else:
            self._slots.halt(f"{replica.name} {why}", replica.name, out, ADVICE.get(outcome.reason, ""))
        for call, own in (*judged, *self._refusals.give_back(replica, model)):
            if call.state is not HELD:
                continue  # cancelled
            if spared:
                self._slots.place(call, now, out)
            else:
                self._slots.finish(call, own, out)

    def take_back(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The pause of the models that it refused is over: their calls may show whether it takes them now."""
        if replica.breaker.state is REMOVED:
            return
        models = [*replica.left_out]
        self._balancer.take_back(replica)
        self._room.rehome(models)
        self._slots.fill(replica, now, out)

    # --- verdicts about a server --------------------------------------------------------------

    def is_dead(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The server is dead: a call that was alone there is convicted, or tried alone again."""
        convicted = self._book.convict(replica)
        if convicted is None:
            return
        self._slots.finish(*convicted, out)
        self._book.explain(self._slots.calls.values())
        for other in self._balancer.replicas:
            if other.breaker.state is not REMOVED:
                self._slots.fill(other, now, out)

    def lives(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The server lives, or its state is unknown: the failure of a call that was alone there is an ordinary one."""
        acquitted = self._book.acquit(replica)
        if acquitted is not None:
            call, outcome = acquitted
            self._charge(call, None, outcome, now, out)

    def crashed(self, replica: Replica, now: float, cause: str, out: list[Action]) -> None:
        """A supervisor reports that the server is gone: no call is charged, and those in flight are suspects."""
        self._book.fallen(replica, now)
        self.is_dead(replica, now, out)
        self.pause(replica, now, cause, out)

    def pause(self, replica: Replica, now: float, cause: str, out: list[Action], at_least: float = 0.0) -> None:
        """Pause a replica, take back the charges of its failures, and let its calls go elsewhere."""
        breaker = replica.breaker
        replica.trouble(True)
        if breaker.state in (DOWN, REMOVED):
            return
        self._timers.alarm(replica, Alarm.PAUSE, breaker.open(now, cause, self._rng, at_least))
        for call_id, charges in breaker.take_notes():
            call = self._slots.calls.get(call_id)
            if call is not None and call.retry is not None:
                call.retry.charged = max(0, call.retry.charged - charges)
                self._slots.forgive(call, replica)
        replica.keep_free(False)  # it takes nothing anyway; when back, it is empty
        self._slots.place_elsewhere(replica, now, out)
        if any(self._balancer.hopeless(model, now, self._policy.outage_limit_s) for model in replica.models):
            self._give_up_waiting(replica, out)

    def check_absence(self, replica: Replica, now: float, out: list[Action]) -> None:
        """A replica is down or removed: calls that only it can take wait, for `outage_limit_s` at most."""
        models = [model for model in replica.models if self._room.waits_for(model)]
        if any(self._balancer.hopeless(model, now, self._policy.outage_limit_s) for model in models):
            self._give_up_waiting(replica, out)
        elif replica.breaker.state is DOWN or any(m in self._balancer.bare_since for m in replica.models):
            self._timers.alarm(replica, Alarm.OUTAGE, now + (LOST_CHECK_S if replica.breaker.lost else AWAY_CHECK_S))

    def checked(self, replica: Replica, now: float, ok: bool, out: list[Action]) -> None:
        """The result of a `HealthCheck` that the server answered, or with which the driver tests a paused one."""
        tester = replica.breaker.test_call
        if ok:
            self._slots.heard(replica, now)
            if tester == DRIVER_FIRST:  # it answers a small request: now a call may try
                replica.breaker.tested_by(None)
                self._timers.forget(replica, Alarm.CHECK)
                self._slots.fill(replica, now, out)
            elif tester == DRIVER:
                self.back(replica, now, out)
                self._slots.fill(replica, now, out)
        elif tester in (DRIVER, DRIVER_FIRST):
            self.is_dead(replica, now, out)
            self.pause(replica, now, "does not answer a health check", out)

    def watch_absence(self, replica: Replica, now: float) -> None:
        """Sets the alarm that checks whether the replica's outage has lasted too long."""
        # A moment later than the limit; else the check would come too early.
        self._timers.alarm(replica, Alarm.OUTAGE, now + self._policy.outage_limit_s + 1.0)

    def _give_up_waiting(self, replica: Replica, out: list[Action]) -> None:
        """Halt the run without failing a record; it can be resumed."""
        cause = replica.breaker.cause
        if replica.breaker.lost:
            why = f"{replica.breaker.how}: {cause}"
        else:
            why = f"gave no answer for {self._policy.outage_limit_s / 60:.0f} min ({cause})"
        self._slots.halt(f"{replica.name} {why}", replica.name, out)

    def _over_its_limit(self, replica: Replica, now: float) -> None:
        """The server is back. It was full rather than dead if it refused connections while it answered all that it
        had."""
        held, refused, casualties = replica.survivors, replica.turned_away, replica.casualties
        replica.survivors = replica.turned_away = replica.casualties = 0
        # A dying server may have a few answers on the way; one that was away for longer was restarted.
        answered_all = held and not casualties and held >= FULL * refused
        if answered_all and refused and now - replica.fell_at < FULL_S + 2 * replica.slowest:
            replica.limiter.on_capacity(held, now, f"it refused connections beyond {held}")
            self._book.explain(self._slots.calls.values())

    def back(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The server answers again. Calls whose tests failed get their places in the queue back."""
        replica.breaker.close()
        self._book.answers(replica)
        self._over_its_limit(replica, now)
        self._timers.forget(replica, Alarm.CHECK)
        self.lives(replica, now, out)
        self._timers.forget(replica, Alarm.PAUSE)
        self._timers.forget(replica, Alarm.OUTAGE)
        failed_tests, replica.failed_tests = replica.failed_tests, []
        for call in failed_tests:
            call.turn = 0
            self._room.requeue(call)
