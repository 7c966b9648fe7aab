"""Pipelines with steps over all rows: split at these barriers into segments, each a run of its own.

The last segment lives in the run's own directory, so that results, exports and status are where they always
are; segment k before it in `stage-k` inside. Every segment has its own journal, manifest and resume. What
one hands to the next are rows with keys: a row that did not change is not done again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from asyncsynth.client.server_pool import ServerPool
from asyncsynth.engine.barrier import (
    BarrierCounts,
    BarrierReader,
    BarrierStopped,
    earlier_output,
    pass_barrier,
)
from asyncsynth.engine.changes import Journals, Survey, refusal, survey
from asyncsynth.engine.garbage_collection import fewer_collections
from asyncsynth.engine.options import RunOptions
from asyncsynth.engine.paid_answers import KeptAnswers, open_answers, paid_answers
from asyncsynth.engine.report import Counts, Progress, RunReport
from asyncsynth.engine.run_directory import RunDirectory
from asyncsynth.engine.runner import OnRows, Runner
from asyncsynth.errors import RunChangedError
from asyncsynth.inputs.reader import Reader
from asyncsynth.pipeline import GlobalStep, Node, Plan, RowStep
from asyncsynth.pipeline.fingerprint import short_hash
from asyncsynth.storage import layout
from asyncsynth.storage.manifest import FORMAT, Manifest
from asyncsynth.storage.stage_directories import stage_path

_BARRIER_FORMAT = 1  #: of what a barrier writes


def split(plan: Plan) -> list[Plan]:
    """The plan's segments; the plan itself where there is no barrier. A barrier is the next segment's source.

    Fingerprints of model steps are the whole plan's: moving a barrier costs no model result.
    """
    starts = [0, *(node.index for node in plan.nodes if isinstance(node.step, GlobalStep))]
    if len(starts) == 1:
        return [plan]
    return [_part(plan, start, end) for start, end in zip(starts, [*starts[1:], len(plan.nodes)], strict=True)]


def _part(plan: Plan, start: int, end: int) -> Plan:
    """Nodes `start` to `end`; a barrier stands between all that is before it and all that is after."""
    nodes = [
        Node(
            index=node.index - start,
            step=node.step,
            before=[index - start for index in node.before if index >= start],
            after=[index - start for index in node.after if index < end],
            depth=node.depth - plan.nodes[start].depth,
            fingerprint=node.fingerprint,
            seed_id=node.seed_id,
            depends=node.depends,
        )
        for node in plan.nodes[start:end]
    ]
    if end < len(plan.nodes):
        leaves = {"default": plan.nodes[end].before[0] - start}
    else:
        leaves = {name: index - start for name, index in plan.leaves.items()}
    steps = {node.step.name: plan.fields["steps"][node.step.name] for node in nodes}
    if start:
        steps[nodes[0].step.name] = {**steps[nodes[0].step.name], "after": []}  # what is before is rows
    part_fields = {**plan.fields, "steps": steps}
    carries = any(isinstance(node.step, RowStep) and node.step.learns for node in plan.nodes[end:])
    return Plan(
        nodes,
        leaves,
        part_fields,
        short_hash(part_fields),
        answering=plan.answering,
        notes=plan.notes,
        packages=plan.packages,
        carries=carries,
    )


@dataclass(slots=True)
class Segment:
    """One open segment. `number` counts from 1."""

    number: int
    plan: Plan
    reader: Reader
    options: RunOptions
    directory: RunDirectory
    answers: KeptAnswers | None = None  #: of all segments there is one store


@contextlib.asynccontextmanager
async def open_segments(name: str, plan: Plan, options: RunOptions) -> AsyncIterator[list[Segment]]:
    """Opens, locks and checks the directories of all segments, before any of them runs.

    Raises RunChangedError with the changes and the plan of all segments, and what `RunDirectory.opened` raises.
    """
    plans = split(plan)
    count = len(plans)
    root = options.directory(name)
    there = Manifest.load(root) if options.use_cache else None
    run_format = FORMAT if there is None else there.format
    if options.shard is None:
        layout.refuse_own_places(root)
    segments: list[Segment] = []
    surveys: dict[int, Survey] = {}
    changed = False
    async with contextlib.AsyncExitStack() as stack:
        # The last one first: its directory holds the others', and is set aside with them.
        for number in (count, *range(1, count)):
            part = plans[number - 1]
            before = stage_path(root, number - 1, run_format)
            reader = part.source.open() if number == 1 else BarrierReader(before, _name(part))
            own = options
            if number < count:
                own = replace(options, output=stage_path(root, number, run_format), use_cache=True)
            if number > 1:
                own = replace(own, limit=None)  # counts records of the input
            if changed and not Manifest.exists(own.directory(name)):
                continue  # nothing to say, and nothing to make: the run will not start
            try:
                directory = await stack.enter_async_context(RunDirectory.opened(name, part, reader, own))
            except RunChangedError as error:
                if count == 1 or not isinstance(error.survey, Survey):
                    raise
                surveys[number], changed = error.survey, True
            else:
                segments.append(Segment(number, part, reader, own, directory))
                surveys[number] = directory.survey(part)
        if changed:
            found = [surveys.get(number) or survey(None, part, [], Journals()) for number, part in enumerate(plans, 1)]
            raise refusal(root, found, plan.notes, kept=paid_answers(root, plan, options))
        # One store for all: a step that moves to another segment finds its answers.
        if (store := stack.enter_context(open_answers(root, plan, options))) is not None:
            for segment in segments:
                segment.answers = KeptAnswers(
                    store,
                    segment.plan,
                    run_seed=options.seed,
                    only_own=options.kept_answers() is None,
                    refused=segment.directory.refused,
                )
        yield sorted(segments, key=lambda segment: segment.number)


def _name(plan: Plan) -> str:
    return plan.nodes[0].step.name


async def run_segments(
    name: str,
    segments: Sequence[Segment],
    pool: ServerPool,
    *,
    on_rows: OnRows | None = None,
    on_runner: Callable[[Runner], None] | None = None,
) -> RunReport:
    """Runs one segment after the other, and the barriers between. `on_rows` gets the rows of the last.

    Stops, resumable, at the first segment that does not come to its end. Raises what `Runner.run` raises.
    """
    whole = _Whole(name, segments)
    for segment in segments[1:]:  # what they have of an earlier run is no result until this run has come there
        segment.directory.note_extent(None, None)
    for segment, following in zip(segments, [*segments[1:], None], strict=True):
        runner = whole.runner(segment, pool, on_rows if following is None else None)
        if on_runner is not None:
            on_runner(runner)
        with fewer_collections():
            report = await runner.run()
        if following is None or not isinstance(runner, SegmentRunner):
            return report
        if not runner.may_pass or not await whole.between(segment, following, runner):
            return runner.report()
    raise AssertionError("a pipeline has segments")


@dataclass(slots=True)
class _Whole:
    """What is known of the whole run while its segments come and go."""

    name: str
    segments: Sequence[Segment]
    started: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    earlier: Counts = field(default_factory=Counts)  #: of the segments that are done
    notes: list[str] = field(default_factory=list)

    def runner(self, segment: Segment, pool: ServerPool, on_rows: OnRows | None) -> Runner:
        """The segment's runner; a plain one for a pipeline without barriers."""
        if len(self.segments) > 1:
            return SegmentRunner(self, segment, pool, on_rows)
        plan, reader, directory = segment.plan, segment.reader, segment.directory
        return Runner(
            self.name, plan, reader, pool, directory, segment.options, on_rows=on_rows, answers=segment.answers
        )

    async def between(self, segment: Segment, following: Segment, runner: SegmentRunner) -> bool:
        """Takes the segment's rows through the barrier. False when the run is to stop first."""
        step = following.plan.nodes[0].step
        if not isinstance(step, GlobalStep):
            raise AssertionError(f"{step!r} is no barrier")
        path = segment.directory.path
        fingerprint = short_hash(following.plan.fields["steps"][step.name])
        state = {"format": _BARRIER_FORMAT, "step": fingerprint, "rows": list(segment.directory.state)}
        counts = earlier_output(path, state, self.notes)
        made = counts is None
        if counts is None:
            runner.at_barrier = step.name
            try:
                counts = await _in_thread(step, path, state, runner)
            except BarrierStopped:
                return False
        self.earlier.add(_without_rows(runner.counts))
        if made:
            for reason, number in counts.dropped.items():
                self.earlier.dropped[f"{step.name}: {reason}"] += number
        self.notes.append(_note(segment, runner.counts, step, counts, made=made))
        return not runner.draining


async def _in_thread(step: GlobalStep, path: Path, state: dict[str, object], runner: SegmentRunner) -> BarrierCounts:
    """`pass_barrier` in a thread that ends at its next row when the run drains or is cancelled."""
    cancelled = threading.Event()

    def work() -> BarrierCounts:
        return pass_barrier(step, path, state, lambda: cancelled.is_set() or runner.draining)

    thread = asyncio.create_task(asyncio.to_thread(work), name=f"asyncsynth {step.name}")
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        cancelled.set()
        # Waited for: nothing may be writing there when the directory is let go.
        await asyncio.wait([thread])
        if not thread.cancelled():
            thread.exception()
        raise


def _without_rows(counts: Counts) -> Counts:
    """A segment's counts for the whole run's: rows that a next segment takes are no result rows."""
    return replace(counts, rows=0)


def _note(segment: Segment, counts: Counts, step: GlobalStep, barrier: BarrierCounts, *, made: bool) -> str:
    dropped = ", ".join(f"{reason} {number}" for reason, number in sorted(barrier.dropped.items()))
    return (
        f"segment {segment.number}: {counts.ok} ok, {counts.failed} failed, {counts.earlier} done earlier; "
        f"{step.name}{'' if made else ' (earlier)'}: {barrier.kept} of {barrier.read} rows kept"
        + (f", dropped: {dropped}" if dropped else "")
    )


class SegmentRunner(Runner):
    """A `Runner` that speaks for the whole run: its report counts the segments before, and is complete only
    at the last one's end; its progress names the segment and counts it alone."""

    def __init__(self, whole: _Whole, segment: Segment, pool: ServerPool, on_rows: OnRows | None) -> None:
        super().__init__(
            whole.name, segment.plan, segment.reader, pool, segment.directory, segment.options, on_rows=on_rows,
            answers=segment.answers,
        )  # fmt: skip
        self._whole = whole
        self._number = segment.number
        # Rates are this segment's: the pool has counted since the first one's start.
        self._rate_marks.append((self._started, 0, pool.snapshot().completion_tokens))
        self.at_barrier = ""  #: name of the step over all rows that its rows are going through

    def _before(self) -> Counts:
        return self._whole.earlier

    @property
    def draining(self) -> bool:
        """Whether the run was told to end early."""
        return self._draining

    @property
    def may_pass(self) -> bool:
        """Whether the segment came to its end, and the run is to go on."""
        return super().report().complete and not self._draining

    def progress(self) -> Progress:
        progress = super().progress()
        progress.segment = f"{self._number}/{len(self._whole.segments)}"
        if self.at_barrier:
            progress.segment += f", {self.at_barrier}"
        return progress

    def report(self) -> RunReport:
        report = super().report()
        last = self._whole.segments[-1]
        counts = Counts()
        counts.add(self._whole.earlier)
        counts.add(report.counts if self._number == last.number else _without_rows(report.counts))
        complete = report.complete and self._number == last.number
        return replace(
            report,
            directory=last.directory.path,
            complete=complete,
            counts=counts,
            elapsed_s=self._loop.time() - self._whole.started,
            stopped_why="" if complete else self._stopped_why,
            unfinished=report.unfinished or (0 if complete else None),
            segment="" if complete else f"{self._number}/{last.number}",
            notes=[*self._whole.notes, *report.notes],
            reread_answers=sum(part.answers.reread for part in self._whole.segments if part.answers is not None),
        )
