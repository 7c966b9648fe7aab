"""Python's cycle collector while a run is going on."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

#: New objects that set off a collection. A record in flight is a few hundred of them, none of them in a cycle, so
#: that Python's own 700 means a search through everything alive every dozen records, which finds nothing: a third
#: of the engine's CPU. This many are a few MB.
THRESHOLD = 50_000

_saved: list[tuple[int, int, int]] = []
_running = 0


@contextlib.contextmanager
def fewer_collections() -> Iterator[None]:
    """Collects less often while at least one run is going on; puts the thresholds back after the last.

    They belong to the process, so a host that has raised them itself, or switched collection off, keeps its own.
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
