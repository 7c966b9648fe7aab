"""Every way to stop a run: what has ended, what is pending, and that the two add up (rows 27 and 28)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncsynth import LLM, ExpandColumns, GroupColumns, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.client.needs import SAMPLE_SEED
from asyncsynth.engine.options import RunOptions
from asyncsynth.engine.report import Counts, RunReport
from asyncsynth.engine.runner import Runner
from asyncsynth.engine.sharded_run import open_shards
from asyncsynth.engine.status import RunStatus
from asyncsynth.errors import AsyncsynthError, RunUnfinished, ServerError
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.exports import export
from asyncsynth.storage.extent import completeness
from asyncsynth.testing import Fault, FaultServer, RequestInfo
from tests.kit.loops import run_async, until
from tests.kit.pipelines import Even, rows, server, single, two_models
from tests.matrix.plugin import FULL, Tried

SEED = int(os.environ.get("ASYNCSYNTH_SEED", "27"))
WAYS = ("drain", "drain, then cancel", "cancel", "refused", "stream left", "max_failures")
SHAPES: dict[str, Callable[[int], Pipeline]] = {
    "one step": lambda count: single(rows(count)),
    "three steps": lambda count: three(count),
    "branches": lambda count: branches(count),
    "stages": lambda count: two_models(rows(count), Even),
}


def three(count: int) -> Pipeline:
    with Pipeline(name="three") as pipeline:
        load = LoadDataFromDicts(data=rows(count))
        steps = [
            TextGeneration(
                llm=LLM(model="model-a"),
                template=f"step {number}: {{{{ {column} }}}}",
                output_mappings={"generation": f"text_{number}", "model_name": f"model_{number}"},
            )
            for number, column in enumerate(("instruction", "text_0", "text_1"))
        ]
        load >> steps[0] >> steps[1] >> steps[2]
    return pipeline


def branches(count: int) -> Pipeline:
    with Pipeline(name="branches") as pipeline:
        load = LoadDataFromDicts(data=rows(count))
        one = TextGeneration(llm=LLM(model="model-a"))
        two = TextGeneration(llm=LLM(model="model-b"))
        load >> [one, two] >> GroupColumns(columns=["generation", "model_name"])
    return pipeline


def finals(run: Path) -> Counter[str]:
    """How often each record of a directory has a last entry."""
    ends: Counter[str] = Counter()
    with contextlib.suppress(FileNotFoundError), JournalView(run) as view:
        ends.update(entry["k"] for _, entry in view.entries() if entry["t"] == "rec" and "st" in entry)
    return ends


def adds_up(counts: Counts) -> bool:
    return counts.read == counts.earlier + counts.ok + counts.failed + counts.pending and counts.pending >= (
        counts.in_flight
    )


class Stop:
    """Stops a run at its `at`-th request, in one of the ways."""

    def __init__(self, way: str, at: int, rng: random.Random) -> None:
        self.way, self.left, self.rng = way, at, rng
        self.runners: list[Runner] = []
        self.task: asyncio.Task[Any] | None = None
        self.struck = False

    def __call__(self, info: RequestInfo) -> Fault | None:
        for runner in self.runners:
            assert adds_up(runner.counts), "while it runs"
        self.left -= bool(self.runners)  # before there is one, servers are being tried
        if self.left == 0 and not self.struck:
            self.struck = True
            self.strike()
        if self.struck and self.way == "refused":
            return Fault("status", status=401)
        if self.way == "max_failures" and self.struck:
            return Fault("status", status=400)
        return Fault(delay_s=self.rng.choice([0.0, 0.002, 0.01]))

    def strike(self) -> None:
        assert self.task is not None
        if self.way.startswith("drain"):
            self.runners[-1].drain("a test")
        if self.way == "drain, then cancel":
            asyncio.get_running_loop().call_later(0.003, self.task.cancel)
        if self.way in ("cancel", "stream left"):
            self.task.cancel()


async def stopped(
    make: Callable[[], Pipeline], stop: Stop, fake: FaultServer, options: dict[str, Any]
) -> RunReport | None:
    """One run, and what it reports at its end, whatever that is. None: it did not begin."""
    if stop.way == "max_failures":
        options = {**options, "max_failures": 1}

    async def run() -> None:
        if stop.way == "stream left":
            async with contextlib.aclosing(make().stream(**options)) as stream:
                async for _ in stream:
                    if stop.struck or stop.rng.random() < 0.3:
                        return
        else:
            await make().arun(on_runner=stop.runners.append, **options)

    stop.task = asyncio.create_task(run())
    fake.script = stop
    with contextlib.suppress(asyncio.CancelledError, AsyncsynthError):
        await stop.task
    fake.script = None
    return stop.runners[-1].report() if stop.runners else None


@pytest.mark.row(27)
@pytest.mark.parametrize("round_", range(120 if FULL else 12))
def test_done_means_ended_whatever_stops_the_run(tmp_path: Path, tried: Tried, round_: int) -> None:
    rng = random.Random(f"{SEED}.{round_}")
    shape = rng.choice(list(SHAPES))
    way = WAYS[round_ % len(WAYS)]
    count = rng.randrange(1, 40)  # often fewer than the window: then the input is read to its end before the stop
    window = rng.choice([None, 1, 4, 64])
    why = f"seed {SEED}, round {round_}: {shape}, {way}, {count} records, window {window}"
    run = tmp_path / "run"

    async def main() -> None:
        async with server() as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": run, "window": window, "concurrency": 3}
            stop = Stop(way, rng.randrange(1, count + 1), rng)
            report = await stopped(lambda: SHAPES[shape](count), stop, fake, options)
            if report is not None:
                assert adds_up(report.counts), why
                if shape != "stages":
                    assert report.counts.ok + report.counts.failed <= len(finals(run)), why
                    # A stop that cancels may come between a last entry and its count, none other may.
                    if way in ("drain", "max_failures"):
                        assert report.counts.ok + report.counts.failed == len(finals(run)), why
                        assert report.complete == (len(finals(run)) == count), why
                if report.complete:
                    assert report.counts.pending == 0, why
                    assert report.unfinished == 0, why
                assert report.exit_code != 0 or report.complete, why
            if (run / "MANIFEST.json").exists():
                status = RunStatus.read(run)
                parts = [status, status.before] if status.before else [status]
                ended = all(part.records is not None and part.ok + part.failed >= part.records for part in parts)
                assert not status.complete or ended, why
                if report is not None:
                    assert report.completeness == completeness(run) == status.missing, why
                assert export(run, tmp_path / "rows.jsonl").completeness.complete == status.complete, why
                if not status.complete:
                    with pytest.raises(RunUnfinished, match=r"unfinished|not known"):
                        export(run, tmp_path / "refused.jsonl", complete_only=True)
                    assert not (tmp_path / "refused.jsonl").exists(), why
            tried(1, f"runs stopped by {way}")
            done = await SHAPES[shape](count).arun(**options, retry_failed=True)
            assert done.report.complete, why
            assert adds_up(done.report.counts), why
            assert done.report.exit_code == 0, why
            assert RunStatus.read(run).completeness == "complete", why
            assert export(run, tmp_path / "rows.jsonl", complete_only=True).completeness.complete, why

    run_async(main())


@pytest.mark.row(27)
def test_a_longer_input_and_an_update_make_a_complete_run_unfinished_again(tmp_path: Path) -> None:
    run = tmp_path / "run"

    async def main() -> None:
        async with server() as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": run}
            await single(rows(6)).arun(**options)
            assert RunStatus.read(run).completeness == "complete"
            for make, more, said in (
                (lambda: single(rows(9)), {}, "unfinished: 3 of 9 records have not ended"),
                (lambda: single(rows(9), system_prompt="Be brief."), {"update": True}, "unfinished: 9 of 9"),
            ):
                stop = Stop("cancel", 1, random.Random(1))
                await stopped(make, stop, fake, {**options, **more})
                assert RunStatus.read(run).completeness.startswith(said)
                assert (await make().arun(**options)).complete
            part = await single(rows(9), system_prompt="Be brief.").arun(**options, limit=4)
            assert part.complete
            assert RunStatus.read(run).completeness == "complete (--limit 4)"

    run_async(main())


@pytest.mark.row(27)
def test_a_run_that_is_stopped_before_it_reads_is_unfinished(tmp_path: Path) -> None:
    def leave(_: Any) -> None:
        raise ServerError("stopped while servers are tried")

    async def main() -> None:
        async with server() as fake:
            for name, make in SHAPES.items():
                run = tmp_path / name
                with pytest.raises(ServerError):
                    await make(3).arun(servers=[fake.base_url], output=run, on_servers=leave)
                status = RunStatus.read(run)
                assert status.complete is False
                assert status.completeness.startswith("unfinished: ")

        async with open_shards(single(rows(3)).resolved(RunOptions(output=tmp_path / "shared")), 2):
            assert RunStatus.read(tmp_path / "shared").complete is False

    run_async(main())


@pytest.mark.row(27)
def test_the_report_of_a_resumed_run_counts_what_ended_earlier_as_status_does(tmp_path: Path) -> None:
    run = tmp_path / "run"

    async def main() -> None:
        async with server() as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": run, "concurrency": 1, "window": 1}
            fake.script = lambda info: Fault("status", status=400) if b"number 1." in info.body else None
            await single(rows(30)).arun(**options)
            stop = Stop("drain", 1, random.Random(1))
            report = await stopped(lambda: single(rows(40)), stop, fake, {**options, "retry_failed": True})
            assert report is not None
            assert report.counts.read < 30, "it stopped before it read the others"
            status = RunStatus.read(run)
            assert report.unfinished == status.unfinished == 10
            assert status.completeness == f"unfinished: {report.missing}"

    run_async(main())


@pytest.mark.row(27)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", ["drain", "drain, then cancel", "cancel", "refused"])
def test_the_summary_of_a_second_try_and_status_say_the_same(tmp_path: Path, shape: str, way: str) -> None:
    """Some records failed earlier, some have another row now, some are new, and some of all of these are pending."""
    rng = random.Random(f"{SEED}.{shape}.{way}")
    why = f"seed {SEED}, {shape}, {way}"
    run = tmp_path / "run"
    some = {n for n in range(30) if rng.random() < 0.4}

    def fails(info: RequestInfo) -> Fault | None:
        return Fault("status", status=400) if any(b"number %d." % n in info.body for n in some) else None

    async def main() -> None:
        async with server() as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": run, "concurrency": 2, "max_failures": 99}
            for count, limit in ((20, None), (24, 15), (30, None)):
                fake.script = fails
                await SHAPES[shape](count).arun(**options)
                stop = Stop(way, rng.randrange(1, 8), rng)
                again = {**options, "retry_failed": True, "limit": limit, "window": rng.choice([1, 4, 64])}
                report = await stopped(lambda count=count: SHAPES[shape](count), stop, fake, again)
                assert report is not None
                assert report.completeness == completeness(run) == RunStatus.read(run).missing, why
                assert RunStatus.read(run).completeness.endswith(report.missing), why

    run_async(main())


@pytest.mark.row(27)
def test_a_second_try_that_is_stopped_does_not_say_that_the_input_was_not_read(tmp_path: Path) -> None:
    run = tmp_path / "run"

    async def main() -> None:
        async with server() as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": run}
            fake.script = lambda info: Fault("status", status=400) if b"number 1." in info.body else None
            await single(rows(4)).arun(**options)
            stop = Stop("cancel", 1, random.Random(1))
            report = await stopped(lambda: single(rows(4)), stop, fake, {**options, "retry_failed": True})
            status = RunStatus.read(run)
            assert report is not None
            assert report.missing == "the last run was stopped before its end"
            assert status.complete is False
            assert status.completeness == "unfinished: the last run was stopped before its end"

    run_async(main())


@pytest.mark.row(27)
def test_a_stop_at_a_step_over_all_rows_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"

    async def main() -> None:
        async with server() as fake:
            stop = Stop("drain", 5, random.Random(1))  # at the last request before the step
            report = await stopped(lambda: SHAPES["stages"](5), stop, fake, {"servers": [fake.base_url], "output": run})
            assert report is not None
            said = "unfinished: the rows of stage-1 have not passed the step over all rows after it"
            assert f"unfinished: {report.missing}" == said
            assert RunStatus.read(run).completeness == said
            assert export(run, tmp_path / "rows.jsonl").completeness.words == said

    run_async(main())


@pytest.mark.row(27)
def test_a_directory_of_an_earlier_version_is_not_known_to_be_complete(tmp_path: Path) -> None:
    async def main() -> None:
        async with server() as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            await single(rows(3)).arun(**options)
            (tmp_path / "run/extent.json").unlink()
            status = RunStatus.read(tmp_path / "run")
            assert status.complete is None
            assert "not known" in status.completeness
            assert (await single(rows(3)).arun(**options)).complete
            assert RunStatus.read(tmp_path / "run").complete
            for damaged in ('"epoch":"0"', '"records":"3"', '"limit":2.5', '"complete":1', '"epoch":true', '"more":1'):
                told = '{"epoch":0,"records":3,"limit":null,"complete":true,' + damaged + "}"
                (tmp_path / "run/extent.json").write_text(told)
                assert RunStatus.read(tmp_path / "run").complete is None, damaged

    run_async(main())


# --- stopping is quick ---------------------------------------------------------------------------


class Busy:
    """Holds every answer until `open`, and notes what comes."""

    def __init__(self) -> None:
        self.came: list[float] = []

    def __call__(self, info: RequestInfo) -> Fault | None:
        if info.json.get("seed", SAMPLE_SEED) != SAMPLE_SEED:  # a record's, and no probe
            self.came.append(time.monotonic())
            return Fault(delay_s=0.4)
        return None


@pytest.mark.row(27, 28)
@pytest.mark.parametrize("shape", SHAPES)
def test_after_a_stop_nothing_is_sent_and_the_slowest_answer_is_the_bound(tmp_path: Path, shape: str) -> None:
    async def main() -> None:
        busy = Busy()
        async with server(script=busy, keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "concurrency": 8}
            runners: list[Runner] = []
            task = asyncio.create_task(SHAPES[shape](100).arun(on_runner=runners.append, **options))
            await until(lambda: len(busy.came) >= 12)  # some have been answered, eight are at the server
            # A request that was sent may not have been read by the server.
            on_the_way = runners[-1].progress().requests_in_flight - fake.in_flight
            began = time.monotonic()
            runners[-1].drain("SIGINT")
            report = (await task).report
            took = time.monotonic() - began
            assert len([at for at in busy.came if at > began]) <= on_the_way, "sent after the stop"
            assert took < 0.4 + 1.0, f"{took:.2f} s for answers that take 0.4 s"
            assert report.requests == len(busy.came)
            assert (report.complete, report.exit_code) == (False, 4)  # though the input was read to its end
            assert report.counts.failed == 0
            assert report.counts.pending == report.counts.read - report.counts.ok > 0
            # What was answered is kept, whatever became of its record: nothing is paid twice.
            fake.script = None
            again = await SHAPES[shape](100).arun(**options)
            assert again.complete
            assert fake.log is not None
            paid = Counter(info.body for info in fake.log if info.json.get("seed", SAMPLE_SEED) != SAMPLE_SEED)
            assert max(paid.values()) == 1, "an answer was paid twice"

    run_async(main())


@pytest.mark.row(28)
def test_a_part_of_a_step_over_several_rows_is_kept(tmp_path: Path) -> None:
    """A record of twelve rows, four of which have their answers when the run stops: these are not asked again."""

    def twelve() -> Pipeline:
        with Pipeline(name="twelve") as pipeline:
            (
                LoadDataFromDicts(data=[{"instruction": [f"the number {n}" for n in range(12)]}])
                >> ExpandColumns(columns=["instruction"])
                >> TextGeneration(llm=LLM(model="model-a"))
            )
        return pipeline

    async def main() -> None:
        busy = Busy()
        async with server(script=busy, keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "concurrency": 4}
            runners: list[Runner] = []
            task = asyncio.create_task(twelve().arun(on_runner=runners.append, **options))
            await until(lambda: len(busy.came) == 4)
            runners[-1].drain("SIGINT")
            report = (await task).report
            assert (report.requests, report.counts.pending, report.complete) == (4, 1, False)
            fake.script = None
            again = await twelve().arun(**options)
            assert (again.report.requests, again.report.counts.rows) == (8, 12)
            assert fake.log is not None
            assert (
                max(
                    Counter(
                        info.body for info in fake.log if info.json.get("seed", SAMPLE_SEED) != SAMPLE_SEED
                    ).values()
                )
                == 1
            )

    run_async(main())
