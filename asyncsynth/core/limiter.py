"""How many requests may be in flight on one server."""

from __future__ import annotations

from typing import Protocol

from asyncsynth.core.load import ServerLoad


class Limiter(Protocol):
    """A concurrency limit that learns from what the server answers. Times are seconds, monotonic."""

    @property
    def limit(self) -> int:
        """Requests that may be in flight now; at least 1."""
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

    def on_load(self, load: ServerLoad) -> None:
        """The server reported its own load."""
        ...

    def explain(self) -> str:
        """Why the limit is what it is, in one line for a person."""
        ...


class FixedLimit:
    """The user's limit, lowered while the server says that it is too much.

    A cut takes a fifth, once per episode: refusals of requests that started before the last cut say nothing new.
    Growth happens only while the limit binds: quickly (+1 per 8 completions or fewer) up to the neighbourhood of the
    place where the server last refused *while also serving*, then +1 per `limit` completions. So a long outage of
    429s costs a short recovery, and a true capacity is approached gently.
    """

    CUT = 0.8
    FAST = 8

    __slots__ = ("_credit", "_cut_at", "_knee", "_limit", "_served", "cuts", "maximum")

    def __init__(self, maximum: int) -> None:
        if maximum < 1:
            raise ValueError(f"a concurrency limit must be at least 1, not {maximum}")
        self.maximum = maximum
        self._limit = maximum
        self._knee = maximum
        self._credit = 0
        self._served = False
        self._cut_at = float("-inf")
        self.cuts = 0

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return self._limit

    def on_start(self, in_flight: int, now: float) -> None:
        """Nothing to learn from a start."""

    def on_ok(self, now: float, in_flight: int, tokens: int) -> None:
        """Count towards growth while the limit binds."""
        self._served = True
        limit = self._limit
        if limit >= self.maximum or in_flight < limit:
            return
        self._credit += 1
        need = limit if limit >= self.CUT * self._knee else min(limit, self.FAST)
        if self._credit >= need:
            self._credit = 0
            self._limit = limit + 1

    def on_overload(self, now: float, started_at: float) -> None:
        """Cut by a fifth, unless the request belongs to the episode already cut for."""
        if started_at <= self._cut_at:
            return
        if self._served:
            self._knee = self._limit
        self._served = False
        self._cut_at = now
        self._credit = 0
        self._limit = max(1, int(self._limit * self.CUT))
        self.cuts += 1

    def on_load(self, load: ServerLoad) -> None:
        """Nothing: the limit is the user's."""

    def explain(self) -> str:
        """Why the limit is what it is."""
        if not self.cuts:
            return f"fixed at {self.maximum}"
        return f"{self._limit} of {self.maximum} after {self.cuts} cuts; the server last refused at {self._knee}"
