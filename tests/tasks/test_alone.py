"""A task on its own: with and without a running loop, and freed when nothing refers to it."""

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from asyncsynth.client.llm import LLM
from asyncsynth.errors import ConfigurationError, RecordError, ServerError
from asyncsynth.tasks.alone import AloneRunner, Opener, Rows
from asyncsynth.tasks.text_generation import TextGeneration
from asyncsynth.tasks.ultra_feedback import UltraFeedback
from asyncsynth.testing import FaultServer
from tests.kit.models import Model

Started = Callable[..., FaultServer]


def opener(model: Model, log: list[str]) -> Opener:
    @asynccontextmanager
    async def open_pool(llms: list[LLM]) -> AsyncIterator[Model]:
        log.append("opened")
        try:
            yield model
        finally:
            await asyncio.to_thread(log.append, "closed")

    return open_pool


def loaded(*texts: str) -> tuple[TextGeneration, list[str]]:
    task, log = TextGeneration(LLM(model="m")), list[str]()
    task._alone = AloneRunner(task, opener=opener(Model(*texts), log))
    return task, log


def test_load_process_unload() -> None:
    task, log = loaded("one", "two")
    rows = next(task.process([{"instruction": "a", "id": 1}, {"instruction": "b", "id": 2}]))
    assert [row["generation"] for row in rows] == ["one", "two"]
    assert [row["id"] for row in rows] == [1, 2]
    task.unload()
    task.unload()
    assert log == ["opened", "closed"]


def test_it_is_awaited_in_a_running_loop_and_also_called_there_as_in_a_notebook() -> None:
    task, _ = loaded("one", "two")

    async def cell() -> list[str]:
        [first] = await task({"instruction": "a"})
        second = next(task.process([{"instruction": "b"}]))
        return [first["generation"], second["generation"]]

    assert asyncio.run(cell()) == ["one", "two"]
    task.unload()


def test_a_task_that_is_dropped_takes_its_pool_along() -> None:
    task, log = loaded()
    thread = next(t for t in threading.enumerate() if t.name == "asyncsynth-alone")
    del task
    gc.collect()
    thread.join(10)
    assert log == ["opened", "closed"]


def test_rows_that_cannot_be_done() -> None:
    task, _ = loaded()
    with pytest.raises(RecordError, match="no column 'instruction'; it has prompt") as caught:
        next(task.process([{"prompt": "a"}]))
    assert caught.value.reason == "missing_column"
    task.unload()


def test_unloading_cancels_rows_under_way() -> None:
    task, log = TextGeneration(LLM(model="m")), list[str]()
    waiting = threading.Event()

    class Silent(Model):
        async def send(self, request: object) -> None:  # type: ignore[override]
            waiting.set()
            await asyncio.Event().wait()

    runner = task._alone = AloneRunner(task, opener=opener(Silent(), log))
    future = runner.submit(task, {"instruction": "a"}, "0", 0)
    waiting.wait(10)
    task.unload()
    assert future.cancelled()
    assert log == ["opened", "closed"]
    with pytest.raises(ConfigurationError, match="unloaded"):
        runner.submit(task, {"instruction": "a"}, "0", 0)


def test_a_pool_that_does_not_open_is_an_error_of_load() -> None:
    @asynccontextmanager
    async def broken(llms: list[LLM]) -> AsyncIterator[Model]:
        raise ServerError("no server")
        yield Model()

    with pytest.raises(ServerError, match="no server"):
        AloneRunner(TextGeneration(LLM(model="m")), opener=broken)


def test_mappings_are_checked_by_load() -> None:
    task = TextGeneration(LLM(model="m"), output_mappings={"generations": "x"})
    with pytest.raises(ConfigurationError, match="did you mean 'generation'"):
        task.load()


PROGRAM = """
import asyncio
from contextlib import asynccontextmanager
from asyncsynth.client.llm import LLM
from asyncsynth.tasks.alone import AloneRunner
from asyncsynth.tasks.text_generation import TextGeneration

@asynccontextmanager
async def open_pool(llms):
    try:
        yield None
    finally:
        print(await asyncio.to_thread(lambda: "closed in a thread"))
        child = await asyncio.create_subprocess_exec("true")
        print("and after a child:", await child.wait())

task = TextGeneration(LLM(model="m"))
task._alone = AloneRunner(task, opener=open_pool)
print("the end")
"""


def test_the_interpreter_ends_without_unload_and_closes_the_pool_first() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/bin:/usr/bin"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["the end", "closed in a thread", "and after a child: 0"]


def test_rows_can_be_read_by_column_when_there_is_one() -> None:
    assert Rows([{"a": 1}])["a"] == 1
    assert Rows([{"a": 1}, {"a": 2}])[1]["a"] == 2
    with pytest.raises(KeyError, match="2 rows came back"):
        Rows([{"a": 1}, {"a": 2}])["a"]


def test_over_a_real_socket(fault_server: Started) -> None:
    server = fault_server(models=["m"])
    llm = LLM(model="m", base_url=server.base_url)
    gen, judge = TextGeneration(llm), UltraFeedback(llm)
    gen.load()
    answers = next(gen.process([{"instruction": f"question {i}"} for i in range(5)]))
    assert len({row["generation"] for row in answers}) == 5
    assert answers[0]["model_name"] == "m"
    judge.load()
    texts = [row["generation"] for row in answers]
    [judged] = next(judge.process([{"instruction": "x", "generations": texts}]))
    assert len(judged["ratings"]) == len(judged["rationales"]) == 5
    assert set(judged["ratings"]) <= {1, 2, 3, 4, 5}
    gen.unload()
    judge.unload()


def test_an_unknown_model_is_refused_by_load(fault_server: Started) -> None:
    server = fault_server(models=["m"])
    with pytest.raises(ServerError, match="other"):
        TextGeneration(LLM(model="other", base_url=server.base_url)).load()


def test_tasks_that_ask_the_same_model_share_one_pool() -> None:
    log: list[str] = []
    opened = opener(Model("one", "two"), log)
    first, second = TextGeneration(LLM(model="m")), TextGeneration(LLM(model="m", temperature=0.1))
    first._alone, second._alone = AloneRunner(first, opener=opened), AloneRunner(second, opener=opened)
    assert log.count("opened") == 1
    first.unload()
    assert "closed" not in log
    assert next(second.process([{"instruction": "x"}]))["generation"]
    second.unload()
    assert log.count("closed") == 1
