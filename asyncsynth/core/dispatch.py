"""Calls and slots: who waits, who starts where, who sleeps. The lower half of the scheduler.

`core.faults` decides about failures on top of this, `core.scheduler` has the events.
"""

from __future__ import annotations

from collections.abc import Sequence

from asyncsynth.core.balancer import Balancer
from asyncsynth.core.breaker import HALF_OPEN
from asyncsynth.core.calls import (
    BUDGET,
    GONE,
    HELD,
    IN_FLIGHT,
    RATE,
    STALL,
    STARVED,
    Action,
    Call,
    Finish,
    Halt,
    Start,
    Timers,
    WaitQueue,
)
from asyncsynth.core.outcomes import Outcome
from asyncsynth.core.replicas import Replica, ReplicaSpec
from asyncsynth.core.retry import RetryBudget, RetryPolicy, Rng

SILENCE_S = 30.0  #: a replica with calls in flight that is silent for so long is looked at


class Dispatch:
    """Queues, slots, rates and timers. `now` is in seconds, monotonic."""

    def __init__(self, replicas: Sequence[ReplicaSpec], policy: RetryPolicy, rng: Rng) -> None:
        self.policy = policy
        self._rng = rng
        self._balancer = Balancer()
        self._queues: dict[str, WaitQueue] = {}
        for spec in replicas:
            self._join(spec)
        self.replicas = self._balancer.replicas  #: all there ever were, by index
        self.waiting = 0  #: calls waiting for a slot
        self._calls: dict[int, Call] = {}
        self._timers = Timers()
        self._gated: set[Replica] = set()  # those whose published rate is used up
        self._seq = 0
        self._suspects: dict[int, Call] = {}  # those of the waiting that `core.suspects` keeps
        self.halted: Halt | None = None
        self._setup_suspects()

    def _setup_suspects(self) -> None:
        """For `core.suspects`."""

    def _try_first(self, replica: Replica, now: float, out: list[Action]) -> bool:
        """For `core.suspects`: start suspects there; True when nothing else may start."""
        raise NotImplementedError

    def _join(self, spec: ReplicaSpec) -> Replica:
        replica = self._balancer.add(spec, RetryBudget(self.policy.budget_ratio, self.policy.budget_per_s))
        for model in replica.models:
            self._queues.setdefault(model, WaitQueue())
        return replica

    # --- waiting and starting -----------------------------------------------------------------

    def _enqueue(self, call: Call) -> None:
        """Let a call wait; `core.suspects` has a place of its own for some."""
        self._wait(call)

    def _wait(self, call: Call) -> None:
        self.waiting += 1
        self._queues[call.model].push(call, self._home(call) if call.affinity else None)

    def _home(self, call: Call) -> int | None:
        if not call.affinity or len(self._balancer.of_model[call.model]) < 2:
            return None
        home = self._balancer.home(call.model, call.affinity)
        return None if home is None else home.index

    def _place(self, call: Call, now: float, out: list[Action]) -> None:
        """Start a call that is ready, or let it wait; `core.suspects` has its own way with some."""
        self._start_or_wait(call, now, out)

    def _start_or_wait(self, call: Call, now: float, out: list[Action]) -> None:
        replica = None
        if self.halted is None and not self._queues[call.model].live:
            replica = self._pick(call, now)
        if replica is None:
            self._wait(call)
            return
        self._start(call, replica, now, out)
        if self._gated:
            self._left_queue(call, now, out)

    def _pick(self, call: Call, now: float) -> Replica | None:
        while True:  # each turn closes a gate
            replica = self._balancer.pick(call.model, call.affinity)
            if replica is None or replica.gate is None or self._admitted(call, replica, now):
                return replica

    def _start(self, call: Call, replica: Replica, now: float, out: list[Action]) -> None:
        call.state = IN_FLIGHT
        call.replica = replica
        call.started_at = now
        call.attempts += 1
        replica.in_flight += 1
        if replica.in_flight == 1:
            replica.heard_at = now
            if not replica.watched:
                replica.watched = True
                self._timers.alarm(replica, STALL, now + SILENCE_S)
        replica.limiter.on_start(replica.in_flight, now)
        if replica.gate is not None:
            replica.gate.start(call.tokens, now)
        if replica.breaker.state is HALF_OPEN:
            replica.breaker.probe = call.id
        out.append(Start(call.id, replica.index, call.attempts))
        if call.attempts == 1:
            call.first_attempt_at = now
            replica.budget.on_first_attempt()
            if replica.starved:
                self._feed_starved(replica, now, out)

    def _slot_freed(self, replica: Replica, now: float, out: list[Action]) -> None:
        """Give a replica that may have room the best of the calls that wait for it."""
        if replica.gated_for is not None:
            self._open_gate(replica)  # what was used may be less than what was charged
        if self.waiting and self.halted is None and not (self._suspects and self._try_first(replica, now, out)):
            self._drain(replica, now, out)
        if replica.held and not replica.in_flight:
            self._release_held(replica, out)  # nobody is left who could bear witness
        group = replica.group
        if group is not None and len(group.replicas) > 1 and replica.can_take():
            group.freed(replica)

    def _drain(self, replica: Replica, now: float, out: list[Action]) -> None:
        while replica.can_take():
            best = None
            for model in replica.models:
                entry = self._queues[model].best(replica.index)
                if entry is not None and (best is None or entry < best):
                    best = entry
            if best is None:
                return
            call = best[3]
            if replica.gate is not None and not self._admitted(call, replica, now):
                return
            self._queues[call.model].take(best)
            self.waiting -= 1
            self._start(call, replica, now, out)
            if self._gated:
                self._left_queue(call, now, out)

    # --- published rates ----------------------------------------------------------------------

    def _admitted(self, call: Call, replica: Replica, now: float) -> bool:
        """Whether the replica's rate lets this call start; if not, the replica takes none until it does.

        The call waits for its turn rather than being overtaken by smaller ones for ever.
        """
        assert replica.gate is not None
        at = replica.gate.ready_at(call.tokens, now)
        if at <= now:
            return True
        replica.block(gated_for=call, quiet=replica.quiet)
        self._gated.add(replica)
        self._timers.alarm(replica, RATE, at)
        return False

    def _open_gate(self, replica: Replica) -> None:
        replica.block(gated_for=None, quiet=replica.quiet)
        replica.alarms.pop(RATE, None)
        self._gated.discard(replica)

    def _left_queue(self, call: Call, now: float, out: list[Action]) -> None:
        """A call waits no more: the gates that waited for it may let a smaller one through."""
        for replica in [r for r in self._gated if r.gated_for is call]:
            self._slot_freed(replica, now, out)

    # --- sleeping -----------------------------------------------------------------------------

    def _wake(self, call: Call, now: float, out: list[Action]) -> None:
        """A sleeping call is due; a charged retry also needs a token of the budget it pays from."""
        payer, call.pays = call.pays, None
        if payer is None or (not payer.starved and payer.budget.try_take(now)):
            self._place(call, now, out)
            return
        call.state = STARVED
        payer.starved.append(call)
        self._await_budget(payer, now)

    def _feed_starved(self, replica: Replica, now: float, out: list[Action]) -> None:
        while replica.starved:
            if replica.starved[0].state is not STARVED:
                replica.starved.popleft()  # cancelled
            elif replica.budget.try_take(now):
                self._place(replica.starved.popleft(), now, out)
            else:
                self._await_budget(replica, now)
                return

    def _await_budget(self, replica: Replica, now: float) -> None:
        if BUDGET not in replica.alarms:
            self._timers.alarm(replica, BUDGET, replica.budget.next_at(now))

    # --- ending -------------------------------------------------------------------------------

    def _finish(self, call: Call, outcome: Outcome, out: list[Action]) -> None:
        call.state = GONE
        del self._calls[call.id]
        out.append(Finish(call.id, outcome, call.attempts))

    def _release_held(self, replica: Replica, out: list[Action]) -> None:
        held, replica.held = replica.held, []
        for call, outcome in held:
            if call.state is HELD:
                self._finish(call, outcome, out)
