"""What is due when: calls that sleep, and checks of replicas."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from math import inf

from asyncsynth.core.calls import Call
from asyncsynth.core.replica_state import Alarm, Replica
from asyncsynth.core.states import SLEEPING


class Timers:
    """Wake-ups of sleeping calls and alarms of replicas, in order of time. Stale ones are dropped as they come up.

    `soonest` is the earliest of those added since `next` was last asked (`due` asks it, too), so that a driver need not
    ask each time.
    """

    __slots__ = ("_heap", "_seq", "soonest")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Call | Replica, Alarm | None]] = []
        self._seq = 0
        self.soonest: float = inf

    def wake(self, call: Call, due: float) -> None:
        """Wake a call at `due` seconds, if it is still asleep then."""
        call.wake_at = due
        self._add(due, call, None)

    def alarm(self, replica: Replica, kind: Alarm, due: float) -> None:
        """Remind of a replica at `due` seconds, in place of a pending alarm of this kind."""
        if replica.alarms.get(kind) == due:
            return
        replica.alarms[kind] = due
        self._add(due, replica, kind)

    def forget(self, replica: Replica, kind: Alarm) -> None:
        """No alarm of this kind any more."""
        replica.alarms.pop(kind, None)

    def _add(self, due: float, target: Call | Replica, kind: Alarm | None) -> None:
        self._seq += 1
        heappush(self._heap, (due, self._seq, target, kind))
        if due < self.soonest:
            self.soonest = due

    def next(self) -> float | None:
        """When the next valid timer is due."""
        self.soonest = inf
        heap = self._heap
        while heap:
            due, _, target, kind = heap[0]
            if isinstance(target, Call):
                valid = target.state is SLEEPING and target.wake_at == due
            else:
                assert kind is not None  # an alarm always has one
                valid = target.alarms.get(kind) == due
                if kind is Alarm.STALL and valid and not target.in_flight:  # with nothing in flight there is no silence
                    self.forget(target, kind)
                    valid = False
            if valid:
                return due
            heappop(heap)
        return None

    def due(self, now: float) -> Iterator[tuple[Call | Replica, Alarm | None]]:
        """Remove and yield what is due, timers added meanwhile included. A call has no kind."""
        while (at := self.next()) is not None and at <= now:
            _, _, target, kind = heappop(self._heap)
            if kind is not None and not isinstance(target, Call):
                self.forget(target, kind)
            yield target, kind
