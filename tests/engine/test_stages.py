"""Pipelines with a step over all rows: stages, their barrier, resume, changes, counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from asyncsynth import LLM, Deduplicate, GroupColumns, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.cli.inspect_command import status_command
from asyncsynth.engine.barrier import BarrierCounts
from asyncsynth.engine.runner import Runner
from asyncsynth.engine.status import RunStatus
from asyncsynth.errors import PipelineError, RunChangedError, RunLockedError
from asyncsynth.pipeline import AllRows, Dropped, GlobalStep
from asyncsynth.records import Row
from asyncsynth.storage.failures import failed_rows
from asyncsynth.storage.result_rows import row_key
from asyncsynth.testing import Fault, FaultServer, RequestInfo
from tests.kit.loops import run_async, until
from tests.kit.pipelines import Even, Once, completions, repeated, rows, server, two_models


def asked(fake: FaultServer, model: str) -> int:
    return sum(info.json.get("model") == model for info in fake.log or ())


def test_a_pipeline_runs_through_its_barrier(tmp_path: Path) -> None:
    async def main() -> None:
        runners: list[Runner] = []
        async with server(keep_requests=True) as fake:
            result = await two_models(repeated(10)).arun(
                servers=[fake.base_url], output=tmp_path / "run", on_runner=runners.append
            )
            assert completions(fake) == 10 + 8
        report = result.report
        assert report.complete
        assert report.exit_code == 0
        assert report.directory == tmp_path / "run"
        assert report.counts.rows == 8
        assert report.counts.ok == 18
        assert report.counts.dropped == {"once_0: repeated": 2}
        assert report.notes[0] == (
            "stage 1: 10 ok, 0 failed, 0 done earlier; once_0: 8 of 10 rows kept, dropped: repeated 2"
        )
        assert "Once.decided" in report.notes[1], "what the step itself changes is named"
        train = result["default"]["train"]
        assert [row["instruction"] for row in train] == [row["instruction"] for row in rows(8)]
        assert {row["seen"] for row in train} == {10}
        assert train[0]["second_model"] == "model-b"
        assert [runner.progress().stage.split(",")[0] for runner in runners] == ["1/2", "2/2"]
        facts = json.loads((tmp_path / "run/stage-1/barrier.json").read_text())
        assert facts["dropped"] == {"repeated": 2}

    run_async(main())


def test_the_status_of_a_barrier_that_dropped_rows_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with server() as fake:
            await two_models(repeated(6)).arun(servers=[fake.base_url], output=tmp_path / "run")

    run_async(main())
    status_command(tmp_path / "run", as_json=True)
    before = json.loads(capsys.readouterr().out)["before"]
    assert before["barrier"] == {"read": 6, "kept": 4, "dropped": {"repeated": 2}}


def test_a_second_run_pays_nothing_and_does_not_decide_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            await two_models(repeated(6)).arun(servers=[fake.base_url], output=tmp_path / "run")
            paid, decided = completions(fake), Once.decided
            again = await two_models(repeated(6)).arun(servers=[fake.base_url], output=tmp_path / "run")
            assert (completions(fake), Once.decided) == (paid, decided)
        assert again.report.counts.earlier == 6 + 4
        assert again.report.counts.ok == 0
        assert len(again["default"]["train"]) == 4

    run_async(main())


def test_more_input_goes_through_both_stages_and_pays_only_for_what_is_new(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            await two_models(rows(5), Even).arun(servers=[fake.base_url], output=tmp_path / "run")
            assert completions(fake) == 5 + 3
            grown = await two_models(rows(8), Even).arun(servers=[fake.base_url], output=tmp_path / "run")
            assert completions(fake) == 8 + 4
        assert [row["instruction"][-2] for row in grown["default"]["train"]] == list("0246")

    run_async(main())


class Odd(Even):
    keep = 1


def test_rows_that_the_barrier_no_longer_lets_through_leave_the_result(tmp_path: Path) -> None:
    """A row added in front changes what is even; results of rows that stay are not paid again."""

    def over(names: str) -> Pipeline:
        with Pipeline(name="ids") as pipeline:
            data = [{"id": name, "instruction": f"about {name}"} for name in names]
            load = LoadDataFromDicts(data=data, id_column="id")
            load >> Even() >> TextGeneration(llm=LLM(model="model-a"))
        return pipeline

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await over("abcd").arun(**options)
            assert completions(fake) == 2
            with pytest.raises(RunChangedError, match=r"stage 1:.*\n.*changed"):
                await over("zyabcd").arun(**options)
            result = await over("zyabcd").arun(**options, update=True)
            assert completions(fake) == 3
            assert [row["id"] for row in result["default"]["train"]] == list("zac")
            result = await over("bcd").arun(**options, update=True)
            assert completions(fake) == 5
            assert [row["id"] for row in result["default"]["train"]] == list("bd")

    run_async(main())


def test_what_changed_after_the_barrier_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await two_models(rows(4), Even).arun(**options)
            assert completions(fake) == 6
            changed = two_models(rows(9), Even, prompt="Be brief.")
            with pytest.raises(RunChangedError) as refused:
                await changed.arun(**options)
            told = str(refused.value)
            assert "stage 2:" in told
            assert "stage 1:" not in told
            assert "text_generation_1: redone" in told
            assert completions(fake) == 6
            updated = await changed.arun(**options, update=True)
            assert completions(fake) == 9 + 2 + 5
            assert len(updated["default"]["train"]) == 5

    run_async(main())


def test_another_barrier_is_a_change_that_costs_only_what_it_newly_lets_through(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await two_models(rows(6), Even).arun(**options)
            with pytest.raises(RunChangedError, match="stage 2"):
                await two_models(rows(6), Odd).arun(**options)
            result = await two_models(rows(6), Odd).arun(**options, update=True)
            assert completions(fake) == 6 + 3 + 3
            assert [row["instruction"][-2] for row in result["default"]["train"]] == list("135")

    run_async(main())


def test_a_run_cancelled_in_either_stage_goes_on_where_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True, delay_s=0.002) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "window": 4}
            for model in ("model-a", "model-b"):
                task = asyncio.create_task(two_models(rows(40), Even).arun(**options))
                await until(lambda model=model: asked(fake, model) >= 12)  # type: ignore[misc]
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            result = await two_models(rows(40), Even).arun(**options)
            # What was in flight when it was cancelled is asked again, nothing else.
            assert 60 <= completions(fake) <= 60 + 2 * 4
        assert result.report.complete
        assert len(result["default"]["train"]) == 20

    run_async(main())


class Slow(GlobalStep):
    """Waits at its second row until it is asked to stop."""

    waiting = False

    def decide(self, rows: AllRows) -> Iterable[Row | Dropped]:
        type(self).waiting = True
        for _ in range(1_000_000):
            for _ in rows:
                pass
        yield from ({} for _ in rows)


@pytest.mark.parametrize("end", ["drain", "cancel"])
def test_a_barrier_stops_when_the_run_does_and_leaves_nothing_half_done(tmp_path: Path, end: str) -> None:
    async def main() -> None:
        runners: list[Runner] = []
        Slow.waiting = False
        async with server() as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            pipeline = two_models(rows(4), Slow)
            task = asyncio.create_task(pipeline.arun(**options, on_runner=runners.append))
            await until(lambda: Slow.waiting)
            assert runners[-1].progress().stage == "1/2, slow_0"
            if end == "drain":
                runners[-1].drain("SIGINT")
                report = (await task).report
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                report = runners[-1].report()  # what the command line shows
            assert not report.complete
            assert report.exit_code == 4
            assert report.directory == tmp_path / "run"
            assert report.counts.ok == 4
            assert len(runners) == 1
            assert not list((tmp_path / "run/stage-1").glob("*barrier*"))
            done = await two_models(rows(4), Even).arun(**options, update=True)
            assert done.report.exit_code == 0
            assert len(done["default"]["train"]) == 2

    run_async(main())


def test_a_run_drained_in_its_first_stage_stops_there(tmp_path: Path) -> None:
    async def main() -> None:
        runners: list[Runner] = []
        async with server(delay_s=0.002) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "window": 4}
            task = asyncio.create_task(two_models(rows(40), Even).arun(**options, on_runner=runners.append))
            await until(lambda: runners and runners[0].counts.ok > 3)
            runners[0].drain("SIGINT")
            result = await task
            assert result.report.exit_code == 4
            assert result.report.stopped_why == "SIGINT"
            assert len(runners) == 1
            assert list(result["default"]["train"]) == []
            done = await two_models(rows(40), Even).arun(**options)
            assert done.report.exit_code == 0

    run_async(main())


def bad_for(words: str) -> Callable[[RequestInfo], Fault | None]:
    return lambda info: Fault("status", status=400) if words.encode() in info.body else None


def test_a_record_that_failed_before_the_barrier_counts_in_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(script=bad_for("number 3."), keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            result = await two_models(rows(6)).arun(**options)
            assert result.report.exit_code == 3
            assert result.report.counts.failed == 1
            assert result.report.counts.failures == {"bad_request": 1}
            assert len(result["default"]["train"]) == 5
            status = RunStatus.read(tmp_path / "run", examples=1)
            assert (status.ok, status.failed_rows) == (5, {})
            assert status.before is not None
            assert status.before.failed_rows == {"text_generation_0: bad_request": 1}
            assert [failed.key for failed in status.before.examples] == ["3"]
            assert status.before.barrier == BarrierCounts(5, 5)
            assert status.as_json()["before"]["barrier"]["kept"] == 5
            (lost,) = failed_rows(tmp_path / "run")
            assert (lost["key"], lost["position"], lost["step"]) == ("3", 3, "text_generation_0")
            again = await two_models(rows(6)).arun(**options)
            assert (again.report.counts.earlier_failed, again.report.exit_code) == (1, 3)
            fake.script = None
            mended = await two_models(rows(6)).arun(**options, retry_failed=True)
            assert mended.report.exit_code == 0
            assert [row["seen"] for row in mended["default"]["train"]] == [6] * 6

    run_async(main())


def test_the_limit_is_one_of_the_input(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            some = await two_models(rows(20), Odd).arun(**options, limit=3)
            assert completions(fake) == 3 + 1
            assert some.report.complete
            everything = await two_models(rows(20), Odd).arun(**options)
            assert completions(fake) == 30
            assert len(everything["default"]["train"]) == 10

    run_async(main())


def test_streaming_yields_the_rows_of_the_last_stage(tmp_path: Path) -> None:
    async def main() -> None:
        async with server() as fake:
            stream = two_models(rows(12), Even).stream(servers=[fake.base_url], output=tmp_path / "run")
            seen = [row async for row in stream]
        assert len(seen) == 6
        assert all("second" in row for row in seen)

    run_async(main())


def test_several_rows_a_record_and_several_barriers_at_either_end(tmp_path: Path) -> None:
    with Pipeline(name="ends") as pipeline:
        load = LoadDataFromDicts(data=rows(4))
        load >> Even() >> TextGeneration(llm=LLM(model="model-a"), num_generations=3) >> Even() >> Odd()

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            result = await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")
            assert completions(fake) == 6
        assert len(result["default"]["train"]) == 1
        assert sorted(path.name for path in (tmp_path / "run").glob("stage-*")) == [
            "stage-1", "stage-2", "stage-3",
        ]  # fmt: skip

    run_async(main())


def test_branches_before_and_after_a_barrier(tmp_path: Path) -> None:
    with Pipeline(name="branches") as pipeline:
        before = [TextGeneration(llm=LLM(model=model)) for model in ("model-a", "model-b")]
        group = GroupColumns(columns=["generation", "model_name"], output_columns=["generations", "models"])
        after = [TextGeneration(llm=LLM(model=model), name=model) for model in ("model-a", "model-b")]
        LoadDataFromDicts(data=repeated(5)) >> before >> group >> Deduplicate("instruction") >> after

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            result = await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")
            assert completions(fake) == 10 + 8
        assert list(result) == ["model-a", "model-b"]
        assert result.report.counts.dropped == {"deduplicate_0: duplicate": 1}
        assert [len(result[leaf]["train"]) for leaf in result] == [4, 4]
        assert result["model-b"]["train"][0]["model_name"] == "model-b"

    run_async(main())


def test_a_barrier_that_keeps_nothing(tmp_path: Path) -> None:
    with Pipeline(name="none") as pipeline:
        LoadDataFromDicts(data=rows(1)) >> Odd() >> TextGeneration(llm=LLM(model="model-a"))

    async def main(fake: FaultServer) -> None:
        async with fake:
            result = await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")
        assert result.report.exit_code == 0
        assert len(result["default"]["train"]) == 0

    run_async(main(server()))


def test_no_second_process_while_the_first_stage_runs(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(delay_s=0.05) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            first = asyncio.create_task(two_models(rows(3), Even).arun(**options))
            await until(lambda: fake.answered >= 3)
            with pytest.raises(RunLockedError):
                await two_models(rows(3), Even).arun(**options)
            await first

    run_async(main())


def test_use_cache_false_sets_all_stages_aside(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            for _ in range(2):
                await two_models(rows(4), Even).arun(servers=[fake.base_url], output=tmp_path / "run", use_cache=False)
            assert completions(fake) == 12
        assert len(list(tmp_path.glob("run*/stage-1"))) == 2

    run_async(main())


class Few(GlobalStep):
    def decide(self, rows: AllRows) -> Iterable[Row | Dropped]:
        return [{}]


class Many(GlobalStep):
    def decide(self, rows: AllRows) -> Iterable[Row | Dropped]:
        return [{}] * (len(rows) + 1)


class Bug(GlobalStep):
    def decide(self, rows: AllRows) -> Iterable[Row | Dropped]:
        return [{"column": row["missing"]} for row in rows]


class NotJson(GlobalStep):
    def decide(self, rows: AllRows) -> Iterable[Row | Dropped]:
        return [{"column": [1.0, float("nan")]} for _ in rows]


class Lookup(GlobalStep):
    def decide(self, rows: AllRows) -> Iterable[Row | Dropped]:
        prices: dict[str, int] = {}
        return [{"column": prices["gold"]} for _ in rows]


class Nothing(GlobalStep):
    def decide(self, rows: AllRows) -> Iterable[Row | Dropped]:
        return [None for _ in rows]  # type: ignore[misc]


class Undecided(GlobalStep):
    def decide(self, rows: AllRows) -> Any:
        pass


class Waits(GlobalStep):
    async def decide(self, rows: AllRows) -> Any:  # type: ignore[override]
        return [{} for _ in rows]


class Misnames(GlobalStep):
    outputs = ("score",)

    def decide(self, rows: AllRows) -> Iterable[Row | Dropped]:
        return [{"scroe": 1} for _ in rows]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Few, "'few_0' decided on only 1 of 3"),
        (Many, "'many_0' decided on more of 3"),
        (Bug, r"'bug_0' failed over all rows: the row has no column 'missing'; .*instruction.* \(\S+.py:\d+\)"),
        (Lookup, r"'lookup_0' failed over all rows: KeyError: 'gold' \(\S+test_stages.py:\d+\)"),
        (Nothing, "'nothing_0' made what row 0 cannot hold: Nothing.decide returned NoneType; a dict was expected"),
        (Undecided, "failed over all rows: TypeError: decide returned NoneType; .*is a `return` missing?"),
        (Waits, "failed over all rows: TypeError: decide returned coroutine; one decision for each row was expected"),
        (Misnames, "misnames_0 returned lacks score and has scroe, which outputs= does not declare"),
        (NotJson, r"'not_json_0' made what row 0 cannot hold: the output 'column\[1\]' is NaN"),
    ],
)
def test_a_fault_of_the_step_is_named_and_costs_no_result(tmp_path: Path, step: type[GlobalStep], message: str) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            with pytest.raises(PipelineError, match=message):
                await two_models(rows(3), step).arun(**options)
            assert not list((tmp_path / "run/stage-1").glob("*barrier*"))
            await two_models(rows(3), Even).arun(**options, update=True)
            assert completions(fake) == 5

    run_async(main())


@pytest.mark.row(37)
def test_a_damaged_output_is_told_and_made_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await two_models(rows(4), Even).arun(**options)
            output = tmp_path / "run/stage-1/barrier.jsonl"
            whole, facts = output.read_bytes(), output.with_suffix(".json").read_bytes()
            for harmed, said in (
                (whole[:-9], "rows and a part of one where 2 were written"),
                (whole[: whole.index(b"\n") + 1], "has 1 rows where 2 were written"),
                (whole.replace(b"number 0", b"number 8"), "does not match its checksum"),
            ):
                output.write_bytes(harmed)
                mended = await two_models(rows(4), Even).arun(**options)
                assert any("barrier.jsonl" in note and said in note for note in mended.report.notes), said
                assert (output.read_bytes(), output.with_suffix(".json").read_bytes()) == (whole, facts)
                assert len(mended["default"]["train"]) == 2
            for other in (b"", b"[]", b"{}"):
                output.with_suffix(".json").write_bytes(other)
                mended = await two_models(rows(4), Even).arun(**options)
                assert len(mended["default"]["train"]) == 2
            output.unlink()
            mended = await two_models(rows(4), Even).arun(**options)
            assert mended.report.counts.earlier == 6
            assert completions(fake) == 6

    run_async(main())


def test_keys_of_rows_never_meet() -> None:
    keys = [row_key("17", 0, 1), *(row_key("17", number, 2) for number in range(2)), row_key("17.0", 0, 1)]
    assert keys == ["17", "17.0", "17.1", "17.0.0"]
