"""Pipelines and servers that the engine's tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from asyncsynth import (
    LLM,
    FormPreference,
    GroupColumns,
    LoadDataFromDicts,
    Pipeline,
    TextGeneration,
    UltraFeedback,
)
from asyncsynth.testing import FaultServer

T = TypeVar("T")
MODELS = ("model-a", "model-b", "judge")


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine and checks that it leaves no task behind."""

    async def checked() -> T:
        try:
            return await asyncio.wait_for(main, 60)
        finally:
            for _ in range(5):  # closed transports say goodbye in the next turns
                await asyncio.sleep(0)
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            assert not left, f"tasks left behind: {left}"

    return asyncio.run(checked())


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
