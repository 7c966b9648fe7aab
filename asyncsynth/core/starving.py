"""How many requests a server works on, where it lets all others wait unheard.

A server with a thread for each connection (older llama.cpp, gunicorn) works on a few connections and leaves the rest
in the kernel's queue. It refuses nothing and reports nothing, and its answers are as quick as ever: only requests beyond
its capacity are not answered. So each time that more requests are in flight than ever before, the requests that started
some time ago are looked at. They starve when all this holds:

- Since they started, the server gave three answers for each slot. By Markov's inequality, at most a third of all
  requests takes longer than three times the mean, whatever their lengths are. Yet two in five or more are unanswered.
- They have waited for three times as long as the slowest answer of this server took. So long answers of one step beside
  short ones of another are not taken for it.

How many the server works on follows from Little's law: the seconds that its answers took, for each second.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from asyncsynth.core.calls import Call
from asyncsynth.core.replica_state import Replica
from asyncsynth.core.states import IN_FLIGHT

ROUNDS = 3  #: answers for each slot, and times the slowest answer
STARVED = 8  #: requests at least
SHARE = 0.4  #: of those that started in the same period
PERIOD = 16  #: starts in a period, at least
EVERY = 4  #: new slots between two looks


class Mark(NamedTuple):
    """A moment in which more requests were in flight than ever before."""

    at: float  #: seconds, monotonic
    starts: int
    due: int  #: answers in all when the requests that had started by then are looked at
    served_s: float


class Starving:
    """Looks at one replica as its slow start goes on."""

    __slots__ = ("_marks", "_new")

    def __init__(self) -> None:
        self._marks: list[Mark] = [Mark(float("-inf"), 0, 0, 0.0)]
        self._new = 0

    def capacity(self, replica: Replica, answers: int, calls: Iterable[Call], now: float) -> int | None:
        """Call it when more requests are in flight at `replica` than ever before.

        Args:
            replica: with its requests in flight.
            answers: how many it has given so far.
            calls: all that are not over, of all replicas.
            now: seconds.

        Returns:
            How many requests the server works on at once, if requests starve there; else None.
        """
        self._new += 1
        if self._new % EVERY:
            return None
        limit = replica.limiter.limit
        marks = self._marks
        marks.append(Mark(now, answers + replica.in_flight, answers + ROUNDS * limit, replica.served_s))
        old = next((i for i in range(len(marks) - 2, 0, -1) if marks[i].due <= answers), 0)
        if not old or marks[old].at > now - ROUNDS * replica.slowest:
            return None
        mark = marks[old]
        begin = next((one for one in reversed(marks[:old]) if mark.starts - one.starts >= PERIOD), None)
        if begin is None:
            return None
        index = replica.index
        starving = sum(
            call.state is IN_FLIGHT and call.replica == index and begin.at < call.started_at <= mark.at
            for call in calls
        )
        if starving < STARVED or starving < SHARE * (mark.starts - begin.starts):
            return None
        served = (replica.served_s - mark.served_s) / (now - mark.at)
        return max(1, round(served)) if served < 0.7 * replica.in_flight else None
