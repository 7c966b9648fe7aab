"""The waiting room: every call that waits for a slot, ordinary ones in a queue for each model, suspects separately."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from asyncsynth.core.balancer import Balancer
from asyncsynth.core.calls import Call, Count, WaitQueue
from asyncsynth.core.replica_state import Replica
from asyncsynth.core.states import Degree, queued


class WaitingRoom:
    """Knows which calls wait, and which is next. It starts nothing."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self.queues: dict[str, WaitQueue] = {}  #: model -> ordinary calls; all models ever seen
        self.suspects: dict[int, Call] = {}  #: those suspected of killing servers, by id
        self.count: Count = Count()  #: all of them
        self._heaps: dict[tuple[str, Degree], list[tuple[int, float, int, Call]]] = {}  # of suspects

    def open_for(self, models: Iterable[str]) -> None:
        """Calls for these models may come."""
        for model in models:
            self.queues.setdefault(model, WaitQueue(self.count))

    def enter(self, call: Call) -> None:
        """Let a call wait."""
        state = call.retry
        if state is None or not state.degree:
            self.queues[call.model].push(call, self.home(call) if call.affinity else None)
            return
        self.count.waiting += 1
        call.state = queued[call.state]
        self.suspects[call.id] = call
        heap = self._heaps.setdefault((call.model, state.degree), [])
        heappush(heap, (call.turn, -call.started_at, call.seq, call))

    def leave(self, call: Call) -> None:
        """A waiting call goes away."""
        if self.suspects.pop(call.id, None) is None:
            self.queues[call.model].remove(call)
        else:
            self.count.waiting -= 1

    def requeue(self, call: Call) -> None:
        """Put an ordinary call in its new place: its turn has changed. Calls that do not wait stay as they are."""
        if call.entry is not None:
            self.queues[call.model].remove(call)
            self.queues[call.model].push(call, self.home(call))

    def rehome(self, models: Iterable[str]) -> None:
        """The replicas of these models have changed, and with them the calls' homes."""
        for model in models:
            self.queues[model].rehome(self.home)

    def home(self, call: Call) -> int | None:
        """Index of the replica whose prefix cache knows the call's family."""
        if not call.affinity or len(self._balancer.of_model[call.model]) < 2:
            return None
        home = self._balancer.home(call.model, call.affinity)
        return None if home is None else home.index

    # --- suspects -----------------------------------------------------------------------------

    def next_suspect(self, replica: Replica, degree: Degree) -> Call | None:
        """The suspect of this degree that such a replica should try first."""
        best: tuple[int, float, int, Call] | None = None
        for model in replica.models:
            heap = self._heaps.get((model, degree))
            while heap:
                call = heap[0][3]
                state = call.retry
                if self.suspects.get(call.id) is call and state is not None and state.degree is degree:
                    if best is None or heap[0] < best:
                        best = heap[0]
                    break
                heappop(heap)
        return None if best is None else best[3]

    def any_suspect(self, replica: Replica) -> Call | None:
        """The first of those of the lower degree, or of the higher."""
        return self.next_suspect(replica, Degree.FIRST) or self.next_suspect(replica, Degree.SECOND)

    def take_suspects(self) -> list[Call]:
        """All suspects leave; the caller enters them again under their new degrees."""
        waiting = list(self.suspects.values())
        self.count.waiting -= len(waiting)
        self.suspects.clear()
        self._heaps.clear()
        return waiting

    # --- questions ----------------------------------------------------------------------------

    def waits_for(self, model: str) -> bool:
        """Whether a call for this model waits."""
        return bool(self.queues[model].live) or any(call.model == model for call in self.suspects.values())

    def ordinary_waits(self, replica: Replica) -> bool:
        """Whether a call that is no suspect waits for this replica."""
        return any(self.queues[model].live for model in replica.models)

    def has_untried_call(self, replica: Replica) -> bool:
        """Whether an ordinary call waits that has not failed in this outage yet."""
        heads = [self.queues[model].head() for model in replica.models]
        return any(head is not None and not head[3].turn for head in heads)
