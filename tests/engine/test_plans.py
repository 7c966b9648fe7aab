"""The plan before an update: what is reused, what is redone and why, and how many requests there are to pay."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncsynth import LLM, Filter, LoadDataFromDicts, Pipeline, TextGeneration, UltraFeedback
from asyncsynth.client.needs import SAMPLE_SEED
from asyncsynth.errors import RunChangedError, ServerUnreachable
from asyncsynth.pipeline import AllRows, GlobalStep
from asyncsynth.steps.step_decorator import step
from asyncsynth.storage.extent import completeness
from asyncsynth.testing import FaultServer
from tests.kit.loops import run_async
from tests.kit.pipelines import server
from tests.matrix.plugin import Tried

ROWS = [{"instruction": f"number {n}", "other": f"another {n}", "id": str(n)} for n in range(8)]


class First(GlobalStep):
    """Keeps the first rows."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        super().__init__()

    def decide(self, rows: AllRows) -> Any:
        from asyncsynth.pipeline import Dropped

        return ({} if number < self.keep else Dropped("late") for number in range(len(rows)))


def made(
    *,
    data: Any = ROWS,
    first_prompt: str | None = None,
    judge_prompt: str | None = None,
    generations: int = 2,
    aside_prompt: str | None = None,
    least: int = 0,
    keep: int | None = None,
    length: Callable[[str], int] = len,
) -> Pipeline:
    """A generation, a step beside it that the judge does not read, a filter, a judge."""

    @step(inputs=["instruction"], outputs=["length"])
    def measured(row: Any) -> Any:
        return {"length": length(row["instruction"])}

    with Pipeline(name="plans") as pipeline:
        last: Any = LoadDataFromDicts(data=data, id_column="id")
        steps = [
            TextGeneration(
                LLM(model="model-a"), name="gen", system_prompt=first_prompt, num_generations=generations,
                group_generations=True, output_mappings={"generation": "generations"},
            ),
            TextGeneration(
                LLM(model="model-b"), name="aside", system_prompt=aside_prompt, input_mappings={"instruction": "other"},
                output_mappings={"generation": "x", "model_name": "y"},
            ),
            Filter(lambda row: int(row["id"]) >= least, name="sieve"),
            *([First(keep)] if keep is not None else []),
            UltraFeedback(
                LLM(model="judge"), name="judge", system_prompt=judge_prompt, rationales=False,
                output_mappings={"judge_model": "judge_name"},
            ),
            measured(name="measured"),
        ]  # fmt: skip
        for each in steps:
            last >> each
            last = each
    return pipeline


def paid(fake: FaultServer) -> int:
    return sum(info.json.get("seed", SAMPLE_SEED) != SAMPLE_SEED for info in fake.log or [])


def told(plan: list[str]) -> int:
    """The requests that the plan names."""
    for line in plan:
        if found := re.search(r"to pay: at most about ([\d,]+) requests", line):
            return int(found[1].replace(",", ""))
    assert any("to pay: nothing" in line for line in plan), plan
    return 0


#: Options of the first run, of the second one, and whether the plan is exact.
EDITS: dict[str, tuple[dict[str, Any], dict[str, Any], bool, list[str]]] = {
    "the judge": ({}, {"judge_prompt": "Be strict."}, True, [
        "gen: 8 results, reused", "aside: 8 results, reused", "judge: redone, because it changed: 8 records",
    ]),
    "the generation": ({}, {"first_prompt": "Be brief."}, True, [
        "gen: redone, because it changed: 8 records, about 16 requests", "aside: 8 results, reused",
        "judge: redone where its input changes (it depends on gen): at most 8 records, about 8 requests",
    ]),
    "the number of generations": ({}, {"generations": 3}, True, [
        "gen: redone, because it changed: 8 records, about 24",
    ]),
    "a step that the judge does not read": ({}, {"aside_prompt": "Brief."}, True, [
        "aside: redone", "judge: 8 results, reused",
    ]),
    "a last step without requests": ({}, {"length": lambda text: 1}, True, [
        "measured: changed; computed again, without a request", "to pay: nothing",
    ]),
    "a filter that lets more through": ({"least": 4}, {}, False, [
        "sieve: changed", "judge: 4 results, reused for rows that did not change; other rows may reach it, since sieve",
    ]),
    "a step over all rows that lets more through": ({"keep": 2}, {"keep": 5}, False, [
        "first_0: changed", "judge: 2 results", "other rows may reach it, since first_0 changed",
    ]),
    "the generation before a step over all rows": ({"keep": 3}, {"keep": 3, "first_prompt": "Brief."}, False, [
        "gen: redone", "judge: redone where its input changes (it depends on gen)",
    ]),
    "a row of the input": ({}, {"data": [{**ROWS[0], "instruction": "new"}, *ROWS[1:]]}, False, [
        "gen: 8 results, reused for rows that did not change; redone where the input changed",
    ]),
}  # fmt: skip


@pytest.mark.row(34)
@pytest.mark.parametrize("name", EDITS)
def test_the_plan_names_what_is_redone_and_never_too_few_requests(tmp_path: Path, name: str, tried: Tried) -> None:
    before, after, exact, words = EDITS[name]

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await made(**before).arun(**options)
            first = paid(fake)
            with pytest.raises(RunChangedError) as refused:
                await made(**after).arun(**options)
            plan = refused.value.plan
            text = "\n".join(plan)
            for word in words:
                assert word in text, text
            assert paid(fake) == first
            await made(**after).arun(**options, update=True)
            cost = paid(fake) - first
            assert cost <= told(plan), text
            if exact:
                assert cost == told(plan), text

    run_async(main())
    tried(1, "plans, none with too few requests")


def test_going_back_to_an_earlier_version_is_not_promised_for_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await made().arun(**options)
            await made(first_prompt="Be brief.").arun(**options, update=True)
            with pytest.raises(RunChangedError) as refused:
                await made().arun(**options)
            before = paid(fake)
            await made().arun(**options, update=True)
            assert paid(fake) - before <= told(refused.value.plan)

    run_async(main())


def test_a_run_without_any_entry_takes_a_changed_pipeline(tmp_path: Path) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"output": tmp_path / "run"}
        with pytest.raises(ServerUnreachable):
            await made().arun(**options, servers=["http://127.0.0.1:9/v1"])
        assert completeness(tmp_path / "run").complete is False
        async with server() as fake:
            report = (await made(first_prompt="Be brief.").arun(**options, servers=[fake.base_url])).report
            assert report.complete
            with pytest.raises(RunChangedError):
                await made().arun(**options, servers=[fake.base_url])

    run_async(main())


def test_more_of_the_input_is_told_beside_what_is_redone(tmp_path: Path) -> None:
    async def main() -> None:
        async with server() as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await made(data=ROWS[:5]).arun(**options)
            with pytest.raises(RunChangedError, match="plus 3 records of the input without any results yet"):
                await made(judge_prompt="Be strict.").arun(**options)

    run_async(main())


def test_more_generations_make_more_rows_for_the_steps_after_them(tmp_path: Path) -> None:
    def made(first: int, steps: int) -> Pipeline:
        with Pipeline(name="rows") as pipeline:
            last: Any = LoadDataFromDicts([{"instruction": f"q {number}"} for number in range(4)])
            for number in range(steps):
                last = last >> TextGeneration(
                    LLM(model="model-a"), num_generations=first if number == 0 else 1,
                    output_mappings={"generation": f"g{number}", "model_name": f"m{number}"},
                )  # fmt: skip
        return pipeline

    async def main() -> None:
        async with server() as fake:
            await made(1, 2).arun(servers=[fake.base_url], output=tmp_path)
            with pytest.raises(RunChangedError) as refused:
                await made(3, 3).arun(servers=[fake.base_url], output=tmp_path)
            assert told(refused.value.plan) == 3 * 4 + 3 * 4 + 3 * 4

    run_async(main())
