"""Threads and processes in which a run calls users' functions that wait or compute for long.

Each step has its own lanes: at most `workers` of them, each a daemon thread, which for `in_process` holds a worker
process. Calls wait in order for a free lane. A call that exceeds its time limit gives its lane up: a process is killed;
a thread cannot be killed, so it continues and is counted. Nothing outlives the run: `close` kills the
processes, and daemon threads do not keep the interpreter from ending.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from asyncsynth.errors import RecordError, Withdrawn
from asyncsynth.pipeline.function_process import FunctionPlace, WorkerProcess
from asyncsynth.records import Row

#: Threads of one step that may be left behind by calls that do not end; beyond this number, its rows fail without a
#: call.
MOST_ABANDONED = 64

_Outcome = tuple[bool, Any]  #: (True, what was returned) or (False, what was raised)


class TimedOut(RecordError):
    """A call exceeded its time limit."""

    reason = "timeout"


class Work:
    """The lanes of one run, or of one loaded task. It belongs to the event loop that first uses it."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lanes] = {}
        self._withdrawn = False
        self._closed = False

    async def in_loop(self, owner: str, workers: int | None, call: Callable[[], Any]) -> Any:
        """Awaits the result of `call`, beside at most `workers` - 1 others of the step `owner` (None: any number).

        Raises what the call raises, and Withdrawn if the run stops before the call begins.
        """
        self._admit()
        if workers is None:
            return await call()
        lanes = self._of(owner, workers, _Lane)
        lane = await lanes.take()
        try:
            return await call()
        finally:
            lanes.give(lane)

    async def in_thread(
        self, owner: str, workers: int, function: Callable[..., Any], *args: Any, timeout: float | None = None
    ) -> Any:
        """The result of a function that is called in one of `workers` threads of the step `owner`.

        Raises what the function raises; TimedOut if it does not end within `timeout` seconds; Withdrawn
        if the run stops before it begins. The function sees the caller's context variables.
        """
        self._admit()
        context = contextvars.copy_context()
        return await self._call(owner, workers, _ThreadLane, partial(context.run, function, *args), timeout)

    async def in_process(
        self, owner: str, workers: int, place: FunctionPlace, row: Row, *, timeout: float | None = None
    ) -> Any:
        """The result of the function at `place` for a row, in one of `workers` processes: JSON.

        Raises as `in_thread`; also RecordError (`worker_died`) if the process ends during the call, and PipelineError
        if it cannot load the function.
        """
        self._admit()
        return await self._call(owner, workers, partial(_ProcessLane, owner, place), row, timeout)

    def withdraw(self) -> None:
        """Starts no more calls: those that wait for a lane, and later ones, raise `Withdrawn`."""
        self._withdrawn = True
        for lanes in self._lanes.values():
            lanes.withdraw()

    def close(self) -> None:
        """Kills the processes and lets the threads end. Does not wait for calls that still run."""
        self._closed = self._withdrawn = True
        for lanes in self._lanes.values():
            lanes.close()

    @property
    def notes(self) -> list[str]:
        """Notes for users: calls that exceeded their time limit and could not be ended."""
        return [
            f"step {owner!r}: {lanes.abandoned} calls exceeded their timeout and still run in their threads; "
            'run_in="process" can end such calls'
            for owner, lanes in self._lanes.items()
            if lanes.abandoned
        ]

    def _admit(self) -> None:
        if self._closed:
            raise RuntimeError("the run has ended")
        if self._withdrawn:
            raise Withdrawn

    def _of(self, owner: str, workers: int, make: Callable[[], _Lane]) -> _Lanes:
        lanes = self._lanes.get(owner)
        if lanes is None:
            lanes = self._lanes[owner] = _Lanes(workers, make)
        return lanes

    async def _call(
        self, owner: str, workers: int, make: Callable[[], _RunningLane], job: Any, timeout: float | None
    ) -> Any:
        lanes = self._of(owner, workers, make)
        if lanes.abandoned >= MOST_ABANDONED:
            raise RecordError(
                f"{lanes.abandoned} earlier calls of this step exceeded their timeout and still run in their threads; "
                'no more are started. Use run_in="process", whose calls can be ended',
                reason="timeout",
            )
        lane = await lanes.take()
        assert isinstance(lane, _RunningLane)
        outcome: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()
        outcome.add_done_callback(lambda _: lanes.ended(lane))
        lane.begin(job, outcome)
        try:
            # Shielded: the lane is free when the call has ended, not when its row has.
            async with asyncio.timeout(timeout):
                is_good, value = await asyncio.shield(outcome)
        except TimeoutError:
            lanes.abandon(lane)
            raise TimedOut(f"the function did not return within {timeout:g} s") from None
        except asyncio.CancelledError:
            lanes.abandon(lane)
            raise
        if is_good:
            return value
        try:
            raise value
        finally:
            del value  # the traceback refers to this frame


class _Lane:
    """Room for one call at a time."""

    def abandon(self) -> bool:
        """Ends the running call if that is possible. True if it continues."""
        return False

    def close(self) -> None:
        """Releases the lane's thread or process."""


class _RunningLane(_Lane):
    """A lane with a daemon thread that runs one job after another."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Any, asyncio.Future[_Outcome]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="asyncsynth-work", daemon=True)
        self._thread.start()

    def begin(self, job: Any, outcome: asyncio.Future[_Outcome]) -> None:
        """Hands a job to the thread, which sets `outcome` in its event loop."""
        self._jobs.put((job, outcome))

    def close(self) -> None:
        self._jobs.put(None)

    def run(self, job: Any) -> Any:
        """Does a job, in the thread."""
        raise NotImplementedError

    def _main(self) -> None:
        while (given := self._jobs.get()) is not None:
            job, outcome = given
            try:
                done: _Outcome = True, self.run(job)
            except BaseException as error:  # SystemExit too: it ends a row, not a thread
                done = False, error
            try:
                outcome.get_loop().call_soon_threadsafe(_settle, outcome, done)
            except RuntimeError:  # the loop is closed: nothing waits any more
                return
            del given, job, outcome, done


class _ThreadLane(_RunningLane):
    """Calls functions in its thread."""

    def abandon(self) -> bool:
        self.close()  # once the call ends
        return True

    def run(self, job: Callable[[], Any]) -> Any:
        return job()


class _ProcessLane(_RunningLane):
    """Calls one function in a worker process, which is started for the first call and after one that was killed."""

    def __init__(self, owner: str, place: FunctionPlace) -> None:
        self._process = WorkerProcess(owner, place)
        super().__init__()

    def abandon(self) -> bool:
        self._process.kill()
        return False

    def run(self, job: Row) -> Any:
        return self._process.call(job)

    def close(self) -> None:
        super().close()
        self._process.close()


def _settle(outcome: asyncio.Future[_Outcome], done: _Outcome) -> None:
    if not outcome.done():
        outcome.set_result(done)


class _Lanes:
    """The lanes of one step. `_busy` counts those in use, `abandoned` those whose call was given up but still runs."""

    def __init__(self, limit: int, make: Callable[[], _Lane]) -> None:
        self._limit = limit
        self._make = make
        self._free: list[_Lane] = []
        self._busy: set[_Lane] = set()
        self._left: set[_Lane] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False

    @property
    def abandoned(self) -> int:
        return len(self._left)

    async def take(self) -> _Lane:
        """A lane; waits for one if all are busy. Raises Withdrawn."""
        while len(self._busy) >= self._limit:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except BaseException:
                if turn.done() and not turn.cancelled() and turn.exception() is None:
                    self._wake()  # the turn goes to the next in line
                raise
        lane = self._free.pop() if self._free else self._make()
        self._busy.add(lane)
        return lane

    def give(self, lane: _Lane) -> None:
        """The lane is free again."""
        self._busy.discard(lane)
        if self._closed:
            lane.close()
        else:
            self._free.append(lane)
        self._wake()

    def ended(self, lane: _Lane) -> None:
        """The lane's call has ended."""
        if lane in self._left:
            self._left.discard(lane)
        elif lane in self._busy:
            self.give(lane)

    def abandon(self, lane: _Lane) -> None:
        """The caller has given up waiting for the lane's call."""
        if lane in self._busy and lane.abandon():
            self._busy.discard(lane)
            self._left.add(lane)
            self._wake()

    def withdraw(self) -> None:
        """Callers that wait for a lane get `Withdrawn`."""
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_exception(Withdrawn())

    def close(self) -> None:
        self._closed = True
        self.withdraw()
        for lane in [*self._free, *self._busy]:
            lane.close()
        self._free.clear()

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
