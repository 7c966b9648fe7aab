"""Published rates of hosted APIs (requests and tokens per minute), kept in every sliding minute.

A token bucket alone cannot do both: one that is full of a minute's worth lets nearly two minutes' worth through in
one minute, and one that is small enough to be safe never reaches the published rate with large calls. So each rate has

- a sum over the last minute, in cells of one second, that is never above the limit (a cell counts until its *youngest*
  moment is a minute old, so the most that can be reached is limit per 61 s: 98.4 %), and
- a bucket (as GCRA: one number) that refills at the published rate and holds ten seconds' worth, a sixth of a minute:
  hosted APIs check over periods shorter than a minute too, and a whole minute's worth at once would be followed by
  a minute of silence, repeatedly. Ten seconds refill the slots at once after a pause.

A call is charged its estimate when it starts, and the difference to its actual use when it is answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

WINDOW_S = 60.0
BURST_S = 10.0  #: what the bucket holds, in seconds of the published rate


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What a hosted API publishes; None: no such limit.

    Args:
        requests_per_minute: requests that may be *started* in any 60 s.
        tokens_per_minute: prompt and completion tokens of the requests started in any 60 s.

    Raises:
        ValueError: a limit below 1.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


class Rate:
    """One limit per sliding minute. Amounts above the limit pass alone, when nothing else was charged for a minute."""

    __slots__ = ("_cells", "_full_at", "_total", "limit")

    def __init__(self, limit: float) -> None:
        self.limit: float = limit
        self._cells: dict[int, float] = {}  # second -> what was charged in it, oldest first
        self._total = 0.0
        self._full_at = float("-inf")  # when the bucket is full again

    def ready_at(self, amount: float, now: float) -> float:
        """The earliest time, in seconds, at which `amount` may be charged; `now` or earlier means immediately."""
        cells = self._cells
        while cells:
            oldest = next(iter(cells))
            if oldest + 1 + WINDOW_S > now:
                break
            self._total -= cells.pop(oldest)
        at = self._full_at - BURST_S
        over = self._total + min(amount, self.limit) - self.limit
        if over > 1e-9 * self.limit:
            for second, charged in cells.items():
                over -= charged
                if over <= 1e-9 * self.limit:
                    return max(at, second + 1 + WINDOW_S)
        return at

    def charge(self, amount: float, at: float, now: float) -> None:
        """Count `amount`, which may be negative (a correction), for a call that started at `at`."""
        second = floor(at)
        if second not in self._cells:
            if amount < 0:  # too long ago to matter to the sum
                return
            second = floor(now)
            self._cells.setdefault(second, 0.0)
        self._cells[second] += amount
        self._total += amount
        self._full_at = max(self._full_at, now) + amount * WINDOW_S / self.limit


class RateGate:
    """Both rates of one replica."""

    __slots__ = ("_requests", "_tokens")

    def __init__(self, limits: RateLimits) -> None:
        self._requests = None if limits.requests_per_minute is None else Rate(limits.requests_per_minute)
        self._tokens = None if limits.tokens_per_minute is None else Rate(limits.tokens_per_minute)

    def ready_at(self, tokens: int, now: float) -> float:
        """When a call of this many tokens may start; `now` or earlier means immediately."""
        at = now
        if self._requests is not None:
            at = max(at, self._requests.ready_at(1.0, now))
        if self._tokens is not None:
            at = max(at, self._tokens.ready_at(float(tokens), now))
        return at

    def start(self, tokens: int, now: float) -> None:
        """A call starts: charge its estimate."""
        if self._requests is not None:
            self._requests.charge(1.0, now, now)
        if self._tokens is not None:
            self._tokens.charge(float(tokens), now, now)

    def correct(self, estimate: int, used: int, started_at: float, now: float) -> None:
        """The call is answered: tokens that it did not use are given back where they were charged; an excess counts
        from now."""
        if self._tokens is not None and used != estimate:
            self._tokens.charge(float(used - estimate), started_at if used < estimate else now, now)
