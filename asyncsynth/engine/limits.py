"""What a run says of its servers: how many requests each may have in flight, why, and what binds instead.

The last word is kept beside the journal (``servers.json``), so that `asyncsynth status` can tell it, too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from asyncsynth.client.pool import PoolSnapshot, ReplicaSnapshot, ServerPool
from asyncsynth.core.window import Window
from asyncsynth.storage import layout
from asyncsynth.storage.shards import Part

FILE = layout.SERVERS
KEEP_EVERY_S = 5.0
#: Records that the window grows to of itself. Each costs about 10 KB of tasks and buffers beside its own bytes,
#: and after a crash at most this many are generated again.
MOST_RECORDS = 16_384
_FOLLOW_EVERY_S = 0.1


class FollowingWindow(Window):
    """Admits twice the servers' total limit plus 256 records, or exactly `records` if given.

    Twice, so that a record between two requests, or on its way to the disk, leaves no slot empty.
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
        """Take one record's credit; a full window first looks, now and then, whether the servers take more by now."""
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
        """Why the servers are not kept full, where it is the window that binds; else ''."""
        free = any(r.state == "closed" and r.in_flight < r.limit for r in pool.replicas)
        if not free or pool.waiting or self.room > 0:
            return ""
        if self.in_flight < self.records:
            return f"{self.held >> 20} MiB of records in flight are the most that memory is taken for (window_bytes)"
        if self._fixed:
            return f"all {self.records} records of the window are in flight (--window)"
        return f"all {self.records} records of the window are in flight"


def server_lines(pool: PoolSnapshot, window_why: str) -> list[dict[str, Any]]:
    """The servers of a snapshot as plain values. `window_why` joins the reasons of those that could take more."""
    return [_line(replica, window_why) for replica in pool.replicas]


def merged_lines(groups: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One line a server, of the lines of several processes that share it: what each has in flight and may have is
    added; a server that one of them has paused shows that; the reason is the last one's."""
    merged: dict[str, dict[str, Any]] = {}
    for line in chain.from_iterable(groups):
        known = merged.setdefault(line["name"], line)
        if known is line:
            merged[line["name"]] = {**line}
            continue
        known["why"] = f"in each process: {line['why']}"
        for field in ("in_flight", "limit", "waiting"):
            known[field] += line[field]
        for field in ("server_waiting", "server_running", "server_kv"):  # each process sees the whole server's
            known[field] = max((value for value in (known[field], line[field]) if value is not None), default=None)
        if known["state"] == "closed":
            known["state"] = line["state"]
    return list(merged.values())


def _line(replica: ReplicaSnapshot, window_why: str) -> dict[str, Any]:
    load = replica.load
    why = replica.why
    if window_why and replica.state == "closed" and replica.in_flight < replica.limit:
        why = f"{why}; not reached: {window_why}"
    return {
        "name": replica.name,
        "state": replica.state,
        "in_flight": replica.in_flight,
        "limit": replica.limit,
        "waiting": replica.waiting,
        "server_waiting": None if load is None else load.waiting,
        "server_running": None if load is None else load.running,
        "server_kv": None if load is None else load.kv,
        "why": why,
    }


def keep_lines(directory: Path, lines: list[dict[str, Any]]) -> None:
    """Write them into the run directory, in place of those before; complete or not at all.

    Not synced to the disk: they are for looking at. A disk that takes no more is the journal's to report.
    """
    path = directory / FILE
    new = path.with_name(f"{FILE}.new")
    with contextlib.suppress(OSError):
        # Readable by the owner alone, as all of a run directory, whatever the umask.
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(orjson.dumps(lines, option=orjson.OPT_INDENT_2))
        new.replace(path)


def kept_lines(directory: Path) -> list[dict[str, Any]]:
    """What was kept last; empty where there is nothing that can be read."""
    try:
        lines = orjson.loads((directory / FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return []
    return [line for line in lines if isinstance(line, dict)] if isinstance(lines, list) else []
