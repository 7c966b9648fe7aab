"""Slots: which call starts where, and what holds it back. The only place where a call's attempt begins or ends.

It asks the waiting room which call is next (`core.waiting`), the balancer where (`core.balancer`), and the book of
suspects which of them to try first (`core.suspects`). What a failure means is decided in `core.blame`.
"""

from __future__ import annotations

from asyncsynth.core.balancer import Balancer
from asyncsynth.core.breaker import DRIVER, DRIVER_FIRST
from asyncsynth.core.calls import Action, Call, Finish, Halt, HealthCheck, Start
from asyncsynth.core.outcomes import Outcome
from asyncsynth.core.replica_state import Alarm, Replica
from asyncsynth.core.starving import Starving
from asyncsynth.core.states import (
    CLOSED,
    HALF_OPEN,
    HELD,
    IN_FLIGHT,
    STARVED,
    WAITING,
    asleep,
    cancelled,
    finished,
    held_back,
    started,
    starving,
)
from asyncsynth.core.suspects import SuspectBook
from asyncsynth.core.timers import Timers
from asyncsynth.core.waiting import WaitingRoom

SILENCE_S = 30.0  #: a replica with calls in flight that is silent for this long is checked
SMALL_REQUEST_S = 30.0  #: what a health check or a canary of an empty server may take


class Slots:
    """Starts and ends attempts. `now` is in seconds, monotonic; actions are appended to `out`."""

    def __init__(self, balancer: Balancer, room: WaitingRoom, timers: Timers, book: SuspectBook) -> None:
        self._balancer = balancer
        self._room = room
        self._queues = room.queues
        self._suspects = room.suspects
        self._count = room.count
        self._timers = timers
        self._book = book
        self._gated: set[Replica] = set()  # those whose published rate is used up
        self._starving: dict[int, Starving] = {}  # of replicas, while their limits grow
        self.calls: dict[int, Call] = {}  #: all that are not over
        self.halted: Halt | None = None  #: why nothing more starts

    # --- starting -----------------------------------------------------------------------------

    def start_or_wait(self, call: Call, now: float, out: list[Action]) -> None:
        """A new call, or one that is tried again and is no suspect."""
        self.calls[call.id] = call
        queue = self._queues[call.model]
        # A queue with a call in it means that no replica of this model can take one.
        if self.halted is None and not queue.live:
            replica = self._balancer.pick(call.model, call.affinity)
            while replica is not None and replica.gate is not None and not self._admitted(call, replica, now):
                replica = self._balancer.pick(call.model, call.affinity)  # each turn closes a gate
            if replica is not None:
                self._start(call, replica, now, out)
                if self._gated:
                    self._left_queue(call, now, out)
                return
        queue.push(call, self._room.home(call) if call.affinity else None)

    def place(self, call: Call, now: float, out: list[Action]) -> None:
        """Start a call that is tried again, or let it wait. A suspect takes its turn among suspects."""
        if call.retry is None or not call.retry.degree:
            self.start_or_wait(call, now, out)
            return
        self._room.enter(call)
        for replica in self._balancer.of_model[call.model]:  # a paused one may be picked first, and only be tested
            if replica.can_take() and call.state is WAITING and self.halted is None:
                self.fill(replica, now, out)

    def _start(self, call: Call, replica: Replica, now: float, out: list[Action]) -> None:
        call.state = started[call.state]
        call.replica = index = replica.index
        call.started_at = now
        call.attempts = attempts = call.attempts + 1
        replica.in_flight = in_flight = replica.in_flight + 1
        if in_flight == 1:
            replica.heard_at = replica.busy_since = now
            if Alarm.STALL not in replica.alarms:
                self._timers.alarm(replica, Alarm.STALL, now + SILENCE_S)
        if in_flight > replica.limiter.most:
            self._more_than_ever(call, replica, in_flight, now)
        if replica.gate is not None:
            replica.gate.start(call.tokens, now)
        if replica.breaker.state is HALF_OPEN:
            replica.breaker.tested_by(call.id)
        out.append(Start(call.id, index, attempts))
        if attempts == 1:
            call.first_attempt_at = now
            replica.budget.on_first_attempt()
            if replica.starved:
                self.feed_starved(replica, now, out)

    def _more_than_ever(self, call: Call, replica: Replica, in_flight: int, now: float) -> None:
        """Reports to the limiter, and checks whether the server works on all that it has."""
        limiter = replica.limiter
        limiter.on_start(in_flight, now)
        if replica.report is None:  # a server that reports its queue needs no guess
            starving = self._starving.setdefault(replica.index, Starving())
            capacity = starving.capacity(call, replica, limiter.answers, now)
            if capacity is not None:
                limiter.on_capacity(capacity, now, f"only {capacity} requests are answered at a time")
                del self._starving[replica.index]

    def fill(self, replica: Replica, now: float, out: list[Action]) -> None:
        """Give a replica that may have room the best of the calls that wait for it."""
        if replica.gated_for is not None:
            self._open_gate(replica)  # a call may have used less than it was charged
        if (
            self._count.waiting
            and self.halted is None
            and not (self._suspects and self._suspects_first(replica, now, out))
        ):
            self._drain(replica, now, out)
            if self._suspects and replica.can_take():  # no ordinary call is waiting
                self._suspects_first(replica, now, out)
        if replica.held and not replica.in_flight:
            self.release_held(replica, out)  # no call is left there that could show the fault
        if replica.shared and replica.can_take():
            self._balancer.freed(replica)

    def _drain(self, replica: Replica, now: float, out: list[Action]) -> None:
        queues, limiter = self._queues, replica.limiter
        while replica.in_flight < limiter.limit and replica.is_open():
            best = None
            for model in replica.models:
                queue = queues[model]
                entry = queue.best(replica.index)
                if entry is not None and (best is None or entry < best):
                    best, source = entry, queue
            if best is None:
                return
            call = best[3]
            if replica.gate is not None and not self._admitted(call, replica, now):
                return
            source.take(best)
            self._start(call, replica, now, out)
            if self._gated:
                self._left_queue(call, now, out)

    # --- suspects -----------------------------------------------------------------------------

    def _suspects_first(self, replica: Replica, now: float, out: list[Action]) -> bool:
        """Start the suspects that must be tried there. True: nothing else may start."""
        book = self._book
        if replica.breaker.state is CLOSED and replica.health.alive:
            if book.keeps_free(replica, now):
                call = book.next_alone(replica)
                if call is not None and self._start_trial(call, replica, now, out):
                    book.on_trial(call, replica, alone=True)
                return True
            while (call := book.next_among_others(replica, now)) is not None:
                if not self._start_trial(call, replica, now, out):
                    break
                book.on_trial(call, replica, alone=False)
        elif replica.breaker.state is HALF_OPEN and replica.can_take() and not self._room.has_untried_call(replica):
            self.ask(replica, now, out)
        return False

    def _start_trial(self, call: Call, replica: Replica, now: float, out: list[Action]) -> bool:
        if replica.gate is not None and not self._admitted(call, replica, now):
            return False
        self._room.leave(call)
        replica.trouble(True)
        self._start(call, replica, now, out)
        return True

    def ask(self, replica: Replica, now: float, out: list[Action]) -> None:
        """Only suspects could test this server: let the driver do it, with a request of its own."""
        if self._room.any_suspect(replica) is not None or replica.health.accused is not None:
            replica.breaker.tested_by(DRIVER)
            out.append(HealthCheck(replica.index, SMALL_REQUEST_S))
            self._timers.alarm(replica, Alarm.CHECK, now + 2 * SMALL_REQUEST_S)

    def ask_first(self, replica: Replica, now: float, out: list[Action]) -> bool:
        """Its pause is over: the driver tests it first, if a call whose test failed could be served elsewhere.

        So no call waits for the deadline of a dead server beside a healthy one. False if there is no other.
        """
        peers = (peer for model in replica.models for peer in self._balancer.of_model[model])
        if self.halted is not None or not any(peer.breaker.state is CLOSED and peer.health.alive for peer in peers):
            return False
        replica.breaker.tested_by(DRIVER_FIRST)
        out.append(HealthCheck(replica.index, SMALL_REQUEST_S))
        self._timers.alarm(replica, Alarm.CHECK, now + 2 * SMALL_REQUEST_S)
        return True

    def not_asked(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The driver did not test the server: a suspect must."""
        if replica.breaker.test_call not in (DRIVER, DRIVER_FIRST) or self.halted is not None:
            return
        replica.breaker.tested_by(None)
        call = self._room.any_suspect(replica) if replica.can_take() else None
        if call is not None:
            self._start_trial(call, replica, now, out)
        else:
            self.fill(replica, now, out)

    def _end_needless_quiet(self, now: float, out: list[Action]) -> None:
        """A suspect went away (cancelled): perhaps no replica must be kept free now."""
        for replica in self._balancer.replicas:
            if self._book.needless(replica):
                self.fill(replica, now, out)

    # --- published rates ----------------------------------------------------------------------

    def _admitted(self, call: Call, replica: Replica, now: float) -> bool:
        """Whether the replica's rate lets this call start; if not, the replica takes none until it does.

        The call keeps its turn, so that smaller ones cannot overtake it for ever.
        """
        assert replica.gate is not None
        at = replica.gate.ready_at(call.tokens, now)
        if at <= now:
            return True
        replica.gate_for(call)
        self._gated.add(replica)
        self._timers.alarm(replica, Alarm.RATE, at)
        return False

    def _open_gate(self, replica: Replica) -> None:
        replica.gate_for(None)
        self._timers.forget(replica, Alarm.RATE)
        self._gated.discard(replica)

    def _left_queue(self, call: Call, now: float, out: list[Action]) -> None:
        """A call stops waiting: the gates that waited for it may let a smaller one through."""
        for replica in [r for r in self._gated if r.gated_for is call]:
            self.fill(replica, now, out)

    # --- between two attempts -----------------------------------------------------------------

    def failed(self, replica: Replica, now: float) -> None:
        """An attempt there has failed: still a sign of life, and a free slot."""
        replica.heard_at = now
        replica.in_flight -= 1

    def turned_back(self, call: Call, replica: Replica, due: float) -> None:
        """An attempt never left this machine: the slot is free, and the call waits until `due` seconds."""
        replica.in_flight -= 1
        if replica.breaker.test_call == call.id:
            replica.breaker.tested_by(None)
        self.sleep(call, due)

    def heard(self, replica: Replica, now: float) -> None:
        """Another sign of life."""
        replica.heard_at = now

    def abandon(self, replica: Replica) -> list[Call]:
        """The server hangs: takes all calls in flight from it and returns them; the caller places them."""
        replica.in_flight = 0
        index = replica.index
        return [call for call in self.calls.values() if call.state is IN_FLIGHT and call.replica == index]

    def sleep(self, call: Call, due: float, payer: Replica | None = None) -> None:
        """Try a call again at `due` seconds. `payer`: whose retry budget must have a token for it then."""
        call.state = asleep[call.state]
        call.pays = None if payer is None else payer.index
        self._timers.wake(call, due)

    def forgive(self, call: Call, replica: Replica) -> None:
        """Its next attempt takes nothing from this replica's budget."""
        if call.pays == replica.index:
            call.pays = None

    def wake(self, call: Call, now: float, out: list[Action]) -> None:
        """A sleeping call is due; a charged retry also needs a token of the budget it pays from."""
        index, call.pays = call.pays, None
        payer = None if index is None else self._balancer.replicas[index]
        if payer is None or (not payer.starved and payer.budget.try_take(now)):
            self.place(call, now, out)
            return
        call.state = starving[call.state]
        payer.starved.append(call)
        self._await_budget(payer, now)

    def feed_starved(self, replica: Replica, now: float, out: list[Action]) -> None:
        """Its budget may have tokens again, for the retries that wait for one."""
        while replica.starved:
            if replica.starved[0].state is not STARVED:
                replica.starved.popleft()  # cancelled
            elif replica.budget.try_take(now):
                self.place(replica.starved.popleft(), now, out)
            else:
                self._await_budget(replica, now)
                return

    def _await_budget(self, replica: Replica, now: float) -> None:
        if Alarm.BUDGET not in replica.alarms:
            self._timers.alarm(replica, Alarm.BUDGET, replica.budget.next_at(now))

    def hold(self, call: Call) -> None:
        """The call neither waits nor ends until its server has shown whose fault the failure is."""
        call.state = held_back[call.state]

    def hold_back(self, call: Call, outcome: Outcome, replica: Replica) -> None:
        """Hold a call that is out of attempts: to be finished with this outcome, unless the replica is at fault."""
        self.hold(call)
        replica.held.append((call, outcome))

    def release_held(self, replica: Replica, out: list[Action]) -> None:
        """Ends its held calls: the server was not at fault."""
        held, replica.held = replica.held, []
        for call, outcome in held:
            if call.state is HELD:
                self.finish(call, outcome, out)

    def place_elsewhere(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The replica is paused, and at fault: its starved and its held calls continue wherever there is a slot."""
        starved, held = [*replica.starved], replica.held
        replica.starved.clear()
        replica.held = []
        for call in starved:
            if call.state is STARVED:
                self.place(call, now, out)
        for call, _ in held:
            if call.state is HELD:
                self.place(call, now, out)

    # --- ending -------------------------------------------------------------------------------

    def answered(self, call: Call, replica: Replica, outcome: Outcome, now: float, out: list[Action]) -> None:
        """An attempt there has succeeded: a sign of life, a free slot, and the end of the call."""
        replica.heard_at = now
        replica.in_flight -= 1
        took = now - call.started_at
        replica.served_s += took
        if took > replica.slowest:
            replica.slowest = took
        call.state = finished[call.state]  # as `finish`, in line: this is the usual end
        del self.calls[call.id]
        out.append(Finish(call.id, outcome, call.attempts))

    def finish(self, call: Call, outcome: Outcome, out: list[Action]) -> None:
        """The call is over."""
        call.state = finished[call.state]
        del self.calls[call.id]
        out.append(Finish(call.id, outcome, call.attempts))

    def cancel(self, call: Call, now: float, out: list[Action]) -> None:
        """Forget a call, whatever its state."""
        state = call.state
        del self.calls[call.id]
        call.state = cancelled[state]
        if state is WAITING:
            self._room.leave(call)
            if self._gated:
                self._left_queue(call, now, out)
            if call.retry is not None and call.retry.degree:
                self._end_needless_quiet(now, out)
        elif state is IN_FLIGHT:
            replica = self._balancer.replicas[call.replica]
            replica.in_flight -= 1
            self._book.left(call, replica)
            if replica.breaker.test_call == call.id:
                replica.breaker.tested_by(None)
            self.fill(replica, now, out)

    def halt(self, message: str, replica: str, out: list[Action], advice: str = "") -> None:
        """Nothing more starts."""
        self.halted = Halt(message, replica, advice)
        out.append(self.halted)
