"""Failures that stop a run: all alike from the first record on, or too many (row 29); how failures are reported."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, task
from asyncsynth.engine.failing import ALIKE, AllAlike, FailureLimit
from asyncsynth.engine.options import RunOptions
from asyncsynth.engine.status import RunStatus
from asyncsynth.errors import ConfigurationError, RunStopped
from asyncsynth.storage.entries import FailedRow
from asyncsynth.storage.failures import export_failures, failed_rows
from asyncsynth.testing import Fault, FaultServer, RequestInfo
from tests.kit.files import read_rows
from tests.kit.loops import run_async
from tests.kit.pipelines import rows, server, single


def failed(number: int, message: str = "row 7: no", step: str = "judge", reason: str = "step_error") -> FailedRow:
    return FailedRow(f"id-{number}", step, reason, message, 1)


def test_twenty_failures_that_differ_in_numbers_and_names_only_are_alike() -> None:
    alike = AllAlike()
    said = [alike.failed(failed(n, f"id-{n}: KeyError: 'x{n}' at row {n} of deadbeef{n:04}")) for n in range(ALIKE + 2)]
    assert said[: ALIKE - 1] == [""] * (ALIKE - 1)
    assert "first 20 records all failed in the same way: step 'judge', step_error: id-19" in said[ALIKE - 1]


def test_a_key_that_is_part_of_other_words_and_numbers_makes_no_difference() -> None:
    alike = AllAlike()
    keys = [*"abcdefghij", *map(str, range(ALIKE))]
    message = "AttributeError: bad attribute (job.py:50)"
    told = [alike.failed(replace(failed(0, message), key=key)) for key in keys]
    assert told[ALIKE - 1].startswith("the first 20 records all failed")


def test_one_line_of_a_step_fails_alike_whatever_it_says_of_the_row() -> None:
    alike = AllAlike()
    words = [f"{a}{b}" for a in "abcde" for b in "xyzw"]
    told = [
        alike.failed(failed(n, f"ValueError: cannot read {word} (see {word})\nat all (job.py:50)"))
        for n, word in enumerate(words)
    ]
    assert told[ALIKE - 1].startswith("the first 20 records all failed")
    for message in ("TypeError: no (job.py:50)", "ValueError: no (other.py:50)", "ValueError: no"):
        alike = AllAlike()
        assert not any(alike.failed(failed(n, message if n else "ValueError: x (job.py:50)")) for n in range(ALIKE + 5))


def test_one_line_that_asks_for_columns_that_its_rows_lack_fails_alike_whichever_they_are() -> None:
    """`row[row["kind"]]`: another column is missing each time, the row has others, one has a name nearly like it."""

    def missing(number: int, line: str = " (job.py:50)") -> FailedRow:
        near = f"; did you mean 'kind{number}'?" if number % 3 else ""
        said = f"the row has no column 'k{chr(97 + number % 26)}'{near}; this step sees kind, c{number % 7}{line}"
        return failed(number, said, reason="missing_column")

    for line in (" (job.py:50)", ""):
        alike = AllAlike()
        told = [alike.failed(missing(n, line)) for n in range(ALIKE)]
        assert told[-1].startswith("the first 20 records all failed")
    alike = AllAlike()
    assert not any(alike.failed(missing(n, f" ({'job' if n else 'other'}.py:50)")) for n in range(100)), "two places"


@pytest.mark.row(41)
@pytest.mark.parametrize("reason", ["bad_request", "refused", "model_not_found", "quota"])
def test_refusals_are_alike_whatever_they_quote_of_the_prompt(reason: str) -> None:
    alike = AllAlike()
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "it",
        "and",
        "then",
        "some",
        "more",
        "words",
        "that",
        "nobody",
        "wrote",
        "before",
        "in",
        "this",
        "way",
        "ok",
    ]
    told = [alike.failed(failed(n, f"input {word}: that isn't allowed", reason=reason)) for n, word in enumerate(words)]
    assert told[ALIKE - 1].endswith(f"step 'judge', {reason}: input {words[ALIKE - 1]}: that isn't allowed")


def test_failures_that_differ_in_a_request_id_only_are_alike() -> None:
    alike = AllAlike()
    names = ["req_a1b{}zQ", "01J{}XAB-cd", "e29b-41d4-a716-44665544{:04}"]
    told = [alike.failed(failed(n, f"HTTP 500, ID: {names[n % 3].format(n)}", reason="timeout")) for n in range(ALIKE)]
    assert told[ALIKE - 1]


@pytest.mark.parametrize("other", [{"step": "gen"}, {"reason": "timeout"}, {"message": "something else"}])
def test_failures_that_differ_stop_nothing(other: dict[str, Any]) -> None:
    alike = AllAlike()
    assert not any(alike.failed(failed(n, **(other if n == 10 else {}))) for n in range(100))


def test_bad_rows_that_are_skipped_stop_nothing() -> None:
    alike = AllAlike()
    assert not any(alike.failed(failed(n, reason="bad_input", step="input")) for n in range(100))


def test_a_limit_is_a_number_or_a_share() -> None:
    assert not FailureLimit(3).exceeded(3, 3)
    assert "4 of 9 records failed; at most 3 may" in FailureLimit("3").exceeded(4, 9)
    assert not FailureLimit("5%").exceeded(49, 49)
    assert not FailureLimit(" 5 % ").exceeded(5, 100)
    assert FailureLimit("5%").exceeded(6, 100)
    assert not FailureLimit("100%").exceeded(1_000, 1_000)
    assert FailureLimit(0).exceeded(1, 1)


@pytest.mark.parametrize("limit", ["", "many", "-1", "101%", "nan%", "1.5", "inf%", -3, True, "%"])
def test_other_limits_are_refused_before_anything_is_sent(limit: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"max_failures is .*number of records or a percentage"):
        RunOptions(max_failures=limit)


# --- whole runs ----------------------------------------------------------------------------------


def judged(count: int, attribute: str) -> Pipeline:
    @task(llm=LLM(model="model-a"), inputs=["instruction"], outputs=["s"])
    async def judge(row: Any, ctx: Any) -> dict[str, Any]:
        completion = await ctx.chat(row["instruction"])
        return {"s": len(str(getattr(completion, attribute)))}

    with Pipeline(name="judged") as pipeline:
        LoadDataFromDicts(data=rows(count)) >> judge()
    return pipeline


def asked(fake: FaultServer) -> int:
    assert fake.log is not None
    return sum(b"number" in info.body for info in fake.log)


@pytest.mark.row(29)
def test_a_typing_error_in_a_step_stops_the_run_after_twenty_records_and_what_was_sent(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True, delay_s=0.01) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "concurrency": 8}
            report = (await judged(2_000, "txt").arun(**options)).report
            assert report.exit_code == 4
            assert "first 20 records all failed in the same way: step 'judge_0', step_error" in report.stopped_why
            assert "'txt'" in report.stopped_why
            assert "--retry-failed" in report.advice
            # Twenty, those at the server, and those of the moment until the twenty are on the disk.
            assert report.counts.failed <= 20 + 4 * 8
            assert asked(fake) <= report.counts.failed + 1
            assert report.unfinished == 2_000 - report.counts.failed
            example = report.counts.examples["step_error"]
            assert example["step"] == "judge_0"
            assert "'txt'" in example["message"]
            # Mended: the step's code is part of the pipeline, so its records are done again.
            whole = (await judged(2_000, "choices").arun(**options, update=True)).report
            assert (whole.exit_code, whole.counts.ok) == (0, 2_000)

    run_async(main())


@pytest.mark.row(29)
def test_records_that_failed_alike_are_tried_again_with_retry_failed(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(script=lambda info: bad_if(info, b"number"), delay_s=0.01) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "concurrency": 4}
            first = (await single(rows(100)).arun(**options)).report
            assert first.exit_code == 4
            assert 20 <= first.counts.failed < 60
            fake.script = None
            rest = (await single(rows(100)).arun(**options)).report
            assert (rest.counts.earlier, rest.exit_code) == (first.counts.failed, 3)
            whole = (await single(rows(100)).arun(**options, retry_failed=True)).report
            assert whole.exit_code == 0
            assert RunStatus.read(tmp_path / "run").ok == 100

    run_async(main())


def bad_if(info: RequestInfo, words: bytes) -> Fault | None:
    return Fault("status", status=400) if words in info.body else None


@pytest.mark.row(29)
def test_fewer_records_than_twenty_end_as_they_do(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(script=lambda info: bad_if(info, b"number")) as fake:
            for count in (19, 20):
                options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / str(count)}
                report = (await single(rows(count)).arun(**options)).report
                assert (report.exit_code, report.counts.failed, report.complete) == (3, count, True)

    run_async(main())


@pytest.mark.row(29)
def test_one_record_that_ends_well_lets_the_run_go_to_its_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(script=lambda info: None if b"number 0." in info.body else bad_if(info, b"number")) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "concurrency": 1}
            report = (await single(rows(60)).arun(**options)).report
            assert (report.exit_code, report.counts.failed, report.counts.ok) == (3, 59, 1)
            # Nor is the run stopped that tries the others again.
            again = (await single(rows(60)).arun(**options, retry_failed=True)).report
            assert (again.exit_code, again.counts.failed, again.counts.earlier) == (3, 59, 1)

    run_async(main())


@pytest.mark.row(29)
def test_a_record_that_ended_well_earlier_counts_before_the_input_brings_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(script=lambda info: None if b"number 59." in info.body else bad_if(info, b"number")) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "window": 2}
            await single(rows(60)).arun(**options, max_failures="100%")
            again = (await single(rows(60)).arun(**options, retry_failed=True)).report
            assert (again.exit_code, again.counts.failed, again.counts.earlier) == (3, 59, 1)
            # What another pipeline made of the records says nothing of this one.
            other = single(rows(60), system_prompt="Be brief.")
            fake.script = lambda info: bad_if(info, b"number")
            assert (await other.arun(**options, update=True)).report.exit_code == 4

    run_async(main())


@pytest.mark.row(29)
@pytest.mark.parametrize(("limit", "least", "most"), [(5, 6, 6 + 8), ("10%", 50, 50 + 8), ("100%", 100, 100)])
def test_more_failures_than_allowed_stop_the_run(tmp_path: Path, limit: int | str, least: int, most: int) -> None:
    async def main() -> None:
        async with server(script=lambda info: bad_if(info, b"number"), delay_s=0.005) as fake:
            # The window bounds what fails before the first failures are on the disk, however slow that is.
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "window": 8}
            report = (await single(rows(100)).arun(**options, max_failures=limit)).report
            assert least <= report.counts.failed <= most  # a share counts from 50 records on
            assert report.complete == (limit == "100%")
            assert report.exit_code == (3 if report.complete else 4)
            if not report.complete:
                assert f"at most {limit} may (--max-failures)" in report.stopped_why

    run_async(main())


# --- reports -------------------------------------------------------------------------------------


def test_each_reason_has_an_example_and_each_failed_row_its_input(tmp_path: Path) -> None:
    def script(info: RequestInfo) -> Fault | None:
        if b"number 3." in info.body:
            return Fault("status", status=400, message="three is too many")
        return Fault("null_content") if b"number 5." in info.body else None

    async def main() -> None:
        async with server(script=script) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            report = (await single(rows(8)).arun(**options)).report
            assert set(report.counts.examples) == set(report.counts.failures)
            told = json.loads(json.dumps(report.as_json(), default=str))["counts"]
            assert "three is too many" in told["examples"]["bad_request"]["message"]
            assert (told["examples"]["bad_request"]["key"], told["pending"]) == ("3", 0)

    run_async(main())
    status = RunStatus.read(tmp_path / "run", examples=20)
    assert len(status.examples) == len(status.failed_rows) == 2
    assert [(row["key"], row["input"]) for row in failed_rows(tmp_path / "run")] == [
        ("3", rows(8)[3]),
        ("5", rows(8)[5]),
    ]
    export_failures(tmp_path / "run", tmp_path / "failed.jsonl")
    lines = read_rows(tmp_path / "failed.jsonl")
    assert [line["input"]["instruction"] for line in lines] == [rows(8)[n]["instruction"] for n in (3, 5)]


def test_a_step_that_swallows_the_refusal_makes_no_result_of_it(tmp_path: Path) -> None:
    """Neither of the requests that a stop withdraws, nor of those that a halted pool refuses."""

    @task(llm=LLM(model="model-a"), inputs=["instruction"], outputs=["s"])
    async def careless(row: Any, ctx: Any) -> dict[str, Any]:
        try:
            await ctx.chat(row["instruction"])
            await ctx.chat("again: " + row["instruction"])
        except BaseException:
            return {"s": "made up"}
        return {"s": "answered"}

    async def main() -> None:
        async with server(delay_s=0.02) as fake:
            for way in ("drain", "halt"):
                with Pipeline(name="careless") as pipeline:
                    LoadDataFromDicts(data=rows(40)) >> careless()
                runners: list[Any] = []

                revoked: list[bool] = []

                def script(
                    info: RequestInfo, way: str = way, runners: list[Any] = runners, revoked: list[bool] = revoked
                ) -> Fault | None:
                    if way == "halt" and (revoked or b"again: " in info.body):
                        revoked.append(True)
                        return Fault("status", status=401)
                    if b"again: " not in info.body:
                        return None
                    asyncio.get_running_loop().call_soon(runners[0].drain, "a test")
                    return None

                fake.script = script
                options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / way, "concurrency": 4}
                with pytest.raises(RunStopped) if way == "halt" else contextlib.nullcontext():
                    await pipeline.arun(on_runner=runners.append, **options)
                status = RunStatus.read(tmp_path / way)
                assert status.failed == 0
                assert status.complete is False
                fake.script = None
                with Pipeline(name="careless") as pipeline:
                    LoadDataFromDicts(data=rows(40)) >> careless()
                result = await pipeline.arun(**options)
                assert {row["s"] for row in result["default"]["train"]} == {"answered"}

    run_async(main())


@pytest.mark.row(28)
@pytest.mark.parametrize("made", ["result", "error"])
def test_a_step_that_swallows_the_cancellation_makes_no_result_of_it(tmp_path: Path, made: str) -> None:
    """A second signal cancels requests that are at the servers. What a step's code makes of that is not kept."""

    @task(llm=LLM(model="model-a"), inputs=["instruction"], outputs=["s"])
    async def careless(row: Any, ctx: Any) -> dict[str, Any]:
        try:
            await ctx.chat(row["instruction"])
        except BaseException:
            if made == "error":
                raise ValueError("made up") from None
            return {"s": "made up"}
        return {"s": "answered"}

    async def main() -> None:
        async with server() as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "concurrency": 4}

            def pipeline() -> Pipeline:
                with Pipeline(name="careless") as made_now:
                    LoadDataFromDicts(data=rows(8)) >> careless()
                return made_now

            held = asyncio.Event()
            fake.script = lambda info: held.set() or Fault(delay_s=600) if b"number" in info.body else None
            running = asyncio.ensure_future(pipeline().arun(**options))
            await held.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            status = RunStatus.read(tmp_path / "run")
            assert (status.ok, status.failed) == (0, 0)
            fake.script = None
            result = await pipeline().arun(**options)
            assert [row["s"] for row in result["default"]["train"]] == ["answered"] * 8

    run_async(main())
