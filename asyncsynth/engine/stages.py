"""Pipelines with steps over all rows: split at these barriers into stages, each a run of its own.

The last stage lies in the run's own directory, where results, exports and status always are. The stages before it lie
in folders inside (`storage.stage_directories`). Each has a journal, a manifest and a resume of its own. Stages hand on
rows with keys: a row that did not change is not done again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from asyncsynth.engine.paid_answers import KeptAnswers, open_answers, paid_answers
from asyncsynth.engine.report import Counts, RunReport
from asyncsynth.engine.run import Run
from asyncsynth.engine.run_directory import RunDirectory
from asyncsynth.engine.runner import OnRows, Runner
from asyncsynth.engine.totals import RunTotals
from asyncsynth.errors import RunChangedError
from asyncsynth.inputs.reader import Reader
from asyncsynth.pipeline import GlobalStep, Node, Plan, RowStep
from asyncsynth.pipeline.fingerprint import short_hash
from asyncsynth.storage import layout
from asyncsynth.storage.manifest import FORMAT, Manifest
from asyncsynth.storage.stage_directories import stage_path

_BARRIER_FORMAT = 1  #: of what a barrier writes


def split(plan: Plan) -> list[Plan]:
    """The plans of the stages; the plan itself if there is no barrier. A barrier is the next stage's source.

    Fingerprints of model steps are the whole plan's: moving a barrier costs no model result.
    """
    starts = [0, *(node.index for node in plan.nodes if isinstance(node.step, GlobalStep))]
    if len(starts) == 1:
        return [plan]
    return [_part(plan, start, end) for start, end in zip(starts, [*starts[1:], len(plan.nodes)], strict=True)]


def _part(plan: Plan, start: int, end: int) -> Plan:
    """Nodes `start` to `end`. A barrier separates everything before it from everything after it."""
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
        steps[nodes[0].step.name] = {**steps[nodes[0].step.name], "after": []}  # what comes before is rows
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
class Stage:
    """One open stage. `number` counts from 1."""

    number: int
    run: Run
    reader: Reader
    directory: RunDirectory
    answers: KeptAnswers | None = None  #: one store serves all stages


@contextlib.asynccontextmanager
async def open_stages(run: Run) -> AsyncIterator[list[Stage]]:
    """Opens, locks and checks the directories of all stages, before any of them runs.

    Raises RunChangedError with the changes and the plan of all stages, and what `RunDirectory.opened` raises.
    """
    plans = split(run.plan)
    count = len(plans)
    there = Manifest.load(run.directory) if run.use_cache else None
    folders = _Folders(run.directory, count, FORMAT if there is None else there.format)
    if run.shard is None:
        layout.refuse_own_places(run.directory)
    stages: list[Stage] = []
    surveys: dict[int, Survey] = {}
    changed = False
    async with contextlib.AsyncExitStack() as stack:
        # The last one first: its directory holds the others', and is set aside with them.
        for number in (count, *range(1, count)):
            own = _stage(run, plans[number - 1], number, folders)
            reader = _reader(own.plan, number, folders)
            if changed and not Manifest.exists(own.directory):
                continue  # nothing to say, and nothing to make: the run will not start
            try:
                directory = await stack.enter_async_context(RunDirectory.opened(own, reader))
            except RunChangedError as error:
                if count == 1 or not isinstance(error.survey, Survey):
                    raise
                surveys[number], changed = error.survey, True
            else:
                stages.append(Stage(number, own, reader, directory))
                surveys[number] = directory.survey(own.plan)
        if changed:
            found = [surveys.get(number) or survey(None, part, [], Journals()) for number, part in enumerate(plans, 1)]
            raise refusal(run.directory, found, run.plan.notes, kept=paid_answers(run))
        # One store for all: a step that moves to another stage finds its answers.
        if (store := stack.enter_context(open_answers(run))) is not None:
            for stage in stages:
                stage.answers = KeptAnswers(
                    store,
                    stage.run.plan,
                    run_seed=run.seed,
                    only_own=run.answers is None,
                    refused=stage.directory.refused,
                )
        yield sorted(stages, key=lambda stage: stage.number)


@dataclass(frozen=True, slots=True)
class _Folders:
    """Where the stages of a run lie: the last one in the run's directory, the others in folders inside it."""

    root: Path
    count: int
    format: int  #: of the run's manifest; it decides the folders' names

    def of(self, number: int) -> Path:
        """The directory of stage `number`, from 1."""
        return self.root if number == self.count else stage_path(self.root, number, self.format)


def _stage(run: Run, plan: Plan, number: int, folders: _Folders) -> Run:
    """One stage of a run. `limit` counts records of the input, which only the first stage reads."""
    own = replace(run, plan=plan, directory=folders.of(number))
    if number < folders.count:
        own = replace(own, use_cache=True)  # set aside with the last one's
    return own if number == 1 else replace(own, limit=None)


def _reader(plan: Plan, number: int, folders: _Folders) -> Reader:
    if number == 1:
        return plan.source.open()
    return BarrierReader(folders.of(number - 1), plan.nodes[0].step.name)


async def run_stages(
    stages: Sequence[Stage],
    pool: ServerPool,
    *,
    found: list[dict[str, Any]] | None = None,
    on_rows: OnRows | None = None,
    on_runner: Callable[[Runner], None] | None = None,
) -> RunReport:
    """Runs one stage after the other, and the barriers between.

    Stops, resumable, at the first stage that does not finish.

    Args:
        found: what the tests of the servers found, for the report.
        on_rows: gets the rows of the last stage.
        on_runner: gets the Runner of each stage.

    Raises what `Runner.run` raises.
    """
    places = [stage.directory.path for stage in stages]
    totals = RunTotals(places, asyncio.get_running_loop().time(), found or [])
    for stage in stages[1:]:  # their rows of an earlier run are no result until this run has come there
        stage.directory.note_extent(None, None)
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        runner = Runner(
            stage.run,
            stage.reader,
            pool,
            stage.directory,
            totals,
            on_rows=on_rows if following is None else None,
            answers=stage.answers,
        )
        if on_runner is not None:
            on_runner(runner)
        with fewer_collections():
            ended = await runner.run()
        if following is None or not ended or totals.stop is not None:
            return runner.report()
        if not await _pass_on(stage, following.run.plan, runner, totals):
            return runner.report()
    raise AssertionError("a pipeline has stages")


async def _pass_on(stage: Stage, following: Plan, runner: Runner, totals: RunTotals) -> bool:
    """Takes a stage's rows through the barrier after it. False if the run must stop first."""
    step = following.nodes[0].step
    if not isinstance(step, GlobalStep):
        raise AssertionError(f"{step!r} is no barrier")
    path = stage.directory.path
    fingerprint = short_hash(following.fields["steps"][step.name])
    state = {"format": _BARRIER_FORMAT, "step": fingerprint, "rows": list(stage.directory.state)}
    counts = earlier_output(path, state, totals.notes)
    made = counts is None
    totals.at_barrier = step.name
    if counts is None:
        try:
            counts = await _in_thread(step, path, state, totals)
        except BarrierStopped:
            return False
    if totals.stop is not None:
        return False
    note = _note(stage, runner.counts, step, counts, made=made)
    totals.passed(runner.stage_report(), note, counts.dropped if made else {})
    return True


async def _in_thread(step: GlobalStep, path: Path, state: dict[str, object], totals: RunTotals) -> BarrierCounts:
    """`pass_barrier` in a thread that ends at its next row when the run drains or is cancelled."""
    cancelled = threading.Event()

    def work() -> BarrierCounts:
        return pass_barrier(step, path, state, lambda: cancelled.is_set() or totals.stop is not None)

    thread = asyncio.create_task(asyncio.to_thread(work), name=f"asyncsynth {step.name}")
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        cancelled.set()
        # Waits for it: nothing may be writing there when the directory is let go.
        await asyncio.wait([thread])
        if not thread.cancelled():
            thread.exception()
        raise


def _note(stage: Stage, counts: Counts, step: GlobalStep, barrier: BarrierCounts, *, made: bool) -> str:
    dropped = ", ".join(f"{reason} {number}" for reason, number in sorted(barrier.dropped.items()))
    return (
        f"stage {stage.number}: {counts.ok} ok, {counts.failed} failed, {counts.earlier} done earlier; "
        f"{step.name}{'' if made else ' (earlier)'}: {barrier.kept} of {barrier.read} rows kept"
        + (f", dropped: {dropped}" if dropped else "")
    )
