"""Small pipelines, and the fault server that answers them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from asyncsynth import (
    LLM,
    FormPreference,
    GroupColumns,
    LoadDataFromDicts,
    Pipeline,
    TextGeneration,
    UltraFeedback,
)
from asyncsynth.client.needs import SAMPLE_SEED
from asyncsynth.pipeline import AllRows, Dropped, GlobalStep
from asyncsynth.records import Row
from asyncsynth.testing import FaultServer

MODELS = ("model-a", "model-b", "judge")


def rows(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Say something about the number {number}."} for number in range(count)]


def preference(data: list[dict[str, Any]], *, judge_prompt: str | None = None) -> Pipeline:
    """The seeds' pool, then rating, then pairs."""
    with Pipeline(name="preference") as pipeline:
        load = LoadDataFromDicts(data=data)
        gen_a = TextGeneration(llm=LLM(model="model-a"))
        gen_b = TextGeneration(llm=LLM(model="model-b", temperature=1.0))
        group = GroupColumns(columns=["generation", "model_name"], output_columns=["generations", "generation_models"])
        judge = UltraFeedback(llm=LLM(model="judge"), rationales=False, system_prompt=judge_prompt)
        pairs = FormPreference(ties="first")
        load >> [gen_a, gen_b] >> group >> judge >> pairs
    return pipeline


def single(data: Any, **settings: Any) -> Pipeline:
    """One generation a row."""
    with Pipeline(name="single") as pipeline:
        load = LoadDataFromDicts(data=data)
        generate = TextGeneration(llm=LLM(model="model-a"), **settings)
        load >> generate
    return pipeline


def server(**options: Any) -> FaultServer:
    return FaultServer(models=MODELS, **options)


def completions(fake: FaultServer) -> int:
    """Requests for records: what a run tries at its start has no seed, or the samples'."""
    assert fake.log is not None
    return sum(1 for info in fake.log if info.json.get("seed", SAMPLE_SEED) != SAMPLE_SEED)


class Once(GlobalStep):
    """Keeps the instructions that come once, adds how many there are. Two passes."""

    inputs = ("instruction",)
    outputs = ("seen",)
    decided = 0  #: over all instances

    def decide(self, rows: AllRows) -> Iterable[Row | Dropped]:
        type(self).decided += 1
        seen = [row["instruction"] for row in rows]
        for row in rows:
            yield {"seen": len(seen)} if seen.count(row["instruction"]) == 1 else Dropped("repeated")


class Even(GlobalStep):
    """Keeps every second row."""

    keep = 0

    def decide(self, rows: AllRows) -> Iterable[Row | Dropped]:
        return ({} if number % 2 == self.keep else Dropped("odd") for number in range(len(rows)))


def two_models(data: Any, barrier: Callable[[], GlobalStep] = Once, prompt: str | None = None) -> Pipeline:
    """A generation, a barrier, another generation."""
    with Pipeline(name="two") as pipeline:
        (
            LoadDataFromDicts(data=data)
            >> TextGeneration(llm=LLM(model="model-a"))
            >> barrier()
            >> TextGeneration(
                llm=LLM(model="model-b"),
                system_prompt=prompt,
                output_mappings={"generation": "second", "model_name": "second_model"},
            )
        )
    return pipeline


def repeated(count: int) -> list[Row]:
    """Rows of which the last two are alike."""
    return [*rows(count - 1), rows(count - 1)[-1]]
