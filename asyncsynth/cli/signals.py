"""SIGINT and SIGTERM while no run is there to drain: start-up, the pipeline file, exports, `status`."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import FrameType
from typing import Any, TypeVar

from asyncsynth.errors import EXIT_STOPPED

T = TypeVar("T")

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal told the command to end. Like KeyboardInterrupt, but for both signals, and no library takes it."""


def stop_on_signals() -> None:
    """From now on the first of these signals raises Stopped in the main thread, so that files half written are taken
    away. The second one changes nothing: it must not end that halfway. The third exits at once."""
    received = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        if received == 1:
            raise Stopped(signal.Signals(number).name)
        if received > 2:
            os._exit(EXIT_STOPPED)

    for number in _heeded():
        signal.signal(number, stop)


def run_until_signal(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """`run_in_loop` for what has nothing to drain: a signal cancels it, and Stopped is raised when the loop has ended.

    A handler must not raise inside an event loop: uvloop prints what comes out of its callbacks, and goes on.
    """
    import asyncio

    from asyncsynth.engine.pipeline import run_in_loop

    received: list[int] = []

    async def cancellable() -> T:
        task = asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            received.append(number)
            task.cancel()

        with taken(stop, _heeded()):
            return await main()

    try:
        result = run_in_loop(cancellable)
    except asyncio.CancelledError:
        if not received:
            raise
    if received:  # also where all was done just then: more may be to come in the next loop
        raise Stopped(signal.Signals(received[0]).name)
    return result


@contextlib.contextmanager
def taken(received: Callable[[int], None], numbers: Sequence[int] = STOPPING) -> Iterator[None]:
    """Gives these signals to `received`, in the running event loop, for as long as the block runs."""
    import asyncio  # `--help` imports this module, and needs no event loop

    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        loop.add_signal_handler(number, received, number)
    try:
        yield
    finally:
        # Held back meanwhile: the loop leaves the system's defaults for a moment, and those kill.
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def past_stopping() -> None:
    """The exit code is decided: a signal in the interpreter's last moments must not put another in its place."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _heeded() -> list[signal.Signals]:
    """Those that nobody told this process to ignore, as nohup or a shell does for a background job."""
    return [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
