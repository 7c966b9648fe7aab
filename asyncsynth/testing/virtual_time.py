"""An event loop whose clock jumps: sleeping takes no time, and a run is the same each time.

When nothing is ready, the loop's clock jumps to the next timer. Work for another thread (`run_in_executor`, such as the
journal's writes) runs at once in the loop's own thread and completes `executor_s` virtual seconds later. So the clock
cannot pass unfinished work, and the order of events does not depend on real time. Do not use real sockets: a loop that
has nothing to do and no timer would wait for ever, so it raises RuntimeError.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class _NoWaiting(selectors.BaseSelector):
    """A selector that does not wait, and tells the loop how long it would have waited."""

    def __init__(self, passed: Callable[[float], None]) -> None:
        self._real = selectors.DefaultSelector()
        self._passed = passed

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Returns what is ready now; otherwise lets the virtual time pass."""
        ready = self._real.select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("nothing is ready and no timer is set: the loop would wait for ever")
            self._passed(max(0.0, timeout))
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As the real one."""
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """As the real one."""
        return self._real.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """As the real one."""
        return self._real.get_map()

    def close(self) -> None:
        """As the real one."""
        self._real.close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module's text. `executor_s`: virtual seconds that work in an executor takes."""

    def __init__(self, executor_s: float = 0.0) -> None:
        self._virtual = 0.0
        self._executor_s = executor_s
        super().__init__(_NoWaiting(self._pass))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual

    def _pass(self, seconds: float) -> None:
        self._virtual += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """Calls `func` now; the future completes `executor_s` later."""
        future = self.create_future()
        try:
            result = func(*args)
        except BaseException as error:
            self.call_later(self._executor_s, _settle, future, None, error)
        else:
            self.call_later(self._executor_s, _settle, future, result, None)
        return future


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def run_virtually(main: Coroutine[Any, Any, T], executor_s: float = 0.0) -> T:
    """As `asyncio.run`, on a loop whose clock jumps."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(executor_s)) as runner:
        return runner.run(main)
