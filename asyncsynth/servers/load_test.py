"""How much a server does with how many requests at once: closed loops at growing concurrency, and where more buys
nothing. `asyncsynth bench` shows it.

A level keeps a fixed number of requests in flight, each followed by the next, through a run's own pool. Its rate counts
from the end of its first turnover (as many answers as there are requests in flight), or its second where there is the
time, to its last answer: so neither the ramp-up nor a round that the clock cut off counts, even where all answers end
together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean

from asyncsynth.client.messages import ModelRequest
from asyncsynth.client.server_pool import Server, ServerPool
from asyncsynth.core.limiter import FixedLimit, Limiter
from asyncsynth.core.outcomes import ServerLoad
from asyncsynth.errors import RequestFailed

FIRST = 8  #: requests in flight of the first level; each level has twice as many as the one before
NEAR_BEST = 0.97  #: the knee is the least concurrency that brings this share of the best tokens/s
_WORTH = 1.03  #: a level that brings less than this over the best so far is flat; two in a row end the growth
_REFUSED = 0.05  #: a share of refusals that ends the growth
_BUSY_CLIENT = 0.85  #: of one core: this process has no time left
_FULL_KV = 0.9
_ELSEWHERE = 0.85  #: share of the requests in flight that the server has, where the others are on their way
_ADAPTIVE_PARTS = 3  #: levels' worth of time that the adaptive limit gets at least
_SAMPLE_S = 0.1
_NONE_OF = 20  #: failed requests without an answer that end a level


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """What to send: for `seconds` at most, and at most `max_requests` requests."""

    seconds: float
    max_concurrency: int = 1024
    max_requests: int = 20_000

    def levels(self) -> list[int]:
        """Requests in flight, level by level."""
        sizes = [min(FIRST, self.max_concurrency)]
        while sizes[-1] < self.max_concurrency:
            sizes.append(min(2 * sizes[-1], self.max_concurrency))
        return sizes

    def level_s(self) -> float:
        """Seconds for a level, so that all of them and the adaptive limit fit."""
        return self.seconds / (len(self.levels()) + _ADAPTIVE_PARTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The result of one concurrency. `running`, `waiting`: means of the server's own reports, `kv`: their maximum; None
    where it reports nothing."""

    concurrency: int  #: requests in flight; of an adaptive limit, where it ended
    settled: bool  #: at least two turnovers: the rates mean something
    answers: int  #: in total; the rates count those after the first turnover or two
    tokens_per_s: float
    requests_per_s: float
    p50_s: float
    p99_s: float
    failed: int
    refused: int  #: answers of 429, 503 or 529
    client_cpu: float  #: share of one core that this process used
    running: float | None = None
    waiting: float | None = None
    kv: float | None = None
    adaptive: bool = False
    cut_short: bool = False  #: there were no more requests before its time was over
    why: str = ""  #: why the limit is what it is
    failure: str = ""  #: the server's words for the last request that failed


@dataclass(slots=True, kw_only=True)
class Finding:
    """The result of one server."""

    levels: list[Level] = field(default_factory=list)
    adaptive: Level | None = None
    ended: str = ""  #: why no higher level was tried
    refusal: str = ""  #: what it said, where it answered nothing
    used_up: str = ""  #: that there were no more requests, where that left something unmeasured

    @property
    def best(self) -> Level | None:
        """The level with the most tokens/s; None if none is settled."""
        return max((one for one in self.levels if one.settled), key=lambda one: one.tokens_per_s, default=None)

    @property
    def knee(self) -> Level | None:
        """The least concurrency that brings about the best."""
        best = self.best
        if best is None:
            return None
        return next(one for one in self.levels if one.settled and one.tokens_per_s >= NEAR_BEST * best.tokens_per_s)

    @property
    def adaptive_share(self) -> float | None:
        """Tokens/s of the adaptive limit, as a share of the best fixed concurrency's."""
        if self.adaptive is None or self.best is None or not self.best.tokens_per_s:
            return None
        return self.adaptive.tokens_per_s / self.best.tokens_per_s


async def bench(
    server: Callable[[Limiter], Server],
    requests: Iterator[ModelRequest],
    plan: BenchPlan,
    *,
    adaptive: Callable[[], Limiter] | None = None,
    on_level: Callable[[Level], None] = lambda level: None,
    cpu: Callable[[], float] = time.process_time,
) -> Finding:
    """Loads one server with more and more requests until more bring nothing.

    Args:
        server: the server with this limit, on connections of its own; called for each level.
        requests: as many as are asked for.
        adaptive: makes the limit that a run would have; it is tried last, with no more requests in flight than the
            levels may have. None skips it.
        on_level: gets each level as it ends.
        cpu: seconds of CPU that this process has used.

    Raises:
        RunStopped: the server refuses every request.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + plan.seconds
    left = islice(requests, plan.max_requests)
    used_up = f"--max-requests {plan.max_requests} reached"
    finding = Finding()
    flat = 0
    for size in plan.levels():
        span = min(plan.level_s(), deadline - clock() - _ADAPTIVE_PARTS * plan.level_s() * (adaptive is not None))
        if span < plan.level_s() / 2:
            finding.ended = "the time was over"
            break
        before = finding.best
        level = await measure(server(FixedLimit(size)), left, size, span, turnover=size, cpu=cpu)
        if level.cut_short:
            finding.ended = finding.used_up = used_up
            if not level.settled:  # for want of requests: it says nothing of the server
                break
        finding.levels.append(level)
        on_level(level)
        if level.failed and not level.answers:
            finding.refusal = f"the server answered none of {level.failed} requests: {level.failure}"
            finding.ended = "no request is answered"
            break
        if not level.settled:
            finding.ended = f"{size} requests in flight gave {level.answers} answers in {span:.0f} s: too few to go by"
            break
        if level.refused > _REFUSED * level.answers:
            finding.ended = "the server refuses more"
            break
        flat = flat + 1 if before and level.tokens_per_s < _WORTH * before.tokens_per_s else 0
        if flat == 2:
            finding.ended = "more in flight brings no more tokens/s"
            break
        if level.cut_short:
            break
    if adaptive is not None and finding.knee is not None and not finding.used_up:
        began = clock()
        span = min(deadline - began, 2 * _ADAPTIVE_PARTS * plan.level_s())
        workers = min(max(64, 2 * finding.levels[-1].concurrency), plan.max_concurrency)
        level = await measure(server(adaptive()), left, workers, span, turnover=None, cpu=cpu)
        if level.cut_short and clock() - began < _ADAPTIVE_PARTS * plan.level_s():
            finding.used_up = used_up  # while the limit was still growing, as like as not
        else:
            finding.adaptive = level
            on_level(level)
    return finding


async def measure(
    server: Server,
    requests: Iterator[ModelRequest],
    workers: int,
    seconds: float,
    *,
    turnover: int | None,
    cpu: Callable[[], float] = time.process_time,
) -> Level:
    """One closed loop: `workers` requests, each followed by the next, for `seconds` or until there are no more.

    `turnover`: the answers after which the rates begin to count; None counts from half of the time on. Requests in
    flight at the end are cancelled, which makes a server give them up. So are those that are left when there are no
    more: fewer in flight are another concurrency. The server's connections are closed.
    """
    load = _Load(server, requests)
    clock = asyncio.get_running_loop().time
    began, cpu_before = clock(), cpu()
    tasks = [asyncio.create_task(load.work(clock), name="asyncsynth bench") for _ in range(workers)]
    try:
        while clock() - began < seconds and not load.is_over() and not all(task.done() for task in tasks):
            await asyncio.sleep(min(_SAMPLE_S, seconds / 20))
            load.look()
        if load.pool.halted is not None:
            raise load.pool.halted
        return load.level(began, clock(), turnover, cpu() - cpu_before)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await load.pool.aclose()


class _Load:
    """A closed loop on one server, and what it sees."""

    def __init__(self, server: Server, requests: Iterator[ModelRequest]) -> None:
        self.pool = ServerPool([server])
        self.used_up = False  #: a request was wanted, and there was none
        self._requests = requests
        self._answers: list[tuple[float, float, int]] = []  #: when, latency, tokens; in the order of time
        self._failed = 0
        self._failure = ""
        self._reports: list[ServerLoad] = []

    async def work(self, clock: Callable[[], float]) -> None:
        """One request after the other."""
        for request in self._requests:
            if self.is_over():
                return
            began = clock()
            try:
                answer = await self.pool.send(request)
            except RequestFailed as failed:
                if failed.reason != "reasoning_cut":
                    self._failed += 1
                    self._failure = f"{failed.reason}: {failed.message}"
                elif not self.used_up:  # a thought is as much work as an answer
                    self._answers.append((clock(), clock() - began, failed.tokens))
            else:
                if not self.used_up:
                    self._answers.append((clock(), answer.latency_s, answer.usage.completion_tokens))
        self.used_up = True

    def is_over(self) -> bool:
        """Whether there is nothing more to learn: no more requests, or the server answers none."""
        return self.used_up or (not self._answers and self._failed >= _NONE_OF)

    def look(self) -> None:
        """Keeps the server's own report, if there is a new one."""
        (replica,) = self.pool.snapshot().replicas
        if replica.load is not None and (not self._reports or self._reports[-1].at != replica.load.at):
            self._reports.append(replica.load)

    def level(self, began: float, ended: float, turnover: int | None, cpu_s: float) -> Level:
        """The numbers."""
        answers = self._answers
        half = (began + ended) / 2
        if turnover is None:
            first = sum(1 for at, _, _ in answers if at < half)
        else:  # all began together: two turnovers mix their ages better than one, where there is the time
            rounds = 2 if len(answers) >= 4 * turnover else 1
            first = min(rounds * turnover, len(answers) // 2)
        since = answers[first - 1][0] if first else began
        counted = answers[first:]
        span = max(counted[-1][0] - since, 1e-9) if counted else 0.0
        latencies = sorted(latency for _, latency, _ in counted)
        snapshot = self.pool.snapshot()
        (replica,) = snapshot.replicas
        reports = [load for load in self._reports if load.at >= half]
        running = [load.running for load in reports if load.running is not None]
        return Level(
            concurrency=replica.limit,
            settled=len(counted) >= (turnover or 1),
            answers=len(answers),
            tokens_per_s=sum(tokens for _, _, tokens in counted) / span if span else 0.0,
            requests_per_s=len(counted) / span if span else 0.0,
            p50_s=_quantile(latencies, 0.5),
            p99_s=_quantile(latencies, 0.99),
            failed=self._failed,
            failure=self._failure,
            refused=snapshot.overloads,
            client_cpu=cpu_s / max(ended - began, 1e-9),
            running=fmean(running) if running else None,
            waiting=fmean(load.waiting for load in reports) if reports else None,
            kv=max((load.kv for load in reports if load.kv is not None), default=None),
            adaptive=turnover is None,
            cut_short=self.used_up,
            why=replica.why,
        )


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def limited_by(finding: Finding) -> str:
    """What keeps the server from more tokens/s, in a line for a person, as far as can be seen from here."""
    if finding.refusal:
        return finding.refusal
    best, last = finding.best, finding.levels[-1] if finding.levels else None
    if best is None or last is None:
        if finding.used_up:
            return f"too few answers to measure: {finding.used_up}"
        return "too few answers to measure; give it more --seconds, or fewer --max-tokens"
    if max(best.client_cpu, last.client_cpu) >= _BUSY_CLIENT:
        used = max(best.client_cpu, last.client_cpu)
        return f"this process's CPU ({used:.0%} of a core): the server could take more than one such process sends"
    if last.refused > _REFUSED * max(1, last.answers):
        return f"the server refuses at {last.concurrency} in flight (429 or 503): its queue or its rate limit is full"
    if last is best and len(finding.levels) > 1 and finding.levels[-2].tokens_per_s * _WORTH < best.tokens_per_s:
        ended = finding.ended or "try a higher --max-concurrency"
        return f"nothing yet: tokens/s still rise at {last.concurrency} in flight; {ended}"
    if len(finding.levels) == 1:
        return f"not known: only {last.concurrency} in flight were measured, and nothing to compare that with"
    if last.kv is not None and last.kv >= _FULL_KV:
        return f"the server's KV cache ({last.kv:.0%} full): shorter prompts and answers, or more memory, bring more"
    if last.waiting is None:
        return "the server, which does not report its queue; latency grows with what is in flight beyond the knee"
    if last.waiting >= 1.0 and last.running is not None:
        return f"the server's slots: it runs {last.running:.0f} at once and queues the others (vLLM: max-num-seqs)"
    if last.running is not None and last.running < _ELSEWHERE * last.concurrency:
        elsewhere = last.concurrency - last.running
        return f"the way there: {elsewhere:.0f} of {last.concurrency} requests are with the network, a proxy or its API"
    return "the server's compute: it runs all that is in flight, and a larger batch is slower in the same measure"
