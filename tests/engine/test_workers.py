"""A run dealt out to shards: what belongs where, and what the parent makes of what its workers say."""

from __future__ import annotations

import json
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from asyncsynth import LLM, Deduplicate, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.core.retry import RetryPolicy
from asyncsynth.core.stats import Histogram
from asyncsynth.engine.execution import execute, processes
from asyncsynth.engine.options import RunOptions, worker_options
from asyncsynth.engine.report import Counts
from asyncsynth.engine.run import Run
from asyncsynth.engine.server_lines import merged_lines
from asyncsynth.engine.sharded_run import open_shards, refuse_unshareable, shard_of
from asyncsynth.engine.status import RunStatus
from asyncsynth.engine.worker_processes import error_json, error_of, latency_json, merged_latency
from asyncsynth.errors import (
    EXIT_STOPPED,
    AsyncsynthError,
    ConfigurationError,
    InputError,
    PipelineError,
    RunChangedError,
    RunLockedError,
    RunStopped,
)
from asyncsynth.inputs.jsonl import JsonlReader
from asyncsynth.inputs.reader import BadRow
from asyncsynth.records import Part
from asyncsynth.servers.configs import ServerConfig
from asyncsynth.storage.entries import FailedRow
from asyncsynth.storage.manifest import Manifest
from asyncsynth.storage.shard_directories import shard_path
from tests.kit.loops import run_async
from tests.kit.pipelines import rows, server, single


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_add_up_and_share_nothing(count: int) -> None:
    parts = [Part(number, count) for number in range(count)]
    for total in (0, 1, 5, 64, 1000):
        assert sum(part.of(total) for part in parts) == total
    for position in range(50):
        assert sum(part.has(position) for part in parts) == 1
    keys = [f"row {n}" for n in range(400)]
    assert all(sum(part.has_key(key) for part in parts) == 1 for key in keys)
    for part in parts:
        assert sum(map(part.has_key, keys)) > 400 / count / 2
    with pytest.raises(ValueError, match="part"):
        Part(count, count)


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.mark.parametrize("id_column", [None, "id"])
def test_shards_have_each_row_once_with_its_place(tmp_path: Path, id_column: str | None) -> None:
    lines = [json.dumps({"id": f"k{n}", "n": n}) for n in range(40)]
    lines[7] = "not json"
    lines.insert(20, "")  # a blank line has no position
    path = write(tmp_path / "in.jsonl", lines)

    def placed(limit: int | None, shard: Part | None) -> list[tuple[int, Any]]:
        reader = JsonlReader(path, id_column=id_column, on_bad_row="skip")
        return list(reader.placed(limit, shard))

    for limit in (None, 11, 0):
        whole = placed(limit, None)
        dealt = [item for number in range(3) for item in placed(limit, Part(number, 3))]
        assert sorted(dealt, key=lambda item: item[0]) == whole
        assert [position for position, _ in whole] == list(range(40 if limit is None else limit))
    assert isinstance(placed(None, None)[7][1], BadRow)


def test_lines_of_other_shards_are_not_parsed(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", ['{"n": 0}', "broken", '{"n": 2}', '{"n": 3}'])
    assert [position for position, _ in JsonlReader(path).placed(None, Part(0, 2))] == [0, 2]
    with pytest.raises(InputError, match=r"in\.jsonl:2"):
        list(JsonlReader(path).placed(None, Part(1, 2)))


def test_an_empty_input_is_told_by_every_shard(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [])
    for number in range(2):
        with pytest.raises(InputError, match="holds no rows"):
            list(JsonlReader(path).placed(None, Part(number, 2)))


def test_histograms_merge_through_json() -> None:
    rng = random.Random(5)
    values = [rng.lognormvariate(0, 1) for _ in range(300)] + [0.0]
    parts = [Histogram(values[:100]), Histogram(), Histogram(values[100:])]
    merged = merged_latency(json.loads(json.dumps([latency_json(part) for part in parts])))
    whole = Histogram(values)
    assert merged.buckets == whole.buckets
    assert (merged.count, merged.minimum, merged.maximum) == (whole.count, whole.minimum, whole.maximum)
    assert [merged.quantile(q) for q in (0.5, 0.99)] == [whole.quantile(q) for q in (0.5, 0.99)]


def test_counts_and_errors_come_through_json() -> None:
    counts = Counts(read=4, ok=3, failed=1)
    counts.fail(FailedRow("3", "gen", "timeout", "no answer", 4))
    assert Counts.from_json(json.loads(json.dumps(counts.as_json()))) == counts
    for error in (
        RunStopped("no key", hint="set it"),
        InputError("is bad", path="a.jsonl", line=3),
        RunChangedError("changed", plan=["x"]),
    ):
        again = error_of(json.loads(json.dumps(error_json(error))))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.exit_code == error.exit_code
    unknown = error_of({"error": "NoSuch", "message": "m", "hint": "", "exit_code": 1})
    assert type(unknown) is AsyncsynthError
    assert unknown.exit_code == 1
    assert error_of(error_json(RunStopped("x"))).exit_code == EXIT_STOPPED


def line(name: str, **values: Any) -> dict[str, Any]:
    return {
        "name": name, "state": "closed", "in_flight": 1, "limit": 8, "waiting": 2, "server_waiting": None,
        "server_running": None, "server_kv": None, "why": "growing", **values,
    }  # fmt: skip


def test_lines_of_one_server_are_added() -> None:
    groups = [[line("a", server_kv=0.5), line("b")], [line("a", state="open", limit=4, server_kv=0.7)]]
    a, b = merged_lines(groups)
    assert (a["in_flight"], a["limit"], a["waiting"], a["server_kv"], a["state"]) == (2, 12, 4, 0.7, "open")
    assert a["why"] == "in each process: growing"
    assert b == line("b")
    assert groups[0][0]["limit"] == 8  # the lines given stay as they are


def run_in(directory: Path, pipeline: Pipeline | None = None, **options: Any) -> Run:
    return (pipeline or single(rows(5))).resolved(RunOptions(output=directory, **options))


def test_options_and_limits_are_shared() -> None:
    run = run_in(Path("run"), concurrency=5, window=64, window_bytes=1000, update=True)
    share = [shard_of(run, Part(k, 2), Part(k, 2)) for k in range(2)]
    assert [one.servers.concurrency for one in share] == [3, 2]
    assert [one.window for one in share] == [32, 32]
    assert sum(one.window_bytes for one in share) == 1000
    assert [one.directory for one in share] == [Path("run/shard-0"), Path("run/shard-1")]
    assert not any(one.update for one in share)
    assert [one.servers.needs for one in share] == [None, None], "the parent tests the servers, once"
    # A share of all records is no share of one process's: the parent judges it alone.
    for given, told in ((None, None), (5, 5), ("5", "5"), (" 5 % ", "100%")):
        one = shard_of(run_in(Path("run"), max_failures=given), Part(0, 2), Part(0, 2))
        assert one.max_failures == told
    assert sum(one.servers.retry.budget_per_s for one in share) == RetryPolicy().budget_per_s
    config = ServerConfig(base_url="http://h/v1", limit=7, requests_per_minute=100, slots=64)
    with_server = replace(run, servers=replace(run.servers, configs=[config]))
    [one, other] = [shard_of(with_server, Part(k, 2), Part(k, 2)).servers.configs[0] for k in range(2)]
    assert [one.limit, other.limit] == [4, 3]
    assert [one.requests_per_minute, other.requests_per_minute] == [50, 50]
    assert [one.slots, other.slots] == [32, 32]
    assert one.max_concurrency is None


def test_a_worker_resolves_what_its_parent_was_told(tmp_path: Path) -> None:
    """Through JSON, as its job comes to it."""
    said: dict[str, Any] = {
        "servers": ["http://127.0.0.1:1/v1"], "limit": 7, "seed": 3, "concurrency": 4, "window": 5,
        "window_bytes": 6_000, "retry_failed": True, "max_failures": "5%", "answers": "run",
        "request_timeout": 9.5, "model_change": "note",
    }  # fmt: skip
    run = run_in(tmp_path / "run", **said)
    job = orjson.loads(orjson.dumps(worker_options(run.options, run.directory)))
    again = single(rows(5)).resolved(RunOptions(**job))
    differ = [name for name in type(run).__slots__ if getattr(again, name) != getattr(run, name)]
    assert set(differ) <= {"plan", "servers", "options"}
    assert again.plan.fingerprint == run.plan.fingerprint
    assert (again.servers.configs, again.servers.concurrency) == (run.servers.configs, run.servers.concurrency)
    refused = {"start", "retry", "embedded"}
    own = {"update", "use_cache", "shard", "share", "on_download", "on_servers", "on_wait"}
    passed_on = {field.name for field in fields(RunOptions)} - refused - own
    assert set(job) == passed_on, "what is neither refused nor the parent's own"
    assert worker_options(RunOptions(answers=Path("kept")), Path("run"))["answers"] == str(Path("kept").absolute())


def test_limits_too_small_to_share_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="--concurrency is 3: 4 processes"):
        refuse_unshareable(run_in(Path("run"), concurrency=3), 4)
    run = run_in(Path("run"), concurrency=2)
    config = ServerConfig(base_url="http://h/v1", limit=2, origin="fleet.yaml:3")
    run = replace(run, servers=replace(run.servers, configs=[config]))
    with pytest.raises(ConfigurationError, match=r"limit of h \(fleet\.yaml:3\) is 2"):
        refuse_unshareable(replace(run, servers=replace(run.servers, concurrency=None)), 4)
    refuse_unshareable(run, 2)


def test_what_other_processes_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="retry policy"):
        refuse_unshareable(run_in(Path("run"), retry=RetryPolicy()), 2)
    with pytest.raises(ConfigurationError, match="embedded model"):
        refuse_unshareable(run_in(Path("run"), embedded=True), 2)


def test_a_step_over_all_rows_is_refused() -> None:
    with Pipeline(name="deduplicated") as pipeline:
        load = LoadDataFromDicts(data=rows(3))
        load >> Deduplicate(columns=["instruction"]) >> TextGeneration(llm=LLM(model="model-a"))
    with pytest.raises(PipelineError, match=r"deduplicate_0.*needs all rows"):
        refuse_unshareable(run_in(Path("run"), pipeline), 2)


@pytest.mark.parametrize(
    ("there", "asked", "count"), [(0, None, 0), (0, 1, 0), (0, 2, 2), (3, None, 3), (3, 1, 1), (3, 2, 2), (3, 5, 5)]
)
def test_a_run_keeps_its_shards_and_takes_any_number_of_processes(
    tmp_path: Path, there: int, asked: int | None, count: int
) -> None:
    run = run_in(tmp_path / "run")

    async def make() -> None:
        async with open_shards(run, there):
            pass

    if there:
        run_async(make())
    assert processes(run, asked) == count


def test_the_directory_is_checked_locked_and_keeps_its_shards(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")

    async def main() -> None:
        async with open_shards(run, 3) as shards:
            assert shards == 3
            with pytest.raises(RunLockedError):
                async with open_shards(run, 3):
                    pass
        async with open_shards(run, 2) as shards:
            assert shards == 3
        root = Manifest.load(tmp_path / "run")
        assert root is not None
        for number in range(3):
            part = Manifest.load(shard_path(tmp_path / "run", number))
            assert part is not None
            assert (part.run_id, part.shards, part.stride, part.epochs) == (root.run_id, 0, 3, root.epochs)
        async with open_shards(run_in(tmp_path / "run", single(rows(5), system_prompt="Be brief."), update=True), 3):
            pass
        for place in (tmp_path / "run", shard_path(tmp_path / "run", 2)):
            manifest = Manifest.load(place)
            assert manifest is not None
            assert len(manifest.epochs) == 2
        assert RunStatus.read(tmp_path / "run").shards == 3
        async with open_shards(replace(run, use_cache=False), 2) as shards:
            assert shards == 2, "the old run is set aside"
        assert len(list(tmp_path.glob("run.*"))) == 1

    run_async(main())


def test_one_process_and_several_do_not_take_each_others_directories(tmp_path: Path) -> None:
    async def main() -> None:
        async with server() as fake:
            await single(rows(3)).arun(servers=[fake.base_url], output=tmp_path / "one")
            async with open_shards(run_in(tmp_path / "two"), 2):
                pass
            with pytest.raises(ConfigurationError, match="2 processes share"):
                await single(rows(3)).arun(servers=[fake.base_url], output=tmp_path / "two")
            with pytest.raises(ConfigurationError, match="run of one process"):
                async with open_shards(run_in(tmp_path / "one", single(rows(3))), 2):
                    pass

    run_async(main())


@pytest.mark.parametrize("count", [2, 3])
def test_shards_in_one_process_make_the_rows_of_one_run(tmp_path: Path, count: int) -> None:
    """What workers do, without processes: each shard an ordinary run, the rows together those of a single one."""

    async def main() -> None:
        async with server() as fake:
            data = [{"id": f"k{n % 13}-{n}", "instruction": f"number {n}"} for n in range(40)]
            one = await single(data).arun(servers=[fake.base_url], output=tmp_path / "one")
            run = run_in(tmp_path / "many", single(data), servers=[fake.base_url])
            async with open_shards(run, count):
                for number in range(count):
                    report = await execute(shard_of(run, Part(number, count), Part(0, 1)))
                    assert report.counts.ok == Part(number, count).of(40)
            many = type(one)(replace(one.report, directory=tmp_path / "many"))
            single_rows, shard_rows = one["default"]["train"], many["default"]["train"]
            assert list(shard_rows) == list(single_rows)
            assert list(shard_rows.keyed()) == list(single_rows.keyed())
            assert [shard_rows[at] for at in (0, 39, -3)] == [single_rows[at] for at in (0, 39, -3)]
            assert RunStatus.read(tmp_path / "many").ok == 40

            fewer = run_in(tmp_path / "many", single(data[:25]), servers=[fake.base_url], update=True)
            async with open_shards(fewer, count):
                for number in range(count):
                    await execute(shard_of(fewer, Part(number, count), Part(0, 1)))
            assert list(many["default"]["train"]) == list(single_rows)[:25]

    run_async(main())
