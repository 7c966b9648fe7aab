"""Sidecars while a run goes on: what each entry says is noted as it is appended, and saved when its segment is full.

Reading the entries back for that would cost several times as much, and the first thing after a crash is when
nobody wants to wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from asyncsynth.storage.facts import SIDECAR_MIN_BYTES, SegmentFacts
from asyncsynth.storage.files import REAL, FileSystem
from asyncsynth.storage.segments import Segment


class Sidecars:
    """Collects the facts of the segment being written. Whoever appends an entry adds its facts to `facts` at once.

    An entry whose facts were not added costs its segment the sidecar, nothing else: it is counted.
    """

    def __init__(self, *, keys: str, fs: FileSystem = REAL, min_bytes: int = SIDECAR_MIN_BYTES) -> None:
        self._by_position = keys == "position"
        self._fs = fs
        self._min_bytes = min_bytes
        self.facts: SegmentFacts = SegmentFacts(by_position=self._by_position)

    def roll(self, segment: Segment, last_seq: int, entries: int) -> Callable[[], None] | None:
        """No more entries come to this segment: what to call, in any thread, once all of it is on the disk."""
        facts, self.facts = self.facts, SegmentFacts(by_position=self._by_position)
        if facts.entries != entries or segment.size < self._min_bytes:
            return None
        return partial(facts.save, segment, last_seq, entries, fs=self._fs)
