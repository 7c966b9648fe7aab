"""SIGINT and SIGTERM: in commands that have something to drain, and in all others."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from asyncsynth.errors import EXIT_STOPPED

if TYPE_CHECKING:
    import asyncio  # `--help` imports this module, and needs no event loop

T = TypeVar("T")

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal ended the command. Like KeyboardInterrupt, but for both signals, and no library catches it."""


def stop_on_signals() -> None:
    """Makes the first of these signals raise Stopped in the main thread, so that half-written files are removed.

    The second one changes nothing, because it must not interrupt that. The third exits at once.
    """
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
    """`run_in_loop` for commands with nothing to drain: a signal cancels it, and Stopped is raised after the loop.

    A handler must not raise inside an event loop: uvloop prints the exceptions of its callbacks and continues.
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
    if received:  # even if all was done just then: the next loop may have more to do
        raise Stopped(signal.Signals(received[0]).name)
    return result


@contextlib.contextmanager
def taken(received: Callable[[int], None], numbers: Sequence[int] = STOPPING) -> Iterator[None]:
    """Gives these signals to `received`, in the running event loop, while the block runs."""
    import asyncio

    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        loop.add_signal_handler(number, received, number)
    try:
        yield
    finally:
        # Blocked meanwhile: for a moment the loop leaves the system's default handlers, and those kill.
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


class StopSignals:
    """The signals of a command that drains: the first and the second have an action each, the third exits at once.

    Args:
        first, second: called in the event loop with the signal's name.
    """

    def __init__(self, first: Callable[[str], None], second: Callable[[str], None]) -> None:
        self.count = 0  #: signals so far
        self._actions = (first, second)
        self._main: asyncio.Task[Any] | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Takes the signals while the block runs."""
        import asyncio

        self._main = asyncio.current_task()
        with taken(self._received):
            yield

    def cancel(self) -> None:
        """Cancels the task that installed the signals."""
        if self._main is not None:
            self._main.cancel()

    def caused_cancel(self) -> bool:
        """Whether a signal cancelled the task. If so, the task counts as not cancelled any more."""
        while self.count and self._main is not None and self._main.cancelling():
            self._main.uncancel()
        return bool(self.count)

    def _received(self, number: int) -> None:
        self.count += 1
        if self.count > len(self._actions):
            os._exit(EXIT_STOPPED)  # acknowledged records are on the disk; guardians kill the servers that are left
        self._actions[self.count - 1](signal.Signals(number).name)


def past_stopping() -> None:
    """Ignores signals from now on: in the interpreter's last moments, none may change the exit code."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _heeded() -> list[signal.Signals]:
    """Those that this process does not ignore, as nohup or a shell makes it do for a background job."""
    return [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
