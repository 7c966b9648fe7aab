"""Which record kills the server: those in flight at a crash are suspects, and are tried until one is convicted.

A crash: a server that answered fails all its calls in flight, or its supervisor says that it is gone. Each costs a
restart, minutes for a large model, and most are no record's fault (out of memory, a pre-empted machine), so both must
be cheap: finding the one poison record among hundreds, and finding that there is none.

- **First crash**: all n in flight become suspects of the first degree. They are tried among ordinary calls, at most
  about sqrt(n) at a time on each replica, those that started last first (poison mostly kills at once). The replica
  stays full with others; an answer of any kind clears a suspect, and each time as many are cleared as may be tried at
  once, that number doubles. After a kill from outside everybody is cleared in a few rounds, beside the usual work.
- **Second crash**: the poison is among those in flight at *both*: about sqrt(n) of them. They become suspects of the
  second degree and are tried alone, one after the other, on a server where nothing else is in flight: 16 for n = 256,
  where trying all of them alone after the first crash would keep the server nearly idle for 256 latencies.
- **Third and fourth crash**: with one call alone in flight there is no doubt; twice, so that a kill from outside in
  that moment convicts nobody. The record ends with Permanent("poison"), and all others are free again. A failure that
  was not the server's end (it answers the next call) is charged like any other.

So one poison record costs four crashes at most. With several replicas: suspects are tried on all of them at once,
each on one at a time, but not on the last one in use while another may come back within two minutes; and calls are
tried alone on servers that have crashed already, which are empty when they return.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import isqrt

from asyncsynth.core.breaker import CANARY, CLOSED, DOWN, HALF_OPEN, OPEN, REMOVED
from asyncsynth.core.calls import ASK, GONE, HELD, IN_FLIGHT, SPARE, WAITING, Action, Call, Probe
from asyncsynth.core.dispatch import Dispatch
from asyncsynth.core.outcomes import Outcome, Permanent, Transient
from asyncsynth.core.replicas import Health, Replica

DEADLY = frozenset({"reset", "server_error", "truncated", "protocol"})  #: how a call in flight meets a crash
MEMORY_S = 10.0  #: failures so long before a fall belong to it
PATIENCE_S = 120.0  #: how long suspects wait for a crashed replica to return rather than risk a healthy one
LEAST_TRIALS = 4
SOLO_CRASHES = 2  #: crashes with one call alone in flight that convict it
CANARY_S = 30.0  #: what a probe of an empty server may take


class Suspects(Dispatch):
    """Trials of suspects, between `core.dispatch` and `core.faults`. Costs nothing until a server falls."""

    def _setup_suspects(self) -> None:
        self._heaps: dict[tuple[str, int], list[tuple[int, float, int, Call]]] = {}
        self._at_once = LEAST_TRIALS
        self._cleared = 0
        self._crashed_at = float("-inf")

    # --- becoming one -------------------------------------------------------------------------

    def _note_death(self, call: Call, replica: Replica, outcome: Outcome, now: float) -> None:
        """A failure that could be the server's end."""
        if not isinstance(outcome, Transient) or outcome.reason not in DEADLY:
            return
        health = replica.health
        if health.alive:
            deaths = health.deaths
            deaths.append((now, call))
            while deaths[0][0] < now - MEMORY_S:
                deaths.popleft()
        elif call.started_at <= health.fallen_at:
            self._suspect(call, health)

    def _fell(self, replica: Replica, now: float) -> None:
        """A replica that had answered is paused: who was in flight?"""
        health = replica.health
        if not health.alive:
            return
        health.alive = False
        health.fallen_at = self._crashed_at = now
        health.candidates = set()
        health.examiner = True
        self._at_once = max(LEAST_TRIALS, isqrt(len(health.deaths) + replica.in_flight))
        self._cleared = 0
        deaths = [call for at, call in health.deaths if at >= now - MEMORY_S]
        health.deaths.clear()
        for call in deaths:
            if call.state is not GONE:
                self._suspect(call, health)

    def _suspect(self, call: Call, health: Health) -> None:
        if call.id in health.candidates:
            return
        health.candidates.add(call.id)
        state = call.failures()
        waits = call.state is WAITING
        if waits:
            self._unqueue(call)
        state.crashes += 1
        state.degree = min(2, state.crashes)
        if waits:
            self._enqueue(call)

    # --- waiting ------------------------------------------------------------------------------

    def _enqueue(self, call: Call) -> None:
        state = call.retry
        if state is None or not state.degree:
            self._wait(call)
            return
        call.state = WAITING
        self.waiting += 1
        self._suspects[call.id] = call
        heap = self._heaps.setdefault((call.model, state.degree), [])
        heappush(heap, (call.turn, -call.started_at, call.seq, call))

    def _unqueue(self, call: Call) -> None:
        """A waiting call leaves its queue."""
        self.waiting -= 1
        if self._suspects.pop(call.id, None) is None:
            self._queues[call.model].remove(call)

    def _place(self, call: Call, now: float, out: list[Action]) -> None:
        if call.retry is None or not call.retry.degree:
            self._start_or_wait(call, now, out)
            return
        self._enqueue(call)
        replica = self._balancer.pick(call.model)
        if replica is not None and self.halted is None:
            self._slot_freed(replica, now, out)

    def _next_suspect(self, replica: Replica, degree: int) -> Call | None:
        best: tuple[int, float, int, Call] | None = None
        for model in replica.models:
            heap = self._heaps.get((model, degree))
            while heap:
                call = heap[0][3]
                state = call.retry
                if self._suspects.get(call.id) is call and state is not None and state.degree == degree:
                    if best is None or heap[0] < best:
                        best = heap[0]
                    break
                heappop(heap)
        return None if best is None else best[3]

    # --- trials -------------------------------------------------------------------------------

    def _try_first(self, replica: Replica, now: float, out: list[Action]) -> bool:
        if replica.breaker.state is CLOSED and replica.health.alive:
            if self._examine(replica, now, out):
                return True
            self._try_suspects(replica, now, out)
        elif replica.breaker.state is HALF_OPEN and replica.can_take() and not self._fresh_probe(replica):
            self._ask(replica, now, out)
        return False

    def _try_suspects(self, replica: Replica, now: float, out: list[Action]) -> None:
        trials = replica.health.trials
        while len(trials) < self._at_once and replica.can_take():
            call = self._next_suspect(replica, 1)
            if call is None or self._spared(replica, call, now) or not self._begin_trial(call, replica, now, out):
                return
            trials.add(call.id)

    def _examine(self, replica: Replica, now: float, out: list[Action]) -> bool:
        """Try suspects of the second degree here, alone. True: nothing else may start now."""
        health = replica.health
        if health.solo is not None:
            return True
        call = self._next_suspect(replica, 2)
        if call is None:
            self._unquiet(replica)
            return False
        late = now >= self._crashed_at + PATIENCE_S
        if not (health.examiner or late) or self._spared(replica, call, now):
            return False
        replica.block(gated_for=replica.gated_for, quiet=True)
        if not replica.in_flight and self._begin_trial(call, replica, now, out):
            health.solo = call
        return True

    def _begin_trial(self, call: Call, replica: Replica, now: float, out: list[Action]) -> bool:
        if replica.gate is not None and not self._admitted(call, replica, now):
            return False
        self._unqueue(call)
        replica.troubled = True
        self._start(call, replica, now, out)
        return True

    def _spared(self, replica: Replica, call: Call, now: float) -> bool:
        """Whether this is the last replica in use, and another may soon take the risk."""
        peers = self._balancer.of_model[call.model]
        if len(peers) == 1 or now >= self._crashed_at + PATIENCE_S:
            return False
        if any(r is not replica and r.breaker.state is CLOSED and r.health.alive for r in peers):
            return False
        if SPARE not in replica.alarms:
            self._timers.alarm(replica, SPARE, self._crashed_at + PATIENCE_S)
        return any(
            r is not replica and r.breaker.state in (OPEN, HALF_OPEN, DOWN) and not r.breaker.lost for r in peers
        )

    def _unquiet(self, replica: Replica) -> None:
        if replica.quiet:
            replica.block(gated_for=replica.gated_for, quiet=False)
            replica.health.examiner = False

    def _fresh_probe(self, replica: Replica) -> bool:
        """Whether a call waits that has not failed in this outage yet."""
        heads = [self._queues[model].head() for model in replica.models]
        return any(head is not None and not head[3].turn for head in heads)

    def _ask(self, replica: Replica, now: float, out: list[Action]) -> None:
        """Only suspects could probe this server: let the driver do it, with a request of its own."""
        if self._next_any(replica) is not None or replica.health.accused is not None:
            replica.breaker.probe = CANARY
            out.append(Probe(replica.index, CANARY_S))
            self._timers.alarm(replica, ASK, now + 2 * CANARY_S)

    def _next_any(self, replica: Replica) -> Call | None:
        return self._next_suspect(replica, 1) or self._next_suspect(replica, 2)

    def _unanswered(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The driver did not probe: a suspect must."""
        if replica.breaker.probe != CANARY or self.halted is not None:
            return
        replica.breaker.probe = None
        call = self._next_any(replica) if replica.can_take() else None
        if call is not None:
            self._begin_trial(call, replica, now, out)
        else:
            self._slot_freed(replica, now, out)

    # --- verdicts -----------------------------------------------------------------------------

    def _left(self, call: Call, replica: Replica) -> None:
        """A call is no longer in flight there."""
        health = replica.health
        health.trials.discard(call.id)
        if health.solo is call:
            health.solo = None
            if self._next_suspect(replica, 2) is None:
                self._unquiet(replica)

    def _clear(self, call: Call) -> None:
        """It was answered: innocent."""
        state = call.retry
        if state is None or not state.degree:
            return
        if state.degree == 1:
            self._cleared += 1
            if self._cleared >= self._at_once:
                self._at_once *= 2
                self._cleared = 0
        state.degree = state.crashes = state.solo_crashes = 0

    def _accuse(self, call: Call, replica: Replica, outcome: Outcome, now: float) -> None:
        """It failed alone; the next contact with the server shows whether it is dead."""
        call.state = HELD
        replica.health.accused = (call, outcome)
        self._fell(replica, now)

    def _convict(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The server is dead, and this call was alone there."""
        accused, replica.health.accused = replica.health.accused, None
        if accused is None or accused[0].state is not HELD:
            return
        call, outcome = accused
        state = call.failures()
        state.solo_crashes += 1
        if state.solo_crashes < SOLO_CRASHES:
            self._enqueue(call)
            return
        detail = f" ({outcome.message})" if isinstance(outcome, Transient) and outcome.message else ""
        message = f"alone in flight on {replica.name}, this request ended the server{detail}; tried twice"
        self._finish(call, Permanent("poison", message, scope="record"), out)
        self._free_all(now, out)

    def _free_all(self, now: float, out: list[Action]) -> None:
        """The crashes are explained."""
        waiting = list(self._suspects.values())
        for call in waiting:
            self._unqueue(call)
        for call in self._calls.values():
            if call.retry is not None and call.retry.degree:
                call.retry.degree = call.retry.crashes = call.retry.solo_crashes = 0
        self._heaps.clear()
        for replica in self.replicas:
            if replica.health.solo is None:
                self._unquiet(replica)
        for call in waiting:
            self._enqueue(call)
        for replica in self.replicas:
            if replica.breaker.state is not REMOVED:
                self._slot_freed(replica, now, out)

    def _free_quiet(self, now: float, out: list[Action]) -> None:
        """Suspects went away (cancelled): nobody needs a server of its own any more, perhaps."""
        for replica in self.replicas:
            if replica.quiet and replica.health.solo is None and self._next_suspect(replica, 2) is None:
                self._unquiet(replica)
                self._slot_freed(replica, now, out)

    def _flying(self, replica: Replica) -> list[Call]:
        return [call for call in self._calls.values() if call.state is IN_FLIGHT and call.replica is replica]
