"""The measures of a run, from journals written by hand and by runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.cli.quality_tables import compare_command, quality_command
from asyncsynth.errors import ConfigurationError
from asyncsynth.quality.run_quality import Comparison, RunQuality, measure_table
from asyncsynth.storage.entries import DroppedEntry, FailedRow, RecordEntry, StepResult
from asyncsynth.storage.journal import Journal
from asyncsynth.storage.manifest import Epoch, Manifest
from tests.kit.loops import run_async
from tests.kit.pipelines import preference, repeated, rows, server, two_models

STEPS = {"gen": "f" * 12, "judge_a": "a" * 12, "judge_b": "b" * 12}
TASKS = {"gen": "TextGeneration", "judge_a": "UltraFeedback", "judge_b": "UltraFeedback"}


def result(key: str, outputs: Any, shown: str = "0" * 16, **meta: Any) -> StepResult:
    facts = {"model": "m", "calls": 1, "prompt_tokens": 10, "completion_tokens": 20, "finish": "stop", **meta}
    return StepResult(key, shown, outputs if isinstance(outputs, list) else [outputs], facts)


def made(key: int, *steps: tuple[str, Any], **entry: Any) -> bytes:
    results = [(STEPS[name], [one]) for name, one in steps]
    return RecordEntry(str(key), key, "0" * 16, results, **({"epoch": 0, "status": "ok"} | entry)).encode()


def write_run(directory: Path, entries: list[bytes]) -> Path:
    async def write() -> None:
        journal = Journal.create(directory, run_id="r" * 32)
        for entry in entries:
            journal.append(entry)
        await journal.flushed()
        await journal.close()

    asyncio.run(write())
    fields = {"run_seed": 0, "steps": {name: {"step": task} for name, task in TASKS.items()}}
    epoch = Epoch(fingerprint="e", steps=STEPS, fields=fields, leaves=["default"])
    Manifest("r" * 32, "hand", 0, "position", {"kind": "dicts", "name": ""}, [epoch], "").save(directory)
    return directory


def table(directory: Path) -> dict[str, dict[str, float]]:
    return measure_table(RunQuality.read(directory).as_json())


def test_failures_lengths_refusals_finish_and_duplicates(tmp_path: Path) -> None:
    bad = FailedRow("4", "gen", "parse_failure", "", 3, "?")
    late = FailedRow("5", "gen", "timeout", "", 8)
    run = write_run(
        tmp_path / "run",
        [
            made(0, ("gen", result("0", {"generation": "I'm sorry, but I can't help with that.", "model_name": "m"}))),
            made(1, ("gen", result("1", {"generation": "abc", "model_name": "m"}, calls=2, parse_failures=1))),
            made(2, ("gen", result("2", {"generation": "abc", "model_name": "m"}, finish="length"))),
            made(3, ("gen", result("3", {"generation": " ", "model_name": "m"}, missing_instructions=2))),
            made(4, status="failed", failed=[bad]),
            made(5, status="failed", failed=[late], dropped={"filter": {"short": 1}}),
        ],
    )
    measures = table(run)
    gen = measures["gen"]
    assert (gen["results"], gen["calls"], gen["unparsable_answers"], gen["reasks"]) == (4, 8, 4, 3)
    assert gen["unparsable_share"] == 0.5
    assert (gen["failed parse_failure"], gen["failed timeout"]) == (1, 1)
    assert gen["notes missing_instructions"] == 2
    assert gen["finish length_share"] == gen["truncated_share"] == 0.25
    assert gen["completion_tokens mean"] == 20
    assert (gen["generation values"], gen["generation blank_share"]) == (4, 0.25)
    assert gen["generation refusal_share"] == gen["generation duplicate_share"] == round(1 / 3, 4)
    assert gen["generation chars p50"] == pytest.approx(3, rel=0.05)
    assert not any("model_name" in name for name in gen)
    assert measures["filter"] == {"dropped short": 1}


def test_only_the_last_word_on_a_record_in_the_input_counts(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        [
            made(0, ("gen", result("0", {"generation": "old"})), status=None, epoch=None),
            made(1, ("gen", result("1", {"generation": "gone"}))),
            made(0, ("gen", result("0", {"generation": "newer"}))),
            DroppedEntry("1").encode(),
        ],
    )
    gen = table(run)["gen"]
    assert gen["results"] == 1
    assert gen["generation chars mean"] == 5


def test_ratings_and_the_agreement_of_judges(tmp_path: Path) -> None:
    entries = []
    for key, (first, second) in enumerate([([5, 1], [4, 2]), ([3, 3], [3, 3]), ([2, None], [5, 5])]):
        entries.append(made(key, ("judge_a", result(str(key), {"ratings": first})), status=None, epoch=None))
        entries.append(made(key, ("judge_b", result(str(key), {"ratings": second}))))
    # Shown something else: no judges of one row.
    entries.append(made(9, ("judge_a", result("9", {"ratings": [1, 1]}, shown="1" * 16)), status=None, epoch=None))
    entries.append(made(9, ("judge_b", result("9", {"ratings": [1, 1]}))))
    measures = table(write_run(tmp_path / "run", entries))
    judge = measures["judge_a"]
    assert judge["ratings distribution 3_share"] == round(2 / 7, 4)
    assert judge["ratings blank_share"] == round(1 / 8, 4)
    pair = measures["judge_a / judge_b: ratings"]
    assert (pair["sampled_rows"], pair["exact_share"], pair["order_share"]) == (3, 0.4, 1.0)
    assert 0 < pair["kappa"] < 1


def test_the_members_of_a_jury_and_what_tasks_note(tmp_path: Path) -> None:
    def voted(first: list[int | None], second: list[int | None]) -> dict[str, Any]:
        return {"ratings": [3.5, 2.0], "jury_ratings": [first, second], "jury_models": ["m", "m"]}

    absent = [{"judge": 1, "model": "n", "reason": "timeout"}]
    run = write_run(
        tmp_path / "run",
        [
            made(0, ("judge_a", result("0", voted([5, 1], [4, 2])))),
            made(1, ("judge_a", result("1", voted([3, None], [3, 4]), abstained=absent))),
            made(2, ("judge_a", result("2", {**voted([2, 2], []), "jury_models": ["m"]}))),
        ],
    )
    measures = table(run)
    pair = measures["judge_a (m) / judge_a (m) #2: jury_ratings"]
    assert (pair["sampled_rows"], pair["exact_share"], pair["order_share"]) == (2, round(1 / 3, 4), 1.0)
    assert measures["judge_a"]["notes abstained"] == measures["judge_a"]["notes abstained reason timeout"] == 1
    assert len(measures) == 2  # the jury is not compared with its members


def test_pairwise_orders_lists_and_conversations(tmp_path: Path) -> None:
    def judged(bias: str | None) -> dict[str, Any]:
        return {"preference": None if bias else 0, "position_bias": bias}

    talk = [{"role": "system", "content": "no"}, {"role": "user", "content": "one"}]
    run = write_run(
        tmp_path / "run",
        [
            *(made(n, ("judge_a", result(str(n), judged(bias)))) for n, bias in enumerate([None, "first", None, None])),
            made(4, ("judge_a", result("4", judged(None), calls=0))),  # no judge was asked
            made(5, ("gen", result("5", [{"conversation": talk}, {"conversation": talk}]))),
            made(6, ("gen", result("6", {"structured": {"b": 1, "a": None}}))),
        ],
    )
    measures = table(run)
    assert measures["judge_a"]["orders agreeing_share"] == 0.75
    assert measures["judge_a"]["orders first_place_share"] == 0.25
    assert measures["gen"]["conversation values"] == 2
    assert measures["gen"]["conversation duplicate_share"] == 0.5
    assert measures["gen"]["structured chars mean"] == len('{"a":null,"b":1}')


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    async def main() -> None:
        async with server() as one:
            for name, prompt in (("a", None), ("b", "Be strict.")):
                pipeline = preference(rows(20), judge_prompt=prompt)
                await pipeline.arun(servers=[one.base_url], output=tmp_path / name)

    run_async(main())
    compared = Comparison(RunQuality.read(tmp_path / "a"), RunQuality.read(tmp_path / "b")).as_json()
    assert compared["settings"] == ['steps.ultra_feedback_0.system_prompt: null -> "Be strict."']
    judge = compared["steps"]["ultra_feedback_0"]
    assert judge["results"] == [20, 20, 0]
    first, second, difference = judge["prompt_tokens mean"]
    assert difference == pytest.approx(second - first)
    assert second > first


def test_a_changed_pipeline_is_measured_as_it_is_now(tmp_path: Path) -> None:
    def pipeline(max_tokens: int) -> Pipeline:
        with Pipeline(name="changed") as made:
            LoadDataFromDicts(data=rows(10)) >> TextGeneration(llm=LLM(model="model-a", max_tokens=max_tokens))
        return made

    async def main() -> None:
        async with server() as one:
            await pipeline(4).arun(servers=[one.base_url], output=tmp_path)
            assert table(tmp_path)["text_generation_0"]["truncated_share"] == 1.0
            await pipeline(512).arun(servers=[one.base_url], output=tmp_path, update=True)
            now = table(tmp_path)["text_generation_0"]
            assert (now["results"], now["truncated_share"]) == (10, 0.0)

    run_async(main())


def test_the_segments_before_a_barrier_are_measured_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with server() as one:
            await two_models(repeated(6)).arun(servers=[one.base_url], output=tmp_path)

    run_async(main())
    measures = table(tmp_path)
    assert next(iter(measures)) == "text_generation_0"
    assert measures["text_generation_0"]["results"] >= measures["text_generation_1"]["results"] > 0


def test_a_directory_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"not a run directory"):
        RunQuality.read(tmp_path)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", [made(0, ("gen", result("0", {"generation": "\x1b[31mred"})))])
    other = write_run(tmp_path / "other", [])

    quality_command(run, as_json=False)
    shown = capsys.readouterr().out
    assert "gen (TextGeneration)" in shown
    assert "generation duplicate" in shown
    assert "\x1b" not in shown
    quality_command(run, as_json=True)
    assert json.loads(capsys.readouterr().out)["steps"][0]["results"] == 1
    quality_command(other, as_json=False)
    assert "the journal is empty" in capsys.readouterr().out
    compare_command(run, other, as_json=False)
    compared = capsys.readouterr().out
    assert "the settings are the same" in compared
    assert "B - A" in compared
    compare_command(run, other, as_json=True)
    assert json.loads(capsys.readouterr().out)["steps"]["gen"]["results"] == [1, None, None]
