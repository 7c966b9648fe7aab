"""Doing it: feed records into the window, walk each, journal its end, give its credit back.

The run ends when the source does, when `limit` is reached, when it drains, or when something stops it (a server
that refuses, a disk that fails, an input that cannot be read, too many failures). In every case each record that
was read has ended or is pending, and the same command resumes from there. Pending records hold nothing back: what
their steps have made is journaled, and the run is complete only when there is none.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterator

from asyncsynth.client.concurrency import first_error
from asyncsynth.client.server_pool import ServerPool
from asyncsynth.core.stats import Histogram
from asyncsynth.engine.failing import ADVICE, AllAlike, FailureLimit
from asyncsynth.engine.following_window import FollowingWindow
from asyncsynth.engine.loop_watch import LoopWatch
from asyncsynth.engine.options import FinishedRows, RunOptions
from asyncsynth.engine.paid_answers import KeptAnswers
from asyncsynth.engine.report import Counts, Progress, RunReport
from asyncsynth.engine.run_directory import RunDirectory
from asyncsynth.engine.server_lines import KEEP_EVERY_S, keep_lines, server_lines
from asyncsynth.engine.walk import Walked, Walker
from asyncsynth.errors import AsyncsynthError, InputError, StorageError, Withdrawn
from asyncsynth.inputs.reader import BadRow, Reader
from asyncsynth.pipeline import Plan, SourceStep
from asyncsynth.pipeline.seen import plain_input, runs_foreign_code
from asyncsynth.records import Record, Row
from asyncsynth.storage.entries import FailedRow

#: Rows skipped or failed at once before other coroutines get their turn.
_SKIP_TURN = 256
#: Seconds over which the rates of `Progress` are smoothed.
_RATE_WINDOW_S = 10.0

OnRows = Callable[[FinishedRows], Awaitable[None]]


class Runner:
    """One run of one plan over one pool into one directory.

    Args:
        on_rows: awaited with each record's result rows once they are durable, before its credit is given
            back, so that a slow reader is backpressure.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        reader: Reader,
        pool: ServerPool,
        directory: RunDirectory,
        options: RunOptions,
        *,
        on_rows: OnRows | None = None,
        answers: KeptAnswers | None = None,
    ) -> None:
        self._name = name
        self._plan = plan
        self._reader = reader
        self._pool = pool
        self._directory = directory
        self._options = options
        self._on_rows = on_rows
        self._answers = answers
        source = plan.nodes[0].step
        self._foreign_source = isinstance(source, SourceStep) and runs_foreign_code(source)
        self._walker = Walker(
            plan,
            pool,
            run_seed=options.seed,
            save=directory.save_step,
            answers=answers,
            is_ending=lambda: self._over,
        )
        self._loop = asyncio.get_running_loop()
        self._window = FollowingWindow(options.window, options.window_bytes, pool, self._loop.time, share=options.share)
        self._room = asyncio.Event()  #: set when a credit came back, or there is another reason to look
        self._resting: list[asyncio.Future[tuple[Record, int] | None]] = []  #: tasks that have no record
        self._over = False  #: no task gets another record
        self._broken = False  #: the journal can write no more
        directory.watch(self._settled, self._journal_failed)
        self._draining = False
        self._exhausted = False
        self._complete = False  #: the input was read to its end, every record has ended, and the directory says so
        self._stopped_why = ""
        self._advice = ""
        limit = options.max_failures
        self._failure_limit = None if limit is None else FailureLimit(limit)
        self._all_alike = AllAlike() if limit is None else None
        self.counts: Counts = Counts()
        self._started = self._loop.time()
        self._rate_marks: list[tuple[float, int, int]] = []
        self._keeping: asyncio.TimerHandle | None = None

    # --- running -------------------------------------------------------------------------------

    async def run(self) -> RunReport:
        """Runs to the end. Raises AsyncsynthError for what stopped it, after all that was done is safe."""
        self._keep()
        try:
            self._directory.note_extent(self._counted_before(), self._options.limit)
            with LoopWatch(self._loop, self._pool.notes.append):
                return await self._run()
        finally:
            self._keep(again=False)
            self._walker.work.close()

    async def _run(self) -> RunReport:
        problem: AsyncsynthError | None = None
        try:
            async with asyncio.TaskGroup() as records:
                try:
                    problem = await self._feed(records)
                    await self._all_settled()
                finally:
                    self._end_tasks()
        except BaseExceptionGroup as errors:
            error = first_error(errors)
            if not isinstance(error, AsyncsynthError):
                raise error from errors
            problem = error
        if problem is not None and not isinstance(problem, StorageError):
            await self._directory.flush()
        if problem is not None:
            raise problem
        if self._exhausted and self._options.limit is None:
            self._directory.forget_unseen()
        await self._directory.flush()
        if self._exhausted and not self.counts.pending:
            self._directory.note_extent(self.counts.read, self._options.limit, complete=True)
            self._complete = True
        return self.report()

    def drain(self, why: str) -> None:
        """Sends and admits nothing more. Requests at the servers end; `run` returns when the slowest of them has.

        A record that needs no further request ends. The others are given back: they stay pending, and what their
        steps have made is journaled.
        """
        self._draining = True
        self._stopped_why = self._stopped_why or why
        self._pool.withdraw()
        self._walker.work.withdraw()
        self._room.set()

    async def _feed(self, records: asyncio.TaskGroup) -> AsyncsynthError | None:
        """Takes a credit, then pulls the source: never a row in memory that has no place to go.

        An input that cannot be read on is returned, not raised, so that records in flight are not cancelled.
        """
        rows = self._rows()
        since_turn = 0
        while not self._draining:
            if not self._window.try_take():
                await self._credit()
                continue
            try:
                record = next(rows, None)
            except InputError as error:
                self._window.release(0)
                return error
            if record is None:
                self._window.release(0)
                self._exhausted = True
                if self._window.in_flight and self.counts.read != self._counted_before():
                    self._directory.note_extent(self.counts.read, self._options.limit)
                return None
            self.counts.read += 1
            if self._is_done(record):
                if self._on_rows is not None:
                    await self._on_rows(self._directory.finished_rows(record))
                self._window.release(0)
                since_turn += 1
                if since_turn >= _SKIP_TURN:
                    since_turn = 0
                    await asyncio.sleep(0)
                continue
            size = _weight(record.data)
            self._window.charge(size)
            self.counts.in_flight += 1
            if self._resting:
                self._resting.pop().set_result((record, size))
            else:
                records.create_task(self._work(record, size))
            if self._window.in_flight % _SKIP_TURN == 0:
                await asyncio.sleep(0)  # ramp up in turns: the first records get going
        return None

    async def _credit(self) -> None:
        """Waits until a credit may have come back. Raises StorageError when the journal has failed."""
        if not self._broken:
            self._room.clear()
            await self._room.wait()
        if self._broken:
            await self._directory.flush()

    async def _all_settled(self) -> None:
        """Waits for the records in flight. Raises StorageError."""
        while self._window.in_flight:
            await self._credit()

    def _rows(self) -> Iterator[Record]:
        """Records of the source, up to the limit; a row that is bad on its own ends as failed at once."""
        for position, item in self._reader.placed(self._options.limit, self._options.shard):
            if isinstance(item, BadRow):
                record = Record(str(position), position, {})
                self.counts.read += 1
                if not self._is_done(record):
                    self.counts.failed += 1
                    self.counts.fail(self._directory.bad_row(record, item))
                    self._weigh_failures()
                continue
            key = item.key if item.key is not None else str(position)
            yield Record(key, position, plain_input(key, item.row) if self._foreign_source else item.row)

    def _is_done(self, record: Record) -> bool:
        done = self._directory.claim(record, retry_failed=self._options.retry_failed)
        if done is None:
            return False
        self.counts.earlier += 1
        self.counts.earlier_failed += done.lost_rows
        return True

    async def _work(self, record: Record, size: int) -> None:
        """One record after another, each from credit to acknowledgement; to wake a task costs a third of making one.

        Where nobody takes the rows (`on_rows`), `_settled` hears of a record when it is durable. A resting task that
        is given `None` ends, and so does one in which a step has set context variables: they are that record's.
        """
        context = contextvars.copy_context()
        while True:
            try:
                try:
                    walked = await self._walker.walk(record, self._directory.recall(record))
                except asyncio.CancelledError as error:
                    if self._over:
                        raise
                    walked = await self._walker.cancelled(record, error)
                self._directory.finish(record, walked)
                if self._on_rows is None:
                    self._directory.settle((walked, size))
                else:
                    await self._directory.flush()
                    self._count(walked)
                    if walked.ok:
                        await self._on_rows(walked.rows)
                    self._give_back(size)
            except Withdrawn:
                self._give_back(size)
                return
            except BaseException:
                self._over = True  # the run ends: from now on, cancellations are its own
                self._give_back(size)
                raise
            del record, walked  # not kept while there is nothing to do
            if self._over or contextvars.copy_context() != context:
                return
            rest = self._loop.create_future()
            self._resting.append(rest)
            given = await rest
            if given is None:
                return
            record, size = given
            del given

    def _end_tasks(self) -> None:
        """No record will come, whatever the reason. A step may have kept its task from being cancelled."""
        self._over = True
        for rest in self._resting:
            if not rest.done():
                rest.set_result(None)

    def _settled(self, done: list[tuple[Walked, int]]) -> None:
        """A commit group is on the disk, and with it the last entries of these records."""
        for walked, size in done:
            self._count(walked)
            self.counts.in_flight -= 1
            self._window.release(size)
        self._room.set()

    def _give_back(self, size: int) -> None:
        self.counts.in_flight -= 1
        self._window.release(size)
        self._room.set()

    def _journal_failed(self, _: StorageError) -> None:
        self._broken = True
        self._room.set()

    # --- counting ------------------------------------------------------------------------------

    def _count(self, walked: Walked) -> None:
        counts = self.counts
        if walked.ok:
            counts.ok += 1
        else:
            counts.failed += 1
            self._weigh_failures(walked.failed[0])
        counts.rows += sum(map(len, walked.rows.values()))
        counts.reused_steps += walked.reused
        for failed in walked.failed:
            counts.fail(failed)
        for step, reasons in walked.dropped.items():
            for reason, number in reasons.items():
                counts.dropped[f"{step}: {reason}"] += number

    def _weigh_failures(self, failed: FailedRow | None = None) -> None:
        """Stops the run where a record's failure says that more would be paid in vain, or that it is one too many."""
        if self._draining:
            return
        before, counts = self._before(), self.counts
        if self._failure_limit is not None:
            failures = before.failed + counts.failed
            why = self._failure_limit.exceeded(failures, failures + before.ok + counts.ok)
        elif self._all_alike is None or failed is None:
            return
        elif before.ok or counts.ok or before.earlier + counts.earlier > before.earlier_failed + counts.earlier_failed:
            self._all_alike = None  # the pipeline can do it
            return
        else:
            why = self._all_alike.failed(failed)
            if why and self._directory.any_ended_well():  # of records that the input has not brought yet
                self._all_alike, why = None, ""
        if why:
            self._advice = ADVICE
            self.drain(why)

    def _before(self) -> Counts:
        """What the segments before this one have counted."""
        return Counts()

    def progress(self) -> Progress:
        """A snapshot; cheap enough to take several times a second."""
        now = self._loop.time()
        pool = self._pool.snapshot()
        self._walker.count_answers(self.counts)
        done = self.counts.ok + self.counts.failed
        marks = self._rate_marks
        marks.append((now, done, pool.completion_tokens))
        while len(marks) > 2 and now - marks[0][0] > _RATE_WINDOW_S:
            marks.pop(0)
        since, done_then, tokens_then = marks[0] if len(marks) > 1 else (self._started, 0, 0)
        span = max(now - since, 1e-9)
        return Progress(
            pipeline=self._name,
            elapsed_s=now - self._started,
            counts=self.counts,
            total=self._total(),
            requests_in_flight=sum(replica.in_flight for replica in pool.replicas),
            requests_waiting=pool.waiting,
            completion_tokens=pool.completion_tokens,
            tokens_per_s=(pool.completion_tokens - tokens_then) / span,
            records_per_s=(done - done_then) / span,
            retries=dict(pool.retries),
            servers=server_lines(pool, self._window.why(pool)),
            notes=[*self._plan.notes, *self._pool.notes, *self._walker.work.notes],
            reread_answers=self._answers.reread if self._answers else 0,
        )

    def _keep(self, *, again: bool = True) -> None:
        """Keeps the servers' lines for `asyncsynth status`; again every few seconds until told to end."""
        if self._keeping is not None:
            self._keeping.cancel()
        pool = self._pool.snapshot()
        keep_lines(self._directory.path, server_lines(pool, self._window.why(pool)))
        self._keeping = self._loop.call_later(KEEP_EVERY_S, self._keep) if again else None

    def _total(self) -> int | None:
        known = self._reader.size_hint()
        limit = self._options.limit
        total = limit if known is None else known if limit is None else min(known, limit)
        shard = self._options.shard
        return total if total is None or shard is None else shard.of(total)

    def _counted_before(self) -> int | None:
        """Records of the input, before it is read; None also for a shard by ids, whose number is an estimate."""
        return None if self._options.shard is not None and self._reader.id_column else self._total()

    def latency(self) -> Histogram:
        """How long requests took, in seconds: so far."""
        return self._pool.snapshot().latency

    def report(self) -> RunReport:
        """The run as it stands; final once `run` has returned."""
        pool = self._pool.snapshot()
        self._walker.count_answers(self.counts)
        complete, counts, total = self._complete, self.counts, self._total()
        left = counts.pending if self._exhausted else None
        if left is None and total is not None:
            left = max(0, total - counts.read - self._directory.ended_unread()) + counts.pending
        return RunReport(
            pipeline=self._name,
            directory=self._directory.path,
            complete=complete,
            elapsed_s=self._loop.time() - self._started,
            counts=self.counts,
            answered_by=dict(pool.answered_by),
            requests=pool.paid,
            prompt_tokens=pool.prompt_tokens,
            completion_tokens=pool.completion_tokens,
            retries=dict(pool.retries),
            latency_p50_s=pool.latency.quantile(0.5) if pool.latency.count else None,
            latency_p99_s=pool.latency.quantile(0.99) if pool.latency.count else None,
            stopped_why="" if complete else self._stopped_why,
            advice="" if complete else self._advice,
            total=counts.read if self._exhausted else total,
            unfinished=0 if complete else left or None,
            notes=[
                *self._directory.notes,
                *self._pool.notes,
                *self._walker.work.notes,
                *(self._answers.notes if self._answers else ()),
            ],
            reread_answers=self._answers.reread if self._answers else 0,
            limits=server_lines(pool, self._window.why(pool)),
        )


def _weight(row: Row) -> int:
    """About how many bytes a row holds: cheap, since it runs for every record."""
    size = 256
    for value in row.values():
        size += len(value) if isinstance(value, (str, list, dict)) else 16
    return size
