"""The rows that the trainers read: exported by real runs, whose models are a FaultServer."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from asyncsynth import (
    LLM,
    ChatGeneration,
    FormPreference,
    FormSFT,
    GroupColumns,
    KeepColumns,
    LoadDataFromDicts,
    Pipeline,
    TextGeneration,
    ToolChat,
    UltraFeedback,
)
from asyncsynth.storage.exports import export
from asyncsynth.testing import FaultServer

A, B = LLM(model="model-a"), LLM(model="model-b", temperature=1.0)
DATA = [{"instruction": f"Say something about the number {number}."} for number in range(8)]
#: Two parts of text, as the API has them; beside it a plain one.
PARTS = [
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Look."}, {"type": "text", "text": "Why?"}]}]},
    {"messages": [{"role": "user", "content": "Look. Why not?"}]},
]


def temperature(city: str, unit: Literal["C", "F"] = "C") -> dict[str, Any]:
    """The temperature in a city.

    Args:
        city: its name.
        unit: of the answer.
    """
    return {"city": city, unit: 21}


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows for one trainer."""

    name: str
    trainer: Literal["sft", "dpo", "reward"]
    make: Callable[[], None]  #: adds the steps to the pipeline that is being made
    suffixes: tuple[str, ...] = (".jsonl", ".parquet")


def _sft(layout: Literal["standard", "conversational"]) -> Callable[[], None]:
    def make() -> None:
        task = TextGeneration(llm=A, system_prompt="Be brief.")
        LoadDataFromDicts(DATA) >> task >> FormSFT(layout=layout)

    return make


def _tools() -> None:
    chat = ToolChat(llm=A, tools=[temperature, add], system_prompt="Use the tools.")
    form = FormSFT(input_mappings={"conversation": "messages"})
    LoadDataFromDicts(DATA) >> chat >> form >> KeepColumns(["messages", "tools"])


def _parts(content: Literal["text", "keep"], layout: Literal["standard", "conversational"]) -> Callable[[], None]:
    def make() -> None:
        form = FormSFT(layout=layout, content=content, keep=())
        LoadDataFromDicts(PARTS) >> ChatGeneration(llm=A) >> form

    return make


def _preference(layout: Literal["standard", "conversational"]) -> Callable[[], None]:
    def make() -> None:
        group = GroupColumns("generation", "generations")
        judge = UltraFeedback(llm=LLM(model="judge"), rationales=False)
        data, pairs = LoadDataFromDicts(DATA), FormPreference(layout=layout, ties="first")
        data >> [TextGeneration(llm=A), TextGeneration(llm=B)] >> group >> judge >> pairs

    return make


CASES = (
    Case("sft-standard", "sft", _sft("standard")),
    Case("sft-conversational", "sft", _sft("conversational")),
    Case("sft-tools", "sft", _tools, (".jsonl",)),
    Case("sft-parts-as-text", "sft", _parts("text", "conversational")),
    Case("sft-parts-standard", "sft", _parts("keep", "standard")),
    Case("dpo-standard", "dpo", _preference("standard")),
    Case("dpo-conversational", "dpo", _preference("conversational")),
    Case("reward-standard", "reward", _preference("standard")),
    Case("reward-conversational", "reward", _preference("conversational")),
)


async def _write(folder: Path) -> None:
    async with FaultServer(models=("model-a", "model-b", "judge")) as server:
        for case in CASES:
            with Pipeline(name=case.name) as pipeline:
                case.make()
            run = folder / "runs" / case.name
            await pipeline.arun(servers=[server.base_url], output=run)
            for suffix in case.suffixes:
                done = export(run, folder / f"{case.name}{suffix}", complete_only=True)
                if not done.rows:
                    raise SystemExit(f"{case.name}: the run made no rows")


def write_rows(folder: Path) -> None:
    """Runs the pipelines and exports their rows to files named by case and format."""
    asyncio.run(_write(folder))
