"""One record's way through the graph, in one coroutine; branches of a fan-out side by side.

A record may become several rows on its way (a list of questions expanded, several generations); each row
has a key of its own (`17`, `17.0`, `17.1.3`) and fails or succeeds on its own. Joins match rows by key.

No row is lost silently: for every step, the rows that come in, each counted as often as the step expands it,
are those that go out, those that failed and those that were dropped for a reason (see `engine.joins` for joins).
What a step returns is JSON from then on (`records.plain_json`): a value that is not fails its row, here and at once,
so that a run that was interrupted and one that was not have the same values.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from asyncsynth.client.concurrency import all_or_error, first_error
from asyncsynth.client.messages import Completion, ModelRequest
from asyncsynth.client.server_pool import ServerPool
from asyncsynth.engine.joins import Item, Loss, matched, related
from asyncsynth.engine.paid_answers import KeptAnswers
from asyncsynth.engine.report import Counts
from asyncsynth.errors import AsyncsynthError, ParseFailure, RecordError, Withdrawn
from asyncsynth.pipeline import Context, Dropped, GlobalStep, JoinStep, ModelStep, Node, Plan, RowStep
from asyncsynth.pipeline.functions import checked_outputs
from asyncsynth.pipeline.lanes import Work
from asyncsynth.pipeline.making import (
    CARRIED,
    Making,
    Makings,
    given_makings,
    makings_of,
    with_carried,
    without_carried,
)
from asyncsynth.pipeline.seen import SeenRow, keepable, plain_row, row_error, runs_foreign_code
from asyncsynth.pipeline.step import Step
from asyncsynth.records import Record, Row, content_hash, not_json, plain_json
from asyncsynth.storage.entries import FailedRow, StepResult

SaveStep = Callable[[Record, str, list[StepResult]], None]
Recall = Callable[[str], Mapping[str, StepResult]]

#: Room for record positions below a step's place in a call's priority.
_DEPTH_SHIFT = 44


@dataclass(slots=True)
class Walked:
    """What became of a record."""

    rows: dict[str, list[Row]]  #: leaf -> rows, in order
    failed: list[FailedRow] = field(default_factory=list)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)  #: step -> reason -> rows
    unsaved: list[tuple[str, list[StepResult]]] = field(default_factory=list)  #: results not yet journaled
    reused: int = 0  #: step results taken from the journal

    @property
    def ok(self) -> bool:
        """False when every row that the record had was lost to failures."""
        return not self.failed or any(self.rows.values())


class Walker:
    """Walks records through one plan. Holds nothing of a record between calls.

    Args:
        plan: the checked pipeline.
        pool: where requests go.
        run_seed: what random choices and request seeds are made of.
        save: journals a finished step's results while its record continues.
        answers: those that were paid for earlier, and where new ones are kept; None for neither.
        is_ending: whether the run cancels its records. A cancellation at any other time comes from a step's own code.
    """

    def __init__(
        self,
        plan: Plan,
        pool: ServerPool,
        *,
        run_seed: int,
        save: SaveStep,
        answers: KeptAnswers | None = None,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._plan = plan
        self._pool = pool
        self._run_seed = run_seed
        self._save = save
        self._answers = answers
        self._is_ending = is_ending
        self.work = Work()  #: threads and processes of its steps; the walker's creator closes it
        self._answered = [0] * len(plan.nodes)  #: answers got, by node
        self._cut: Counter[tuple[int, str]] = Counter()  #: by node and the setting that cut them
        self._is_carried = isinstance(plan.nodes[0].step, GlobalStep)  # rows may bring makings
        self._learns = plan.carries or any(isinstance(n.step, RowStep) and n.step.learns for n in plan.nodes)
        # Steps are abstract base classes: asking for every record which of them ask a model would cost more than the
        # rest here.
        self._nodes = [
            (node, node.step, self._ask if node.step.journal else self._compute)
            if isinstance(node.step, ModelStep)
            else (node, None, self._ask)
            for node in plan.nodes
        ]
        self._after_source = self._nodes[1:]
        self._generate = [self._generator(node.step) for node in plan.nodes]
        self._linear = all(len(node.after) <= 1 for node in plan.nodes)
        self._leaf = next(iter(plan.leaves))  #: of a linear plan, the only one
        self._carries = plan.carries
        is_plain = self._linear and len(plan.nodes) > 1 and not self._is_carried
        self._first = self._sees_records(plan.nodes[1]) if is_plain else None
        self._waits_for = [len(node.before) for node in plan.nodes]
        self._model_steps = len(plan.model_steps)
        self._foreign = [runs_foreign_code(node.step) for node in plan.nodes]
        self._upstream: list[frozenset[str]] = []  # by node: the names of the steps that lead to it, its own included
        for node in plan.nodes:
            before = (self._upstream[index] for index in node.before)
            self._upstream.append(frozenset({node.step.name}).union(*before))

    @staticmethod
    def _sees_records(node: Node) -> Node | None:
        """The node after the source, if what its step sees of a record is some of its columns, by their own names."""
        return node if not node.step.input_mappings and type(node.step).view is Step.view else None

    def _generator(self, step: Step) -> Callable[[Row, Context], Awaitable[list[Row]]] | None:
        """How a model step is called: itself, or with what few steps need."""
        if not isinstance(step, ModelStep):
            return None
        if step.needs_work:
            return partial(self._generate_with_work, step)
        return step.generate if step.timeout is None else partial(_generate_in_time, step)

    async def _generate_with_work(self, step: ModelStep, row: Row, ctx: Context) -> list[Row]:
        ctx.equip(work=self.work, keep=ctx.keep)
        return await step.generate(row, ctx)

    def count_answers(self, counts: Counts) -> None:
        """Writes how many answers each step has paid for so far, and how many of them were cut off."""
        names = [node.step.name for node in self._plan.nodes]
        counts.answers = Counter({names[at]: n for at, n in enumerate(self._answered) if n})
        counts.cut = Counter({f"{names[at]}: {limit}": n for (at, limit), n in self._cut.items()})

    async def walk(self, record: Record, recall: Recall) -> Walked:
        """Takes a record through all steps. Raises only what must stop the run, never for the record's sake.

        Raises Withdrawn when the run stops and the record would need another request. What its steps have made is
        journaled then, and what is at the servers for it has ended.
        """
        way = _Way(record, recall, self._model_steps, self._run_seed)
        items = [(record.key, record.data)]
        if self._learns:
            way.results = []
        if self._is_carried and CARRIED in record.data:
            row, way.carried = without_carried(record.data)
            items = [(record.key, row)]
        if self._linear:
            for node, model_step, ask in self._after_source:
                if model_step is not None:
                    items = await ask(way, node, model_step, items)
                    if way.withdrawn:
                        raise Withdrawn
                else:
                    items = self._step(way, node, [items])
            # A comprehension is a call, and most records have one row.
            rows = {self._leaf: [items[0][1]] if len(items) == 1 else [row for _, row in items]}
        else:
            made: list[list[Item]] = [[] for _ in self._nodes]
            made[0] = items
            waiting = list(self._waits_for)
            try:
                async with asyncio.TaskGroup() as branches:
                    await self._advance(way, 0, made, waiting, branches)
            except BaseExceptionGroup as errors:
                raise first_error(errors) from errors
            if way.withdrawn:
                raise Withdrawn
            rows = {name: [row for _, row in made[index]] for name, index in self._plan.leaves.items()}
        if self._carries:
            rows = {leaf: [self._carrying(way, row) for row in made_rows] for leaf, made_rows in rows.items()}
        return Walked(rows, way.failed, way.dropped, way.unsaved, way.reused)

    async def cancelled(self, record: Record, error: BaseException) -> Walked:
        """What becomes of a record whose task a step's code cancelled beyond that step's end: it fails."""
        task = asyncio.current_task()
        way = _Way(record, lambda _: {}, 0, self._run_seed)
        if task is not None:
            await self._forget_cancellation(way, task)
        foreign = [node.step for node in self._plan.nodes if self._foreign[node.index]]
        way.end(record.key, (foreign or [self._plan.nodes[0].step])[0], error, record.data)
        return Walked({leaf: [] for leaf in self._plan.leaves}, way.failed)

    @staticmethod
    def _carrying(way: _Way, row: Row) -> Row:
        """The row with what is known of its texts, for the steps after a step over all rows."""
        return with_carried(row, way.makings().carried(row))

    async def _advance(
        self, way: _Way, index: int, made: list[list[Item]], waiting: list[int], branches: asyncio.TaskGroup
    ) -> None:
        """Runs a node, then what it makes ready: one successor here, the others as branches of their own."""
        here: int | None = index
        while here is not None:
            node, model_step, ask = self._nodes[here]
            if model_step is not None:
                made[here] = await ask(way, node, model_step, made[node.before[0]])
                if way.withdrawn:
                    return  # quietly: an error would cancel what other branches have at the servers
            elif node.before:
                made[here] = self._step(way, node, [made[index] for index in node.before])
            ready = []
            for index in node.after:
                waiting[index] -= 1
                if waiting[index] == 0:
                    ready.append(index)
            for other in ready[1:]:
                branches.create_task(self._advance(way, other, made, waiting, branches))
            here = ready[0] if ready else None

    def _step(self, way: _Way, node: Node, branches: list[list[Item]]) -> list[Item]:
        """What a step that asks no model makes of the rows of its predecessors."""
        step, is_foreign = node.step, self._foreign[node.index]
        if isinstance(step, JoinStep):
            return way.join(step, branches, [self._upstream[index] for index in node.before], is_foreign)
        if isinstance(step, RowStep):
            return [made for item in branches[0] for made in way.apply(step, item, is_foreign)]
        raise AssertionError(f"{step!r} is no kind of step the engine knows")

    async def _ask(self, way: _Way, node: Node, step: ModelStep, items: list[Item]) -> list[Item]:
        known = way.recall(node.fingerprint)
        answered: Iterable[tuple[Item, tuple[StepResult, bool] | None]]
        if len(items) == 1:
            answered = ((items[0], await self._ask_row(way, node, step, items[0], known)),)
        else:
            results = await all_or_error([self._ask_row(way, node, step, item, known) for item in items])
            answered = zip(items, results, strict=True)
        way.models_left -= 1
        kept: list[StepResult] = []
        made: list[Item] = []
        any_fresh = False
        for item, done in answered:
            if done is not None:
                result, is_fresh = done
                any_fresh = any_fresh or is_fresh
                kept.append(result)
                if way.results is not None and step.models():
                    way.results.append((node, step, item, result))
                outputs = result.outputs
                if len(outputs) == 1:
                    made.append((item[0], step.merge(item[1], outputs[0])))
                else:
                    made += way.several(step, item, outputs)
        if any_fresh:
            if way.models_left > 0 or way.withdrawn:
                self._save(way.record, node.fingerprint, kept)
            else:
                way.unsaved.append((node.fingerprint, kept))  # rides in the record's last entry
        return made

    async def _compute(self, way: _Way, node: Node, step: ModelStep, items: list[Item]) -> list[Item]:
        """As `_ask`, for a step whose results the journal does not keep."""
        results = await all_or_error([self._ask_row(way, node, step, item, {}) for item in items])
        way.models_left -= 1
        made: list[Item] = []
        for item, done in zip(items, results, strict=True):
            if done is not None:
                made += way.several(step, item, done[0].outputs)
        return made

    async def _ask_row(
        self, way: _Way, node: Node, step: ModelStep, item: Item, known: Mapping[str, StepResult]
    ) -> tuple[StepResult, bool] | None:
        """(result, whether it is new), or None when the row failed, which is noted."""
        key, row = item
        record = way.record
        is_foreign = self._foreign[node.index]
        try:
            view = step.view(row)
            # The hash of a whole record is known.
            digest = record.digest if node is self._first and len(view) == len(row) else content_hash(view)
        except Exception as error:
            found = not_json(row) if isinstance(error, TypeError) else None
            if found is not None:  # a step before has changed a value inside its row
                message = f"the column {found[0]!r} is {found[1]}, which JSON cannot carry unchanged"
                error = RecordError(message, reason="not_json")
            way.end(key, step, error, row)
            return None
        old = known.get(key)
        if old is not None and old.input_hash == digest:
            way.reused += 1
            return old, False
        # Later steps first, then older records: what is in flight ends before new work begins.
        priority = (-node.depth << _DEPTH_SHIFT) + record.position
        send = partial(self._pool.send, priority=priority)
        asker = None if self._answers is None else self._answers.asker(node, record.key, key, send)
        if asker is None:
            ctx = Context(key, self._run_seed, node.seed_id, send)  # by position: keywords would cost a dict
        else:
            ctx = Context(key, self._run_seed, node.seed_id, asker.send)
            if step.needs_work:
                ctx.equip(keep=asker.keep)
        generate = self._generate[node.index]
        assert generate is not None
        try:
            try:
                made = await generate(SeenRow(view) if is_foreign else view, ctx)
            except asyncio.CancelledError:
                raise
            except BaseException:
                if is_foreign or ctx.stopped is not None:
                    self._raise_stop(way, ctx)
                raise
            if is_foreign or ctx.stopped is not None:
                self._raise_stop(way, ctx)
            if asker is not None and asker.reread:
                ctx.notes["reread"] = asker.reread  # of its calls, those that cost nothing this time
            if is_foreign:
                outputs, notes = _foreign_outputs(made, ctx.provenance(), step)
            else:
                outputs, notes = _plain_outputs(made), ctx.provenance()
        except Withdrawn:
            way.withdrawn = True
            return None
        except asyncio.CancelledError as error:
            if way.is_ending or self._is_ending():
                raise
            way.end(key, step, error, view)  # the step's own code cancelled something: this row's matter alone
            return None
        except BaseException as error:  # SystemExit too: a step decides on its row, and not on the run
            if isinstance(error, KeyboardInterrupt) or (isinstance(error, GeneratorExit) and not _has_task()):
                raise
            way.end(key, step, error, view)
            return None
        finally:
            if is_foreign and (task := asyncio.current_task()) is not None and task.cancelling():
                await self._forget_cancellation(way, task)
            self._answered[node.index] += len(ctx.completions)
            if ctx.cut:
                for request, _ in ctx.cut:
                    self._cut[node.index, step.limit_of(request)] += 1
        return StepResult(key, digest, outputs, notes), True

    def _raise_stop(self, way: _Way, ctx: Context) -> None:
        """Raises what stops the run, if the step's own code caught it: whatever it made of that is no result."""
        if ctx.stopped is not None:
            raise ctx.stopped from None
        task = asyncio.current_task()
        if task is not None and task.cancelling() and (way.is_ending or self._is_ending()):
            raise asyncio.CancelledError

    async def _forget_cancellation(self, way: _Way, task: asyncio.Task[Any]) -> None:
        """Takes back a step's cancellation of the task that it runs in, which would end the record later on."""
        if way.is_ending or self._is_ending():
            return
        while task.cancelling():
            task.uncancel()
        try:
            await asyncio.sleep(0)  # one that was requested and not yet raised
        except asyncio.CancelledError:
            if way.is_ending or self._is_ending():
                raise


async def _generate_in_time(step: ModelStep, row: Row, ctx: Context) -> list[Row]:
    assert step.timeout is not None
    return await ctx.in_time(step.timeout, step.generate(row, ctx))


def _has_task() -> bool:
    """False if a coroutine is being closed after its event loop has ended."""
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


def _plain_outputs(outputs: list[Row]) -> list[Row]:
    """The outputs of a task of this package; its columns are its own. Raises NotPlainJson."""
    for output in outputs:
        try:
            text = "".join(output.values())  # most are text, and most of that is ASCII: joined, it is one look
        except TypeError:
            return [plain_json(output) for output in outputs]
        if not text.isascii() and not _is_unicode(text):
            return [plain_json(output) for output in outputs]
    return outputs


def _is_unicode(text: str) -> bool:
    """False for a text with a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _foreign_outputs(made: Any, notes: dict[str, Any], step: ModelStep) -> tuple[list[Row], dict[str, Any]]:
    """The outputs of a user's step and the notes kept with them. Raises RecordError and NotPlainJson."""
    if not isinstance(made, (list, tuple)):
        raise RecordError(
            f"{type(step).__name__}.generate returned {type(made).__name__}; a list of dicts was expected",
            reason="bad_output",
        )
    rows = [plain_row(output, f"{type(step).__name__}.generate") for output in made]
    if step.outputs:  # a step that declares none may return what it likes
        for row in rows:
            checked_outputs(row, step.outputs, where=step.name)
    return rows, plain_json({"ctx.notes": notes})["ctx.notes"]


async def _sends_nothing(request: ModelRequest) -> Completion:
    raise AssertionError(f"a finished result is only read, and asks nothing: {request.model}")


class _Way:
    """What is known of one record while it walks."""

    # What most records leave as it is costs nothing here; with slots it would have to be set for each.
    reused: int = 0
    withdrawn: bool = False  #: a request was refused because the run stops
    is_ending: bool = False  #: an error of this record ends the run
    carried: Sequence[Making] = ()  #: of texts made or given before a step over all rows
    results: list[tuple[Node, ModelStep, Item, StepResult]] | None = None  #: kept where a step learns from them
    _makings: tuple[int, Makings] | None = None  #: of this many results
    _dropped_keys: list[tuple[str, str]] | tuple[()] = ()  #: row key, step; for the joins

    def __init__(self, record: Record, recall: Recall, model_steps: int, run_seed: int) -> None:
        self.record = record
        self.recall = recall
        self.models_left = model_steps
        self.failed: list[FailedRow] = []
        self.dropped: dict[str, dict[str, int]] = {}
        self.unsaved: list[tuple[str, list[StepResult]]] = []
        self.run_seed = run_seed

    def makings(self) -> Makings:
        """How the record's texts were made, as far as it has come."""
        results = self.results or []
        if self._makings is None or self._makings[0] != len(results):
            found = list(self.carried) or given_makings(self.record.data)
            for node, step, (key, row), result in results:
                # A choice that a result has no note of was made by an earlier version, which chose by the fingerprint.
                ctx = Context(key=key, run_seed=self.run_seed, step_id=node.fingerprint, send=_sends_nothing)
                meta = ctx.notes = result.meta or {}
                sent = partial(step.system_sent, step.view(row), ctx)
                samples = step.samples(result.outputs)
                found += makings_of(samples, meta, is_answer=step.answers_prompt(), prompt_of=sent)
            self._makings = (len(results), Makings(found))
        return self._makings[1]

    def fail(self, key: str, step: Step, error: RecordError) -> None:
        """Notes a row's end."""
        raw = error.raw or "" if error.raw is not None or isinstance(error, ParseFailure) else None
        reason, message = keepable(error.reason), keepable(error.message)
        self.failed.append(FailedRow(key, step.name, reason, message, error.attempts, raw))

    def drop(self, key: str, step: Step, reason: str) -> None:
        """Counts a row that is left out."""
        reason = keepable(reason)
        reasons = self.dropped.setdefault(step.name, {})
        reasons[reason] = reasons.get(reason, 0) + 1
        if not self._dropped_keys:
            self._dropped_keys = []
        self._dropped_keys.append((key, step.name))

    def end(self, key: str, step: Step, error: BaseException, row: Row) -> None:
        """A step raised on a row: its end, by the cause. Raises the error itself where it must stop the run."""
        if isinstance(error, BaseExceptionGroup):  # of a TaskGroup in the step's code
            error = first_error(error)
        if isinstance(error, Dropped):
            self.drop(key, step, error.reason)
        elif isinstance(error, AsyncsynthError) and not isinstance(error, RecordError):
            self.is_ending = True
            raise error
        else:
            self.fail(key, step, row_error(error, row))

    def several(self, step: ModelStep, item: Item, outputs: list[Row]) -> list[Item]:
        """The rows that outputs make of a row. Where there are several, each has a key of its own."""
        key, row = item
        if len(outputs) == 1:
            return [(key, step.merge(row, outputs[0]))]
        if not outputs:
            self.drop(key, step, "no_rows")
        return [(f"{key}.{number}", step.merge(row, output)) for number, output in enumerate(outputs)]

    def lost(self, key: str, steps: frozenset[str]) -> Loss | None:
        """What one of `steps` did to a row of that key, to the row that it was made of or to one made of it."""
        if any(failed.step in steps and related(failed.key, key) for failed in self.failed):
            return "failed"
        if any(step in steps and related(dropped, key) for dropped, step in self._dropped_keys):
            return "dropped"
        return None

    def apply(self, step: RowStep, item: Item, is_foreign: bool) -> list[Item]:
        """A row step on one row; what it raises ends that row only."""
        key, row = item
        try:
            seen = row if not is_foreign else SeenRow(row)
            made = step.apply_knowing(seen, self.makings()) if step.learns else step.apply(seen)
            if is_foreign:
                made = _foreign_rows(made, step)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.end(key, step, error, row)
            return []
        if isinstance(made, dict):
            return [(key, made)]
        if not made:
            self.drop(key, step, "no_rows")
        return [(f"{key}.{number}", child) for number, child in enumerate(made)]

    def join(
        self, step: JoinStep, branches: list[list[Item]], upstream: list[frozenset[str]], is_foreign: bool
    ) -> list[Item]:
        """One row of the rows that the branches made of one, matched by key. `upstream`: the steps of each branch."""
        joined: list[Item] = []
        together = matched(
            step,
            branches,
            self.record.key,
            lambda key, branch: self.lost(key, upstream[branch]),
            lambda key, reason: self.drop(key, step, reason),
        )
        for key, rows in together:
            try:
                if is_foreign:
                    seen: list[Row] = [SeenRow(row) for row in rows]
                    joined.append((key, plain_row(step.join(seen), f"{type(step).__name__}.join")))
                else:
                    joined.append((key, step.join(rows)))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self.end(key, step, error, {column: None for row in rows for column in row})
        return joined


def _foreign_rows(made: Any, step: RowStep) -> Row | list[Row]:
    """The row or rows of a user's step. Raises RecordError and NotPlainJson."""
    what = f"{type(step).__name__}.apply"
    is_several = isinstance(made, Iterable) and not isinstance(made, (Mapping, str, bytes))
    rows = [plain_row(row, what) for row in (made if is_several else [made])]
    for output in step.outputs:
        if any(step.target_of(output) not in row for row in rows):
            message = f"{what} returned a row without {step.target_of(output)!r}, which the step's outputs declare"
            raise RecordError(message, reason="bad_output")
    return rows if is_several else rows[0]
