"""A simulated fleet in virtual time that drives a Scheduler and checks its rules after every event."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from asyncsynth.core.limiter import FixedLimit, Limiter
from asyncsynth.core.outcomes import Ok, Outcome, Overloaded, Permanent, Transient
from asyncsynth.core.rates import RateLimits
from asyncsynth.core.retry import RetryPolicy
from asyncsynth.core.scheduler import Abort, Action, Canary, Finish, Halt, HealthCheck, ReplicaSpec, Scheduler, Start
from asyncsynth.core.states import IN_FLIGHT

#: (call id, attempt, now) -> (outcome, latency in seconds), or None for a good answer after the usual latency
#: Of health checks the call id is -1, of canaries:
CANARY = -2
Script = Callable[[int, int, float], tuple[Outcome, float] | None]


@dataclass
class SimServer:
    """Answers after a random latency; refuses (429) over `slots`; `script` decides about everything else."""

    name: str
    models: frozenset[str]
    slots: int = 10**9
    latency: tuple[float, float] = (0.5, 2.0)
    script: Script = lambda call, attempt, now: None
    #: (outcome, when it ends) -> outcome: how answers change on the way, e.g. at a crash
    ending: Callable[[Outcome, float], Outcome] = lambda outcome, now: outcome
    busy: int = 0
    most: int = 0
    requests: int = 0

    def answer(self, call: int, attempt: int, now: float, rng: random.Random) -> tuple[Outcome, float]:
        self.requests += 1
        scripted = self.script(call, attempt, now)
        if scripted is not None:
            return scripted
        if self.busy > self.slots:
            return Overloaded(429, "busy"), 0.01
        return Ok(f"{self.name}:{call}", tokens=10), rng.uniform(*self.latency)


@dataclass
class Sim:
    """`finished` maps call id -> Finish. `check_all` inspects every queue after every event (for small runs)."""

    servers: list[SimServer]
    seed: int = 0
    limits: list[Limiter] | None = None
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    check_all: bool = False
    rates: RateLimits | None = None

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        limits = self.limits or [FixedLimit(16) for _ in self.servers]
        specs = [
            ReplicaSpec(s.name, s.models, limit, self.rates) for s, limit in zip(self.servers, limits, strict=True)
        ]
        self.scheduler = Scheduler(specs, self.policy, random.Random(self.seed + 1))
        self.limits = limits
        self.now = 0.0
        #: when, order, call and its outcome; replica and whether its health check was answered; or a canary's outcome
        self.events: list[tuple[float, int, int, Outcome | bool | tuple[Canary, Outcome]]] = []
        self.canaries = 0
        self.attempts: dict[int, int] = {}
        self.checks: dict[int, int] = {}  # order -> number of the check
        self.flying: dict[int, int] = {}
        self.finished: dict[int, Finish] = {}
        self.live: dict[int, str] = {}
        self.halt: Halt | None = None
        self.starts: Counter[int] = Counter()
        self.on_finish: Callable[[Finish], None] = lambda finish: None
        self._n = 0

    def fail(self, why: str) -> None:
        raise AssertionError(f"{why} (seed={self.seed}, now={self.now})")

    def submit(self, call: int, model: str, priority: int = 0, affinity: int = 0, tokens: int = 0) -> None:
        self.live[call] = model
        self.act(self.scheduler.submit(call, model, priority, self.now, affinity, tokens))

    def add(self, server: SimServer, limit: Limiter) -> None:
        """Another server joins."""
        self.servers.append(server)
        self.act(self.scheduler.add_replica(ReplicaSpec(server.name, server.models, limit), self.now))

    def cancel(self, call: int) -> None:
        self.live.pop(call, None)
        replica = self.flying.pop(call, None)
        if replica is not None:
            self.servers[replica].busy -= 1
        self.act(self.scheduler.cancel(call, self.now))

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self._begin(action)
            elif isinstance(action, Finish):
                if action.call_id not in self.live or action.call_id in self.finished:
                    self.fail(f"finished twice or after cancel: {action}")
                if action.call_id in self.flying:
                    self.fail(f"finished in flight: {action}")
                self.finished[action.call_id] = action
                if action.attempts != self.starts[action.call_id]:
                    self.fail(f"wrong count of attempts: {action}, started {self.starts[action.call_id]}")
                del self.live[action.call_id]
            elif isinstance(action, HealthCheck):
                scripted = self.servers[action.replica].script(-1, 1, self.now)
                outcome, latency = scripted or (Ok(None), 0.2)
                ok = not isinstance(outcome, Transient)
                self._n += 1
                at = self.now + min(latency, action.timeout_s)
                self.checks[self._n] = action.number
                heapq.heappush(self.events, (at, self._n, action.replica, ok and latency < action.timeout_s))
            elif isinstance(action, Canary):
                scripted = self.servers[action.replica].script(CANARY, 1, self.now)
                outcome, latency = scripted or (Ok(None), 0.05)
                self.canaries += 1
                self._n += 1
                if latency < action.timeout_s:  # else the driver says nothing
                    heapq.heappush(self.events, (self.now + latency, self._n, CANARY, (action, outcome)))
            elif isinstance(action, Abort):
                self.servers[self.flying.pop(action.call_id)].busy -= 1
            else:
                self.halt = action
        self.check()
        for action in actions:
            if isinstance(action, Finish):
                self.on_finish(action)

    def _begin(self, start: Start) -> None:
        call, server = start.call_id, self.servers[start.replica]
        if self.halt is not None:
            self.fail(f"started after a halt: {start}")
        if call in self.flying or call not in self.live:
            self.fail(f"started twice or not alive: {start}")
        if self.live[call] not in server.models:
            self.fail(f"wrong replica: {start}")
        self.starts[call] += 1
        if start.attempt != self.starts[call]:
            self.fail(f"attempt numbers skip: {start}")
        self.flying[call] = start.replica
        server.busy += 1
        server.most = max(server.most, server.busy)
        stats = self.scheduler.replicas[start.replica]
        if server.busy > stats.limiter.limit and self.check_all:
            # several actions of one event: only the end state counts, and only starts are bounded by the limit
            self.fail(f"over the limit: {start}")
        outcome, latency = server.answer(call, start.attempt, self.now, self.rng)
        self._n += 1
        self.attempts[call] = self._n  # tells a late answer of a cancelled attempt from the present one
        heapq.heappush(self.events, (self.now + latency, self._n, call, outcome))

    def check(self) -> None:
        scheduler = self.scheduler
        for server, replica in zip(self.servers, scheduler.replicas, strict=True):
            if replica.in_flight != server.busy:
                self.fail(f"{server.name}: {replica.in_flight} in flight, the server has {server.busy}")
            if self.halt is None and replica.can_take():
                waiting = [m for m in replica.models if scheduler._queues[m].live]
                if waiting:
                    self.fail(f"{server.name} idle while {waiting} wait")
        if self.check_all:
            flying = {c.id for c in scheduler._calls.values() if c.state is IN_FLIGHT}
            if flying != set(self.flying):
                self.fail("a sleeping call holds a slot, or a flying one does not")
            if set(scheduler._calls) != set(self.live):
                self.fail("calls lost or kept")

    def step(self, within: float = float("inf")) -> bool:
        """Advances to the next event; False if there is none within `within` seconds."""
        tick = self.scheduler.next_tick()
        at = self.events[0][0] if self.events else None
        if min((t for t in (tick, at) if t is not None), default=float("inf")) - self.now > within:
            return False
        if tick is None and at is None:
            return False
        if at is None or (tick is not None and tick <= at):
            assert tick is not None
            if tick < self.now - 1e-9:
                self.fail("a timer in the past")
            self.now = max(self.now, tick)
            self.act(self.scheduler.tick(self.now))
            return True
        self.now, n, call, outcome = heapq.heappop(self.events)
        if isinstance(outcome, tuple):
            self.act(self.scheduler.canary_result(outcome[0].replica, outcome[0].model, outcome[1], self.now))
        elif isinstance(outcome, bool):
            self.act(self.scheduler.health_check_result(self.servers[call].name, outcome, self.now, self.checks.pop(n)))
        elif self.attempts.get(call) == n and call in self.flying:
            server = self.servers[self.flying.pop(call)]
            server.busy -= 1
            self.act(self.scheduler.outcome(call, server.ending(outcome, self.now), self.now))
        return True

    def run(self, until: float = float("inf"), steps: int = 2_000_000) -> None:
        for _ in range(steps):
            if self.halt is not None or not self.live or self.now >= until:
                return
            if not self.step():
                self.fail(f"stuck with {len(self.live)} live calls")
        self.fail("too many steps")

    def keep_window(self, total: int, window: int, model: str = "m") -> None:
        """Submit calls 0..total-1 with `window` of them live at once, as the engine does."""
        todo = iter(range(total))

        def more(finish: Finish | None = None) -> None:
            call = next(todo, None)
            if call is not None:
                self.submit(call, model, priority=call)

        self.on_finish = more
        for _ in range(window):
            more()


def random_script(rng: random.Random, rate: float) -> Script:
    """Faults of all kinds at `rate`."""

    def script(call: int, attempt: int, now: float) -> tuple[Outcome, float] | None:
        if rng.random() >= rate:
            return None
        kind = rng.randrange(9)
        quick = rng.uniform(0.0, 0.2)
        return [
            (Overloaded(503, "busy"), quick),
            (Overloaded(429, "busy", retry_after=rng.choice([0.5, 5.0, 1e6])), quick),
            (Transient("connect", "refused"), quick),
            (Transient("reset", "died", free=rng.random() < 0.5), quick),
            (Transient("timeout", "no answer"), 30.0),
            (Transient("server_error", "500", status=500), quick),
            (Transient("bad_json", "?", max_attempts=3), quick),
            (Transient("empty_content", "", max_attempts=3), quick),
            (Permanent("bad_request", "400", status=400), quick),
        ][kind]

    return script
