"""How many requests a server works on, if it lets all others wait without a sign.

A server with a thread for each connection (older llama.cpp, gunicorn) works on a few connections and leaves the rest
in the kernel's queue. It refuses nothing and reports nothing, and its answers are as fast as before: only the requests
beyond its capacity are not answered. These are the first requests of new slots, the *pioneers*: a request that follows
an answer takes over a connection that the server works on. Pioneers starve when both hold:

- Three answers for each slot came since they started, and yet 13 of 16 in a row are unanswered. Long answers do not
  explain this: then fewer short ones would have come.
- They have waited for three times as long as the slowest answer of this server took.

How many requests the server works on follows from Little's law: the seconds that its answers took, for each second.
"""

from __future__ import annotations

from typing import NamedTuple

from asyncsynth.core.calls import Call
from asyncsynth.core.replica_state import Replica
from asyncsynth.core.states import IN_FLIGHT

ROUNDS = 3  #: answers for each slot, and times the slowest answer
COHORT = 16  #: pioneers that are judged together
STARVED = 13  #: of these


class Pioneer(NamedTuple):
    """A request that brought the number in flight to a new maximum."""

    call: Call
    attempt: int
    at: float  #: when it started, in seconds, monotonic
    due: int  #: answers of the server in all, when it is looked at
    served_s: float  #: seconds that all answers before it took

    def waits(self) -> bool:
        """Whether the request is unanswered."""
        return self.call.state is IN_FLIGHT and self.call.attempts == self.attempt


class Starving:
    """Looks at the pioneers of one replica while its limit grows."""

    __slots__ = ("_pioneers",)

    def __init__(self) -> None:
        self._pioneers: list[Pioneer] = []

    def capacity(self, call: Call, replica: Replica, answers: int, now: float) -> int | None:
        """Call it when `call` brings the number in flight at `replica` to a new maximum.

        Args:
            call: it has just started.
            replica: with the call in flight.
            answers: how many good ones it has given so far.
            now: seconds.

        Returns:
            How many requests the server works on at once, if pioneers starve there; else None.
        """
        pioneers = self._pioneers
        due = answers + ROUNDS * replica.limiter.limit
        pioneers.append(Pioneer(call, call.attempts, now, due, replica.served_s))
        since = now - ROUNDS * replica.slowest
        while len(pioneers) > COHORT and self._is_due(pioneers[COHORT], answers, since):
            del pioneers[0]
        if len(pioneers) <= COHORT or not self._is_due(last := pioneers[COHORT - 1], answers, since):
            return None
        if sum(pioneer.waits() for pioneer in pioneers[:COHORT]) < STARVED:
            return None
        return max(1, round((replica.served_s - last.served_s) / (now - last.at)))

    @staticmethod
    def _is_due(pioneer: Pioneer, answers: int, since: float) -> bool:
        return pioneer.due <= answers and pioneer.at < since
