"""The window of records in flight. It follows the servers' limits."""

from __future__ import annotations

from collections.abc import Callable

from asyncsynth.client.server_pool import PoolSnapshot, ServerPool
from asyncsynth.core.window import Window
from asyncsynth.records import Part

#: The largest window that is chosen automatically, in records. Each costs about 10 KB of tasks and buffers beside its
#: own bytes. After a crash, at most this many are generated again.
MOST_RECORDS = 16_384
_FOLLOW_EVERY_S = 0.1


class FollowingWindow(Window):
    """Admits twice the servers' total limit plus 256 records, or exactly `records` if given.

    Twice, so that no slot stays empty while records are between two requests or on their way to the disk.
    """

    __slots__ = ("_clock", "_fixed", "_look_at", "_most", "_pool")

    def __init__(
        self,
        records: int | None,
        bytes: int,
        pool: ServerPool,
        clock: Callable[[], float],
        *,
        share: Part | None = None,
    ) -> None:
        self._most = MOST_RECORDS if share is None else max(1, share.of(MOST_RECORDS))
        super().__init__(records or self._wanted(pool), bytes)
        self._fixed = records is not None
        self._pool = pool
        self._clock = clock  #: seconds, monotonic
        self._look_at = 0.0

    def try_take(self) -> bool:
        """Takes one record's credit. A full window checks now and then whether the servers' limits have grown."""
        if not self.in_flight or (self.in_flight < self.records and self.held < self.bytes):
            self.in_flight += 1
            return True
        if self._fixed or (now := self._clock()) < self._look_at:
            return False
        self._look_at = now + _FOLLOW_EVERY_S
        self.records = self._wanted(self._pool)
        return super().try_take()

    def _wanted(self, pool: ServerPool) -> int:
        return min(self._most, 2 * pool.capacity + 256)

    def why(self, pool: PoolSnapshot) -> str:
        """Why servers could take more requests, if the window is the reason; else ''."""
        free = any(r.state == "closed" and r.in_flight < r.limit for r in pool.replicas)
        if not free or pool.waiting or self.room > 0:
            return ""
        if self.in_flight < self.records:
            return f"{self.held >> 20} MiB of records are in flight, the most that window_bytes allows"
        if self._fixed:
            return f"all {self.records} records of the window are in flight (--window)"
        return f"all {self.records} records of the window are in flight"
