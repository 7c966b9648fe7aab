"""One stage of a run: feed records into the window, walk each, journal its end, give its credit back.

The stage ends when the source does, when `limit` is reached, when it drains, or when something stops it (a server
that refuses, a disk that fails, an input that cannot be read, too many failures). In every case each record that
was read has ended or is pending, and the next run resumes there. What the steps of a pending record have made is
journaled. The run is complete only when no record is pending. `engine.run_states` has the states.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Iterator
from typing import final

from asyncsynth.client.concurrency import first_error
from asyncsynth.client.server_pool import ServerPool
from asyncsynth.core.stats import Histogram
from asyncsynth.engine import run_states
from asyncsynth.engine.failing import ADVICE, FailureRules
from asyncsynth.engine.following_window import FollowingWindow
from asyncsynth.engine.loop_watch import LoopWatch
from asyncsynth.engine.options import FinishedRows
from asyncsynth.engine.paid_answers import KeptAnswers, has_own_code
from asyncsynth.engine.report import Counts, Progress, RunReport
from asyncsynth.engine.run import Run
from asyncsynth.engine.run_directory import RunDirectory
from asyncsynth.engine.run_states import BROKEN, CLOSED, READING, WHOLE_INPUT, RunState
from asyncsynth.engine.server_lines import KEEP_EVERY_S, keep_lines, server_lines
from asyncsynth.engine.step_exits import exits_are_errors
from asyncsynth.engine.totals import RunTotals, Stop, say_missing
from asyncsynth.engine.walk import Walked, Walker
from asyncsynth.errors import AsyncsynthError, InputError, StorageError, Withdrawn
from asyncsynth.inputs.reader import BadRow, Reader
from asyncsynth.pipeline import SourceStep
from asyncsynth.pipeline.seen import plain_input, runs_foreign_code
from asyncsynth.records import Record, Row
from asyncsynth.storage.entries import FailedRow

#: Rows skipped or failed at once before other coroutines get their turn.
_SKIP_TURN = 256
#: Seconds over which the rates of `Progress` are smoothed.
_RATE_WINDOW_S = 10.0

OnRows = Callable[[FinishedRows], Awaitable[None]]


@final
class Runner:
    """One stage of a run, over one pool, into one directory. Its progress and its report speak for the whole run.

    Args:
        run: the stage, or the run if it has one only.
        totals: what the stages before this one add up to.
        on_rows: awaited with each record's result rows once they are durable, before its credit is given
            back, so that a slow reader is backpressure.
        answers: those that were paid for earlier, and where new ones are kept; None for neither.
    """

    def __init__(
        self,
        run: Run,
        reader: Reader,
        pool: ServerPool,
        directory: RunDirectory,
        totals: RunTotals,
        *,
        on_rows: OnRows | None = None,
        answers: KeptAnswers | None = None,
    ) -> None:
        self._run = run
        self._reader = reader
        self._pool = pool
        self._directory = directory
        self._totals = totals
        self._stage = totals.stage
        self._on_rows = on_rows
        self._answers = answers
        source = run.plan.nodes[0].step
        self._foreign_source = isinstance(source, SourceStep) and runs_foreign_code(source)
        self._walker = Walker(
            run.plan,
            pool,
            run_seed=run.seed,
            save=directory.save_step,
            answers=answers,
            is_ending=lambda: self._is_ending,
        )
        self._loop = asyncio.get_running_loop()
        self._window = FollowingWindow(run.window, run.window_bytes, pool, self._loop.time, share=run.share)
        self._room = asyncio.Event()  #: set when a credit came back, or there is another reason to look
        self._resting: list[asyncio.Future[tuple[Record, int] | None]] = []  #: tasks that have no record
        self._state: RunState = READING
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelled_before = task.cancelling()  #: by a caller that caught it and runs a pipeline nevertheless
        self._has_failed = False  #: the task of a record raised, which ends the run
        directory.watch(self._settled, self._journal_failed)
        self._failure_rules = FailureRules(run.max_failures, directory.any_ended_well)
        self.counts: Counts = Counts()
        has_own = any(has_own_code(node.step) for node in run.plan.nodes)
        self._exits = exits_are_errors(self._loop) if has_own else contextlib.nullcontext()
        self._started = self._loop.time()
        # Rates are this stage's; the pool has counted since the start of the first one.
        self._rate_marks = [(self._started, 0, pool.snapshot().completion_tokens)]
        self._keeping: asyncio.TimerHandle | None = None

    @property
    def _is_ending(self) -> bool:
        """Whether a cancellation is the run's own. Else a step's code caused it, and it costs that record only.

        A loop that closes (`asyncio.run` after a `stream()` was left) cancels the tasks of records and of the run at
        once, in any order.
        """
        return self._has_failed or self._state is CLOSED or self._task.cancelling() > self._cancelled_before

    # --- running -------------------------------------------------------------------------------

    async def run(self) -> bool:
        """Runs the stage to its end. True if every record of its input has ended.

        Raises AsyncsynthError for what stopped it, after everything that was done is safe.
        """
        self._keep()
        try:
            self._directory.note_extent(self._counted_before(), self._run.limit)
            with LoopWatch(self._loop, self._pool.notes.append), self._exits:
                return await self._all_ended()
        finally:
            self._keep(again=False)
            self._walker.work.close()

    async def _all_ended(self) -> bool:
        problem: AsyncsynthError | None = None
        all_read = False
        try:
            async with asyncio.TaskGroup() as records:
                try:
                    problem = await self._feed(records)
                    await self._all_settled()
                    all_read = self._state in WHOLE_INPUT
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
            if self._run.shard is None:  # the parent of several knows how many records the others have
                say_missing(problem, self.report)
            raise problem
        if all_read and self._run.limit is None:
            self._directory.forget_unseen()
        await self._directory.flush()
        if not all_read or self.counts.pending:
            return False
        self._directory.note_extent(self.counts.read, self._run.limit, complete=True)
        self._state = run_states.completed[self._state]
        return True

    def drain(self, why: str, *, advice: str = "") -> None:
        """Sends and admits nothing more. Requests at the servers end; `run` returns when the slowest of them has.

        A record that needs no further request ends. The others are given back: they stay pending, and what their
        steps have made is journaled.
        """
        self._totals.stop_for(Stop(why, advice))
        self._state = run_states.stopped[self._state]
        self._pool.withdraw()
        self._walker.work.withdraw()
        self._room.set()

    async def _feed(self, records: asyncio.TaskGroup) -> AsyncsynthError | None:
        """Takes a credit, then pulls the source: never a row in memory that has no place to go.

        An input that cannot be read on is returned, not raised, so that records in flight are not cancelled.
        """
        rows = self._rows()
        since_turn = 0
        while self._state is READING:
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
                self._state = run_states.ended[self._state]
                if self._window.in_flight and self.counts.read != self._counted_before():
                    self._directory.note_extent(self.counts.read, self._run.limit)
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
        if self._state is not BROKEN:
            self._room.clear()
            await self._room.wait()
        if self._state is BROKEN:
            await self._directory.flush()

    async def _all_settled(self) -> None:
        """Waits for the records in flight. Raises StorageError."""
        while self._window.in_flight:
            await self._credit()

    def _rows(self) -> Iterator[Record]:
        """Records of the source, up to the limit; a row that is bad on its own ends as failed at once."""
        for position, item in self._reader.placed(self._run.limit, self._run.shard):
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
        done = self._directory.claim(record, retry_failed=self._run.retry_failed)
        if done is None:
            return False
        self.counts.earlier += 1
        self.counts.earlier_failed += done.lost_rows
        return True

    async def _work(self, record: Record, size: int) -> None:
        """One record after another, each from credit to acknowledgement: waking a task costs a third of making one.

        Without `on_rows`, `_settled` hears of a record when it is durable. A resting task that gets `None` ends. So
        does a task in which a step has set context variables: they belong to that record.
        """
        context = contextvars.copy_context()
        while True:
            try:
                try:
                    walked = await self._walker.walk(record, self._directory.recall(record))
                except asyncio.CancelledError as error:
                    if self._is_ending:
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
                self._has_failed = True
                self._give_back(size)
                raise
            del record, walked  # not kept while there is nothing to do
            if self._state is CLOSED or contextvars.copy_context() != context:
                return
            rest = self._loop.create_future()
            self._resting.append(rest)
            given = await rest
            if given is None:
                return
            record, size = given
            del given

    def _end_tasks(self) -> None:
        """No record will come, for any reason. A step may have kept its task from being cancelled."""
        self._state = run_states.closed[self._state]
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
        self._state = run_states.broken[self._state]
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
        """Stops the run if a record's failure shows that more would be paid for nothing, or is one too many."""
        if self._totals.stop is None and (why := self._failure_rules.broken(self._totals.before, self.counts, failed)):
            self.drain(why, advice=ADVICE)

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
        since, done_then, tokens_then = marks[0]
        span = max(now - since, 1e-9)
        return Progress(
            pipeline=self._run.name,
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
            notes=[*self._run.plan.notes, *self._pool.notes, *self._walker.work.notes],
            reread_answers=self._answers.reread if self._answers else 0,
            stage=self._totals.name_of(self._stage),
            waits=pool.waits,
        )

    def _keep(self, *, again: bool = True) -> None:
        """Keeps the servers' lines for `asyncsynth status`, every few seconds until the last time."""
        if self._keeping is not None:
            self._keeping.cancel()
        pool = self._pool.snapshot()
        keep_lines(self._directory.path, server_lines(pool, self._window.why(pool)))
        self._keeping = self._loop.call_later(KEEP_EVERY_S, self._keep) if again else None

    def _total(self) -> int | None:
        known = self._reader.size_hint()
        limit = self._run.limit
        total = limit if known is None else known if limit is None else min(known, limit)
        shard = self._run.shard
        return total if total is None or shard is None else shard.of(total)

    def _counted_before(self) -> int | None:
        """Records of the input, before it is read; None for a shard by ids, too: its number is an estimate."""
        return None if self._run.shard is not None and self._reader.id_column else self._total()

    def at_servers(self) -> int | None:
        """Requests that servers have now."""
        return sum(replica.in_flight for replica in self._pool.snapshot().replicas)

    def latency(self) -> Histogram:
        """How long requests took so far, in seconds."""
        return self._pool.snapshot().latency

    def report(self) -> RunReport:
        """The whole run up to now; final once the last stage's `run` has returned."""
        return self._totals.whole(self.stage_report(), self._loop.time())

    def stage_report(self) -> RunReport:
        """This stage alone."""
        pool = self._pool.snapshot()
        self._walker.count_answers(self.counts)
        over = self.counts.read - self.counts.pending + self._directory.ended_unread()
        return RunReport(
            pipeline=self._run.name,
            directory=self._directory.path,
            completeness=self._directory.completeness(over, rows_of=self._totals.rows_of),
            elapsed_s=self._loop.time() - self._started,
            counts=self.counts,
            answered_by=dict(pool.answered_by),
            requests=pool.paid,
            prompt_tokens=pool.prompt_tokens,
            completion_tokens=pool.completion_tokens,
            retries=dict(pool.retries),
            latency_p50_s=pool.latency.quantile(0.5) if pool.latency.count else None,
            latency_p99_s=pool.latency.quantile(0.99) if pool.latency.count else None,
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
    """About how many bytes a row takes. Cheap, since it runs for every record."""
    size = 256
    for value in row.values():
        size += len(value) if isinstance(value, (str, list, dict)) else 16
    return size
