"""Which replica: the least loaded ready one, or the one whose prefix cache knows the call's family."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from hashlib import blake2b
from heapq import heapify, heappop, heappush, heapreplace

from asyncsynth.core.replica_state import Replica, ReplicaSpec
from asyncsynth.core.retry import RetryBudget
from asyncsynth.core.states import CLOSED, DOWN, OPEN

LOYALTY = 0.25  #: how much busier, in shares of the limit, the replica that knows the prefix may be than the least busy


class Group:
    """Replicas that serve the same models, as a lazy heap by load: O(log n) whatever changes.

    A replica that became freer gets a new entry (`freed`); one that became busier is corrected when it comes up.
    """

    __slots__ = ("_heap", "_seq", "replicas")

    def __init__(self) -> None:
        self.replicas: list[Replica] = []
        self._heap: list[tuple[float, int, Replica]] = []
        self._seq = 0

    def freed(self, replica: Replica) -> None:
        """A replica can take a call that it could not take, or has become less loaded."""
        if len(self._heap) > 4 * len(self.replicas) + 16:
            self.rebuild()
            return
        self._seq += 1
        heappush(self._heap, (replica.load(), self._seq, replica))

    def add(self, replica: Replica) -> None:
        """The replica serves these models from now on."""
        self.replicas.append(replica)
        self._changed()

    def remove(self, replica: Replica) -> None:
        """The replica no longer serves them."""
        self.replicas.remove(replica)
        replica.shared = False
        self._changed()

    def _changed(self) -> None:
        for replica in self.replicas:
            replica.shared = len(self.replicas) > 1
        self.rebuild()

    def rebuild(self) -> None:
        """Rebuild the heap with one entry for each replica that can take a call."""
        ready = [replica for replica in self.replicas if replica.can_take()]
        self._heap = [(replica.load(), self._seq + i, replica) for i, replica in enumerate(ready)]
        self._seq += len(ready)
        heapify(self._heap)

    def least(self) -> Replica | None:
        """The least loaded replica that can take a call."""
        if len(self.replicas) == 1:
            only = self.replicas[0]
            return only if only.can_take() else None
        heap = self._heap
        while heap:
            key, _, replica = heap[0]
            if not replica.can_take():
                heappop(heap)
                continue
            load = replica.load()
            if load <= key:
                return replica
            self._seq += 1  # a later number among equals: equals take turns
            heapreplace(heap, (load, self._seq, replica))
        return None


_POINTS = 64
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: spreads neighbouring numbers over the whole circle (Knuth 6.4)


class Ring:
    """Consistent hashing (Karger et al. 1997): a family of calls -> its replica, in O(log n).

    Each replica has 64 points on a circle; a family belongs to the next point. When a replica comes or goes, only the
    families of its own points move; while one is paused, its families go to the points that follow.
    """

    __slots__ = ("_keys", "_owners")

    def __init__(self, replicas: Sequence[Replica]) -> None:
        points = sorted(
            (int.from_bytes(blake2b(f"{replica.name}#{i}".encode(), digest_size=8).digest()), replica.index, replica)
            for replica in replicas
            for i in range(_POINTS)
        )
        self._keys = [key for key, _, _ in points]
        self._owners = [replica for _, _, replica in points]

    def home(self, family: int) -> Replica | None:
        """The replica in use that `family` belongs to; None if there is none nearby on the circle."""
        owners = self._owners
        if not owners:
            return None
        start = bisect(self._keys, family * _GOLDEN & _MASK)
        for i in range(start, start + 16):
            owner = owners[i % len(owners)]
            if owner.breaker.state is CLOSED:
                return owner
        return None


class Balancer:
    """All replicas, and the choice among those of a model. `replicas` keeps those removed: their index stays taken."""

    def __init__(self) -> None:
        self.replicas: list[Replica] = []
        self.by_name: dict[str, Replica] = {}
        self.groups: dict[str, list[Group]] = {}
        self.of_model: dict[str, list[Replica]] = {}
        self.bare_since: dict[str, float] = {}  # models without a replica -> since when, in seconds
        self._by_models: dict[tuple[str, ...], Group] = {}
        self._rings: dict[str, Ring] = {}

    def add(self, spec: ReplicaSpec, budget: RetryBudget) -> Replica:
        """A replica joins. ValueError: its name is in use."""
        if spec.name in self.by_name:
            raise ValueError(f"replicas need different names; there is a {spec.name!r} already")
        replica = Replica(len(self.replicas), spec, budget)
        self.replicas.append(replica)
        self.by_name[spec.name] = replica
        self._into_group(replica)
        for model in replica.models:
            self.of_model.setdefault(model, []).append(replica)
            self.bare_since.pop(model, None)
            self._rings.pop(model, None)
        return replica

    def remove(self, replica: Replica, now: float) -> None:
        """A replica leaves; its models stay known, with or without others that serve them."""
        replica.breaker.remove()
        del self.by_name[replica.name]
        self._by_models[replica.models].remove(replica)
        for model in replica.models:
            self.of_model[model].remove(replica)
            self._rings.pop(model, None)
            if not self.of_model[model]:
                self.bare_since[model] = now

    def _into_group(self, replica: Replica) -> None:
        group = self._by_models.get(replica.models)
        if group is None:
            group = self._by_models[replica.models] = Group()
            for model in replica.models:
                self.groups.setdefault(model, []).append(group)
        group.add(replica)

    def leave_out(self, replica: Replica, model: str, why: str) -> None:
        """The replica takes no more calls for one of its models, until `take_back`."""
        replica.left_out[model] = why
        self._by_models[replica.models].remove(replica)
        replica.models = tuple(name for name in replica.models if name != model)
        self._into_group(replica)
        self.of_model[model].remove(replica)
        self._rings.pop(model, None)

    def take_back(self, replica: Replica) -> None:
        """The replica takes calls for all its models again."""
        models = tuple(replica.left_out)
        replica.left_out.clear()
        self._by_models[replica.models].remove(replica)
        replica.models = tuple(sorted({*replica.models, *models}))
        self._into_group(replica)
        for model in models:
            self.of_model[model].append(replica)
            self.bare_since.pop(model, None)
            self._rings.pop(model, None)

    def freed(self, replica: Replica) -> None:
        """A replica that shares its models with others can take a call, or has become less loaded."""
        self._by_models[replica.models].freed(replica)

    def home(self, model: str, family: int) -> Replica | None:
        """Where the calls of a family (not 0) find their prefix cached, if that replica is in use."""
        ring = self._rings.get(model)
        if ring is None:
            ring = self._rings[model] = Ring(self.of_model[model])
        return ring.home(family)

    def pick(self, model: str, affinity: int = 0) -> Replica | None:
        """A replica for a call that starts now, or None when none can take it.

        With an affinity (not 0), the same number goes to the same replica while that one is not much busier than
        the least busy: requests with one prefix find it in that server's cache.
        """
        best: Replica | None = None
        for group in self.groups[model]:
            replica = group.least()
            if replica is not None and (best is None or replica.load() < best.load()):
                best = replica
        if affinity and best is not None and best.breaker.state is CLOSED:
            home = self.home(model, affinity)
            if home is not None and home.can_take() and home.load() <= best.load() + LOYALTY:
                return home
        return best

    def hopeless(self, model: str, now: float, limit_s: float) -> bool:
        """True if no server has answered for a model for `limit_s` seconds and none is expected to."""

        def dead(replica: Replica) -> bool:
            opened = replica.breaker.opened_at
            if replica.breaker.state not in (OPEN, DOWN) or opened is None:
                return False
            return replica.breaker.lost or now - opened > limit_s

        since = self.bare_since.get(model)
        return all(map(dead, self.of_model[model])) and (since is None or now - since > limit_s)
