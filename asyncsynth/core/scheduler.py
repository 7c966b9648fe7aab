"""When, where and whether again: the decisions about model calls, as a pure state machine.

The driver (`client.pool`) reports what happened (`submit`, `outcome`, `cancel`, `tick`) and carries out the actions
it is given. Each event costs O(log n) in waiting calls and replicas. Rules that hold after every event:

- a replica never gets a call beyond its limit, and a retry that sleeps holds no slot;
- no slot of a ready replica is idle while a call that it can serve waits;
- every call finishes once, or is cancelled; a halted scheduler starts nothing;
- a *server's* fault charges no record: charges are provisional until the server answers somebody well, and are
  taken back when its breaker opens. A call that is out of attempts in such a moment is held until that is known.
"""

from __future__ import annotations

from asyncsynth.core.breaker import CANARY, DOWN, REMOVED
from asyncsynth.core.calls import (
    ASK,
    BUDGET,
    GONE,
    IN_FLIGHT,
    OUTAGE,
    PROBE,
    RATE,
    REPORT,
    SPARE,
    STALL,
    WAITING,
    Abort,
    Action,
    Call,
    Finish,
    Halt,
    Probe,
    Start,
)
from asyncsynth.core.faults import Faults
from asyncsynth.core.load import ServerLoad
from asyncsynth.core.outcomes import Ok, Outcome, Permanent, Transient
from asyncsynth.core.replicas import LOAD_FRESH_S, Replica, ReplicaSpec, ReplicaStats
from asyncsynth.core.retry import SERVER_FAULTS

__all__ = ["Abort", "Action", "Finish", "Halt", "Probe", "ReplicaSpec", "ReplicaStats", "Scheduler", "Start"]


class Scheduler(Faults):
    """See the module's text. `now` is in seconds, monotonic; actions are to be carried out in their order."""

    # --- events -------------------------------------------------------------------------------

    def submit(
        self, call_id: int, model: str, priority: int, now: float, affinity: int = 0, tokens: int = 0
    ) -> list[Action]:
        """A new call.

        Args:
            call_id: any number, not negative, that no unfinished call has.
            model: a name that some replica serves, or has served (then the call waits for one that does).
            priority: the lower goes first.
            now: seconds.
            affinity: calls with the same number (not 0) prefer the same replica, for its prefix cache.
            tokens: estimate of prompt and completion tokens, an upper bound at best; for rates of tokens.

        Raises:
            KeyError: no replica serves `model`, or ever did.
            ValueError: the call is not over yet.
        """
        if call_id in self._calls:
            raise ValueError(f"call {call_id} is not over yet")
        queue = self._queues[model]
        self._seq = seq = self._seq + 1
        self._calls[call_id] = call = Call(call_id, model, priority, affinity, tokens, seq)
        out: list[Action] = []
        if self.halted is not None:
            out.append(self.halted)
        # A queue with somebody in it means that no replica of this model can take a call.
        if queue.live or self.halted is not None:
            self._wait(call)
        else:
            self._start_or_wait(call, now, out)
        return out

    def outcome(self, call_id: int, outcome: Outcome, now: float) -> list[Action]:
        """What the attempt of a call in flight came to. Unknown and cancelled calls are ignored."""
        call = self._calls.get(call_id)
        if call is None or call.state is not IN_FLIGHT:
            return []
        replica = call.replica
        assert replica is not None
        replica.heard_at = now
        out: list[Action] = []
        if type(outcome) is Ok:
            replica.limiter.on_ok(now, replica.in_flight, outcome.tokens)
            replica.in_flight -= 1
            if replica.gate is not None:
                replica.gate.correct(call.tokens, outcome.prompt_tokens + outcome.tokens, call.started_at, now)
            if replica.troubled:
                self._recovered(call, replica, now, out)
            self._finish(call, outcome, out)
        else:
            if isinstance(outcome, Transient | Permanent) and outcome.paid:
                self._paid(call, replica, outcome, now)
            replica.in_flight -= 1
            self._failed(call, replica, outcome, now, out)
        self._slot_freed(replica, now, out)
        return out

    def _paid(self, call: Call, replica: Replica, outcome: Transient | Permanent, now: float) -> None:
        """An answer that is of no use took its time and its tokens all the same."""
        if outcome.reason not in SERVER_FAULTS:
            replica.limiter.on_ok(now, replica.in_flight, outcome.tokens)
        if replica.gate is not None and outcome.tokens:
            replica.gate.correct(call.tokens, outcome.prompt_tokens + outcome.tokens, call.started_at, now)

    def cancel(self, call_id: int, now: float) -> list[Action]:
        """Forget a call, whatever its state; it gets no Finish. Unknown calls are ignored."""
        call = self._calls.pop(call_id, None)
        if call is None:
            return []
        state, call.state = call.state, GONE
        out: list[Action] = []
        if state is WAITING:
            self._unqueue(call)
            if self._gated:
                self._left_queue(call, now, out)
            if call.retry is not None and call.retry.degree:
                self._free_quiet(now, out)
        elif state is IN_FLIGHT:
            replica = call.replica
            assert replica is not None
            replica.in_flight -= 1
            self._left(call, replica)
            if replica.breaker.probe == call_id:
                replica.breaker.probe = None
            self._slot_freed(replica, now, out)
        return out

    def tick(self, now: float) -> list[Action]:
        """Do what is due: retries, probes, budgets."""
        out: list[Action] = []
        for target, kind in self._timers.due(now):
            if isinstance(target, Call):
                self._wake(target, now, out)
            else:
                self._alarmed(target, kind, now, out)
        return out

    def _alarmed(self, replica: Replica, kind: str, now: float, out: list[Action]) -> None:
        if kind is PROBE:
            replica.breaker.half_open()
            self._slot_freed(replica, now, out)
            if replica.health.accused is not None and replica.breaker.probe is None and self.halted is None:
                self._ask(replica, now, out)  # nobody waits who could probe
        elif kind is BUDGET:
            self._feed_starved(replica, now, out)
        elif kind is RATE:
            self._slot_freed(replica, now, out)
        elif kind is REPORT:
            self._check_report(replica, now, out)
        elif kind is OUTAGE:
            self._away(replica, now, out)
        elif kind is STALL:
            self._check_silence(replica, now, out)
        elif kind is SPARE:
            self._slot_freed(replica, now, out)
        elif kind is ASK:
            self._acquit(replica, now, out)
            self._unanswered(replica, now, out)

    def next_tick(self) -> float | None:
        """When `tick` has something to do, if nothing else happens before."""
        return self._timers.next()

    def ticks_before(self, at: float) -> bool:
        """Whether something was added, since the last `next_tick` or `tick`, that may be due before `at`.

        Costs nothing. After a `tick`, ask `next_tick`: what the tick itself added may be forgotten here.
        """
        return self._timers.soonest < at

    # --- replicas -----------------------------------------------------------------------------

    def report_load(self, name: str, load: ServerLoad, now: float) -> list[Action]:
        """What a server says about its own load; counts for 5 s from `load.at`. Unknown names are ignored."""
        replica = self._balancer.by_name.get(name)
        if replica is None or load.at + LOAD_FRESH_S <= now:
            return []
        if replica.report is not None and load.at < replica.report.at:
            return []
        replica.limiter.on_load(load)
        replica.take_report(load)
        if replica.seen != (load.running, load.kv):
            replica.seen = (load.running, load.kv)
            replica.heard_at = now  # it works on something
        if REPORT not in replica.alarms:
            self._timers.alarm(replica, REPORT, load.at + LOAD_FRESH_S)
        out: list[Action] = []
        self._slot_freed(replica, now, out)
        return out

    def _check_report(self, replica: Replica, now: float, out: list[Action]) -> None:
        assert replica.report is not None
        stale_at = replica.report.at + LOAD_FRESH_S
        if stale_at > now:
            self._timers.alarm(replica, REPORT, stale_at)
        else:
            replica.take_report(None)
            self._slot_freed(replica, now, out)

    def add_replica(self, spec: ReplicaSpec, now: float) -> list[Action]:
        """A server joins; calls that wait for its models start there. Its index is the next one.

        Raises:
            ValueError: its name is in use.
        """
        replica = self._join(spec)
        out: list[Action] = []
        self._rehome(replica)
        self._slot_freed(replica, now, out)
        return out

    def remove_replica(self, name: str, now: float) -> list[Action]:
        """A server leaves: it gets nothing new, what is in flight there may end. Its index stays taken.

        Calls whose model nobody serves any more wait for another to join; `outage_limit_s` ends the run.

        Raises:
            KeyError: no replica has this name.
        """
        replica = self._balancer.by_name[name]
        out: list[Action] = []
        out += self.replica_down(name, now, "removed")
        self._balancer.remove(replica, now)
        self._watch_absence(replica, now)
        self._rehome(replica)
        return out

    def probe_result(self, name: str, ok: bool, now: float) -> list[Action]:
        """What the driver's `Probe` came to: ok, if the server answered it, however. Unknown names are ignored."""
        replica = self._balancer.by_name.get(name)
        out: list[Action] = []
        if replica is None or self.halted is not None:
            return out
        probing = replica.breaker.probe == CANARY
        if ok:
            replica.heard_at = now
            if probing:
                self._close(replica, now, out)
                self._slot_freed(replica, now, out)
        elif probing:
            self._convict(replica, now, out)
            self._open(replica, now, "does not answer a probe", out)
        elif replica.in_flight and replica.asked_at > replica.heard_at:
            self._hangs(replica, now, out)
        return out

    def _rehome(self, changed: Replica) -> None:
        for model in changed.models:
            self._queues[model].rehome(self._home)

    def replica_down(self, name: str, now: float, why: str = "taken down") -> list[Action]:
        """A supervisor knows that this server is gone: pause it, charge nobody, until `replica_up`.

        Raises:
            KeyError: no replica has this name.
        """
        replica = self._balancer.by_name[name]
        out: list[Action] = []
        self._fell(replica, now)
        self._convict(replica, now, out)
        self._open(replica, now, why, out)
        if replica.breaker.state is not DOWN:
            replica.breaker.take_down()
            replica.alarms.pop(PROBE, None)
            self._watch_absence(replica, now)
        return out

    def replica_lost(self, name: str, now: float, why: str) -> list[Action]:
        """A supervisor has given this server up. Calls that nobody else can take end the run at once.

        Raises:
            KeyError: no replica has this name.
        """
        replica = self._balancer.by_name[name]
        out = self.replica_down(name, now, why)
        replica.breaker.cause = why
        replica.breaker.lost = True
        if self.halted is None:
            self._away(replica, now, out)
        for model in replica.models:  # suspects may have waited for it, to spare the last server in use
            for peer in self._balancer.of_model[model]:
                self._slot_freed(peer, now, out)
        return out

    def replica_up(self, name: str, now: float) -> list[Action]:
        """The server is back and ready.

        Raises:
            KeyError: no replica has this name.
        """
        replica = self._balancer.by_name[name]
        out: list[Action] = []
        self._close(replica, now, out)
        self._slot_freed(replica, now, out)
        return out

    def stats(self) -> list[ReplicaStats]:
        """One entry per replica, in the order of their indices; without those removed that have nothing in flight."""
        queues = self._queues
        return [
            replica.stats(sum(queues[model].live for model in replica.models))
            for replica in self.replicas
            if replica.breaker.state is not REMOVED or replica.in_flight
        ]
