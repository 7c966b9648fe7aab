"""Whole runs through the library, over real sockets to the fault server."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncsynth import (
    LLM,
    Deduplicate,
    ExpandColumns,
    Filter,
    FormPreference,
    GroupColumns,
    KeepColumns,
    LoadDataFromDicts,
    MergeBranches,
    Pipeline,
    RowStep,
    TextGeneration,
    UltraFeedback,
)
from asyncsynth.client.needs import SAMPLE_SEED
from asyncsynth.engine.runner import Runner
from asyncsynth.engine.status import RunStatus, writer_pid
from asyncsynth.errors import (
    ConfigurationError,
    InputError,
    ModelNotServed,
    PipelineError,
    RunChangedError,
    RunLockedError,
    RunStopped,
    ServerRefused,
)
from asyncsynth.pipeline import ModelStep
from asyncsynth.records import content_hash
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.extent import completeness
from asyncsynth.storage.files import REAL
from asyncsynth.storage.segments import list_segments
from asyncsynth.storage.verify import verify
from asyncsynth.testing import Fault, RequestInfo, random_faults
from tests.kit.loops import RUNNERS, run_async, until
from tests.kit.pipelines import completions, preference, rows, server, single


def test_the_seeds_pipeline_makes_pairs(tmp_path: Path) -> None:
    async def main() -> None:
        async with server() as fake:
            result = await preference(rows(20)).arun(servers=[fake.base_url], output=tmp_path / "run")
            assert result.report.complete
            assert result.report.exit_code == 0
            assert result.report.counts.ok == 20
            assert fake.answered >= 60
        train = result["default"]["train"]
        assert len(train) == 20
        first = train[0]
        assert "number 0" in first["prompt"]
        assert first["chosen"] != first["rejected"]
        assert {first["chosen_model"], first["rejected_model"]} == {"model-a", "model-b"}
        assert [row["prompt"] for row in train] == [row["instruction"] for row in rows(20)]  # input order

    run_async(main())


def test_a_second_run_pays_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            await preference(rows(10)).arun(servers=[fake.base_url], output=tmp_path / "run")
            paid = completions(fake)
            again = await preference(rows(10)).arun(servers=[fake.base_url], output=tmp_path / "run")
            assert completions(fake) == paid
            assert again.report.counts.earlier == 10
            assert again.report.counts.ok == 0
            assert len(again["default"]["train"]) == 10

    run_async(main())


@pytest.mark.row(2)
@pytest.mark.parametrize("steps", [1, 2])
def test_every_segment_of_a_run_has_its_sidecar(tmp_path: Path, steps: int) -> None:
    """Without one a resume reads the segment line by line. An entry that begins a segment is the place to go wrong."""
    pad = "x" * 3_000_000
    wide = [{"instruction": f"Say something about the number {number}.", "pad": pad} for number in range(30)]
    with Pipeline(name="wide") as pipeline:
        last: Any = LoadDataFromDicts(data=wide)
        for _ in range(steps):
            step = TextGeneration(llm=LLM(model="model-a"), output_mappings={"generation": "instruction"})
            last >> step
            last = step

    async def main() -> None:
        async with server() as fake:
            await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run", window=2)

    run_async(main())
    found = verify(tmp_path / "run")
    assert found.findings == []
    assert found.sidecars == len(list_segments(tmp_path / "run", REAL)) >= 3


def test_more_rows_extend_the_run(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            await single(rows(5)).arun(servers=[fake.base_url], output=tmp_path / "run")
            grown = await single(rows(9)).arun(servers=[fake.base_url], output=tmp_path / "run")
            assert completions(fake) == 9
            assert grown.report.counts.earlier == 5
            assert len(grown["default"]["train"]) == 9

    run_async(main())


def test_a_changed_later_step_shows_a_plan_and_pays_only_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            await preference(rows(6)).arun(servers=[fake.base_url], output=tmp_path / "run")
            assert completions(fake) == 18
            changed = preference(rows(6), judge_prompt="Judge harshly.")
            with pytest.raises(RunChangedError) as refused:
                await changed.arun(servers=[fake.base_url], output=tmp_path / "run")
            told = str(refused.value)
            assert "text_generation_0: 6 results, reused for rows that did not change" in told
            assert "ultra_feedback_0: redone" in told
            assert "system_prompt" in told
            assert "--update" in told
            assert completions(fake) == 18
            updated = await changed.arun(servers=[fake.base_url], output=tmp_path / "run", update=True)
            assert completions(fake) == 24
            assert updated.report.counts.reused_steps == 12
            assert len(updated["default"]["train"]) == 6

    run_async(main())


def test_a_changed_row_is_never_answered_from_an_old_result(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            data = rows(5)
            await single(data).arun(servers=[fake.base_url], output=tmp_path / "run")
            data[3] = {"instruction": "Something else."}
            again = await single(data).arun(servers=[fake.base_url], output=tmp_path / "run", update=True)
            assert completions(fake) == 6
            assert again["default"]["train"][3]["instruction"] == "Something else."

    run_async(main())


def bad_for(words: str, fault: Fault) -> Any:
    def script(info: RequestInfo) -> Fault | None:
        return fault if words.encode() in info.body else None

    return script


def test_one_bad_record_never_touches_its_neighbours_and_can_be_retried(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(script=bad_for("number 3.", Fault("status", status=400)), keep_requests=True) as fake:
            result = await preference(rows(8)).arun(servers=[fake.base_url], output=tmp_path / "run")
            assert result.report.counts.ok == 7
            assert result.report.counts.failed == 1
            assert result.report.exit_code == 3
            assert result.report.counts.failures == {"bad_request": 2}
            assert len(result["default"]["train"]) == 7
            fake.script = None
            still = await preference(rows(8)).arun(servers=[fake.base_url], output=tmp_path / "run")
            assert still.report.counts.earlier == 8
            assert still.report.counts.earlier_failed == 1
            assert still.report.exit_code == 3  # a record is still without its rows
            mended = await preference(rows(8)).arun(servers=[fake.base_url], output=tmp_path / "run", retry_failed=True)
            assert mended.report.counts.ok == 1
            assert mended.report.exit_code == 0
            assert len(mended["default"]["train"]) == 8

    run_async(main())


def test_faults_of_the_server_cost_no_record(tmp_path: Path) -> None:
    async def main() -> None:
        # Kinds that may come eight times; an answer that is no JSON is the record's own matter after three.
        async with server(script=random_faults(0.2, 7, kinds=("status", "reset"))) as fake:
            result = await preference(rows(40)).arun(servers=[fake.base_url], output=tmp_path / "run")
            assert result.report.counts.ok == 40, result.report
            assert sum(result.report.retries.values()) > 0

    run_async(main())


def test_streaming_yields_rows_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(delay_s=0.005) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "window": 4}
            seen = []
            stream = single(rows(40)).stream(**options)
            async for row in stream:
                seen.append(row["instruction"])
                if len(seen) == 5:
                    break
            await stream.aclose()
            everything = [row["instruction"] async for row in single(rows(40)).stream(**options)]
            assert sorted(everything) == sorted(row["instruction"] for row in rows(40))

    run_async(main())


@pytest.mark.parametrize("leave", ["break", "error", "cancel"])
def test_a_stream_left_without_closing_it_lets_go_of_all(tmp_path: Path, leave: str) -> None:
    async def consume(options: dict[str, Any], seen: list[Any]) -> None:
        async for row in single(rows(40)).stream(**options):
            seen.append(row)
            if len(seen) == 5 and leave == "break":
                break
            if len(seen) == 5 and leave == "error":
                raise ValueError("the reader's own")

    async def main() -> None:
        async with server(delay_s=0.005) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "window": 4}
            seen: list[Any] = []
            tasks = asyncio.all_tasks()
            reader = asyncio.create_task(consume(options, seen))
            if leave == "cancel":
                await until(lambda: len(seen) >= 5)
                reader.cancel()
            await asyncio.wait([reader])
            assert reader.cancelled() == (leave == "cancel")
            assert leave != "error" or isinstance(reader.exception(), ValueError)
            await until(lambda: not (asyncio.all_tasks() - tasks or writer_pid(tmp_path / "run") or fake.open))
            everything = [row async for row in single(rows(40)).stream(**options)]
            assert len(everything) == 40

    run_async(main())


def test_the_next_run_waits_for_a_stream_that_was_left(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(delay_s=0.005) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "window": 4}
            async for _ in single(rows(40)).stream(**options):
                break
            async for _ in single(rows(40)).stream(**options):
                break
            result = await single(rows(40)).arun(**options)
            assert len(result["default"]["train"]) == 40
            # A stream that is still read keeps its directory.
            async with contextlib.aclosing(single(rows(41)).stream(**options)) as stream:
                await anext(stream)
                with pytest.raises(RunLockedError, match=r"this process .* already") as caught:
                    await single(rows(41)).arun(**options)
                assert "aclose()" in str(caught.value.hint)

    run_async(main())


# The loop closes with open connections and a cancelled reader: what Python says of them is not tested here.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("runner", RUNNERS)
def test_a_loop_that_closes_around_a_stream_fails_no_record(runner: str, tmp_path: Path) -> None:
    """It cancels all tasks at once. A record's own task may hear of it before the run's, and is no failure."""

    async def leave() -> None:
        async with server(delay_s=0.005) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            async for _ in single(rows(80)).stream(**options):
                break

    async def resume() -> None:
        async with server() as fake:
            result = await single(rows(80)).arun(servers=[fake.base_url], output=tmp_path / "run")
            assert result.report.counts.earlier_failed == 0
            assert len(result["default"]["train"]) == 80

    RUNNERS[runner](leave())
    gc.collect()
    run_async(resume())


def test_a_run_in_another_thread_waits_for_a_stream_that_was_left(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(delay_s=0.005) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "window": 4}
            async for _ in single(rows(40)).stream(**options):
                break
            result = await asyncio.to_thread(lambda: single(rows(40)).run(**options))
            assert len(result["default"]["train"]) == 40

    run_async(main())


def test_a_stream_tells_its_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with server() as fake:
            broken = single([{"instruction": "fine"}, ["no row"]])
            with pytest.raises(InputError):
                async for _ in broken.stream(servers=[fake.base_url], output=tmp_path / "run"):
                    pass

    run_async(main())


def test_ten_million_lazy_records_start_at_once(tmp_path: Path) -> None:
    pulled = itertools.count()

    def lazily() -> Any:
        for number in range(10_000_000):
            next(pulled)
            yield {"instruction": f"{number}"}

    async def main() -> None:
        runners: list[Runner] = []
        async with server() as fake:
            pipeline = single(lazily)
            result = await pipeline.arun(
                servers=[fake.base_url], output=tmp_path / "run", limit=300, window=16, on_runner=runners.append
            )
        assert result.report.counts.ok == 300
        # The check before the run looks at the first row, the identity at the first MiB; nothing reads all.
        assert next(pulled) < 200_000

    run_async(main())


def test_several_generations_expand_into_rows_with_keys_of_their_own(tmp_path: Path) -> None:
    with Pipeline(name="expand") as pipeline:
        load = LoadDataFromDicts(data=rows(3))
        several = TextGeneration(llm=LLM(model="model-a"), num_generations=3)
        (
            load
            >> several
            >> TextGeneration(
                llm=LLM(model="model-b"),
                input_mappings={"instruction": "generation"},
                output_mappings={"generation": "answer"},
            )
        )

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            result = await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")
            assert len(result["default"]["train"]) == 9
            assert completions(fake) == 18
            assert result.report.counts.ok == 3
            seeds = {info.json["seed"] for info in fake.log or () if info.json.get("seed", SAMPLE_SEED) != SAMPLE_SEED}
            assert len(seeds) >= 18

    run_async(main())


class Broken(RowStep):
    """Fails on one row, as user code does."""

    def apply(self, row: dict[str, Any]) -> dict[str, Any]:
        if "2" in row["instruction"]:
            raise ZeroDivisionError("my bug")
        return row


def test_a_bug_in_a_step_costs_its_row_and_is_named(tmp_path: Path) -> None:
    with Pipeline(name="bug") as pipeline:
        LoadDataFromDicts(data=rows(4)) >> Broken() >> TextGeneration(llm=LLM(model="model-a"))

    async def main() -> None:
        async with server() as fake:
            result = await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")
        assert result.report.counts.failures == {"step_error": 1}
        assert result.report.counts.ok == 3

    run_async(main())


def test_lists_expand(tmp_path: Path) -> None:
    with Pipeline(name="lists") as pipeline:
        load = LoadDataFromDicts(data=[{"instruction": ["a", "b"]}, {"instruction": ["c"]}])
        load >> ExpandColumns(columns=["instruction"]) >> TextGeneration(llm=LLM(model="model-a"))

    async def main() -> None:
        async with server() as fake:
            result = await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")
        assert [row["instruction"] for row in result["default"]["train"]] == ["a", "b", "c"]

    run_async(main())


def test_duplicate_ids_are_refused(tmp_path: Path) -> None:
    with Pipeline(name="ids") as pipeline:
        load = LoadDataFromDicts(
            data=[{"id": "x", "instruction": "1"}, {"id": "x", "instruction": "2"}], id_column="id"
        )
        load >> TextGeneration(llm=LLM(model="model-a"))

    async def main() -> None:
        async with server() as fake:
            with pytest.raises(InputError, match="'x'"):
                await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")

    run_async(main())


def test_rows_with_ids_keep_their_results_when_they_move_and_leave_when_removed(tmp_path: Path) -> None:
    def pipeline_over(names: str) -> Pipeline:
        with Pipeline(name="ids") as pipeline:
            data = [{"id": name, "instruction": f"about {name}"} for name in names]
            LoadDataFromDicts(data=data, id_column="id") >> TextGeneration(llm=LLM(model="model-a"))
        return pipeline

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await pipeline_over("abcd").arun(**options)
            result = await pipeline_over("zadb").arun(**options, update=True)
            assert completions(fake) == 5
            assert [row["id"] for row in result["default"]["train"]] == list("zadb")

    run_async(main())


def test_unknown_model_and_wrong_key_and_no_server_end_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with server(api_key="right") as fake:
            monkeypatch.setenv("OPENAI_API_KEY", "wrong")
            with pytest.raises(ServerRefused, match="401"):
                await single(rows(2)).arun(servers=[fake.base_url], output=tmp_path / "a")
            monkeypatch.setenv("OPENAI_API_KEY", "right")
            done = await single(rows(2)).arun(servers=[fake.base_url], output=tmp_path / "a")
            assert done.report.counts.ok == 2
        async with server() as fake:
            with Pipeline(name="p") as pipeline:
                LoadDataFromDicts(data=rows(1)) >> TextGeneration(llm=LLM(model="model-x"))
            with pytest.raises(ModelNotServed, match="model-a"):
                await pipeline.arun(servers=[fake.base_url], output=tmp_path / "b")
            assert fake.answered == 0

    run_async(main())


@pytest.mark.parametrize("make", [lambda: single(rows(40)), lambda: two_stages(40)])
def test_a_server_that_begins_to_refuse_ends_the_run_with_what_is_left(
    tmp_path: Path, make: Callable[[], Pipeline]
) -> None:
    async def main() -> None:
        async with server() as fake:
            refusing = fake.requests + 25
            fake.script = lambda info: Fault("status", status=401) if info.index > refusing else None
            with pytest.raises(RunStopped, match="401") as caught:
                await make().arun(servers=[fake.base_url], output=tmp_path / "run", concurrency=2)
        left = completeness(tmp_path / "run")
        assert 0 < (left.unfinished or 0) < 40
        assert caught.value.message.endswith(f"; {left.missing}")
        assert f"{left.unfinished} of 40 records have not ended" in left.missing

    run_async(main())


def two_stages(count: int) -> Pipeline:
    with Pipeline(name="stages") as pipeline:
        generate = TextGeneration(llm=LLM(model="model-a"))
        LoadDataFromDicts(data=rows(count)) >> generate >> Deduplicate(columns=["instruction"])
    return pipeline


def test_an_error_of_a_run_is_not_buried_under_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASYNCSYNTH_TRACEBACK", raising=False)
    monkeypatch.delenv("ASYNCSYNTH_SERVERS", raising=False)

    def frames() -> int:
        with pytest.raises(ModelNotServed) as caught:
            single(rows(1)).run(servers=[], output=tmp_path / "run")
        return len(traceback.extract_tb(caught.value.__traceback__))

    assert frames() == 3, "the caller's line, the check of the arguments, run()"
    monkeypatch.setenv("ASYNCSYNTH_TRACEBACK", "1")
    assert frames() > 10


def test_run_inside_a_loop_says_what_to_do() -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match="arun"):
            single(rows(1)).run()

    run_async(main())


def test_a_missing_column_is_told_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="did you mean 'instructions'"):
        single([{"instructions": "x"}]).run(output=tmp_path / "run")


def test_use_cache_false_starts_over_and_keeps_the_old_run(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            for _ in range(2):
                await single(rows(3)).arun(servers=[fake.base_url], output=tmp_path / "run", use_cache=False)
            assert completions(fake) == 6
        assert len(list(tmp_path.iterdir())) == 2

    run_async(main())


def test_use_cache_false_does_not_take_a_directory_from_a_run_that_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            async with contextlib.aclosing(single(rows(3)).stream(**options)) as stream:
                await anext(stream)
                with pytest.raises(RunLockedError):
                    await single(rows(3)).arun(**options, use_cache=False)
                assert len([row async for row in stream]) == 2
            assert RunStatus.read(tmp_path / "run").complete
        assert len(list(tmp_path.iterdir())) == 1

    run_async(main())


def test_pipelines_without_a_name_do_not_meet_in_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless(temperature: float) -> Pipeline:
        with Pipeline() as pipeline:
            LoadDataFromDicts(data=rows(2)) >> TextGeneration(llm=LLM(model="model-a", temperature=temperature))
        return pipeline

    async def main() -> None:
        monkeypatch.setenv("ASYNCSYNTH_RUNS", str(tmp_path))
        async with server(keep_requests=True) as fake:
            for temperature in (0.1, 0.9, 0.1):
                result = await nameless(temperature).arun(servers=[fake.base_url])
                assert len(result["default"]["train"]) == 2
            assert completions(fake) == 4  # the third is the first again

    run_async(main())
    assert len(list(tmp_path.iterdir())) == 2


def test_a_torn_journal_is_repaired_and_the_report_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with server() as fake:
            await single(rows(3)).arun(servers=[fake.base_url], output=tmp_path / "run")
            last = sorted((tmp_path / "run").glob("seg-*.jsonl"))[-1]
            last.write_bytes(last.read_bytes() + b'{"t":"rec","k":"torn')
            again = await single(rows(3)).arun(servers=[fake.base_url], output=tmp_path / "run")
            assert again.report.counts.earlier == 3
            assert any("cut 20 bytes" in note for note in again.report.notes)

    run_async(main())


def test_tasks_are_as_many_as_records_in_flight_not_as_records(tmp_path: Path) -> None:
    """A task that has done its record takes the next one."""
    made: list[str] = []

    def counting(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def main() -> None:
        async with server() as fake:
            asyncio.get_running_loop().set_task_factory(counting)
            result = await single(rows(200)).arun(servers=[fake.base_url], output=tmp_path / "run", window=8)
            assert result.report.counts.ok == 200
            assert 1 <= made.count("Runner._work") <= 8

    run_async(main())


@pytest.mark.parametrize("extra", [{}, {"topic": "numbers"}])
def test_a_result_has_the_hash_of_what_its_step_saw(tmp_path: Path, extra: dict[str, str]) -> None:
    """The journal's format: also where that is the whole record, whose hash is not taken twice."""
    data = [{**row, **extra} for row in rows(3)]

    async def main() -> None:
        async with server() as fake:
            await single(data).arun(servers=[fake.base_url], output=tmp_path / "run")

    run_async(main())
    with JournalView(tmp_path / "run") as view:
        entries = [entry for _, entry in view.entries() if entry["t"] == "rec"]
    assert len(entries) == 3
    for entry in entries:
        row = data[entry["i"]]
        assert entry["h"] == content_hash(row)
        assert entry["s"][0]["r"][0]["h"] == content_hash({"instruction": row["instruction"]})


def test_a_step_that_changes_its_row_in_place_changes_the_hash(tmp_path: Path) -> None:
    class Shout(RowStep):
        """Changes the very row that it is given."""

        inputs = ("instruction",)
        outputs = ("instruction",)

        def apply(self, row: dict[str, Any]) -> dict[str, Any]:
            row["instruction"] = row["instruction"].upper()
            return row

    with Pipeline(name="shout") as pipeline:
        LoadDataFromDicts(data=rows(2)) >> Shout() >> TextGeneration(llm=LLM(model="model-a"))

    async def main() -> None:
        async with server() as fake:
            await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")

    run_async(main())
    with JournalView(tmp_path / "run") as view:
        entries = [entry for _, entry in view.entries() if entry["t"] == "rec"]
    for entry in entries:
        shouted = {"instruction": rows(2)[entry["i"]]["instruction"].upper()}
        assert entry["s"][0]["r"][0]["h"] == content_hash(shouted)


def test_equal_values_that_are_not_the_same_json_have_hashes_of_their_own(tmp_path: Path) -> None:
    """Columns swapped: 1 and True are equal in Python, and so would be what the step sees and the record."""

    class Adding(ModelStep):
        """Sends no request."""

        inputs = ("a", "b")
        outputs = ("sum",)

        async def generate(self, row: dict[str, Any], ctx: Any) -> list[dict[str, Any]]:
            return [{"sum": row["a"] + row["b"]}]

        def models(self) -> tuple[LLM, ...]:
            return (LLM(model="model-a"),)

    with Pipeline(name="swap") as pipeline:
        LoadDataFromDicts(data=[{"a": 1, "b": True}]) >> Adding(input_mappings={"a": "b", "b": "a"})

    async def main() -> None:
        async with server() as fake:
            await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")

    run_async(main())
    with JournalView(tmp_path / "run") as view:
        (entry,) = [entry for _, entry in view.entries() if entry["t"] == "rec"]
    assert entry["s"][0]["r"][0]["h"] == content_hash({"a": True, "b": 1})


def test_what_a_step_sets_in_its_context_is_gone_for_the_next_record(tmp_path: Path) -> None:
    of_record: contextvars.ContextVar[str] = contextvars.ContextVar("of_record", default="")
    seen: list[str] = []

    class Setting(TextGeneration):
        """As libraries for tracing and logging do."""

        async def generate(self, row: dict[str, Any], ctx: Any) -> list[dict[str, Any]]:
            seen.append(of_record.get())
            of_record.set(ctx.key)
            return await super().generate(row, ctx)

    with Pipeline(name="context") as pipeline:
        LoadDataFromDicts(data=rows(30)) >> Setting(llm=LLM(model="model-a"))

    async def main() -> None:
        of_record.set("the caller's")
        async with server() as fake:
            await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run", window=4)

    run_async(main())
    assert seen == ["the caller's"] * 30


def test_a_step_that_keeps_its_task_from_being_cancelled_does_not_hold_up_the_end(tmp_path: Path) -> None:
    class Stubborn(TextGeneration):
        """Makes an answer of everything that goes wrong."""

        async def generate(self, row: dict[str, Any], ctx: Any) -> list[dict[str, Any]]:
            try:
                return await super().generate(row, ctx)
            except BaseException:
                return [{"generation": "none", "model_name": "none"}]

    with Pipeline(name="stubborn") as pipeline:
        LoadDataFromDicts(data=rows(20)) >> Stubborn(llm=LLM(model="model-a"))

    async def main() -> None:
        def hang(info: RequestInfo) -> Fault | None:
            return Fault("hang") if info.json.get("seed", SAMPLE_SEED) != SAMPLE_SEED else None

        async with server(script=hang, keep_requests=True) as fake:
            run = asyncio.create_task(pipeline.arun(servers=[fake.base_url], output=tmp_path / "run", window=4))
            await until(lambda: completions(fake) == 4)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run

    run_async(main())


def test_rows_routed_to_two_models_go_on_together(tmp_path: Path) -> None:
    def routed() -> Pipeline:
        with Pipeline(name="routed") as pipeline:
            load = LoadDataFromDicts(data=[{"instruction": "x" * length} for length in (1, 9, 2, 8, 3)])
            short, long_ = TextGeneration(llm=LLM(model="model-a")), TextGeneration(llm=LLM(model="model-b"))
            load >> Filter(lambda row: len(row["instruction"]) < 5, name="short") >> short
            load >> Filter(lambda row: len(row["instruction"]) >= 5, name="long") >> long_
            [short, long_] >> MergeBranches() >> KeepColumns(["instruction", "model_name"])
        return pipeline

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            for fresh in (True, False):
                result = await routed().arun(servers=[fake.base_url], output=tmp_path / "run")
                assert [(len(row["instruction"]), row["model_name"]) for row in result["default"]["train"]] == [
                    (1, "model-a"), (9, "model-b"), (2, "model-a"), (8, "model-b"), (3, "model-a"),
                ]  # fmt: skip
                assert completions(fake) == 5
                assert result.report.counts.dropped == ({"short: filtered": 2, "long: filtered": 3} if fresh else {})

    run_async(main())


class NoAnswer(RowStep):
    """Loses the answer of one branch."""

    def apply(self, row: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("no answer")


def test_a_judge_and_a_pair_do_without_the_branch_that_failed(tmp_path: Path) -> None:
    with Pipeline(name="missing") as pipeline:
        load = LoadDataFromDicts(data=rows(3))
        a, b, c = (TextGeneration(llm=LLM(model="model-a", temperature=t)) for t in (0.1, 0.5, 0.9))
        load >> [a, b, c]
        lost = b >> NoAnswer()
        group = GroupColumns(
            columns=["generation", "model_name"], output_columns=["generations", "generation_models"], missing="none"
        )
        [a, lost, c] >> group >> UltraFeedback(llm=LLM(model="judge"), rationales=False) >> FormPreference(ties="first")

    async def main() -> None:
        async with server() as fake:
            result = await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")
        pairs = list(result["default"]["train"])
        assert len(pairs) == 3
        for row in pairs:
            assert [text is None for text in row["generations"]] == [False, True, False]
            assert [rating is None for rating in row["ratings"]] == [False, True, False]
            assert row["generation_models"] == ["model-a", None, "model-a"]
            assert {row["chosen"], row["rejected"]} == {row["generations"][0], row["generations"][2]}
        assert result.report.counts.failures == {"step_error": 3}

    run_async(main())


def test_a_misspelt_option_is_told_with_the_nearest_one() -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match=r"no keyword 'outptu' \(did you mean 'output'\?\)"):
            await single(rows(1)).arun(outptu="x")
        with pytest.raises(ConfigurationError, match="no keyword 'outptu'"):
            async for _ in single(rows(1)).stream(outptu="x"):
                pass

    run_async(main())
