"""What a failure means, and for whom: the record is charged, or its server is paused.

`FaultJudge` decides, and changes the breakers. `core.dispatch` carries out what it decides about calls, and
`core.suspects` keeps who may have killed a server; its words are explained there. The other words: a failure is
*charged* to a record (one attempt of those that it has), or *held* until it is known whose fault it is. A replica is
*paused* when its breaker opens, and *back* when it closes. A call *strikes* when it probes a paused server and fails.
"""

from __future__ import annotations

from asyncsynth.core.balancer import Balancer
from asyncsynth.core.breaker import CANARY
from asyncsynth.core.calls import Action, Call
from asyncsynth.core.dispatch import Slots
from asyncsynth.core.outcomes import Outcome, Overloaded, Permanent, Transient
from asyncsynth.core.replica_state import Alarm, Replica
from asyncsynth.core.retry import SERVER_FAULTS, GiveUp, RetryPolicy, Rng, decide, out_of_attempts
from asyncsynth.core.states import CLOSED, DOWN, REMOVED
from asyncsynth.core.suspects import DEADLY, SuspectBook
from asyncsynth.core.timers import Timers
from asyncsynth.core.waiting import WaitingRoom

HALT_AFTER = 3  #: identical refusals (401, 403, 404) of one model by one replica, with no success in between
TURNED_AWAY_S = 0.25  #: a connection that is refused is refused so soon
FULL = 0.1  #: answers of a full server for each connection that it refused, at least; a dead one has hardly any
FULL_S = 5.0  #: a full server takes requests again so soon after its answers
BURST_S = 0.25  #: connections that die within so short a time die together
AWAY_CHECK_S = 60.0  #: how often it is asked whether a replica has been away for too long
LOST_CHECK_S = 1.0  #: or, where nobody brings it back, whether a call waits for it


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
        self._slots = slots
        self._book = book
        self._balancer = balancer
        self._room = room
        self._timers = timers
        self._policy = policy
        self._rng = rng

    # --- attempts -----------------------------------------------------------------------------

    def recovered(self, call: Call, replica: Replica, now: float, out: list[Action]) -> None:
        """A success: failures since the last one were not this server's fault."""
        replica.refusals.pop(call.model, None)
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
        elif breaker.probe == call.id:
            # Only the probe counts: a server that dies may still have answers on the way.
            replica.overloads = 0
            self.back(replica, now, out)
        else:
            replica.survivors += 1

    def failed(self, call: Call, replica: Replica, outcome: Outcome, now: float, out: list[Action]) -> None:
        """An attempt has failed: charge it, forgive it, or hold it; pause the server, or halt all."""
        replica.trouble(True)
        breaker = replica.breaker
        probing = breaker.probe == call.id
        if probing:
            breaker.probed_by(None)
        alone = replica.health.solo is call
        self._book.left(call, replica)
        if self._slots.halted is not None:
            self._slots.finish(call, outcome, out)
        elif alone and isinstance(outcome, Transient) and outcome.reason in DEADLY:
            self._failed_alone(call, replica, outcome, now, out)
        elif isinstance(outcome, Overloaded):
            self._overloaded(call, replica, outcome, probing, now, out)
        elif isinstance(outcome, Transient) and outcome.free and not call.failures().free_used:
            call.failures().free_used = True
            self._resend(call, replica, outcome, now, out)
        elif isinstance(outcome, Transient) and outcome.reason in SERVER_FAULTS:
            self._server_fault(call, replica, outcome, probing, now, out)
        else:  # the server did answer, though not well
            self._book.clear(call)
            if probing:
                self.back(replica, now, out)
            if isinstance(outcome, Permanent) and outcome.scope == "server":
                self._refused(call, replica, outcome, out)
            if self._slots.halted is not None:
                self._slots.finish(call, outcome, out)
            else:
                self._charge(call, None, outcome, now, out)

    def _resend(self, call: Call, replica: Replica, outcome: Transient, now: float, out: list[Action]) -> None:
        """An idle connection died under a request: again, at once.

        But when several die together it may be the server, and one of them the cause: a moment shows.
        """
        deaths = replica.health.deaths
        burst = bool(deaths) and deaths[-1][0] > now - BURST_S
        self._book.note_death(call, replica, outcome, now)
        if burst and replica.breaker.state is CLOSED:
            self._slots.sleep(call, now + BURST_S * (1.0 + self._rng.random()))
        else:
            self._slots.place(call, now, out)

    def _failed_alone(self, call: Call, replica: Replica, outcome: Transient, now: float, out: list[Action]) -> None:
        """A suspect, with nothing else in flight: has the server died of it? A probe tells."""
        self._slots.hold(call)
        self._book.accuse(call, replica, outcome, now)
        if replica.breaker.state in (DOWN, REMOVED):
            self.is_dead(replica, now, out)
        else:
            self.pause(replica, now, outcome.message or outcome.reason, out)

    def _overloaded(
        self, call: Call, replica: Replica, outcome: Overloaded, probing: bool, now: float, out: list[Action]
    ) -> None:
        replica.limiter.on_overload(now, call.started_at)
        replica.overloads += 1
        refused_all = replica.breaker.state is CLOSED and replica.overloads >= max(3, replica.limiter.limit)
        if probing or refused_all:
            asked = min(outcome.retry_after or 0.0, self._policy.retry_after_cap_s)
            self.pause(replica, now, f"overloaded (HTTP {outcome.status})", out, at_least=asked)
        state = call.failures()
        decision = decide(self._policy, outcome, state, now, self._rng)
        state.overloads += 1
        assert not isinstance(decision, GiveUp)
        self._slots.sleep(call, now + decision.delay_s)

    def _server_fault(
        self, call: Call, replica: Replica, outcome: Transient, probing: bool, now: float, out: list[Action]
    ) -> None:
        """Charge the record, unless the server is known, or now turns out, to be the one at fault."""
        breaker = replica.breaker
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
            if probing:
                self.pause(replica, now, what, out)
                # A refused connection says nothing about the call. Another failure, alone on the server, may: such
                # calls take turns with all others, and only one that fails alone again and again is given up.
                if not refused:
                    call.strikes += 1
                    call.turn += 1
                    replica.probers.append(call)
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

    def _charge(self, call: Call, blamed: Replica | None, outcome: Outcome, now: float, out: list[Action]) -> None:
        """One attempt on the record's account. `blamed`: the replica whose streak has this failure, if any."""
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

    def _refused(self, call: Call, replica: Replica, outcome: Permanent, out: list[Action]) -> None:
        reason, status, times = replica.refusals.get(call.model, ("", None, 0))
        times = times + 1 if (reason, status) == (outcome.reason, outcome.status) else 1
        replica.refusals[call.model] = (outcome.reason, outcome.status, times)
        if times >= HALT_AFTER:
            code = f"HTTP {outcome.status}" if outcome.status else outcome.reason
            why = f"{replica.name} refuses model {call.model!r} ({code}): {outcome.message}"
            self._slots.halt(why, replica.name, out)

    # --- verdicts about a server --------------------------------------------------------------

    def is_dead(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The server is dead; a call that was alone there is convicted, or tried alone once more."""
        convicted = self._book.convict(replica)
        if convicted is None:
            return
        self._slots.finish(*convicted, out)
        self._book.explain(self._slots.calls.values())
        for other in self._balancer.replicas:
            if other.breaker.state is not REMOVED:
                self._slots.fill(other, now, out)

    def lives(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The server lives, or it cannot be known: what a call met that was alone there is an ordinary failure."""
        acquitted = self._book.acquit(replica)
        if acquitted is not None:
            call, outcome = acquitted
            self._charge(call, None, outcome, now, out)

    def crashed(self, replica: Replica, now: float, cause: str, out: list[Action]) -> None:
        """A supervisor says that the server is gone: no call is charged, and those in flight are suspects."""
        self._book.fallen(replica, now)
        self.is_dead(replica, now, out)
        self.pause(replica, now, cause, out)

    def pause(self, replica: Replica, now: float, cause: str, out: list[Action], at_least: float = 0.0) -> None:
        """Pause a replica; take back what its failures had charged; let everyone go elsewhere."""
        breaker = replica.breaker
        replica.trouble(True)
        if breaker.state in (DOWN, REMOVED):
            return
        self._timers.alarm(replica, Alarm.PROBE, breaker.open(now, cause, self._rng, at_least))
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
        """A replica that is down or removed: calls that only it could take wait for long, but not for ever."""
        models = [model for model in replica.models if self._room.waits_for(model)]
        if any(self._balancer.hopeless(model, now, self._policy.outage_limit_s) for model in models):
            self._give_up_waiting(replica, out)
        elif replica.breaker.state is DOWN or any(m in self._balancer.bare_since for m in replica.models):
            self._timers.alarm(replica, Alarm.OUTAGE, now + (LOST_CHECK_S if replica.breaker.lost else AWAY_CHECK_S))

    def probed(self, replica: Replica, now: float, ok: bool, out: list[Action]) -> None:
        """The result of a `Probe` that the server answered, or by which the driver tries a paused one."""
        by_driver = replica.breaker.probe == CANARY
        if ok:
            self._slots.heard(replica, now)
            if replica.breaker.knocking:  # it answers something small: now a call may try
                replica.breaker.probed_by(None)
                self._timers.forget(replica, Alarm.ASK)
                self._slots.fill(replica, now, out)
            elif by_driver:
                self.back(replica, now, out)
                self._slots.fill(replica, now, out)
        elif by_driver:
            self.is_dead(replica, now, out)
            self.pause(replica, now, "does not answer a probe", out)

    def watch_absence(self, replica: Replica, now: float) -> None:
        """Sets the alarm that looks whether the replica's outage has lasted too long."""
        # A moment later than the limit, or it is found not to be over yet.
        self._timers.alarm(replica, Alarm.OUTAGE, now + self._policy.outage_limit_s + 1.0)

    def _give_up_waiting(self, replica: Replica, out: list[Action]) -> None:
        """Stop, to be resumed, and fail no record."""
        cause = replica.breaker.cause
        if replica.breaker.lost:
            why = f"{replica.breaker.how}: {cause}"
        else:
            why = f"gave no answer for {self._policy.outage_limit_s / 60:.0f} min ({cause})"
        self._slots.halt(f"{replica.name} {why}", replica.name, out)

    def _over_its_limit(self, replica: Replica, now: float) -> None:
        """It is back. It was full rather than dead if it refused connections while it answered all that it had."""
        held, refused, casualties = replica.survivors, replica.turned_away, replica.casualties
        replica.survivors = replica.turned_away = replica.casualties = 0
        # A dying server may have a few answers on the way; one that was away for longer was restarted.
        answered_all = held and not casualties and held >= FULL * refused
        if answered_all and refused and now - replica.fell_at < FULL_S + 2 * replica.slowest:
            replica.limiter.on_capacity(held, now, f"it refused connections beyond {held}")
            self._book.explain(self._slots.calls.values())

    def back(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The server answers again; those that probed in vain get their places in the queue back."""
        replica.breaker.close()
        self._book.answers(replica)
        self._over_its_limit(replica, now)
        self._timers.forget(replica, Alarm.ASK)
        self.lives(replica, now, out)
        self._timers.forget(replica, Alarm.PROBE)
        self._timers.forget(replica, Alarm.OUTAGE)
        probers, replica.probers = replica.probers, []
        for call in probers:
            call.turn = 0
            self._room.requeue(call)
