"""A step that misbehaves on a row costs that row, and is named; the run and the other rows continue."""

import asyncio
import contextvars
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncsynth import (
    LLM,
    Context,
    GroupColumns,
    JoinStep,
    LoadDataFromDicts,
    Pipeline,
    RowStep,
    TaskContext,
    step,
    task,
)
from asyncsynth.engine.loop_watch import LoopWatch
from asyncsynth.engine.result import Result
from asyncsynth.engine.step_exits import exits_are_errors
from asyncsynth.errors import ConfigurationError, PipelineError
from asyncsynth.pipeline import Dropped, GlobalStep, Graph, ModelStep
from asyncsynth.records import Row
from tests.kit.loops import run_async
from tests.kit.pipelines import server
from tests.kit.walking import Source, walk

M = LLM(model="model-a")


class Odd(BaseException):
    """Of a user's own, and no Exception."""


def exits() -> None:
    sys.exit("no")


def raises(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def cancels_itself() -> None:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()


def cancels_another_and_goes_wrong() -> None:
    raise asyncio.CancelledError


MISBEHAVIOURS: dict[str, Callable[[], None]] = {
    "exit": exits,
    "own": raises(Odd("odd")),
    "generator": raises(GeneratorExit()),
    "cancelled": cancels_another_and_goes_wrong,
    "stop": raises(StopAsyncIteration()),
    "memory": raises(MemoryError()),
    "recursion": raises(RecursionError("deep")),
}


def is_third(row: Row) -> bool:
    return bool(row["n"] == 3)


def of_row_step(act: Callable[[], None]) -> Any:
    class Bad(RowStep):
        def apply(self, row: Row) -> Row:
            if is_third(row):
                act()
            return row

    return Bad(name="bad")


def of_join(act: Callable[[], None]) -> Any:
    class Bad(JoinStep):
        def join(self, rows: Sequence[Row]) -> Row:
            if is_third(rows[0]):
                act()
            return rows[0]

    return Bad(name="bad")


def of_model_step(act: Callable[[], None]) -> Any:
    class Bad(ModelStep):
        inputs = ("n",)
        outputs = ("m",)

        def models(self) -> tuple[LLM, ...]:
            return ()

        async def generate(self, row: Row, ctx: Context) -> list[Row]:
            await asyncio.sleep(0)
            if is_third(row):
                act()
            return [{"m": 1}]

    return Bad(name="bad")


def of_async_step(act: Callable[[], None]) -> Any:
    @step(inputs=["n"], outputs=["m"])
    async def bad(row: Row) -> Row:
        await asyncio.sleep(0)
        if is_third(row):
            act()
        return {"m": 1}

    return bad(name="bad")


def of_thread_step(act: Callable[[], None]) -> Any:
    @step(inputs=["n"], outputs=["m"], run_in="thread", workers=2)
    def bad(row: Row) -> Row:
        if is_third(row):
            act()
        return {"m": 1}

    return bad(name="bad")


KINDS = {
    "row step": of_row_step,
    "join": of_join,
    "model step": of_model_step,
    "async step": of_async_step,
    "thread step": of_thread_step,
}


def run(make: Callable[[], Any], output: Path, *, count: int = 10, is_join: bool = False, **options: Any) -> Result:
    with Pipeline(name="odd") as pipeline:
        load = LoadDataFromDicts(data=[{"n": n} for n in range(count)])
        if is_join:
            [load, load >> RowKeeper()] >> make()
        else:
            load >> make()

    async def main() -> Result:
        return await pipeline.arun(output=output, **options)

    return run_async(main())


class RowKeeper(RowStep):
    def apply(self, row: Row) -> Row:
        return row


def failed_alone(result: Result, *said: str, reason: str = "step_error") -> None:
    """Exactly one row failed, in the step `bad`, and every other came through."""
    counts = result.report.counts
    assert result.report.complete
    assert (counts.read, counts.ok, counts.failed, counts.pending) == (10, 9, 1, 0)
    assert counts.failures == {reason: 1}
    example = counts.examples[reason]
    assert (example["step"], example["key"]) == ("bad", "3")
    for text in said:
        assert text in example["message"]
    assert len(result["default"]["train"]) == 9


@pytest.mark.row(47)
@pytest.mark.parametrize("what", MISBEHAVIOURS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_costs_its_row_and_no_more(kind: str, what: str, tmp_path: Path) -> None:
    result = run(lambda: KINDS[kind](MISBEHAVIOURS[what]), tmp_path / "run", is_join=kind == "join")
    failed_alone(result, "test_misbehaving.py:")


@pytest.mark.row(47)
@pytest.mark.parametrize("kind", ["row step", "model step", "async step"])
def test_a_step_that_cancels_its_own_task_loses_no_record(kind: str, tmp_path: Path) -> None:
    result = run(lambda: KINDS[kind](cancels_itself), tmp_path / "run")
    counts = result.report.counts
    assert result.report.complete
    assert counts.read == counts.ok + counts.failed == 10
    assert counts.ok >= 9
    assert len(result["default"]["train"]) == counts.ok


async def exits_soon() -> None:
    await asyncio.sleep(0)
    sys.exit("no")


async def drops_soon() -> None:
    raise Dropped("unwanted")


async def in_a_group(act: Callable[[], Any]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(act())


async def in_a_gather(act: Callable[[], Any]) -> None:
    await asyncio.gather(act(), asyncio.sleep(0))


async def in_a_task(act: Callable[[], Any]) -> None:
    await asyncio.create_task(act())


@pytest.mark.row(47)
@pytest.mark.parametrize("around", [in_a_group, in_a_gather, in_a_task])
def test_what_a_task_that_the_step_started_raises_costs_the_row(around: Callable[..., Any], tmp_path: Path) -> None:
    @task(llm=M, inputs=["n"], outputs=["m"])
    async def bad(row: Row, ctx: TaskContext) -> Row:
        if row["n"] == 3:
            await around(exits_soon)
        if row["n"] == 4:
            await around(drops_soon)
        return {"m": row["n"]}

    with Pipeline(name="groups") as pipeline:
        LoadDataFromDicts([{"n": n} for n in range(10)]) >> bad(name="bad")

    async def main() -> Result:
        loop = asyncio.get_running_loop()
        async with server() as fake:
            result = await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")
        assert loop.get_task_factory() is None
        return result

    result = run_async(main())
    counts = result.report.counts
    assert (counts.ok, counts.failed, dict(counts.dropped)) == (9, 1, {"bad: unwanted": 1})
    assert counts.examples["step_error"]["message"].startswith("SystemExit: no (")
    assert "test_misbehaving.py:" in counts.examples["step_error"]["message"]


def test_the_exit_of_an_applications_own_task_is_the_applications(tmp_path: Path) -> None:
    async def main() -> None:
        with exits_are_errors(asyncio.get_running_loop()):
            other = contextvars.Context()
            asyncio.get_running_loop().create_task(exits_soon(), context=other)
            unstarted = asyncio.create_task(exits_soon())
            unstarted.cancel()  # before its first step: no coroutine is left unawaited
            with pytest.raises(asyncio.CancelledError):
                await unstarted
            await asyncio.sleep(0.1)

    with pytest.raises(SystemExit, match="no"):
        asyncio.run(main())


@pytest.mark.row(47)
@pytest.mark.parametrize("generations", [1, 3])
@pytest.mark.parametrize("what", ["exit", "own", "inner"])
def test_a_task_function_with_several_answers(what: str, generations: int, tmp_path: Path) -> None:
    @task(llm=M, inputs=["n"], outputs=["m"])
    async def bad(row: Row, ctx: TaskContext) -> Row:
        completion = await ctx.chat("hello")
        if is_third(row):
            if what == "inner":  # as in a library whose connection was closed
                inner = asyncio.ensure_future(asyncio.get_running_loop().create_future())
                asyncio.get_running_loop().call_soon(inner.cancel)
                await inner
            MISBEHAVIOURS[what]()
        return {"m": completion.text}

    with Pipeline(name="odd") as pipeline:
        made = bad(name="bad", num_generations=generations, group_generations=True)
        LoadDataFromDicts(data=[{"n": n} for n in range(10)]) >> made

    async def main() -> Result:
        async with server() as fake:
            return await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")

    failed_alone(run_async(main()), "test_misbehaving.py:")


@pytest.mark.row(47)
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("what", ["exit", "cancelled"])
def test_in_a_branch_its_row_is_counted_at_the_join(what: str, place: int, tmp_path: Path) -> None:
    @step(inputs=["n"], outputs=["m"])
    async def good(row: Row) -> Row:
        return {"m": 1}

    with Pipeline(name="odd") as pipeline:
        load = LoadDataFromDicts(data=[{"n": n} for n in range(10)])
        branches: list[Any] = [good()]
        branches.insert(place, of_async_step(MISBEHAVIOURS[what]))
        load >> branches >> GroupColumns(columns=["m"])

    async def main() -> Result:
        return await pipeline.arun(output=tmp_path / "run")

    counts = run_async(main()).report.counts
    assert (counts.read, counts.ok, counts.failed, counts.pending) == (10, 9, 1, 0)
    assert counts.examples["step_error"]["step"] == "bad"


@pytest.mark.row(47)
@pytest.mark.parametrize("error", [SystemExit(3), Odd("odd"), asyncio.CancelledError()])
def test_a_step_over_all_rows_ends_the_run_by_its_name(error: BaseException, tmp_path: Path) -> None:
    class All(GlobalStep):
        def decide(self, rows: Any) -> Any:
            raise error

    with pytest.raises(PipelineError, match=r"step 'all' failed over all rows: .*test_misbehaving\.py:"):
        run(lambda: All(name="all"), tmp_path / "run")


@pytest.mark.row(47)
@pytest.mark.parametrize("kind", ["row step", "join"])
def test_the_keyboard_is_no_fault_of_a_row(kind: str) -> None:
    with Graph("odd") as graph:
        source = Source()
        [source, source >> RowKeeper()] >> KINDS[kind](raises(KeyboardInterrupt())) if kind == "join" else (
            source >> KINDS[kind](raises(KeyboardInterrupt()))
        )
    with pytest.raises(KeyboardInterrupt):
        walk(graph, {"n": 3})


# --- steps that never return -----------------------------------------------------------------------


@pytest.mark.row(47)
def test_an_async_step_that_never_returns(tmp_path: Path) -> None:
    @step(inputs=["n"], outputs=["m"], timeout=0.4)
    async def bad(row: Row) -> Row:
        if is_third(row):
            await asyncio.Event().wait()
        return {"m": 1}

    failed_alone(run(lambda: bad(name="bad"), tmp_path / "run"), "0.4 s", "test_misbehaving.py:", reason="timeout")


@pytest.mark.row(47)
def test_a_thread_that_never_returns_is_left_behind_and_counted(tmp_path: Path) -> None:
    release = threading.Event()

    @step(inputs=["n"], outputs=["m"], run_in="thread", workers=1, timeout=0.4)
    def bad(row: Row) -> Row:
        if is_third(row):
            release.wait()
        return {"m": 1}

    try:
        result = run(lambda: bad(name="bad"), tmp_path / "run")
        failed_alone(result, "did not return within 0.4 s", reason="timeout")
        assert any("step 'bad': 1 calls exceeded their timeout" in note for note in result.report.notes)
    finally:
        release.set()


@pytest.mark.row(47)
def test_the_time_limit_of_a_task_does_not_count_its_model(tmp_path: Path) -> None:
    @task(llm=M, inputs=["n"], outputs=["m"], timeout=0.4)
    async def bad(row: Row, ctx: TaskContext) -> Row:
        said = [one.text for one in await asyncio.gather(ctx.chat("a"), ctx.chat("b"))]
        if is_third(row):
            await asyncio.Event().wait()
        return {"m": said}

    with Pipeline(name="odd") as pipeline:
        LoadDataFromDicts(data=[{"n": n} for n in range(10)]) >> bad(name="bad")

    async def main() -> Result:
        async with server(delay_s=0.5) as fake:
            return await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")

    failed_alone(run_async(main()), "timeout of 0.4 s (answers of models not counted); it waited at", reason="timeout")


def test_a_timeout_error_of_the_steps_own_is_no_time_limit(tmp_path: Path) -> None:
    @step(inputs=["n"], outputs=["m"], timeout=30)
    async def bad(row: Row) -> Row:
        if is_third(row):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        return {"m": 1}

    failed_alone(run(lambda: bad(name="bad"), tmp_path / "run"), "TimeoutError")


@pytest.mark.parametrize("timeout", [0, -1, True, "5", float("inf"), float("nan")])
def test_a_time_limit_that_is_none_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout="):
        step(inputs=[], outputs=[], timeout=timeout)
    with pytest.raises(ConfigurationError, match="timeout="):
        task(llm=M, inputs=[], outputs=[], timeout=timeout)


# --- a blocked loop --------------------------------------------------------------------------------


@pytest.mark.row(47)
def test_a_blocked_loop_is_reported_with_step_and_place(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    heard = threading.Event()

    def tell(line: str) -> None:
        told.append(line)
        heard.set()

    class Blocks(RowStep):
        def apply(self, row: Row) -> Row:
            assert heard.wait(30)  # the loop stands still until the watch has told it
            return row

    async def main() -> None:
        with LoopWatch(asyncio.get_running_loop(), tell, limit_s=0.05):
            await asyncio.sleep(0)
            Blocks(name="blocks").apply({})

    with caplog.at_level(logging.WARNING, logger="asyncsynth"):
        asyncio.run(main())
    [line] = told
    assert "step 'blocks' has blocked the event loop" in line
    assert "test_misbehaving.py:" in line
    assert "in apply" in caplog.text


def test_a_loop_that_turns_is_not_reported() -> None:
    told: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with LoopWatch(loop, told.append, limit_s=0.5):
            for _ in range(100):
                await asyncio.sleep(0)

    asyncio.run(main())
    assert told == []
