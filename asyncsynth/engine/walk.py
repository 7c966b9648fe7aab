"""One record's way through the graph, in one coroutine; branches of a fan-out side by side.

A record may become several rows on its way (a list of questions expanded, several generations); each row
has a key of its own (`17`, `17.0`, `17.1.3`) and fails or succeeds on its own. Joins match rows by key.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from asyncsynth.client.concurrency import all_or_error, first_error
from asyncsynth.client.messages import Completion, ModelRequest
from asyncsynth.client.pool import ServerPool
from asyncsynth.engine.report import Counts
from asyncsynth.errors import AsyncsynthError, ParseFailure, RecordError
from asyncsynth.pipeline import Context, Dropped, GlobalStep, JoinStep, ModelStep, Node, Plan, RowStep
from asyncsynth.pipeline.making import CARRIED, Making, Makings, carried_makings, makings_of
from asyncsynth.pipeline.step import Step
from asyncsynth.records import Record, Row, content_hash
from asyncsynth.storage.entries import FailedRow, StepResult

Item = tuple[str, Row]  #: row key, row
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
        send: `ServerPool.send`, or anything like it.
        save: journals a finished step's results while the record goes on.
    """

    def __init__(self, plan: Plan, pool: ServerPool, *, run_seed: int, save: SaveStep) -> None:
        self._plan = plan
        self._pool = pool
        self._run_seed = run_seed
        self._save = save
        self._answers = [0] * len(plan.nodes)  #: paid, by node
        self._cut: Counter[tuple[int, str]] = Counter()  #: by node and the setting that cut them
        self._is_carried = isinstance(plan.nodes[0].step, GlobalStep)  # rows may bring makings
        self._learns = plan.carries or any(isinstance(n.step, RowStep) and n.step.learns for n in plan.nodes)
        # Steps are abstract base classes: asking for every record which of them ask a model would cost more than the
        # rest here.
        self._nodes = [(node, node.step if isinstance(node.step, ModelStep) else None) for node in plan.nodes]
        self._linear = all(len(node.after) <= 1 for node in plan.nodes)
        is_plain = self._linear and len(plan.nodes) > 1 and not self._is_carried
        self._first = self._sees_records(plan.nodes[1]) if is_plain else None
        self._waits_for = [len(node.before) for node in plan.nodes]
        self._model_steps = len(plan.model_steps)

    @staticmethod
    def _sees_records(node: Node) -> Node | None:
        """The node after the source, if what its step sees of a record is some of its columns, by their own names."""
        return node if not node.step.input_mappings and type(node.step).view is Step.view else None

    def count_answers(self, counts: Counts) -> None:
        """Writes how many answers each step has paid for so far, and how many of them were cut off."""
        names = [node.step.name for node in self._plan.nodes]
        counts.answers = Counter({names[at]: n for at, n in enumerate(self._answers) if n})
        counts.cut = Counter({f"{names[at]}: {limit}": n for (at, limit), n in self._cut.items()})

    async def walk(self, record: Record, recall: Recall) -> Walked:
        """Takes a record through all steps. Raises only what must stop the run, never for the record's sake."""
        way = _Way(record, recall, self._model_steps, self._run_seed)
        items = [(record.key, record.data)]
        if self._learns:
            way.results = []
        if self._is_carried and CARRIED in record.data:
            items = [(record.key, {name: value for name, value in record.data.items() if name != CARRIED})]
            way.carried = carried_makings(record.data[CARRIED])
        if self._linear:
            for node, model_step in self._nodes:
                if model_step is not None:
                    items = await self._ask(way, node, model_step, items)
                elif node.before:
                    items = way.step(node.step, [items])
            (leaf,) = self._plan.leaves
            rows = {leaf: [row for _, row in items]}
        else:
            made = [items] * len(self._nodes)  # by node; each but the source's is replaced
            waiting = list(self._waits_for)
            try:
                async with asyncio.TaskGroup() as branches:
                    await self._advance(way, 0, made, waiting, branches)
            except BaseExceptionGroup as errors:
                raise first_error(errors) from errors
            rows = {name: [row for _, row in made[index]] for name, index in self._plan.leaves.items()}
        if self._plan.carries:
            rows = {leaf: [self._carrying(way, row) for row in made_rows] for leaf, made_rows in rows.items()}
        return Walked(rows, way.failed, way.dropped, way.unsaved, way.reused)

    @staticmethod
    def _carrying(way: _Way, row: Row) -> Row:
        """The row with what is known of its texts, for the steps after a step over all rows."""
        told = way.makings().carried(row)
        return {**row, CARRIED: told} if told else row

    async def _advance(
        self, way: _Way, index: int, made: list[list[Item]], waiting: list[int], branches: asyncio.TaskGroup
    ) -> None:
        """Runs a node, then what it makes ready: one successor here, the others as branches of their own."""
        here: int | None = index
        while here is not None:
            node, model_step = self._nodes[here]
            if model_step is not None:
                made[here] = await self._ask(way, node, model_step, made[node.before[0]])
            elif node.before:
                made[here] = way.step(node.step, [made[index] for index in node.before])
            ready = []
            for index in node.after:
                waiting[index] -= 1
                if waiting[index] == 0:
                    ready.append(index)
            for other in ready[1:]:
                branches.create_task(self._advance(way, other, made, waiting, branches))
            here = ready[0] if ready else None

    async def _ask(self, way: _Way, node: Node, step: ModelStep, items: list[Item]) -> list[Item]:
        known = way.recall(node.fingerprint)
        if len(items) == 1:
            results = [await self._ask_row(way, node, step, items[0], known)]
        else:
            results = await all_or_error([self._ask_row(way, node, step, item, known) for item in items])
        way.models_left -= 1
        kept: list[StepResult] = []
        made: list[Item] = []
        any_fresh = False
        for item, done in zip(items, results, strict=True):
            if done is not None:
                result, is_fresh = done
                any_fresh = any_fresh or is_fresh
                kept.append(result)
                if way.results is not None:
                    way.results.append((node, step, item, result))
                outputs = result["o"]
                if len(outputs) == 1:
                    made.append((item[0], step.merge(item[1], outputs[0])))
                else:  # several outputs make several rows with keys of their own
                    made += [(f"{item[0]}.{i}", step.merge(item[1], output)) for i, output in enumerate(outputs)]
        if any_fresh:
            if way.models_left > 0:
                self._save(way.record, node.fingerprint, kept)
            else:
                way.unsaved.append((node.fingerprint, kept))  # rides in the record's last entry
        return made

    async def _ask_row(
        self, way: _Way, node: Node, step: ModelStep, item: Item, known: Mapping[str, StepResult]
    ) -> tuple[StepResult, bool] | None:
        """(result, whether it is new), or None when the row failed, which is noted."""
        key, row = item
        record = way.record
        try:
            view = step.view(row)
            # The hash of a whole record is known.
            digest = record.digest if node is self._first and len(view) == len(row) else content_hash(view)
        except KeyError as missing:
            way.fail(key, step, RecordError(f"the row has no column {missing}", reason="missing_column"))
            return None
        except TypeError as error:
            way.fail(key, step, RecordError(f"the row is not JSON: {error}", reason="not_json"))
            return None
        old = known.get(key)
        if old is not None and old["h"] == digest:
            way.reused += 1
            return old, False
        # Later steps first, then older records: what is in flight ends before new work begins.
        priority = (-node.depth << _DEPTH_SHIFT) + record.position
        ctx = Context(
            key=key,
            run_seed=self._run_seed,
            step_id=node.fingerprint,
            send=partial(self._pool.send, priority=priority),
        )
        try:
            outputs = await step.generate(view, ctx)
        except RecordError as error:
            way.fail(key, step, error)
            return None
        except AsyncsynthError:
            raise
        except Exception as error:  # a step's own bug costs its row, and is told as what it is
            way.fail(key, step, RecordError(f"{type(error).__name__}: {error}", reason="step_error"))
            return None
        finally:
            self._answers[node.index] += len(ctx.completions)
            for request, _ in ctx.cut:
                self._cut[node.index, step.limit_of(request)] += 1
        return {"k": key, "h": digest, "o": outputs, "m": ctx.provenance()}, True


async def _sends_nothing(request: ModelRequest) -> Completion:
    raise AssertionError(f"a finished result is only read, and asks nothing: {request.model}")


class _Way:
    """What is known of one record while it walks."""

    __slots__ = (
        "_makings",
        "carried",
        "dropped",
        "failed",
        "models_left",
        "recall",
        "record",
        "results",
        "reused",
        "run_seed",
        "unsaved",
    )

    def __init__(self, record: Record, recall: Recall, model_steps: int, run_seed: int) -> None:
        self.record = record
        self.recall = recall
        self.models_left = model_steps
        self.failed: list[FailedRow] = []
        self.dropped: dict[str, dict[str, int]] = {}
        self.unsaved: list[tuple[str, list[StepResult]]] = []
        self.reused = 0
        self.run_seed = run_seed
        self.carried: Sequence[Making] = ()  #: of texts made before a step over all rows
        #: Kept where a step learns from them.
        self.results: list[tuple[Node, ModelStep, Item, StepResult]] | None = None
        self._makings: tuple[int, Makings] | None = None  #: of this many results

    def makings(self) -> Makings:
        """How the record's texts were made, as far as it has come."""
        results = self.results or []
        if self._makings is None or self._makings[0] != len(results):
            found = list(self.carried)
            for node, step, (key, row), result in results:
                ctx = Context(key=key, run_seed=self.run_seed, step_id=node.fingerprint, send=_sends_nothing)
                meta = ctx.notes = result["m"] or {}
                sent = partial(step.system_sent, step.view(row), ctx)
                samples = step.samples(result["o"])
                found += makings_of(samples, meta, is_answer=step.answers_prompt(), prompt_of=sent)
            self._makings = (len(results), Makings(found))
        return self._makings[1]

    def step(self, step: Step, branches: list[list[Item]]) -> list[Item]:
        """What a step that asks no model makes of the rows of its predecessors."""
        if isinstance(step, JoinStep):
            return self.join(step, branches)
        if isinstance(step, RowStep):
            return [made for item in branches[0] for made in self.apply(step, item)]
        raise AssertionError(f"{step!r} is no kind of step the engine knows")

    def fail(self, key: str, step: Step, error: RecordError) -> None:
        """Notes a row's end."""
        failed: FailedRow = {
            "k": key,
            "step": step.name,
            "reason": error.reason,
            "message": error.message,
            "attempts": error.attempts,
        }
        if error.raw is not None or isinstance(error, ParseFailure):
            failed["raw"] = error.raw or ""
        self.failed.append(failed)

    def apply(self, step: RowStep, item: Item) -> list[Item]:
        """A row step on one row; what it raises ends that row only."""
        key, row = item
        try:
            made = step.apply_knowing(row, self.makings()) if step.learns else step.apply(row)
        except Dropped as dropped:
            reasons = self.dropped.setdefault(step.name, {})
            reasons[dropped.reason] = reasons.get(dropped.reason, 0) + 1
            return []
        except RecordError as error:
            self.fail(key, step, error)
            return []
        except KeyError as missing:
            self.fail(key, step, RecordError(f"the row has no column {missing}", reason="missing_column"))
            return []
        except Exception as error:
            self.fail(key, step, RecordError(f"{type(error).__name__}: {error}", reason="step_error"))
            return []
        if isinstance(made, dict):
            return [(key, made)]
        return [(f"{key}.{number}", child) for number, child in enumerate(made)]

    def join(self, step: JoinStep, branches: list[list[Item]]) -> list[Item]:
        """Rows that every branch brought, matched by key, in the first branch's order."""
        others = [dict(branch) for branch in branches[1:]]
        joined: list[Item] = []
        for key, row in branches[0]:
            if all(key in other for other in others):
                try:
                    joined.append((key, step.join([row, *(other[key] for other in others)])))
                except KeyError as missing:
                    self.fail(key, step, RecordError(f"a branch has no column {missing}", reason="missing_column"))
                except RecordError as error:
                    self.fail(key, step, error)
        return joined
