"""A simulated server with continuous batching (as in vLLM), in virtual time and without I/O.

All running requests gain one token a step, and a step's duration grows with the number of requests in it, so tokens/s
rise with concurrency and saturate. All requests advance alike, so one clock that counts steps tells when each ends. An
event costs O(log n), whatever the number of its tokens.

    server = BatchingServer(slots=64)
    server.submit(1, prompt=200, output=500, now=0.0)
    server.advance(server.next_event())   # -> [1]
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

from asyncsynth.core.outcomes import ServerLoad


@dataclass(slots=True)
class _Request:
    id: int
    prompt: int
    output: int
    done: float = 0.0  # tokens generated before its last preemption
    started: float = 0.0  # the step clock when it was admitted
    admission: int = 0  # tells its present admission from one that was preempted


class BatchingServer:
    """See the module's text. Times are virtual seconds and must not go back; lengths are tokens.

    Args:
        slots: requests in one batch at most (vLLM: max-num-seqs).
        step_s: a decode step's duration with an empty batch, in seconds.
        request_s: what each request in the batch adds to it.
        prefill_s: seconds of prefill for each prompt token; all decoding pauses during it.
        kv_tokens: capacity of the KV cache, or None. A request is admitted when its tokens so far fit; when running
            requests outgrow the cache, the latest is preempted and later computed again.
        queue: requests that may wait; more are refused (HTTP 503). None: any number.
    """

    def __init__(
        self,
        slots: int,
        *,
        step_s: float = 0.02,
        request_s: float = 0.0002,
        prefill_s: float = 2e-6,
        kv_tokens: int | None = None,
        queue: int | None = None,
    ) -> None:
        if slots < 1 or step_s <= 0 or request_s < 0 or prefill_s < 0:
            raise ValueError("a server has at least one slot, and takes time")
        self.slots = slots
        self.step_s: float = step_s
        self.request_s: float = request_s
        self.prefill_s: float = prefill_s
        self.kv_tokens = kv_tokens
        self.queue = queue
        self.preemptions: int = 0
        self.refused: int = 0
        self._waiting: deque[_Request] = deque()
        self._ends: list[tuple[float, int, _Request]] = []  # step clock at its last token, admission
        self._order: list[tuple[int, _Request]] = []  # by admission; the ended ones are dropped when met
        self._running: dict[int, _Request] = {}
        self._held = 0.0  # KV tokens of the running ones at step clock 0; each adds one per step
        self._steps = 0.0
        self._stall = 0.0  # seconds for which decoding pauses
        self._now = 0.0
        self._admissions = 0

    def submit(self, id: int, prompt: int, output: int, now: float) -> bool:
        """A request arrives; False: refused with 503. ValueError: it alone is larger than the KV cache."""
        self._pass_time(now)
        if self.kv_tokens is not None and prompt + output > self.kv_tokens:
            raise ValueError(f"request {id} needs {prompt + output} KV tokens, the server has {self.kv_tokens}")
        if self.queue is not None and len(self._waiting) >= self.queue and not self._fits(prompt):
            self.refused += 1
            return False
        self._waiting.append(_Request(id, prompt, max(1, output)))
        self._admit()
        return True

    def next_event(self) -> float | None:
        """When a request ends or is preempted next, if nothing is submitted before; None when idle."""
        if not self._running:
            return None
        ahead = max(0.0, min(self._next_end(), self._full_at()) - self._steps)
        return self._now + self._stall + ahead * self._step_time()

    def advance(self, now: float) -> list[int]:
        """Advances to `now`, not past `next_event()`; returns the ids of the requests that have ended."""
        self._pass_time(now)
        ended = []
        while self._running and self._next_end() <= self._steps + 1e-6:
            _, admission, request = heappop(self._ends)
            self._leave(request, admission)
            ended.append(request.id)
        while len(self._running) > 1 and self._full_at() <= self._steps + 1e-6:
            self._preempt()
        self._admit()
        return ended

    def load(self, now: float) -> ServerLoad:
        """What `/metrics` would say."""
        self._pass_time(now)
        kv = None if self.kv_tokens is None else min(1.0, self._kv() / self.kv_tokens)
        return ServerLoad(len(self._waiting), len(self._running), kv, now, progress=self._steps)

    def stall(self, seconds: float, now: float) -> None:
        """Pauses for `seconds`: decodes nothing and refuses nothing."""
        self._pass_time(now)
        self._stall += seconds

    def change_speed(self, factor: float, now: float) -> None:
        """From now on every step and prefill goes `factor` times as fast."""
        self._pass_time(now)
        self.step_s /= factor
        self.request_s /= factor
        self.prefill_s /= factor

    # --- inside ---------------------------------------------------------------------------------

    def _step_time(self) -> float:
        return self.step_s + self.request_s * len(self._running)

    def _pass_time(self, now: float) -> None:
        span = now - self._now
        if span <= 0:
            return
        self._now = now
        stalled = min(span, self._stall)
        self._stall -= stalled
        if self._running:
            self._steps += (span - stalled) / self._step_time()

    def _kv(self) -> float:
        return self._held + len(self._running) * self._steps

    def _next_end(self) -> float:
        ends = self._ends
        while self._running.get(ends[0][2].id) is not ends[0][2] or ends[0][1] != ends[0][2].admission:
            heappop(ends)
        return ends[0][0]

    def _full_at(self) -> float:
        """The step clock when the KV cache is full; a single request always fits."""
        if self.kv_tokens is None or len(self._running) < 2:
            return float("inf")
        return self._steps + max(0.0, self.kv_tokens - self._kv()) / len(self._running)

    def _fits(self, tokens: float) -> bool:
        if len(self._running) >= self.slots:
            return False
        # A hundredth stays free, as vLLM's watermark: else what was just preempted would come back at once.
        return self.kv_tokens is None or not self._running or self._kv() + tokens < 0.99 * self.kv_tokens

    def _admit(self) -> None:
        waiting = self._waiting
        while waiting and self._fits(waiting[0].prompt + waiting[0].done):
            request = waiting.popleft()
            tokens = request.prompt + request.done
            self._stall += self.prefill_s * tokens
            self._admissions += 1
            request.admission = self._admissions
            request.started = self._steps
            self._running[request.id] = request
            self._order.append((request.admission, request))
            self._held += tokens - self._steps
            heappush(self._ends, (self._steps + request.output - request.done, request.admission, request))

    def _leave(self, request: _Request, admission: int) -> None:
        del self._running[request.id]
        self._held -= request.prompt + request.done - request.started
        if len(self._order) > 4 * len(self._running) + 64:
            self._order = [(n, r) for n, r in self._order if r.id in self._running and r.admission == n]

    def _preempt(self) -> None:
        """Send the latest back to the head of the queue."""
        while True:
            admission, request = self._order.pop()
            if self._running.get(request.id) is request and request.admission == admission:
                break
        self._leave(request, admission)
        request.done += self._steps - request.started
        self.preemptions += 1
        self._waiting.appendleft(request)
