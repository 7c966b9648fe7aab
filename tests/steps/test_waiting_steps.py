"""Steps that wait: in coroutines, threads and processes; bounded, kept, ended with the run."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from asyncsynth import LoadDataFromDicts, Pipeline, RunOptions, step
from asyncsynth.engine.result import Result
from asyncsynth.errors import ConfigurationError, PipelineError, RecordError
from asyncsynth.pipeline import Dropped
from asyncsynth.pipeline.function_process import FunctionPlace, WorkerProcess, place_of_function
from asyncsynth.pipeline.lanes import MOST_ABANDONED, Work
from asyncsynth.records import Row
from tests.kit.loops import run_async


@step(inputs=["n"], outputs=["pid", "double"], run_in="process", workers=2)
def in_process(row: Row) -> Any:
    print("printed by a step")
    match row["n"]:
        case 1:
            raise Dropped("odd")
        case 2:
            raise RecordError("not this one", reason="mine")
        case 3:
            return {"pid": {1, 2}, "double": 0}
        case 4:
            os._exit(7)
        case 5:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 6:
            sys.exit("no")
        case 7:
            return {"double": row["m"]}
    return {"pid": os.getpid(), "double": 2 * row["n"]}


def pipeline_of(made: Any, count: int = 10) -> Pipeline:
    with Pipeline(name="waits") as pipeline:
        LoadDataFromDicts(data=[{"n": n} for n in range(count)]) >> made()
    return pipeline


def run(made: Any, output: Path, *, count: int = 10, **options: Any) -> Result:
    async def main() -> Result:
        return await pipeline_of(made, count).arun(output=output, **options)

    return run_async(main())


@pytest.mark.row(47, 48)
@pytest.mark.slow
def test_a_process_costs_a_row_at_most_and_is_gone_after_the_run(tmp_path: Path) -> None:
    result = run(in_process, tmp_path / "run")
    counts = result.report.counts
    assert (counts.read, counts.ok, counts.failed) == (10, 4, 6)
    assert counts.dropped == {"in_process_0: odd": 1}
    assert counts.failures == {
        "mine": 1, "not_json": 1, "worker_died": 2, "step_error": 1, "missing_column": 1,
    }  # fmt: skip
    said = {reason: example["message"] for reason, example in counts.examples.items()}
    assert "exit code 7" in said["worker_died"] or "SIGSEGV" in said["worker_died"]
    assert "'pid' is of type set" in said["not_json"]
    assert "test_waiting_steps.py:" in said["step_error"]
    assert "no column 'm'" in said["missing_column"]
    rows = list(result["default"]["train"])
    assert {row["n"]: row["double"] for row in rows} == {0: 0, 8: 16, 9: 18}
    for pid in {row["pid"] for row in rows}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
def test_a_call_in_a_process_that_exceeds_its_limit_is_ended_with_its_children(tmp_path: Path) -> None:
    """The child of the call holds a pipe open; the pipe ends when the child does."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    module = tmp_path / "hanging_module.py"
    module.write_text(
        textwrap.dedent(
            f"""
            import subprocess
            def hang(row):
                subprocess.run(["sh", "-c", "exec sleep 1000 > {pipe}"])
            """
        )
    )
    place = FunctionPlace("hanging", str(module), "hang")

    async def main() -> str:
        work = Work()
        loop = asyncio.get_running_loop()
        opened = loop.run_in_executor(None, pipe.open, "rb")  # returns when the child opens its end
        call = asyncio.ensure_future(work.in_process("s", 1, place, {}))
        file = await opened
        call.cancel()  # as the time limit does
        ended = await loop.run_in_executor(None, file.read)
        file.close()
        assert ended == b""
        work.close()
        with pytest.raises(asyncio.CancelledError):
            await call
        return "ended"

    assert asyncio.run(asyncio.wait_for(main(), 60)) == "ended"


@pytest.mark.slow
def test_a_process_that_cannot_load_the_function_says_so(tmp_path: Path) -> None:
    module = tmp_path / "broken.py"
    module.write_text("import no_such_module\n")
    process = WorkerProcess("mine", FunctionPlace("broken", str(module), "f"))
    try:
        with pytest.raises(
            PipelineError, match=r"step 'mine': its worker process cannot load 'f' from .*no_such_module"
        ):
            process.call({})
    finally:
        process.close()


@pytest.mark.slow
def test_a_script_that_starts_its_run_where_it_is_loaded_is_told_the_way_out(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            from asyncsynth import LoadDataFromDicts, Pipeline, step

            @step(inputs=["n"], outputs=["m"], run_in="process", workers=1)
            def inside(row):
                return {"m": 1}

            with Pipeline(name="inside") as pipeline:
                LoadDataFromDicts([{"n": 1}]) >> inside()
            pipeline.run()
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode != 0
    assert "the script starts its run when a worker process loads it" in done.stderr
    assert 'under `if __name__ == "__main__":`' in done.stderr


def at_top(row: Row) -> Row:
    return {}


def test_a_function_that_no_process_can_import_is_refused_where_it_is_declared() -> None:
    def inner(row: Row) -> Row:
        return {}

    for function, said in ((inner, "defined inside a function"), (lambda row: {}, "a lambda")):
        with pytest.raises(PipelineError, match=said):
            step(inputs=[], outputs=[], run_in="process")(function)
    typed: dict[str, Any] = {"__name__": "__main__"}
    exec("def typed(row): return {}", typed)
    with pytest.raises(PipelineError, match="typed into an interpreter"):
        step(inputs=[], outputs=[], run_in="process")(typed["typed"])
    assert place_of_function(at_top, where="x") == FunctionPlace(__name__, "", "at_top")


@pytest.mark.row(48)
@pytest.mark.parametrize("run_in", ["loop", "thread"])
@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_calls_at_once_than_workers(run_in: Any, workers: int, tmp_path: Path) -> None:
    lock, now, most = threading.Lock(), 0, 0
    together = threading.Barrier(workers)

    def enter() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)

    def leave() -> None:
        nonlocal now
        with lock:
            now -= 1

    if run_in == "thread":

        @step(inputs=["n"], outputs=["m"], run_in="thread", workers=workers)
        def waits(row: Row) -> Row:
            enter()
            together.wait(30)  # passes only when all workers are busy
            leave()
            return {"m": 1}

        made: Any = waits
    else:

        @step(inputs=["n"], outputs=["m"], workers=workers)
        async def waits_here(row: Row) -> Row:
            enter()
            await asyncio.sleep(0)
            leave()
            return {"m": 1}

        made = waits_here
    result = run(made, tmp_path / "run", count=12)
    assert result.report.counts.ok == 12
    assert most == workers
    assert result.report.requests == 0


@pytest.mark.row(48)
@pytest.mark.parametrize("journal", [True, False])
def test_a_journaled_step_is_not_called_again(journal: bool, tmp_path: Path) -> None:
    # Files: what a closure holds is part of the fingerprint.
    log, gate = tmp_path / "log", tmp_path / "gate"

    @step(inputs=["n"], outputs=["m"], journal=journal, run_in="thread")
    def costly(row: Row) -> Row:
        with log.open("a") as file:
            file.write(f"{row['n']}\n")
        return {"m": row["n"] * 10}

    @step(inputs=["m"], outputs=["k"])
    async def after(row: Row) -> Row:
        if not gate.exists():
            raise RecordError("not yet")
        return {"k": row["m"]}

    with Pipeline(name="journaled") as pipeline:
        load = LoadDataFromDicts(data=[{"n": n} for n in range(5)])
        load >> costly() >> after()

    async def main(**options: Any) -> Result:
        return await pipeline.arun(output=tmp_path / "run", **options)

    assert run_async(main()).report.counts.failed == 5
    gate.touch()
    result = run_async(main(retry_failed=True))
    assert [row["k"] for row in result["default"]["train"]] == [0, 10, 20, 30, 40]
    assert sorted(map(int, log.read_text().split())) == sorted([*range(5)] * (1 if journal else 2))


@pytest.mark.row(48)
def test_a_stop_begins_no_call_and_loses_no_row(tmp_path: Path) -> None:
    log = tmp_path / "log"
    both, release = threading.Barrier(3), threading.Event()

    @step(inputs=["n"], outputs=["m"], run_in="thread", workers=2)
    def waits(row: Row) -> Row:
        with log.open("a") as file:
            file.write(f"{row['n']}\n")
        if not release.is_set():
            both.wait(30)
            release.wait(30)
        return {"m": 1}

    pipeline = pipeline_of(waits)

    async def main() -> Result:
        def on_runner(runner: Any) -> None:
            async def stop() -> None:
                await asyncio.get_running_loop().run_in_executor(None, both.wait, 30)
                runner.drain("stopped by the test")
                release.set()

            stopping.append(asyncio.ensure_future(stop()))

        stopping: list[Any] = []
        options = RunOptions(output=tmp_path / "run")
        report = await pipeline._run(options, on_runner=on_runner)
        await stopping[0]
        assert (report.counts.ok, report.counts.pending, report.complete) == (2, 8, False)
        return await pipeline.arun(output=tmp_path / "run")

    result = run_async(main())
    assert result.report.complete
    assert sorted(map(int, log.read_text().split())) == list(range(10))
    assert len(result["default"]["train"]) == 10


def test_threads_left_behind_are_bounded() -> None:
    release = threading.Event()

    async def main() -> None:
        work = Work()
        for _ in range(MOST_ABANDONED):
            with pytest.raises(RecordError, match="did not return within"):
                await work.in_thread("s", 1, release.wait, timeout=1e-6)
        with pytest.raises(RecordError, match="no more are started"):
            await work.in_thread("s", 1, release.wait)
        assert await work.in_thread("other", 1, lambda: 5) == 5
        work.close()
        with pytest.raises(RuntimeError, match="has ended"):
            await work.in_thread("other", 1, lambda: 5)

    try:
        asyncio.run(main())
    finally:
        release.set()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"run_in": "threads"}, "did you mean 'thread'"),
        ({"run_in": "thread", "workers": 0}, "workers=0"),
        ({"workers": 3}, "where workers cannot hold"),
        ({"timeout": 3}, "where timeout cannot hold"),
    ],
)
def test_options_that_cannot_hold_are_refused(options: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):

        @step(inputs=[], outputs=[], **options)
        def plain(row: Row) -> Row:
            return {}


def test_where_a_step_runs_is_not_part_of_its_fingerprint() -> None:
    def body(row: Row) -> Row:
        return {"m": row["n"]}

    plain = step(inputs=["n"], outputs=["m"])(body)().settings()
    for options in ({"run_in": "thread"}, {"run_in": "thread", "workers": 3, "timeout": 5}, {"journal": True}):
        assert step(inputs=["n"], outputs=["m"], **options)(body)().settings() == plain  # type: ignore[arg-type]
