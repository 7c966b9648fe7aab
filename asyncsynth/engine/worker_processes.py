"""Several processes that share one run: their parent starts them, stops them, and adds up their reports.

Each process does one shard (`engine.sharded_run`), and reports in JSON lines on its standard output. On its standard
input it gets its job, then commands: ``drain WHY``, ``cancel``. The end of the input means that the parent is gone. The
worker then ends at once: what it has acknowledged is on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from asyncsynth import errors
from asyncsynth.core.stats import Histogram
from asyncsynth.engine.failing import ADVICE, FailureLimit
from asyncsynth.engine.options import worker_options
from asyncsynth.engine.report import Counts, Progress, RunReport, added
from asyncsynth.engine.run import Run
from asyncsynth.engine.server_lines import merged_lines
from asyncsynth.engine.totals import Stop, say_missing
from asyncsynth.errors import AsyncsynthError
from asyncsynth.storage.extent import Completeness, Extent, completeness
from asyncsynth.storage.manifest import Manifest

_LINE_BYTES = 16 << 20  #: bytes of one line of a worker, at most: notes and servers are far less


@dataclass(frozen=True, slots=True)
class WorkerProgram:
    """How a worker process is called, and how it makes the pipeline.

    Args:
        command: the program and its arguments.
        pipeline: what the program needs to make the same pipeline; JSON. This module only passes it on.
    """

    command: Sequence[str]
    pipeline: Mapping[str, Any]


@dataclass(slots=True)
class Worker:
    """One process, from its start to its end."""

    shard: int
    place: int  #: which of the processes that run side by side, from 0
    process: asyncio.subprocess.Process | None = None
    said: dict[str, Any] = field(default_factory=dict)  #: its last progress or its report
    done: bool = False  #: `said` is its report
    running: bool = True
    stopped: bool = False  #: it ended before it began, because a signal or a command asked it to

    @property
    def counts(self) -> Counts:
        return Counts.from_json(self.said["counts"]) if self.said else Counts()

    def tell(self, word: str) -> None:
        """Sends a line to the process, unless it has ended."""
        if self.process is not None and self.process.stdin is not None and self.running:
            with contextlib.suppress(RuntimeError, ConnectionError):  # its end is closed, which we have not seen yet
                self.process.stdin.write(word.encode() + b"\n")


class Workers:
    """All processes of one run. Has the `progress`, `drain` and `report` of a `Runner`.

    Args:
        run: the whole run. Its `max_failures` counts the failures of all processes; the parent hears of them within
            half a second.
        shards, workers: parts of the records, and processes at a time.
        found: what the tests of the servers found, for the report.
    """

    def __init__(
        self, run: Run, shards: int, workers: int, program: WorkerProgram, *, found: list[dict[str, Any]]
    ) -> None:
        self._run = run
        self._program = program
        self._found = found
        self._job = {"pipeline": program.pipeline, "options": worker_options(run.options, run.directory)}
        self._shards = shards
        self._count = min(workers, shards)
        self._epoch = len(Manifest.of_run(run.directory).epochs) - 1
        self._records = _records(run)
        self._complete: Completeness | None = None  #: set once all shards are complete, and the directory says so
        self._failure_limit = None if run.max_failures is None else FailureLimit(run.max_failures)
        self._waiting = deque(range(shards))
        self._workers: list[Worker] = []
        self._stop: Stop | None = None  #: the first reason why the run ends early
        self._error: AsyncsynthError | None = None
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()

    async def run(self) -> RunReport:
        """Runs all shards to their ends. When all have ended, raises the first error of a worker."""
        Extent(self._epoch, self._records, self._run.limit).save(self._run.directory)
        lanes = [
            asyncio.create_task(self._lane(place), name=f"asyncsynth worker {place}") for place in range(self._count)
        ]
        try:
            await asyncio.wait(lanes)
        except asyncio.CancelledError:
            self.drain("cancelled")
            self._tell("cancel")
            await asyncio.wait(lanes)
            raise
        for lane in lanes:
            lane.result()
        if self._error is not None:
            say_missing(self._error, self.report)
            raise self._error
        said = [worker.said for worker in self._workers if worker.done]
        if len(said) == self._shards and all(one["complete"] for one in said):
            self._records = self.counts().read
            Extent(self._epoch, self._records, self._run.limit, complete=True).save(self._run.directory)
            self._complete = Completeness(True, self._records, 0, self._run.limit)
        return self.report()

    def drain(self, why: str, *, advice: str = "") -> None:
        """Begins nothing more, and makes all workers drain: see `Runner.drain`."""
        self._stop = self._stop or Stop(why, advice)
        self._tell(f"drain {why}")

    def _tell(self, word: str) -> None:
        for worker in self._workers:
            worker.tell(word)

    # --- one process ---------------------------------------------------------------------------

    async def _lane(self, place: int) -> None:
        while self._waiting and self._stop is None:
            worker = Worker(self._waiting.popleft(), place)
            self._workers.append(worker)
            await self._run_one(worker)

    async def _run_one(self, worker: Worker) -> None:
        process = worker.process = await asyncio.create_subprocess_exec(
            *self._program.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
            start_new_session=True,  # Ctrl-C goes to a terminal's whole group; only the parent decides what it means
        )
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            job = {
                **self._job,
                "shard": worker.shard,
                "shards": self._shards,
                "place": worker.place,
                "workers": self._count,
            }
            worker.tell(orjson.dumps(job).decode())
            if self._stop is not None:  # while the process was being started
                worker.tell(f"drain {self._stop.why}")
            async for line in process.stdout:
                self._heard(worker, line)
            code = await process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        finally:
            worker.running = False
            process.stdin.close()
        if not worker.done and not worker.stopped and self._error is None:
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            self.drain(f"worker {worker.shard} ended ({how})")

    def _heard(self, worker: Worker, line: bytes) -> None:
        said = orjson.loads(line)
        match said.pop("event"):
            case "progress":
                worker.said = said
                self._weigh_failures()
            case "done":
                worker.said, worker.done = said, True
                self._weigh_failures()
                if not said["complete"] and self._stop is None:  # it stopped on its own: so do the others
                    self.drain(f"worker {worker.shard}: {said['stopped_why']}", advice=said["advice"])
            case "stopped":
                worker.stopped = True
            case "error":
                worker.stopped = True
                if self._error is None:
                    self._error = error_of(said)
                    self.drain(f"worker {worker.shard}: {said['message']}")

    def _weigh_failures(self) -> None:
        if self._failure_limit is not None and self._stop is None:
            counts = self.counts()
            if why := self._failure_limit.exceeded(counts.failed, counts.failed + counts.ok):
                self.drain(why, advice=ADVICE)

    # --- all together --------------------------------------------------------------------------

    def counts(self) -> Counts:
        """Of all workers, those that have ended included."""
        total = Counts()
        for worker in self._workers:
            total.add(worker.counts)
        return total

    def progress(self) -> Progress:
        """The progress of all workers, from the last report of each."""
        now = [worker.said for worker in self._workers if worker.running and worker.said and not worker.done]
        every = [worker.said for worker in self._workers if worker.said]
        return Progress(
            pipeline=self._run.name,
            elapsed_s=self._loop.time() - self._started,
            counts=self.counts(),
            total=self._records,
            requests_in_flight=sum(said["requests_in_flight"] for said in now),
            requests_waiting=sum(said["requests_waiting"] for said in now),
            completion_tokens=sum(said["completion_tokens"] for said in every),
            tokens_per_s=sum(said["tokens_per_s"] for said in now),
            records_per_s=sum(said["records_per_s"] for said in now),
            retries=added(said["retries"] for said in every),
            servers=merged_lines(said["servers"] for said in now),
            notes=self._notes(),
            reread_answers=sum(said["reread_answers"] for said in every),
            waits=next((said["waits"] for said in now if said["waits"]), ""),
        )

    def at_servers(self) -> int | None:
        """None: the workers know, and their last word may be half a second old."""
        return None

    def report(self) -> RunReport:
        """The whole run; final once `run` has returned. For a worker that was killed, its last progress counts."""
        said = [worker.said for worker in self._workers if worker.done]
        # From the journals: a worker that was killed or never began does not say what it has of an earlier run.
        found = self._complete or completeness(self._run.directory)
        stop = Stop("") if self._stop is None or found.complete else self._stop
        latency = merged_latency(one["latency"] for one in said)
        last = {worker.place: worker.said for worker in self._workers if worker.done}
        return RunReport(
            pipeline=self._run.name,
            directory=self._run.directory,
            completeness=found,
            elapsed_s=self._loop.time() - self._started,
            counts=self.counts(),
            answered_by=added(one["answered_by"] for one in said),
            requests=sum(one["requests"] for one in said),
            prompt_tokens=sum(one["prompt_tokens"] for one in said),
            completion_tokens=sum(one["completion_tokens"] for one in said),
            retries=added(one["retries"] for one in said),
            latency_p50_s=latency.quantile(0.5) if latency.count else None,
            latency_p99_s=latency.quantile(0.99) if latency.count else None,
            stopped_why=stop.why,
            advice=stop.advice,
            notes=self._notes(),
            reread_answers=sum(one["reread_answers"] for one in said),
            limits=merged_lines(one["limits"] for one in last.values()),
            servers=self._found,
        )

    def _notes(self) -> list[str]:
        """Each note once; with the worker's number if only one has it."""
        by_note: dict[str, list[int]] = {}
        for worker in self._workers:
            for note in worker.said.get("notes", ()):
                by_note.setdefault(note, []).append(worker.shard)
        alone = self._shards == 1
        return [note if alone or len(of) > 1 else f"worker {of[0]}: {note}" for note, of in by_note.items()]


def _records(run: Run) -> int | None:
    """Records of the input, or of its first `limit`, if that is known."""
    known, limit = run.plan.source.open().size_hint(), run.limit
    return limit if known is None else known if limit is None else min(known, limit)


def latency_json(latency: Histogram) -> dict[str, Any]:
    """A histogram as JSON, for `merged_latency`."""
    return {
        "buckets": list(latency.buckets.items()),
        "total": latency.total,
        "range": [latency.minimum, latency.maximum] if latency.count else None,
    }


def merged_latency(histograms: Iterable[Mapping[str, Any]]) -> Histogram:
    """One histogram of several, in JSON."""
    merged = Histogram()
    for one in histograms:
        if one["range"] is not None:
            part = Histogram()
            part.buckets = dict(one["buckets"])
            part.count = sum(part.buckets.values())
            part.total = one["total"]
            part.minimum, part.maximum = one["range"]
            merged.merge(part)
    return merged


def error_json(error: AsyncsynthError) -> dict[str, Any]:
    """An error as JSON, for `error_of`."""
    return {
        "event": "error",
        "error": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }


def error_of(said: Mapping[str, Any]) -> AsyncsynthError:
    """The error of a worker, with its type, its message and its exit code."""
    kind = getattr(errors, said["error"], AsyncsynthError)
    error: AsyncsynthError = kind.__new__(kind)
    AsyncsynthError.__init__(error, said["message"], hint=said["hint"])
    error.exit_code = said["exit_code"]
    return error
