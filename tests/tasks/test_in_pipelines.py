"""Every task in a whole run, over sockets to the fault server; resumed, it makes the same choices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from asyncsynth import (
    LLM,
    ComplexityScorer,
    EvolComplexity,
    EvolInstruct,
    EvolQuality,
    InstructionBacktranslation,
    Jury,
    LoadDataFromDicts,
    Pipeline,
    QualityScorer,
    Revision,
    SelfInstruct,
    Task,
    UltraFeedback,
)
from asyncsynth.testing import FaultServer
from tests.kit.loops import run_async

M = LLM(model="model-a")
INSTRUCTION = "Explain number %d in detail to a sailor."
RESPONSE = "It comes after the one before it."

TASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "self_instruct": (lambda: SelfInstruct(M, num_instructions=3), {"input": INSTRUCTION}),
    "evol_instruct": (
        lambda: EvolInstruct(M, num_evolutions=3, mutations=["breadth"], store_evolutions=True, generate_answers=True),
        {"instruction": INSTRUCTION},
    ),
    "evol_complexity": (lambda: EvolComplexity(M, num_evolutions=2, check_gain=True), {"instruction": INSTRUCTION}),
    "evol_quality": (
        lambda: EvolQuality(M, num_evolutions=2, store_evolutions=True, include_original_response=True),
        {"instruction": INSTRUCTION, "response": RESPONSE},
    ),
    "backtranslation": (lambda: InstructionBacktranslation(M), {"instruction": INSTRUCTION, "generation": RESPONSE}),
    "revision": (lambda: Revision(M), {"instruction": INSTRUCTION, "response": RESPONSE}),
    "complexity": (lambda: ComplexityScorer(M), {"instructions": [INSTRUCTION, "Why?"]}),
    "quality": (lambda: QualityScorer(M), {"instruction": INSTRUCTION, "responses": [RESPONSE, "", "No."]}),
    "jury": (
        lambda: UltraFeedback(Jury([M, LLM(model="model-b"), LLM(model="judge")], how="median")),
        {"instruction": INSTRUCTION, "generations": [RESPONSE, "No."]},
    ),
}


def data(row: dict[str, Any], count: int) -> list[dict[str, Any]]:
    def numbered(value: Any, number: int) -> Any:
        if isinstance(value, list):
            return [numbered(item, number) for item in value]
        return value % number if "%d" in value else value

    return [{name: numbered(value, number) for name, value in row.items()} for number in range(count)]


def pipeline(name: str, count: int) -> tuple[Pipeline, Task]:
    make, row = TASKS[name]
    with Pipeline(name=name) as made:
        load = LoadDataFromDicts(data=data(row, count))
        task = make()
        load >> task
    return made, task


def journaled(run: Path) -> dict[str, Any]:
    """The metadata that the run directory holds for each row's model step."""
    found: dict[str, Any] = {}
    for segment in sorted(run.rglob("seg-*.jsonl")):
        for line in segment.read_bytes().splitlines():
            for step in orjson.loads(line).get("s", []):
                for result in step["r"]:
                    found[result["k"]] = result["m"]
    return found


@pytest.mark.parametrize("name", TASKS)
def test_a_run_with_faults_gives_every_row_its_columns(name: str, tmp_path: Path) -> None:
    async def main() -> None:
        made, task = pipeline(name, 12)
        async with FaultServer(models=("model-a", "model-b", "judge"), fault_rate=0.1, seed=3) as server:
            result = await made.arun(servers=[server.base_url], output=tmp_path / "run")
        assert result.report.complete
        assert result.report.counts.ok == 12
        train = result["default"]["train"]
        assert len(train) == 12
        for row in train:
            assert all(row[column] not in ("", []) for column in task.outputs)
        columns = {name: train[0][name] for name in task.outputs}
        for listed in ("instructions", "generations", "responses"):
            if listed in task.inputs:
                name_of = "ratings" if listed == "generations" else "scores"
                assert len(columns[name_of]) == len(train[0][listed])
        if "answers" in columns:
            assert len(columns["answers"]) == len(columns["evolved_instructions"])
        assert set(columns) == set(task.outputs)

    run_async(main())


@pytest.mark.parametrize("name", ["evol_instruct", "evol_complexity", "evol_quality"])
def test_a_resumed_run_makes_the_choices_it_would_have_made(name: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with FaultServer(models=("model-a",)) as server:
            whole, _ = pipeline(name, 10)
            in_one = await whole.arun(servers=[server.base_url], output=tmp_path / "whole")
            part, _ = pipeline(name, 4)
            await part.arun(servers=[server.base_url], output=tmp_path / "parts")
            rest, _ = pipeline(name, 10)
            resumed = await rest.arun(servers=[server.base_url], output=tmp_path / "parts")
        assert resumed.report.counts.earlier == 4
        assert list(resumed["default"]["train"]) == list(in_one["default"]["train"])
        first, second = journaled(tmp_path / "whole"), journaled(tmp_path / "parts")
        assert len(first) == 10
        chosen = {key: meta["evolutions"] for key, meta in first.items()}
        assert chosen == {key: meta["evolutions"] for key, meta in second.items()}
        if name != "evol_instruct":
            assert len({str(log) for log in chosen.values()}) > 1

    run_async(main())


def test_a_bad_row_fails_alone(tmp_path: Path) -> None:
    async def main() -> None:
        rows: list[dict[str, Any]] = [{"instructions": ["Explain tides.", "Why?"]} for _ in range(5)]
        rows[2] = {"instructions": "Explain tides."}
        with Pipeline(name="bad") as made:
            load = LoadDataFromDicts(data=rows)
            load >> ComplexityScorer(M)
        async with FaultServer(models=("model-a",)) as server:
            result = await made.arun(servers=[server.base_url], output=tmp_path / "run")
        assert result.report.counts.ok == 4
        assert len(result["default"]["train"]) == 4

    run_async(main())
