"""Python's cycle collector during a run."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

#: New objects that start a collection. A record in flight has a few hundred, none of them in a cycle. With Python's
#: own 700, a search through all live objects starts every few records and finds nothing, which takes a third of the
#: engine's CPU. This many objects take a few MB.
THRESHOLD = 50_000

_saved: list[tuple[int, int, int]] = []
_running = 0


@contextlib.contextmanager
def fewer_collections() -> Iterator[None]:
    """Collects less often while at least one run is active; restores the thresholds after the last.

    The thresholds belong to the process: if it has raised them itself, or switched collection off, they stay.
    """
    global _running
    if _running == 0:
        _saved[:] = [gc.get_threshold()]
        first, second, third = _saved[0]
        if 0 < first < THRESHOLD:  # 0: never
            gc.set_threshold(THRESHOLD, second, third)
    _running += 1
    try:
        yield
    finally:
        _running -= 1
        if _running == 0:
            gc.set_threshold(*_saved[0])
