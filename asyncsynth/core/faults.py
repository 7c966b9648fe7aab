"""What a failure means, and for whom: the record is charged, or its server is paused. The middle of the scheduler."""

from __future__ import annotations

from asyncsynth.core.breaker import CLOSED, DOWN, REMOVED
from asyncsynth.core.calls import ASK, HELD, OUTAGE, PROBE, STALL, STARVED, Abort, Action, Call, Halt, Probe
from asyncsynth.core.dispatch import SILENCE_S
from asyncsynth.core.outcomes import Outcome, Overloaded, Permanent, Transient
from asyncsynth.core.replicas import Replica
from asyncsynth.core.retry import SERVER_FAULTS, GiveUp, decide, out_of_attempts
from asyncsynth.core.suspects import CANARY_S, DEADLY, Suspects

HALT_AFTER = 3  #: identical refusals (401, 403, 404) of one model by one replica, with no success in between
BURST_S = 0.25  #: connections that die within so short a time die together
PROBE_S = 60.0  #: what a probe of a busy server may take, at first
AWAY_CHECK_S = 60.0  #: how often it is asked whether a replica has been away for too long
LOST_CHECK_S = 1.0  #: or, where nobody brings it back, whether a call waits for it


class Faults(Suspects):
    """Failures: charged, forgiven, held, and the breakers."""

    def _recovered(self, call: Call, replica: Replica, now: float, out: list[Action]) -> None:
        """A success: failures since the last one were not this server's fault."""
        replica.refusals.pop(call.model, None)
        self._left(call, replica)
        self._clear(call)
        breaker = replica.breaker
        if breaker.state is CLOSED:
            replica.overloads = 0
            settled = breaker.settle(call.started_at)
            if settled:
                self._release_held(replica, out)
            health = replica.health
            replica.troubled = bool(replica.refusals or health.trials or health.solo) or not settled
        elif breaker.probe == call.id:
            # Only the probe counts: a server that dies may still have answers on the way.
            replica.overloads = 0
            self._close(replica, now, out)

    def _failed(self, call: Call, replica: Replica, outcome: Outcome, now: float, out: list[Action]) -> None:
        replica.troubled = True
        breaker = replica.breaker
        probing = breaker.probe == call.id
        if probing:
            breaker.probe = None
        alone = replica.health.solo is call
        self._left(call, replica)
        if self.halted is not None:
            self._finish(call, outcome, out)
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
            self._clear(call)
            if probing:
                self._close(replica, now, out)
            if isinstance(outcome, Permanent) and outcome.scope == "server":
                self._refused(call, replica, outcome, out)
            if self.halted is not None:
                self._finish(call, outcome, out)
            else:
                self._charge(call, None, outcome, now, out)

    def _resend(self, call: Call, replica: Replica, outcome: Transient, now: float, out: list[Action]) -> None:
        """An idle connection died under a request: again, at once.

        But when several die together it may be the server, and one of them the cause: a moment shows.
        """
        deaths = replica.health.deaths
        burst = bool(deaths) and deaths[-1][0] > now - BURST_S
        self._note_death(call, replica, outcome, now)
        if burst and replica.breaker.state is CLOSED:
            self._timers.wake(call, now + BURST_S * (1.0 + self._rng.random()))
        else:
            self._place(call, now, out)

    def _failed_alone(self, call: Call, replica: Replica, outcome: Transient, now: float, out: list[Action]) -> None:
        """A suspect, with nothing else in flight: has the server died of it? A probe tells."""
        self._accuse(call, replica, outcome, now)
        if replica.breaker.state in (DOWN, REMOVED):
            self._convict(replica, now, out)
        else:
            self._open(replica, now, outcome.message or outcome.reason, out)

    def _acquit(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The server lives, or nobody can tell: what the accused met was an ordinary failure."""
        accused, replica.health.accused = replica.health.accused, None
        if accused is not None and accused[0].state is HELD:
            self._clear(accused[0])
            self._charge(accused[0], None, accused[1], now, out)

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
        self._note_death(call, replica, outcome, now)
        what = f"{outcome.reason}: {outcome.message}" if outcome.message else outcome.reason
        if breaker.state is not CLOSED:
            if refused:
                self._convict(replica, now, out)
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
            self._fell(replica, now)
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
        self._unquiet_paused(replica)
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
        waiting = {call.model for call in self._suspects.values()}
        models = [model for model in replica.models if self._queues[model].live or model in waiting]
        if any(self._balancer.hopeless(model, now, self.policy.outage_limit_s) for model in models):
            self._give_up_waiting(replica, out)
        elif replica.breaker.state is DOWN or any(m in self._balancer.bare_since for m in replica.models):
            self._timers.alarm(replica, OUTAGE, now + (LOST_CHECK_S if replica.breaker.lost else AWAY_CHECK_S))

    def _unquiet_paused(self, replica: Replica) -> None:
        replica.block(gated_for=replica.gated_for, quiet=False)  # it takes nothing anyway; when back, it is empty

    # --- silence ------------------------------------------------------------------------------

    def _check_silence(self, replica: Replica, now: float, out: list[Action]) -> None:
        """Calls are in flight and nothing was heard for a while: ask."""
        due = replica.heard_at + SILENCE_S
        if due <= now:
            if replica.asked_at <= replica.heard_at or now >= replica.asked_at + 2 * self._patience(replica):
                replica.asked_at = now
                out.append(Probe(replica.index, self._patience(replica)))
            due = now + SILENCE_S
        self._timers.alarm(replica, STALL, due)

    def _patience(self, replica: Replica) -> float:
        """What a probe of a busy server may take; longer each time, lest a slow one be taken for a hung one twice."""
        if replica.breaker.state is not CLOSED:
            return CANARY_S  # one call at most is in flight there
        return PROBE_S * 2.0 ** min(replica.stalls, 4)

    def _hangs(self, replica: Replica, now: float, out: list[Action]) -> None:
        """Neither a call nor a probe is answered: pause it; its calls go elsewhere, and nobody is charged."""
        replica.stalls += replica.breaker.state is CLOSED
        calls = self._flying(replica)
        replica.in_flight = 0
        self._open(replica, now, f"no answer for {now - replica.heard_at:.0f} s, nor to a probe", out)
        for call in calls:
            self._left(call, replica)
            out.append(Abort(call.id))
            self._place(call, now, out)

    def _watch_absence(self, replica: Replica, now: float) -> None:
        # A moment later than the limit, or it is found not to be over yet.
        self._timers.alarm(replica, OUTAGE, now + self.policy.outage_limit_s + 1.0)

    def _give_up_waiting(self, replica: Replica, out: list[Action]) -> None:
        # Stop, to be resumed, and fail no record.
        if replica.breaker.lost:
            self._halt(replica, f"{replica.name} is not started again: {replica.breaker.cause}", out)
            return
        minutes = self.policy.outage_limit_s / 60
        self._halt(replica, f"{replica.name} gave no answer for {minutes:.0f} min ({replica.breaker.cause})", out)

    def _close(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The server answers again; those that probed in vain get their places in the queue back."""
        replica.breaker.close()
        replica.health.alive = True
        replica.alarms.pop(ASK, None)
        self._acquit(replica, now, out)
        replica.alarms.pop(PROBE, None)
        replica.alarms.pop(OUTAGE, None)
        probers, replica.probers = replica.probers, []
        for call in probers:
            call.turn = 0
            if call.entry is not None:
                self._queues[call.model].remove(call)
                self._queues[call.model].push(call, self._home(call))
