"""SIGINT and SIGTERM while no run is there to drain: start-up, the pipeline file, exports, `status`."""

from __future__ import annotations

import signal
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal told the command to end. Like KeyboardInterrupt, but for both signals, and no library takes it."""


def stop_on_signals() -> None:
    """From now on these signals raise Stopped in the main thread, so that files half written are taken away."""
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped(signal.Signals(number).name)
