"""Which record kills the server: records in flight at a crash are suspects, and are tried until one is convicted.

A crash: a server that has answered fails all its calls in flight, or its supervisor reports it gone. Each costs a
restart, minutes for a large model, and most are no record's fault (out of memory, a pre-empted machine), so both must
be cheap: finding the one poison record among hundreds, and finding that there is none.

- **First crash**: all n in flight become suspects of the first degree. They are tried among ordinary calls, at most
  about sqrt(n) at a time on each replica, those that started last first (poison mostly kills at once). The replica
  stays full with others; an answer of any kind clears a suspect, and each time as many are cleared as may be tried at
  once, that number doubles. After a kill from outside, all are cleared in a few rounds, beside the usual work.
- **Second crash**: the poison is among those in flight at *both*: about sqrt(n) of them. They become suspects of the
  second degree and are tried alone, one after the other, on a server where nothing else is in flight: 16 for n = 256,
  while trying all of them alone after the first crash would keep the server nearly idle for 256 latencies.
- **Third and fourth crash**: with one call alone in flight there is no doubt; twice, so that a kill from outside just
  then convicts no record. The record ends with Permanent("poison"), and all others are free again. A failure that
  was not the server's end (it answers the next call) is charged like any other.

So one poison record costs four crashes at most. With several replicas, suspects are tried on all of them at once. The
last replica in use is spared for two minutes while ordinary calls wait for it: a replica that comes back takes the
risk instead. When no ordinary call waits, suspects start there at once, so that no healthy server is idle beside them.
Calls are tried alone on servers that have crashed already, which are empty when they return, or on an unused one.

`SuspectBook` decides and starts nothing: `core.dispatch` asks it which call to try, `core.blame` reports the
results. Its terms: a server *falls* (it had answered, and crashes). A call is *suspected* (in flight at a fall),
*cleared* (answered, so innocent), or *accused* (it failed alone; whether that killed the server is not known yet). An
accused call is *convicted* (the server is dead) or *acquitted* (it lives). A replica is kept *free* for a call that is
tried alone, and *spared* a trial while it is the last one in use.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isqrt

from asyncsynth.core.balancer import Balancer
from asyncsynth.core.calls import Call
from asyncsynth.core.outcomes import Outcome, Permanent, Transient
from asyncsynth.core.replica_state import Alarm, Health, Replica
from asyncsynth.core.states import (
    CLOSED,
    DOWN,
    GONE,
    HALF_OPEN,
    HELD,
    OPEN,
    WAITING,
    Degree,
    cleared,
    explained,
    suspected,
)
from asyncsynth.core.timers import Timers
from asyncsynth.core.waiting import WaitingRoom

DEADLY = frozenset({"reset", "server_error", "truncated", "protocol"})  #: how a call in flight meets a crash
MEMORY_S = 10.0  #: failures up to this long before a crash belong to it
PATIENCE_S = 120.0  #: how long suspects wait for a crashed replica to return rather than risk a healthy one
LEAST_TRIALS = 4
SOLO_CRASHES = 2  #: crashes with one call alone in flight that convict it


class SuspectBook:
    """Which calls are suspected, and which is tried next. Costs nothing until a server falls."""

    def __init__(self, balancer: Balancer, room: WaitingRoom, timers: Timers) -> None:
        self._balancer = balancer
        self._room = room
        self._timers = timers
        self._at_once = LEAST_TRIALS
        self._cleared = 0
        self._crashed_at = float("-inf")

    # --- becoming a suspect -------------------------------------------------------------------

    def note_death(self, call: Call, replica: Replica, outcome: Outcome, now: float) -> None:
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

    def fallen(self, replica: Replica, now: float) -> None:
        """A replica is paused. If it had answered, those that were in flight are suspects."""
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
            self._room.leave(call)
        state.degree = suspected[state.degree]
        if waits:
            self._room.enter(call)

    # --- which to try -------------------------------------------------------------------------

    def next_among_others(self, replica: Replica, now: float) -> Call | None:
        """The suspect of the first degree to start there now, beside ordinary calls."""
        if len(replica.health.trials) >= self._at_once or not replica.can_take():
            return None
        call = self._room.next_suspect(replica, Degree.FIRST)
        return None if call is None or self._spared(replica, call, now) else call

    def keeps_free(self, replica: Replica, now: float) -> bool:
        """Whether this replica serves a trial alone, now or once it is empty; then nothing else may start there."""
        health = replica.health
        if health.solo is not None:
            return True
        call = self._room.next_suspect(replica, Degree.SECOND)
        if call is None:
            self._take_all_again(replica)
            return False
        late = now >= self._crashed_at + PATIENCE_S
        unused = not replica.in_flight and not self._room.ordinary_waits(replica)
        if not (health.examiner or late or unused) or self._spared(replica, call, now):
            if replica.quiet:  # its trials would take slots from calls that it may serve at once
                replica.keep_free(False)
            return False
        replica.keep_free(True)
        return True

    def next_alone(self, replica: Replica) -> Call | None:
        """The suspect of the second degree to start on this free replica; None while a call is in flight there."""
        if replica.in_flight or replica.health.solo is not None:
            return None
        return self._room.next_suspect(replica, Degree.SECOND)

    def on_trial(self, call: Call, replica: Replica, *, alone: bool) -> None:
        """It has started there."""
        if alone:
            replica.health.solo = call
        else:
            replica.health.trials.add(call.id)

    def _spared(self, replica: Replica, call: Call, now: float) -> bool:
        """Whether this is the last replica in use, has other work, and another may soon take the risk.

        A replica without other work is not spared: its slots would stay empty, and its crash would cost no other call.
        """
        peers = self._balancer.of_model[call.model]
        if len(peers) == 1 or now >= self._crashed_at + PATIENCE_S or not self._room.ordinary_waits(replica):
            return False
        if any(r is not replica and r.breaker.state is CLOSED and r.health.alive for r in peers):
            return False
        if Alarm.SPARE not in replica.alarms:
            self._timers.alarm(replica, Alarm.SPARE, self._crashed_at + PATIENCE_S)
        return any(
            r is not replica and r.breaker.state in (OPEN, HALF_OPEN, DOWN) and not r.breaker.lost for r in peers
        )

    def spared_until(self) -> float:
        """When suspects are tried on the last replica in use although it has other work, in seconds."""
        return self._crashed_at + PATIENCE_S

    def _take_all_again(self, replica: Replica) -> None:
        if replica.quiet:
            replica.keep_free(False)
            replica.health.examiner = False

    # --- verdicts -----------------------------------------------------------------------------

    def left(self, call: Call, replica: Replica) -> None:
        """A call is no longer in flight there."""
        health = replica.health
        health.trials.discard(call.id)
        if health.solo is call:
            health.solo = None
            self.needless(replica)

    def needless(self, replica: Replica) -> bool:
        """Whether this replica was kept free for a trial and no suspect is left for it; then it takes all again."""
        if not replica.quiet or replica.health.solo is not None:
            return False
        if self._room.next_suspect(replica, Degree.SECOND) is not None:
            return False
        self._take_all_again(replica)
        return True

    def answers(self, replica: Replica) -> None:
        """The server answers, after a fall or not."""
        replica.health.alive = True

    def clear(self, call: Call) -> None:
        """The call was answered: it is innocent."""
        state = call.retry
        if state is None or not state.degree:
            return
        if state.degree is Degree.FIRST:
            self._cleared += 1
            if self._cleared >= self._at_once:
                self._at_once *= 2
                self._cleared = 0
        state.degree = cleared[state.degree]
        state.solo_crashes = 0

    def accuse(self, call: Call, replica: Replica, outcome: Outcome, now: float) -> None:
        """The call failed alone; the next contact with the server shows whether that is dead."""
        replica.health.accused = (call, outcome)
        self.fallen(replica, now)

    def acquit(self, replica: Replica) -> tuple[Call, Outcome] | None:
        """The server lives, or its state is unknown. Returns the accused call and its outcome, an ordinary failure."""
        accused = self._accused(replica)
        if accused is not None:
            self.clear(accused[0])
        return accused

    def convict(self, replica: Replica) -> tuple[Call, Permanent] | None:
        """The server is dead, and the accused was alone there. Returns it with its end, or None if it is tried
        again."""
        accused = self._accused(replica)
        if accused is None:
            return None
        call, outcome = accused
        state = call.failures()
        state.solo_crashes += 1
        if state.solo_crashes < SOLO_CRASHES:
            self._room.enter(call)
            return None
        detail = f" ({outcome.message})" if isinstance(outcome, Transient) and outcome.message else ""
        message = f"alone in flight on {replica.name}, this request ended the server{detail}; tried twice"
        return call, Permanent("poison", message, scope="record")

    def _accused(self, replica: Replica) -> tuple[Call, Outcome] | None:
        """The call that waits for the verdict about this server, or None; from now on none does."""
        accused, replica.health.accused = replica.health.accused, None
        return accused if accused is not None and accused[0].state is HELD else None

    def explain(self, calls: Iterable[Call]) -> None:
        """One is convicted, so the crashes are explained: all others are free."""
        waiting = self._room.take_suspects()
        for call in calls:
            state = call.retry
            if state is not None and state.degree:
                state.degree = explained[state.degree]
                state.solo_crashes = 0
        for replica in self._balancer.replicas:
            if replica.health.solo is None:
                self._take_all_again(replica)
        for call in waiting:
            self._room.enter(call)
