"""When, where and whether again: the decisions about model calls, as a pure state machine.

The driver (`client.server_pool`) reports what happened (`submit`, `outcome`, `cancel`, `tick`) and carries out
the actions it is given. Each event costs O(log n) in waiting calls and replicas. Rules that hold after every event:

- a replica never gets a call beyond its limit, and a retry that sleeps holds no slot;
- no slot of a ready replica is idle while a call that it can serve waits;
- every call finishes once, or is cancelled; a halted scheduler starts nothing;
- a *server's* fault charges no record: charges are provisional until the server answers some request well, and are
  taken back when its breaker opens. A call that is out of attempts at such a moment is held until this is known.

`Scheduler` has the events. Each part below owns its state and knows only parts above it in this list:

- `core.states`: which state of a call, a replica or a suspicion follows which; the tables;
- `core.calls`, `core.breaker`, `core.replica_state`: a call and a queue of calls, when to pause a server, a server;
- `core.timers`: what is due when;
- `core.balancer`: the fleet, and its least busy replica;
- `core.waiting`: which calls wait for a slot, and which is next;
- `core.suspects`: which calls may have killed a server, and which to try first;
- `core.refusals`: which calls were refused, and whether others are too;
- `core.dispatch`: slots; which call starts where, and what holds it back;
- `core.blame`: what a failure means, for the record and the server;
- `core.silence`: whether a silent server is slow or hung;
- `core.waits`: in words, why calls wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from asyncsynth.core.balancer import Balancer
from asyncsynth.core.blame import FaultJudge
from asyncsynth.core.breaker import DRIVER, DRIVER_FIRST
from asyncsynth.core.calls import Abort, Action, Call, Canary, Finish, Halt, HealthCheck, Start
from asyncsynth.core.dispatch import Slots
from asyncsynth.core.outcomes import Ok, Outcome, Permanent, ServerLoad, Transient
from asyncsynth.core.replica_state import LOAD_FRESH_S, Alarm, Replica, ReplicaSnapshot, ReplicaSpec
from asyncsynth.core.retry import MACHINE, MACHINE_WAIT_S, SERVER_FAULTS, RetryBudget, RetryPolicy, Rng
from asyncsynth.core.silence import SilenceWatch
from asyncsynth.core.states import DOWN, IN_FLIGHT, REMOVED
from asyncsynth.core.suspects import SuspectBook
from asyncsynth.core.timers import Timers
from asyncsynth.core.waiting import WaitingRoom
from asyncsynth.core.waits import why_calls_wait

__all__ = [
    "Abort",
    "Action",
    "Canary",
    "Finish",
    "Halt",
    "HealthCheck",
    "ReplicaSnapshot",
    "ReplicaSpec",
    "Scheduler",
    "Start",
]


class Scheduler:
    """See the module's text. `now` is in seconds, monotonic; carry out the actions in their order."""

    def __init__(self, replicas: Sequence[ReplicaSpec], policy: RetryPolicy, rng: Rng) -> None:
        self.policy = policy
        self._rng = rng
        self._balancer = Balancer()
        self._room = WaitingRoom(self._balancer)
        self._timers = Timers()
        self._book = SuspectBook(self._balancer, self._room, self._timers)
        self._slots = Slots(self._balancer, self._room, self._timers, self._book)
        self._judge = FaultJudge(self._slots, self._book, self._balancer, self._room, self._timers, policy, rng)
        self._silence = SilenceWatch(self._slots, self._judge, self._book, self._balancer, self._timers)
        self._seq = 0
        self.replicas: list[Replica] = self._balancer.replicas  #: all replicas that ever joined, by index
        self._calls = self._slots.calls
        self._queues = self._room.queues
        self._on_alarm: dict[Alarm, Callable[[Replica, float, list[Action]], None]] = {
            Alarm.PAUSE: self._pause_is_over,
            Alarm.BUDGET: self._slots.feed_starved,
            Alarm.RATE: self._slots.fill,
            Alarm.REPORT: self._check_report,
            Alarm.OUTAGE: self._judge.check_absence,
            Alarm.STALL: self._silence.check,
            Alarm.SPARE: self._slots.fill,
            Alarm.CHECK: self._not_checked,
            Alarm.REFUSED: self._judge.take_back,
            Alarm.CANARY: self._judge.canary_is_late,
        }
        for spec in replicas:
            self._join(spec)

    def _join(self, spec: ReplicaSpec) -> Replica:
        replica = self._balancer.add(spec, RetryBudget(self.policy.budget_ratio, self.policy.budget_per_s))
        self._room.open_for(replica.models)
        return replica

    @property
    def waiting(self) -> int:
        """Calls waiting for a slot."""
        return self._room.count.waiting

    @property
    def halted(self) -> Halt | None:
        """Why nothing more is started, or None."""
        return self._slots.halted

    # --- events -------------------------------------------------------------------------------

    def submit(
        self, call_id: int, model: str, priority: int, now: float, affinity: int = 0, tokens: int = 0
    ) -> list[Action]:
        """A new call.

        Args:
            call_id: any number, not negative, that no unfinished call has.
            model: a name that some replica serves, or has served (then the call waits for one that does).
            priority: lower goes first.
            now: seconds.
            affinity: calls with the same number (not 0) prefer the same replica, for its prefix cache.
            tokens: estimate of prompt and completion tokens, an upper bound at best; for rates of tokens.

        Raises:
            KeyError: no replica serves `model`, or ever did.
            ValueError: the call is not over yet.
        """
        if call_id in self._calls:
            raise ValueError(f"call {call_id} is not over yet")
        if model not in self._queues:
            raise KeyError(model)
        self._seq = seq = self._seq + 1
        slots = self._slots
        out: list[Action] = [] if slots.halted is None else [slots.halted]
        slots.start_or_wait(Call(call_id, model, priority, affinity, tokens, seq), now, out)
        return out

    def outcome(self, call_id: int, outcome: Outcome, now: float) -> list[Action]:
        """The result of an attempt of a call in flight. Unknown and cancelled calls are ignored."""
        call = self._calls.get(call_id)
        if call is None or call.state is not IN_FLIGHT:
            return []
        replica = self.replicas[call.replica]
        slots = self._slots
        out: list[Action] = []
        if type(outcome) is Ok:
            replica.limiter.on_ok(now, replica.in_flight, outcome.tokens)
            if replica.gate is not None:
                replica.gate.correct(call.tokens, outcome.prompt_tokens + outcome.tokens, call.started_at, now)
            if replica.troubled:
                self._judge.recovered(call, replica, now, out)
            slots.answered(call, replica, outcome, now, out)
        elif type(outcome) is Transient and outcome.reason == MACHINE:
            # Neither the server's fault nor the record's: the call waits, and fewer are in flight.
            self._book.left(call, replica)
            slots.turned_back(call, replica, now + MACHINE_WAIT_S * (1.0 + self._rng.random()))
            replica.limiter.on_capacity(max(1, replica.in_flight), now, outcome.message)
        else:
            if isinstance(outcome, Transient | Permanent) and outcome.paid:
                self._paid(call, replica, outcome, now)
            slots.failed(replica, now)
            self._judge.failed(call, replica, outcome, now, out)
        slots.fill(replica, now, out)
        return out

    def _paid(self, call: Call, replica: Replica, outcome: Transient | Permanent, now: float) -> None:
        """A useless answer still took its time and its tokens."""
        if outcome.reason not in SERVER_FAULTS:
            replica.limiter.on_ok(now, replica.in_flight, outcome.tokens)
        if replica.gate is not None and outcome.tokens:
            replica.gate.correct(call.tokens, outcome.prompt_tokens + outcome.tokens, call.started_at, now)

    def cancel(self, call_id: int, now: float) -> list[Action]:
        """Forget a call, whatever its state; it gets no Finish. Unknown calls are ignored."""
        call = self._calls.get(call_id)
        out: list[Action] = []
        if call is not None:
            self._slots.cancel(call, now, out)
        return out

    def tick(self, now: float) -> list[Action]:
        """Do what is due: retries, tests, budgets."""
        out: list[Action] = []
        for target, kind in self._timers.due(now):
            if isinstance(target, Call):
                self._slots.wake(target, now, out)
            elif kind is not None:
                self._on_alarm[kind](target, now, out)
        return out

    def _pause_is_over(self, replica: Replica, now: float, out: list[Action]) -> None:
        replica.breaker.half_open()
        if replica.health.accused is None and self._slots.ask_first(replica, now, out):
            return
        self._slots.fill(replica, now, out)
        if replica.health.accused is not None and replica.breaker.test_call is None and self.halted is None:
            self._slots.ask(replica, now, out)  # no waiting call could test it

    def _not_checked(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The driver was asked for a health check, and has not reported: a call that waits for the verdict is not
        convicted."""
        self._judge.lives(replica, now, out)
        self._slots.not_asked(replica, now, out)

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
        """A server's report of its own load; counts for 5 s from `load.at`. Unknown names are ignored."""
        replica = self._balancer.by_name.get(name)
        if replica is None or load.at + LOAD_FRESH_S <= now:
            return []
        if replica.report is not None and load.at < replica.report.at:
            return []
        replica.limiter.on_load(load)
        replica.take_report(load)
        if replica.works_on(load):
            self._slots.heard(replica, now)
        if Alarm.REPORT not in replica.alarms:
            self._timers.alarm(replica, Alarm.REPORT, load.at + LOAD_FRESH_S)
        out: list[Action] = []
        self._slots.fill(replica, now, out)
        return out

    def _check_report(self, replica: Replica, now: float, out: list[Action]) -> None:
        assert replica.report is not None
        stale_at = replica.report.at + LOAD_FRESH_S
        if stale_at > now:
            self._timers.alarm(replica, Alarm.REPORT, stale_at)
        else:
            replica.take_report(None)
            self._slots.fill(replica, now, out)

    def add_replica(self, spec: ReplicaSpec, now: float) -> list[Action]:
        """A server joins; calls that wait for its models start there. Its index is the next one.

        Raises:
            ValueError: its name is in use.
        """
        replica = self._join(spec)
        out: list[Action] = []
        self._room.rehome(replica.models)
        self._slots.fill(replica, now, out)
        return out

    def remove_replica(self, name: str, now: float) -> list[Action]:
        """A server leaves: it gets no new calls; those in flight may end. Its index stays taken.

        Calls whose model no server has any more wait for another to join; `outage_limit_s` ends the run.

        Raises:
            KeyError: no replica has this name.
        """
        replica = self._balancer.by_name[name]
        out = self.replica_down(name, now, "removed")
        self._balancer.remove(replica, now)
        self._judge.watch_absence(replica, now)
        self._room.rehome(replica.models)
        return out

    def health_check_result(self, name: str, ok: bool, now: float, number: int = 0) -> list[Action]:
        """The result of the driver's `HealthCheck`: ok if the server answered in any way. Unknown names are ignored."""
        replica = self._balancer.by_name.get(name)
        out: list[Action] = []
        if replica is None or self.halted is not None:
            return out
        if ok or replica.breaker.test_call in (DRIVER, DRIVER_FIRST):
            self._judge.checked(replica, now, ok, out)
        else:
            self._silence.unanswered(replica, number, now, out)
        return out

    def canary_result(self, replica: int, model: str, outcome: Outcome, now: float) -> list[Action]:
        """The outcome of the driver's `Canary` at the replica of this index."""
        out: list[Action] = []
        if self.halted is None:
            self._judge.canary(self.replicas[replica], model, outcome, now, out)
            self._slots.fill(self.replicas[replica], now, out)
        return out

    def replica_down(self, name: str, now: float, why: str = "taken down") -> list[Action]:
        """A supervisor knows that this server is gone: pause it and charge no call until `replica_up`.

        Raises:
            KeyError: no replica has this name.
        """
        replica = self._balancer.by_name[name]
        out: list[Action] = []
        self._judge.crashed(replica, now, why, out)
        if replica.breaker.state is not DOWN:
            replica.breaker.take_down()
            self._timers.forget(replica, Alarm.PAUSE)
            self._judge.watch_absence(replica, now)
        return out

    def replica_lost(self, name: str, now: float, why: str, how: str = "is not started again") -> list[Action]:
        """This server does not come back: its supervisor gave it up, or it cannot be used. `how` follows its name in
        messages.

        Calls that no other server can take end the run at once.

        Raises:
            KeyError: no replica has this name.
        """
        replica = self._balancer.by_name[name]
        out = self.replica_down(name, now, why)
        replica.breaker.give_up(why, how)
        if self.halted is None:
            self._judge.check_absence(replica, now, out)
        for model in replica.models:  # suspects may have waited for it, to spare the last server in use
            for peer in self._balancer.of_model[model]:
                self._slots.fill(peer, now, out)
        return out

    def replica_up(self, name: str, now: float) -> list[Action]:
        """The server is back and ready.

        Raises:
            KeyError: no replica has this name.
        """
        replica = self._balancer.by_name[name]
        out: list[Action] = []
        self._judge.back(replica, now, out)
        self._slots.fill(replica, now, out)
        return out

    def waits(self, now: float) -> list[str]:
        """Why calls wait for anything other than a slot, in words; empty if none does."""
        return why_calls_wait(self._slots, self._room, self._book, self._silence, self._balancer, now)

    def snapshots(self) -> list[ReplicaSnapshot]:
        """One entry per replica, in the order of their indices; except removed ones with nothing in flight."""
        queues = self._queues
        return [
            replica.snapshot(sum(queues[model].live for model in replica.models))
            for replica in self.replicas
            if replica.breaker.state is not REMOVED or replica.in_flight
        ]
