"""What a failure means, and for whom: the record is charged, or its server is paused. The middle of the scheduler."""

from __future__ import annotations

from asyncsynth.core.breaker import CLOSED, DOWN, REMOVED
from asyncsynth.core.calls import HELD, OUTAGE, PROBE, STARVED, Action, Call, Halt
from asyncsynth.core.dispatch import Dispatch
from asyncsynth.core.outcomes import Outcome, Overloaded, Permanent, Transient
from asyncsynth.core.replicas import Replica
from asyncsynth.core.retry import SERVER_FAULTS, GiveUp, decide, out_of_attempts

HALT_AFTER = 3  #: identical refusals (401, 403, 404) of one model by one replica, with no success in between
AWAY_CHECK_S = 60.0  #: how often it is asked whether a replica has been away for too long


class Faults(Dispatch):
    """Failures: charged, forgiven, held, and the breakers."""

    def _recovered(self, call: Call, replica: Replica, out: list[Action]) -> None:
        """A success: failures since the last one were not this server's fault."""
        replica.refusals.pop(call.model, None)
        breaker = replica.breaker
        if breaker.state is CLOSED:
            replica.overloads = 0
            settled = breaker.settle(call.started_at)
            if settled:
                self._release_held(replica, out)
            replica.troubled = bool(replica.refusals) or not settled
        elif breaker.probe == call.id:
            # Only the probe counts: a server that dies may still have answers on the way.
            replica.overloads = 0
            self._close(replica)

    def _failed(self, call: Call, replica: Replica, outcome: Outcome, now: float, out: list[Action]) -> None:
        replica.troubled = True
        breaker = replica.breaker
        probing = breaker.probe == call.id
        if probing:
            breaker.probe = None
        if self.halted is not None:
            self._finish(call, outcome, out)
        elif isinstance(outcome, Overloaded):
            self._overloaded(call, replica, outcome, probing, now, out)
        elif isinstance(outcome, Transient) and outcome.free and not call.failures().free_used:
            call.failures().free_used = True
            self._place(call, now, out)
        elif isinstance(outcome, Transient) and outcome.reason in SERVER_FAULTS:
            self._server_fault(call, replica, outcome, probing, now, out)
        else:  # the server did answer, though not well
            if probing:
                self._close(replica)
            if isinstance(outcome, Permanent) and outcome.scope == "server":
                self._refused(call, replica, outcome, out)
            if self.halted is not None:
                self._finish(call, outcome, out)
            else:
                self._charge(call, None, outcome, now, out)

    def _overloaded(
        self, call: Call, replica: Replica, outcome: Overloaded, probing: bool, now: float, out: list[Action]
    ) -> None:
        replica.limiter.on_overload(now, call.started_at)
        replica.overloads += 1
        refused_all = replica.breaker.state is CLOSED and replica.overloads >= max(3, replica.limiter.limit)
        if probing or refused_all:
            asked = min(outcome.retry_after or 0.0, self.policy.retry_after_cap_s)
            self._open(replica, now, f"overloaded (HTTP {outcome.status})", out, at_least=asked)
        state = call.failures()
        decision = decide(self.policy, outcome, state, now, self._rng)
        state.overloads += 1
        assert not isinstance(decision, GiveUp)
        self._timers.wake(call, now + decision.delay_s)

    def _server_fault(
        self, call: Call, replica: Replica, outcome: Transient, probing: bool, now: float, out: list[Action]
    ) -> None:
        """Charge the record, unless the server is known, or now turns out, to be the one at fault."""
        breaker = replica.breaker
        refused = outcome.reason == "connect"
        what = f"{outcome.reason}: {outcome.message}" if outcome.message else outcome.reason
        if breaker.state is not CLOSED:
            if probing:
                self._open(replica, now, what, out)
                # A refused connection says nothing about the call. Another failure, alone on the server, may: such
                # calls take turns with all others, and only one that fails alone again and again is given up.
                if not refused:
                    call.strikes += 1
                    call.turn += 1
                    replica.probers.append(call)
                    if out_of_attempts(self.policy, outcome, call.strikes, call.failures(), now):
                        self._finish(call, outcome, out)
                        return
            self._place(call, now, out)
        elif breaker.blame(call.id, now, refused, replica.limiter.limit, others=replica.in_flight):
            # This call's note in the streak is taken back by _open with the others', so charge it first.
            call.failures().charged += 1
            self._open(replica, now, what, out)
            self._place(call, now, out)
        else:
            self._charge(call, replica, outcome, now, out)

    def _charge(self, call: Call, blamed: Replica | None, outcome: Outcome, now: float, out: list[Action]) -> None:
        """One attempt on the record's account. `blamed`: the replica whose streak has this failure, if any."""
        state = call.failures()
        decision = decide(self.policy, outcome, state, now, self._rng)
        state.charged += 1
        state.overloads = 0
        if isinstance(decision, GiveUp):
            if blamed is not None and blamed.in_flight:
                call.state = HELD
                blamed.held.append((call, outcome))
            else:
                self._finish(call, outcome, out)
            return
        call.pays = blamed
        self._timers.wake(call, now + decision.delay_s)

    def _refused(self, call: Call, replica: Replica, outcome: Permanent, out: list[Action]) -> None:
        reason, status, times = replica.refusals.get(call.model, ("", None, 0))
        times = times + 1 if (reason, status) == (outcome.reason, outcome.status) else 1
        replica.refusals[call.model] = (outcome.reason, outcome.status, times)
        if times >= HALT_AFTER:
            code = f"HTTP {outcome.status}" if outcome.status else outcome.reason
            self._halt(replica, f"{replica.name} refuses model {call.model!r} ({code}): {outcome.message}", out)

    def _halt(self, replica: Replica, message: str, out: list[Action]) -> None:
        self.halted = Halt(message, replica.name)
        out.append(self.halted)

    def _open(self, replica: Replica, now: float, cause: str, out: list[Action], at_least: float = 0.0) -> None:
        """Pause a replica; take back what its failures had charged; let everyone go elsewhere."""
        breaker = replica.breaker
        replica.troubled = True
        if breaker.state in (DOWN, REMOVED):
            return
        self._timers.alarm(replica, PROBE, breaker.open(now, cause, self._rng, at_least))
        for call_id, charges in breaker.take_notes():
            call = self._calls.get(call_id)
            if call is not None and call.retry is not None:
                call.retry.charged = max(0, call.retry.charged - charges)
                if call.pays is replica:
                    call.pays = None
        starved, held = [*replica.starved], replica.held
        replica.starved.clear()
        replica.held = []
        for call in starved:
            if call.state is STARVED:
                self._place(call, now, out)
        for call, _ in held:
            if call.state is HELD:
                self._place(call, now, out)
        if any(self._balancer.hopeless(model, now, self.policy.outage_limit_s) for model in replica.models):
            self._give_up_waiting(replica, out)

    def _away(self, replica: Replica, now: float, out: list[Action]) -> None:
        """A replica that is down or removed: calls that only it could take wait for long, but not for ever."""
        models = [model for model in replica.models if self._queues[model].live]
        if any(self._balancer.hopeless(model, now, self.policy.outage_limit_s) for model in models):
            self._give_up_waiting(replica, out)
        elif replica.breaker.state is DOWN or any(m in self._balancer.bare_since for m in replica.models):
            self._timers.alarm(replica, OUTAGE, now + AWAY_CHECK_S)

    def _watch_absence(self, replica: Replica, now: float) -> None:
        # A moment later than the limit, or it is found not to be over yet.
        self._timers.alarm(replica, OUTAGE, now + self.policy.outage_limit_s + 1.0)

    def _give_up_waiting(self, replica: Replica, out: list[Action]) -> None:
        # Stop, to be resumed, and fail no record.
        minutes = self.policy.outage_limit_s / 60
        self._halt(replica, f"{replica.name} gave no answer for {minutes:.0f} min ({replica.breaker.cause})", out)

    def _close(self, replica: Replica) -> None:
        """The server answers again; those that probed in vain get their places in the queue back."""
        replica.breaker.close()
        replica.alarms.pop(PROBE, None)
        replica.alarms.pop(OUTAGE, None)
        probers, replica.probers = replica.probers, []
        for call in probers:
            call.turn = 0
            if call.entry is not None:
                self._queues[call.model].remove(call)
                self._queues[call.model].push(call, self._home(call))
