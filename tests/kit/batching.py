"""A job of many records through the real Scheduler and one simulated batching server, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

from asyncsynth.core.calls import Action
from asyncsynth.core.limiter import Limiter
from asyncsynth.core.outcomes import Ok, Overloaded, ServerLoad
from asyncsynth.core.retry import RetryPolicy
from asyncsynth.core.scheduler import Abort, Finish, HealthCheck, ReplicaSpec, Scheduler, Start
from asyncsynth.testing.batching_server import BatchingServer


def lengths(seed: int, n: int) -> list[tuple[int, int]]:
    """Prompts of 20 to 2,000 tokens and answers of 10 to 4,000: nine in ten lognormal, the rest uniform."""
    rng = random.Random(seed)
    return [
        (
            min(2000, max(20, int(rng.lognormvariate(5.0, 0.8)))),
            rng.randint(10, 4000) if rng.random() < 0.1 else min(4000, max(10, int(rng.lognormvariate(5.3, 1.0)))),
        )
        for _ in range(n)
    ]


@dataclass
class Job:
    """All records through one server under one limiter. `report_s`: seconds between load reports, or None.

    `orca`: each answer also carries waiting and KV use. `at`: (time, what to do then). `refuse` says whether a
    request that arrives at a time is refused with 429. A health check is one token, behind all others; `cut`
    counts the requests that the scheduler gave up.
    """

    server: BatchingServer
    limiter: Limiter
    records: list[tuple[int, int]]
    seed: int = 0
    report_s: float | None = None
    orca: bool = False
    at: list[tuple[float, Callable[[float], None]]] = field(default_factory=list)
    refuse: Callable[[float], bool] = lambda now: False
    retry_after: float | None = None

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            [ReplicaSpec("s", frozenset({"m"}), self.limiter)], RetryPolicy(), random.Random(self.seed)
        )
        self.now = 0.0
        self.done = 0
        self.tokens: list[tuple[float, int]] = []
        self.limits: list[tuple[float, int]] = []
        self._refusals: list[tuple[float, int]] = []
        self._todo: Iterator[int] = iter(range(len(self.records)))
        self._flying: set[int] = set()
        self.cut = 0
        self.checks = 0
        self._asked: dict[
            int, tuple[float, int]
        ] = {}  # a health check in the server's queue -> its deadline, its number

    def run(self, window: int = 5000, until: float = float("inf")) -> float:
        """Runs to the end, or to `until`; returns tokens/s over the whole job so far."""
        if not self.now:
            self._plan = sorted(self.at, key=lambda entry: entry[0], reverse=True)
            self._report_at = self.report_s
            for _ in range(window):
                self._more()
        while self.done < len(self.records) and self.now < until:
            self._step()
        return sum(n for _, n in self.tokens) / self.now

    def rate(self, start: float, end: float) -> float:
        """Completed tokens/s in a span of time."""
        return sum(n for at, n in self.tokens if start < at <= end) / (end - start)

    def _more(self) -> None:
        call = next(self._todo, None)
        if call is not None:
            self._act(self.scheduler.submit(call, "m", call, self.now))

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                prompt, output = self.records[action.call_id]
                if self.refuse(self.now) or not self.server.submit(action.call_id, prompt, output, self.now):
                    heappush(self._refusals, (self.now + 0.02, action.call_id))
            elif isinstance(action, Finish):
                assert isinstance(action.outcome, Ok), f"{action} (seed={self.seed})"
                self.done += 1
            elif isinstance(action, HealthCheck):
                self.checks += 1
                self._asked[-self.checks] = self.now + action.timeout_s, action.number
                self.server.submit(-self.checks, 10, 1, self.now)
            elif isinstance(action, Abort):
                self.cut += 1
        for action in actions:
            if isinstance(action, Finish):
                self._more()

    def _step(self) -> None:
        times = [self.server.next_event(), self.scheduler.next_tick(), self._report_at]
        times.append(self._refusals[0][0] if self._refusals else None)
        times.append(self._plan[-1][0] if self._plan else None)
        times.append(min((deadline for deadline, _ in self._asked.values()), default=None))
        at = min((t for t in times if t is not None), default=None)
        assert at is not None, f"stuck after {self.done} records (seed={self.seed})"
        self.now = now = max(self.now, at)
        if self._plan and self._plan[-1][0] <= now:
            self._plan.pop()[1](now)
        for call in self.server.advance(now):
            if call < 0:
                if (asked := self._asked.pop(call, None)) is not None:
                    self._act(self.scheduler.health_check_result("s", True, now, asked[1]))
                continue
            tokens = self.records[call][1]
            self.tokens.append((now, tokens))
            if self.orca:
                load = self.server.load(now)
                self._act(self.scheduler.report_load("s", ServerLoad(load.waiting, None, load.kv, now), now))
            self._act(self.scheduler.outcome(call, Ok(None, tokens=tokens), now))
        for check in [check for check, (deadline, _) in self._asked.items() if deadline <= now]:
            number = self._asked.pop(check)[1]
            self._act(self.scheduler.health_check_result("s", False, now, number))
        while self._refusals and self._refusals[0][0] <= now:
            call = heappop(self._refusals)[1]
            self._act(self.scheduler.outcome(call, Overloaded(429, "busy", self.retry_after), now))
        tick = self.scheduler.next_tick()
        if tick is not None and tick <= now:
            self._act(self.scheduler.tick(now))
        if self._report_at is not None and self._report_at <= now:
            assert self.report_s is not None
            self._report_at = now + self.report_s
            self._act(self.scheduler.report_load("s", self.server.load(now), now))
        limit = self.limiter.limit
        if not self.limits or self.limits[-1][1] != limit:
            self.limits.append((now, limit))
