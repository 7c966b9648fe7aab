"""Tasks as steps of a pipeline, over sockets to the fault server."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from asyncsynth import (
    LLM,
    ChatGeneration,
    FormPreference,
    GenerateSentencePair,
    LoadDataFromDicts,
    PairwiseJudge,
    Pipeline,
    Step,
    StructuredGeneration,
    Task,
    TextClassification,
)
from asyncsynth.records import Row
from asyncsynth.testing import random_faults
from tests.kit.loops import run_async
from tests.kit.pipelines import server

M = LLM(model="model-a")


class City(BaseModel):
    name: str
    people: int


def run(tmp_path: Path, data: list[Row], task: Task, *after: Step, **options: Any) -> list[Row]:
    with Pipeline(name="p") as pipeline:
        end = LoadDataFromDicts(data=data) >> task
        for step in after:
            end = end >> step

    async def main() -> list[Row]:
        async with server(**options) as fake:
            result = await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")
            assert result.report.complete
            assert result.report.exit_code == 0, result.report
            return list(result["default"]["train"])

    return run_async(main())


def test_chat(tmp_path: Path) -> None:
    data = [{"messages": [{"role": "user", "content": f"Hello {n}"}]} for n in range(5)]
    rows = run(tmp_path, data, ChatGeneration(M))
    assert len({row["generation"] for row in rows}) == 5


def test_judging_pairs_to_preferences(tmp_path: Path) -> None:
    data = [{"instruction": f"Count {n}.", "generations": [f"one {n}", f"two {n}"]} for n in range(40)]
    rows = run(tmp_path / "judged", data, PairwiseJudge(M))
    assert {row["preference"] for row in rows} == {0, 1, None}
    assert {row["position_bias"] for row in rows} == {"first", "second", None}
    kept = [row for row in rows if row["preference"] is not None]
    pairs = run(tmp_path / "pairs", data, PairwiseJudge(M), FormPreference())
    assert [pair["chosen"] for pair in pairs] == [row["generations"][row["preference"]] for row in kept]


def test_a_schema_for_each_row(tmp_path: Path) -> None:
    schemas = [
        {"type": "object", "properties": {name: {"type": "integer"}}, "required": [name], "additionalProperties": False}
        for name in ("a", "b", "c")
    ]
    data = [{"instruction": "Make one.", "shape": schema} for schema in schemas]
    rows = run(tmp_path, data, StructuredGeneration(M, input_mappings={"schema": "shape"}))
    assert [list(row["generation"]) for row in rows] == [["a"], ["b"], ["c"]]


def test_a_pydantic_model_through_faults(tmp_path: Path) -> None:
    task = StructuredGeneration(M, schema=City)
    data = [{"instruction": f"City {n}"} for n in range(30)]
    rows = run(tmp_path, data, task, script=random_faults(0.1, 5))
    assert all(City.model_validate(row["generation"]) for row in rows)
    assert len(rows) == 30


@pytest.mark.parametrize("multi_label", [False, True])
def test_classification(tmp_path: Path, multi_label: bool) -> None:
    labels = ["praise", "complaint", "question"]
    data = [{"text": f"It broke after {n} days."} for n in range(20)]
    rows = run(tmp_path, data, TextClassification(M, labels=labels, multi_label=multi_label))
    said = {label for row in rows for label in (row["labels"] if multi_label else [row["label"]])}
    assert said == set(labels)


def test_sentence_pairs(tmp_path: Path) -> None:
    data = [{"anchor": f"It rained for {n} days."} for n in range(5)]
    rows = run(tmp_path, data, GenerateSentencePair(M))
    assert all(row["positive"] != row["negative"] for row in rows)
