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

from collections.abc import Sequence

from asyncsynth.core.balancer import CLOSED, DOWN, HALF_OPEN, Balancer, Replica, ReplicaSpec, ReplicaStats
from asyncsynth.core.calls import (
    GONE,
    HELD,
    IN_FLIGHT,
    SLEEPING,
    STARVED,
    WAITING,
    Action,
    Call,
    Finish,
    Halt,
    Start,
    Timers,
    WaitQueue,
)
from asyncsynth.core.outcomes import Ok, Outcome, Overloaded, Permanent, Transient
from asyncsynth.core.retry import SERVER_FAULTS, GiveUp, RetryBudget, RetryPolicy, Rng, decide, out_of_attempts

__all__ = ["Action", "Finish", "Halt", "ReplicaSpec", "ReplicaStats", "Scheduler", "Start"]

HALT_AFTER = 3  #: identical refusals (401, 403, 404) of one model by one replica, with no success in between


class Scheduler:
    """See the module's text. `now` is in seconds, monotonic; actions are to be carried out in their order."""

    def __init__(self, replicas: Sequence[ReplicaSpec], policy: RetryPolicy, rng: Rng) -> None:
        self.policy = policy
        self._rng = rng
        budgets = [RetryBudget(policy.budget_ratio, policy.budget_per_s) for _ in replicas]
        self._balancer = Balancer(replicas, budgets)
        self.replicas = self._balancer.replicas
        self._queues = {model: WaitQueue() for model in self._balancer.groups}
        self.waiting = 0  #: calls waiting for a slot
        self._calls: dict[int, Call] = {}
        self._timers = Timers()
        self._seq = 0
        self.halted: Halt | None = None

    # --- events -------------------------------------------------------------------------------

    def submit(self, call_id: int, model: str, priority: int, now: float, affinity: int = 0) -> list[Action]:
        """A new call; the lower `priority` goes first. KeyError: no replica serves `model`."""
        if call_id in self._calls:
            raise ValueError(f"call {call_id} is not over yet")
        queue = self._queues[model]
        self._seq = seq = self._seq + 1
        self._calls[call_id] = call = Call(call_id, model, priority, affinity, seq)
        out: list[Action] = []
        if self.halted is not None:
            out.append(self.halted)
        # A queue with somebody in it means that no replica of this model can take a call.
        if queue.live or self.halted is not None:
            self._enqueue(call)
        else:
            self._place(call, now, out)
        return out

    def outcome(self, call_id: int, outcome: Outcome, now: float) -> list[Action]:
        """What the attempt of a call in flight came to. Unknown and cancelled calls are ignored."""
        call = self._calls.get(call_id)
        if call is None or call.state is not IN_FLIGHT:
            return []
        replica = call.replica
        assert replica is not None
        out: list[Action] = []
        if type(outcome) is Ok:
            replica.limiter.on_ok(now, replica.in_flight, outcome.tokens)
            replica.in_flight -= 1
            if replica.troubled:
                self._recovered(call, replica, out)
            self._finish(call, outcome, out)
        else:
            replica.in_flight -= 1
            self._failed(call, replica, outcome, now, out)
        self._slot_freed(replica, now, out)
        return out

    def cancel(self, call_id: int, now: float) -> list[Action]:
        """Forget a call, whatever its state; it gets no Finish. Unknown calls are ignored."""
        call = self._calls.pop(call_id, None)
        if call is None:
            return []
        state, call.state = call.state, GONE
        out: list[Action] = []
        if state is WAITING:
            self.waiting -= 1
            self._queues[call.model].remove(call)
        elif state is IN_FLIGHT:
            replica = call.replica
            assert replica is not None
            replica.in_flight -= 1
            if replica.breaker.probe == call_id:
                replica.breaker.probe = None
            self._slot_freed(replica, now, out)
        return out

    def tick(self, now: float) -> list[Action]:
        """Do what is due: retries, probes, budgets."""
        out: list[Action] = []
        for target in self._timers.due(now):
            if isinstance(target, Call):
                self._wake(target, now, out)
                continue
            if target.breaker.probe_at is not None and target.breaker.probe_at <= now:
                target.breaker.half_open()
                self._slot_freed(target, now, out)
            if target.budget_at is not None and target.budget_at <= now:
                target.budget_at = None
                self._feed_starved(target, now, out)
        return out

    def next_tick(self) -> float | None:
        """When `tick` has something to do, if nothing else happens before."""
        return self._timers.next()

    def replica_down(self, name: str, now: float, why: str = "taken down") -> list[Action]:
        """A supervisor knows that this server is gone: pause it, charge nobody, until `replica_up`."""
        replica = self._balancer.by_name[name]
        out: list[Action] = []
        self._open(replica, now, why, out)
        replica.breaker.state = DOWN
        replica.breaker.probe_at = None
        return out

    def replica_up(self, name: str, now: float) -> list[Action]:
        """The server is back."""
        replica = self._balancer.by_name[name]
        self._close(replica)
        out: list[Action] = []
        self._slot_freed(replica, now, out)
        return out

    def stats(self) -> list[ReplicaStats]:
        """One entry per replica, in the order given."""
        queues = self._queues
        return [r.stats(sum(queues[model].live for model in r.models)) for r in self.replicas]

    # --- starting -----------------------------------------------------------------------------

    def _enqueue(self, call: Call) -> None:
        self.waiting += 1
        self._queues[call.model].push(call)

    def _place(self, call: Call, now: float, out: list[Action]) -> None:
        """Start a call that is ready, or let it wait."""
        replica = None
        if self.halted is None and not self._queues[call.model].live:
            replica = self._balancer.pick(call.model, call.affinity)
        if replica is None:
            self._enqueue(call)
        else:
            self._start(call, replica, now, out)

    def _start(self, call: Call, replica: Replica, now: float, out: list[Action]) -> None:
        call.state = IN_FLIGHT
        call.replica = replica
        call.started_at = now
        call.attempts += 1
        replica.in_flight += 1
        replica.limiter.on_start(replica.in_flight, now)
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
        if self.waiting and self.halted is None:
            while replica.can_take():
                best = None
                for model in replica.models:
                    head = self._queues[model].head()
                    if head is not None and (best is None or head < best):
                        best = head
                if best is None:
                    break
                call = best[3]
                self._queues[call.model].pop()
                self.waiting -= 1
                self._start(call, replica, now, out)
        if replica.held and not replica.in_flight:
            self._release_held(replica, out)  # nobody is left who could bear witness
        group = replica.group
        if group is not None and len(group.replicas) > 1 and replica.can_take():
            group.freed(replica)

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
        if replica.budget_at is None:
            replica.budget_at = replica.budget.next_at(now)
            self._timers.add(replica.budget_at, replica)

    # --- ending -------------------------------------------------------------------------------

    def _finish(self, call: Call, outcome: Outcome, out: list[Action]) -> None:
        call.state = GONE
        del self._calls[call.id]
        out.append(Finish(call.id, outcome, call.attempts))

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

    def _release_held(self, replica: Replica, out: list[Action]) -> None:
        held, replica.held = replica.held, []
        for call, outcome in held:
            if call.state is HELD:
                self._finish(call, outcome, out)

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
        self._sleep(call, now + decision.delay_s)

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
        self._sleep(call, now + decision.delay_s)

    def _sleep(self, call: Call, until: float) -> None:
        call.state = SLEEPING
        call.wake_at = until
        self._timers.add(until, call)

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
        if breaker.state is DOWN:
            return
        self._timers.add(breaker.open(now, cause, self._rng, at_least), replica)
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
        limit = self.policy.outage_limit_s
        if self._balancer.hopeless(replica, now, limit):
            # Stop, to be resumed, and fail no record.
            self._halt(replica, f"{replica.name} gave no answer for {limit / 60:.0f} min ({breaker.cause})", out)

    def _close(self, replica: Replica) -> None:
        """The server answers again; those that probed in vain get their places in the queue back."""
        replica.breaker.close()
        probers, replica.probers = replica.probers, []
        for call in probers:
            call.turn = 0
            if call.entry is not None:
                self._queues[call.model].remove(call)
                self._queues[call.model].push(call)
