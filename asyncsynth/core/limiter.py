"""How many requests may be in flight on one server."""

from __future__ import annotations

from typing import Protocol

from asyncsynth.core.outcomes import ServerLoad

HOLD_S = 600.0  #: a limit does not grow past a capacity that was found for this long


class Limiter(Protocol):
    """A concurrency limit that learns from what the server answers. Times are seconds, monotonic."""

    @property
    def limit(self) -> int:
        """Requests that may be in flight now; at least 1."""
        ...

    @property
    def most(self) -> int:
        """`on_start` is called only for starts that bring more in flight than this."""
        ...

    @property
    def answers(self) -> int:
        """Good answers so far; 0 of a limiter that learns nothing from starts."""
        ...

    def on_start(self, in_flight: int, now: float) -> None:
        """A request started; `in_flight` counts it."""
        ...

    def on_ok(self, now: float, in_flight: int, tokens: int) -> None:
        """A request was answered well; `in_flight` still counts it; `tokens` are its completion tokens."""
        ...

    def on_overload(self, now: float, started_at: float) -> None:
        """The server refused, as overloaded, a request that had started at `started_at`."""
        ...

    @property
    def maximum(self) -> int:
        """The highest limit."""
        ...

    def bound(self, maximum: int) -> None:
        """From now on, never above this."""
        ...

    def on_capacity(self, capacity: int, now: float, why: str) -> None:
        """The server was seen to take this many requests at once, and no more."""
        ...

    def on_load(self, load: ServerLoad) -> None:
        """The server reported its own load."""
        ...

    def explain(self) -> str:
        """Why the limit is what it is, in one line for a person."""
        ...


class CutLimit:
    """A limit that refusals lower: what limiters share. Not a limiter on its own.

    A cut takes a fifth, once per episode: refusals of requests that started before the last cut say nothing new.
    It recovers quickly to the neighbourhood of the knee, then by +1 per `limit` completions. The knee is where the
    server last refused a limit that had *grown*, which it does by answers only: neither the refusals of an outage nor
    the late answers in it lower the knee. So an outage of 429s costs a short recovery, and a true capacity is
    approached gently.
    """

    CUT = 0.8
    FAST = 8  #: completions for +1 while far from the knee, or fewer
    NEAR = 0.8  #: share of the knee at which its neighbourhood begins

    __slots__ = ("_credit", "_cut_at", "_grown", "_knee", "cuts", "limit", "maximum", "minimum", "most")

    def __init__(self, limit: int, minimum: int, maximum: int) -> None:
        if not 1 <= minimum <= maximum:
            raise ValueError(f"a concurrency limit must be at least 1, not {minimum} to {maximum}")
        self.minimum: int = minimum
        self.maximum: int = maximum
        self.limit: int = limit  # no property: it is read several times for each call
        self._knee = maximum
        self._credit = 0
        self._grown = False  # since the last cut
        self._cut_at = float("-inf")
        self.cuts: int = 0
        self.most: int = 1 << 30

    @property
    def answers(self) -> int:
        """Not counted."""
        return 0

    def bound(self, maximum: int) -> None:
        """From now on, never above this; at least the minimum."""
        self.maximum = max(self.minimum, min(self.maximum, maximum))
        self.limit = min(self.limit, self.maximum)

    def on_overload(self, now: float, started_at: float) -> None:
        """Cut by a fifth, unless the request belongs to the episode already cut for."""
        if started_at <= self._cut_at:
            return
        if self._grown:
            self._knee = self.limit
        self._grown = False
        self._cut_at = now
        self._credit = 0
        self.limit = max(self.minimum, int(self.limit * self.CUT))
        self.cuts += 1

    def _regrow(self) -> None:
        """One completion towards growth, while the limit binds."""
        self._credit += 1
        limit = self.limit
        need = limit if limit >= self.NEAR * self._knee else min(limit, self.FAST)
        if self._credit >= need:
            self._credit = 0
            self.limit = limit + 1
            self._grown = True


class FixedLimit(CutLimit):
    """The user's limit, lowered while the server refuses it as too much."""

    __slots__ = ("_held_until", "_held_why")

    def __init__(self, maximum: int) -> None:
        super().__init__(maximum, 1, maximum)
        self._held_until = float("-inf")
        self._held_why = ""

    def on_start(self, in_flight: int, now: float) -> None:
        """Nothing to learn from a start."""

    def on_ok(self, now: float, in_flight: int, tokens: int) -> None:
        """Count towards growth while the limit binds."""
        if self.limit < self.maximum and in_flight >= self.limit and now >= self._held_until:
            self._held_why = ""
            self._regrow()

    def on_capacity(self, capacity: int, now: float, why: str) -> None:
        """Lower the limit to it, for ten minutes."""
        if capacity < self.limit:
            self.limit = max(self.minimum, capacity)
            self._held_until = now + HOLD_S
            self._held_why = why

    def on_load(self, load: ServerLoad) -> None:
        """Nothing: the limit is the user's."""

    def explain(self) -> str:
        """Why the limit is what it is."""
        if self._held_why:
            return f"{self.limit} of {self.maximum}: {self._held_why}"
        if not self.cuts:
            return f"fixed at {self.maximum}"
        return f"{self.limit} of {self.maximum} after {self.cuts} cuts; the server last refused at {self._knee}"
