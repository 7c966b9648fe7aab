"""The writer's units: groups of lines that are committed together, and their sizes and times."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from asyncsynth.storage.segments import Segment

#: A segment that has reached this is followed by a new one. After a crash the last one or two are read line by
#: line, the others from their sidecars: up to half a second for this many bytes.
SEGMENT_BYTES = 32 << 20
GROUP_ENTRIES = 256  #: a group this large is committed at once ...
GROUP_BYTES = 8 << 20
GROUP_DELAY_S = 0.005  #: ... and any group this long after its first entry (never above 50 ms)

#: Called when a segment gets no more lines, with the segment, its last line's number and its entries. Returns the
#: function to call, in any thread, once the segment is synced.
OnFull = Callable[[Segment, int, int], Callable[[], None] | None]


class Group:
    """Lines that will be written and synced together, and the tasks that wait for that."""

    __slots__ = ("at", "closes", "header", "lines", "nbytes", "segment", "tokens", "waiters")

    def __init__(self, segment: int, at: int, header: bytes | None) -> None:
        self.segment = segment
        self.at = at  #: offset of the first line: the segment is durable up to here before the write
        self.header = header  #: not None when this group opens its segment
        self.closes: Callable[[], None] | None = None  #: saves the sidecar of the segment before
        self.lines: list[bytes] = []
        self.nbytes = 0
        self.waiters: list[asyncio.Future[None]] = []
        self.tokens: list[Any] = []  #: the tokens given to `settle`


class Options:
    """Sizes and times of the writer; tests make them small."""

    def __init__(
        self,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        group_entries: int = GROUP_ENTRIES,
        group_delay_s: float = GROUP_DELAY_S,
        on_full: OnFull | None = None,
    ) -> None:
        self.segment_bytes = segment_bytes
        self.group_entries = group_entries
        self.group_delay_s = group_delay_s
        self.on_full = on_full
