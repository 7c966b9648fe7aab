"""Reports what blocks the event loop: while it is blocked, no request is sent and no answer is read."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from asyncsynth.pipeline.seen import place_of_frames
from asyncsynth.pipeline.step import Step

#: Seconds without a turn of the loop before it is reported.
LIMIT_S = 5.0
_LOG = logging.getLogger("asyncsynth")


class LoopWatch:
    """While it is entered, a thread looks whether the loop of this thread still turns.

    When it has not turned for `limit_s`, a warning with the stack is logged to "asyncsynth" at once (Python writes it
    to standard error unless logging is configured), and `tell` gets a line that names the step and the place, once
    for each place. `tell` is called from the thread.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, tell: Callable[[str], object], *, limit_s: float = LIMIT_S
    ) -> None:
        self._loop = loop
        self._tell = tell
        self._limit_s = limit_s
        self._turned = time.monotonic()
        self._thread_id = threading.get_ident()
        self._ended = threading.Event()
        self._told: set[str] = set()
        self._beat: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._turn()
        threading.Thread(target=self._main, name="asyncsynth-watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._beat is not None:
            self._beat.cancel()

    def _turn(self) -> None:
        self._turned = time.monotonic()
        self._beat = self._loop.call_later(self._limit_s / 5, self._turn)

    def _main(self) -> None:
        reported = 0.0  #: the turn after which the loop is known to be blocked
        while not self._ended.wait(self._limit_s / 5):
            turned, blocked_s = self._turned, time.monotonic() - self._turned
            if blocked_s < self._limit_s or turned == reported:
                continue
            frame = sys._current_frames().get(self._thread_id)
            if frame is None or self._ended.is_set():
                continue
            reported = turned
            self._report(frame, blocked_s)

    def _report(self, frame: FrameType, blocked_s: float) -> None:
        where = place_of_frames(frame for frame, _ in traceback.walk_stack(frame))
        step = step_in(frame)
        who = f"step {step!r}" if step else "something"
        line = (
            f"{who} has blocked the event loop for {blocked_s:.0f} s{f' at {where}' if where else ''}: no request is "
            'sent meanwhile. Let it run in a thread or a process (@step(run_in="thread")), or make it async'
        )
        if (key := f"{step} {where}") in self._told:
            return
        self._told.add(key)
        stack = "".join(traceback.format_stack(frame, limit=20))
        _LOG.warning("%s\n%s", line, stack.rstrip())
        self._tell(line)


def step_in(frame: FrameType | None) -> str:
    """The name of the step that a stack is in, or that the engine calls there; '' for none."""
    while frame is not None:
        for name in ("self", "step"):
            if isinstance(found := frame.f_locals.get(name), Step):
                return found.name
        frame = frame.f_back
    return ""
