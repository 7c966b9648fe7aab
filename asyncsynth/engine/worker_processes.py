"""Several processes that share one run: started, told, listened to and added up by their parent.

Each worker does one shard after another (`engine.sharded_run`), and tells what it does in JSON lines on its standard
output. On its standard input it gets its job, then words: ``drain WHY``, ``cancel``. The input's end means that
the parent is gone, and the worker ends at once: what it has acknowledged is on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from asyncsynth import errors
from asyncsynth.core.stats import Histogram
from asyncsynth.engine.failing import ADVICE, FailureLimit
from asyncsynth.engine.report import Counts, Progress, RunReport
from asyncsynth.engine.server_lines import merged_lines
from asyncsynth.errors import AsyncsynthError
from asyncsynth.storage.extent import Extent, completeness

_LINE_BYTES = 16 << 20  #: of what a worker says at once: notes and servers, far less


@dataclass(slots=True)
class Worker:
    """One process, from its start to its end."""

    shard: int
    place: int  #: which of the processes that run side by side, from 0
    process: asyncio.subprocess.Process | None = None
    said: dict[str, Any] = field(default_factory=dict)  #: its last progress or its report
    done: bool = False  #: that was its report
    running: bool = True
    stopped: bool = False  #: it ended before it began, as it was told

    @property
    def counts(self) -> Counts:
        return Counts.from_json(self.said["counts"]) if self.said else Counts()

    def tell(self, word: str) -> None:
        """Says a word to the process; one that has ended does not hear it."""
        if self.process is not None and self.process.stdin is not None and self.running:
            with contextlib.suppress(RuntimeError, ConnectionError):  # its end was closed, and we have not seen it yet
                self.process.stdin.write(word.encode() + b"\n")


class Workers:
    """All processes of one run; shows itself as a `Runner` does.

    Args:
        command: how a worker process is called.
        job: what each is told, beside ``shard``, ``shards``, ``place`` and ``workers``; JSON.
        shards, workers: parts that the records are dealt out to, and processes at a time.
        extent: of the run's directory: records in all, where that is known, and the state of the pipeline.
        max_failures: as in `RunOptions`, over all processes. Half a second passes until the parent hears of a failure.
    """

    def __init__(
        self,
        command: Sequence[str],
        job: Mapping[str, Any],
        *,
        shards: int,
        workers: int,
        name: str,
        directory: Path,
        extent: Extent,
        max_failures: int | str | None = None,
    ) -> None:
        self._command = command
        self._job = job
        self._shards = shards
        self._count = min(workers, shards)
        self._name = name
        self._directory = directory
        self._extent = extent
        self._complete = False  #: all shards are, and the directory says so
        self._failure_limit = None if max_failures is None else FailureLimit(max_failures)
        self._advice = ""
        self._waiting = deque(range(shards))
        self._workers: list[Worker] = []
        self._stopped_why = ""
        self._draining = False
        self._error: AsyncsynthError | None = None
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()

    async def run(self) -> RunReport:
        """Runs all shards to their ends. Raises what the first worker that failed raised, when all have ended."""
        self._extent.save(self._directory)
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
            raise self._error
        said = [worker.said for worker in self._workers if worker.done]
        if len(said) == self._shards and all(one["complete"] for one in said):
            self._extent = replace(self._extent, records=self.counts().read, complete=True)
            self._extent.save(self._directory)
            self._complete = True
        return self.report()

    def drain(self, why: str) -> None:
        """Begins nothing more, and has all workers drain: see `Runner.drain`."""
        self._draining = True
        self._stopped_why = self._stopped_why or why
        self._tell(f"drain {why}")

    def _tell(self, word: str) -> None:
        for worker in self._workers:
            worker.tell(word)

    # --- one process ---------------------------------------------------------------------------

    async def _lane(self, place: int) -> None:
        while self._waiting and not self._draining:
            worker = Worker(self._waiting.popleft(), place)
            self._workers.append(worker)
            await self._run_one(worker)

    async def _run_one(self, worker: Worker) -> None:
        process = worker.process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
            start_new_session=True,  # Ctrl-C goes to a terminal's whole group: the parent says what is to be done
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
            if self._draining:  # told while it was being started
                worker.tell(f"drain {self._stopped_why}")
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
                if not said["complete"] and not self._draining:  # it stopped by itself: so do the others
                    self._advice = said["advice"]
                    self.drain(f"worker {worker.shard}: {said['stopped_why']}")
            case "stopped":
                worker.stopped = True
            case "error":
                worker.stopped = True
                if self._error is None:
                    self._error = error_of(said)
                    self.drain(f"worker {worker.shard}: {said['message']}")

    def _weigh_failures(self) -> None:
        if self._failure_limit is not None and not self._draining:
            counts = self.counts()
            if why := self._failure_limit.exceeded(counts.failed, counts.failed + counts.ok):
                self._advice = ADVICE
                self.drain(why)

    # --- all together --------------------------------------------------------------------------

    def counts(self) -> Counts:
        """Of all workers, those that have ended included."""
        total = Counts()
        for worker in self._workers:
            total.add(worker.counts)
        return total

    def progress(self) -> Progress:
        """What all of them do, as they last said."""
        now = [worker.said for worker in self._workers if worker.running and worker.said and not worker.done]
        every = [worker.said for worker in self._workers if worker.said]
        return Progress(
            pipeline=self._name,
            elapsed_s=self._loop.time() - self._started,
            counts=self.counts(),
            total=self._extent.records,
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

    def report(self) -> RunReport:
        """The whole run; final once `run` has returned. A worker that was killed is counted as it last said."""
        said = [worker.said for worker in self._workers if worker.done]
        complete, counts, total = self._complete, self.counts(), self._extent.records
        # Asked of the journals: what a worker that was killed or never began has of an earlier run, it does not say.
        left = 0 if complete else completeness(self._directory).unfinished
        latency = merged_latency(one["latency"] for one in said)
        last = {worker.place: worker.said for worker in self._workers if worker.done}
        return RunReport(
            pipeline=self._name,
            directory=self._directory,
            complete=complete,
            elapsed_s=self._loop.time() - self._started,
            counts=counts,
            answered_by=added(one["answered_by"] for one in said),
            requests=sum(one["requests"] for one in said),
            prompt_tokens=sum(one["prompt_tokens"] for one in said),
            completion_tokens=sum(one["completion_tokens"] for one in said),
            retries=added(one["retries"] for one in said),
            latency_p50_s=latency.quantile(0.5) if latency.count else None,
            latency_p99_s=latency.quantile(0.99) if latency.count else None,
            stopped_why="" if complete else self._stopped_why,
            advice="" if complete else self._advice,
            total=total,
            unfinished=left,
            notes=self._notes(),
            reread_answers=sum(one["reread_answers"] for one in said),
            limits=merged_lines(one["limits"] for one in last.values()),
        )

    def _notes(self) -> list[str]:
        """Each note once; with the worker, where only one has it."""
        by_note: dict[str, list[int]] = {}
        for worker in self._workers:
            for note in worker.said.get("notes", ()):
                by_note.setdefault(note, []).append(worker.shard)
        alone = self._shards == 1
        return [note if alone or len(of) > 1 else f"worker {of[0]}: {note}" for note, of in by_note.items()]


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of named counts."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


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
    """The error that a worker met: of its kind, with its words and its exit code."""
    kind = getattr(errors, said["error"], AsyncsynthError)
    error: AsyncsynthError = kind.__new__(kind)
    AsyncsynthError.__init__(error, said["message"], hint=said["hint"])
    error.exit_code = said["exit_code"]
    return error
