"""SIGINT and SIGTERM while no run is there to drain: start-up, the pipeline file, exports, `status`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal told the command to end. Like KeyboardInterrupt, but for both signals, and no library takes it."""


def stop_on_signals() -> None:
    """From now on these signals raise Stopped in the main thread, so that files half written are taken away."""
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, _raise)


@contextlib.contextmanager
def taken(received: Callable[[int], None]) -> Iterator[None]:
    """Gives these signals to `received`, in the running event loop, for as long as the block runs."""
    import asyncio  # `--help` imports this module, and needs no event loop

    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in STOPPING}
    for number in STOPPING:
        loop.add_signal_handler(number, received, number)
    try:
        yield
    finally:
        # Held back meanwhile: the loop leaves the system's defaults for a moment, and those kill.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def past_stopping() -> None:
    """The exit code is decided: a signal in the interpreter's last moments must not put another in its place."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped(signal.Signals(number).name)
