"""Whole runs on servers whose models think: the same rows as without, and every paid answer in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.servers.sample_requests import SMALL_TOKENS
from asyncsynth.storage.failures import failed_rows
from asyncsynth.testing import Abilities, Fault, FaultServer, RequestInfo
from tests.kit.loops import run_async
from tests.kit.pipelines import MODELS, preference, rows

THINKING: tuple[Literal["tags", "template", "field"], ...] = ("tags", "template", "field")


def job(max_tokens: int = 100, **fields: Any) -> Pipeline:
    with Pipeline(name="job") as pipeline:
        LoadDataFromDicts(data=rows(6)) >> TextGeneration(llm=LLM(model="model-a", max_tokens=max_tokens, **fields))
    return pipeline


@pytest.mark.row(32)
@pytest.mark.parametrize("thinks", THINKING)
def test_rows_are_those_of_a_model_that_does_not_think(
    tmp_path: Path, thinks: Literal["tags", "template", "field"]
) -> None:
    async def main() -> None:
        made = []
        for name, abilities in (("plain", None), ("thinks", Abilities(thinks=thinks))):
            async with FaultServer(models=list(MODELS), tokens=20, abilities=abilities) as fake:
                result = await preference(rows(5)).arun(servers=[fake.base_url], output=tmp_path / name)
                assert result.report.counts.failed == 0
                made.append(list(result["default"]["train"]))
        assert made[0] == made[1]
        assert "perhaps" not in json.dumps(made[1])

    run_async(main())


@pytest.mark.row(32)
@pytest.mark.parametrize("thinks", ["tags", "field"])
def test_a_cut_thought_is_paid_once_and_counted(tmp_path: Path, thinks: Literal["tags", "field"]) -> None:
    async def main() -> None:
        async with FaultServer(models=["model-a"], abilities=Abilities(thinks=thinks, thinking_tokens=64)) as fake:
            result = await job(max_tokens=40).arun(servers=[fake.base_url], output=tmp_path / "run")
            report = result.report
            assert dict(report.counts.failures) == {"reasoning_cut": 6}
            assert (report.requests, report.completion_tokens, report.retries) == (6, 6 * 40, {})
            assert fake.requests == 6 + 1  # and the first small request

    run_async(main())
    failed, *_ = failed_rows(tmp_path / "run")
    assert (failed["reason"], failed["attempts"]) == ("reasoning_cut", 1)
    assert "max_tokens=40" in failed["message"]
    assert failed["raw"].startswith("Hmm, perhaps")


@pytest.mark.row(32)
def test_useless_answers_are_in_the_report(tmp_path: Path) -> None:
    """Each prompt's first answer is empty: twelve answers are paid for six rows."""

    def script(info: RequestInfo) -> Fault | None:
        return Fault("empty_content") if info.seen == 1 and info.json.get("max_tokens") != SMALL_TOKENS else None

    async def main() -> None:
        async with FaultServer(models=["model-a"], script=script) as fake:
            result = await job().arun(servers=[fake.base_url], output=tmp_path / "run")
            report = result.report
            assert (report.counts.ok, report.retries) == (6, {"empty_content": 6})
            assert report.requests == fake.requests - 1 == 12
            assert sum(report.answered_by.values()) == 6

    run_async(main())


def test_keeping_the_marks_is_one_option(tmp_path: Path) -> None:
    async def main() -> None:
        async with FaultServer(models=["model-a"], abilities=Abilities(thinks="tags")) as fake:
            result = await job(reasoning="keep").arun(servers=[fake.base_url], output=tmp_path / "run")
            assert all(row["generation"].startswith("<think>\nHmm,") for row in result["default"]["train"])

    run_async(main())


@pytest.mark.row(32)
@pytest.mark.parametrize("thinks", ["tags", "field"])
def test_a_run_tells_at_its_start_that_a_model_thinks(tmp_path: Path, thinks: Literal["tags", "field"]) -> None:
    async def main() -> None:
        async with FaultServer(models=["model-a"], abilities=Abilities(thinks=thinks), keep_requests=True) as fake:
            result = await job().arun(servers=[fake.base_url], output=tmp_path / "run")
            [server] = result.report.servers
            assert server["thinks"] == {"tags": "text", "field": "field"}[thinks]
            assert fake.requests == 6 + 1  # nothing is asked on top

    run_async(main())
