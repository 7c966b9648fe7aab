"""Records walked through a graph without a server; notes the rows that enter and leave each step."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from asyncsynth import LLM
from asyncsynth.engine.walk import Walked, Walker
from asyncsynth.inputs.dicts import DictsReader
from asyncsynth.inputs.reader import Reader
from asyncsynth.pipeline import Context, Graph, ModelStep, Plan, SourceStep
from asyncsynth.records import Record, Row, content_hash
from asyncsynth.storage.entries import RecordEntry, StepResult


class Source(SourceStep):
    """A source whose columns are not known before the run."""

    def open(self) -> Reader:
        return DictsReader([])

    def settings(self) -> dict[str, Any]:
        return {}


class Model(ModelStep):
    """A model step that asks no model. `answer` makes its outputs."""

    def models(self) -> tuple[LLM, ...]:
        return (LLM(model="m"),)

    async def generate(self, row: Row, ctx: Context) -> list[Row]:
        await asyncio.sleep(0)
        return self.answer(row, ctx)

    def view(self, row: Row) -> Row:
        return dict(row)

    def answer(self, row: Row, ctx: Context) -> Any:
        return [{}]


class _NoPool:
    def send(self, request: Any, *, priority: int) -> Any:
        raise AssertionError("this step sends no request")


class Watched(Walker):
    """A walker that notes the keys of the rows that enter each step, by branch, and of those that leave it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, _NoPool(), run_seed=0, save=self._note)  # type: ignore[arg-type]
        self.saved: list[tuple[str, list[StepResult]]] = []
        self.went_in: dict[str, list[list[str]]] = {}
        self.came_out: dict[str, list[str]] = {}

    def _note(self, record: Record, fingerprint: str, results: list[StepResult]) -> None:
        self.saved.append((fingerprint, results))

    def _step(self, way: Any, node: Any, branches: Any) -> Any:
        made = super()._step(way, node, branches)
        self._count(node, branches, made)
        return made

    async def _ask(self, way: Any, node: Any, step: Any, items: Any) -> Any:
        made = await super()._ask(way, node, step, items)
        self._count(node, [items], made)
        return made

    def _count(self, node: Any, branches: Any, made: Any) -> None:
        self.went_in[node.step.name] = [[key for key, _ in branch] for branch in branches]
        self.came_out[node.step.name] = [key for key, _ in made]


def record(row: Row, key: str = "7") -> Record:
    return Record(key, 7, row, content_hash(row))


def walk(graph: Graph, row: Row, saved: Iterable[tuple[str, list[StepResult]]] = ()) -> tuple[Walked, Watched]:
    """Walks one record. `saved`: results of an earlier walk, which are read back as from the journal."""
    known: dict[str, Mapping[str, StepResult]] = {}
    for fingerprint, results in saved:
        entry = orjson.loads(RecordEntry("7", 7, "", [(fingerprint, results)]).encode())
        known[fingerprint] = RecordEntry.from_wire(entry).results(fingerprint)

    async def main() -> tuple[Walked, Watched]:
        walker = Watched(graph.plan())
        return await walker.walk(record(row), lambda fingerprint: known.get(fingerprint, {})), walker

    return asyncio.run(main())
