"""ToolChat under `kill -9` in the middle of its conversations: what is kept is neither called nor paid again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from asyncsynth.storage.kept_answers import count_kept
from asyncsynth.storage.layout import ANSWERS
from asyncsynth.testing import Fault, RequestInfo
from tests.kit.jobs import Job
from tests.kit.loops import run_async, until
from tests.kit.pipelines import server

RECORDS = 6
JOB = """
from pathlib import Path
from asyncsynth import LLM, LoadDataFromDicts, Pipeline, ToolChat

LOG = Path({log!r})

def note(word: str) -> dict[str, int]:
    \"\"\"Counts letters.\"\"\"
    with LOG.open("a") as file:
        file.write(word + "\\n")
    return {{"letters": len(word)}}

async def note_async(word: str) -> str:
    \"\"\"Counts letters, too.\"\"\"
    note(word)
    return word

with Pipeline(name="killed") as pipeline:
    data = [{{"instruction": f"Count {{number}}."}} for number in range({records})]
    LoadDataFromDicts(data) >> ToolChat(llm=LLM(model="model-a"), tools=[note, note_async])
"""


@pytest.mark.row(48)
def test_no_turn_is_paid_and_no_tool_is_called_twice(tmp_path: Path) -> None:
    log, run = tmp_path / "log", tmp_path / "run"
    job_file = tmp_path / "job.py"
    job_file.write_text(JOB.format(log=str(log), records=RECORDS))
    stuck: set[bytes] = set()
    is_stuck = True

    def hang_after_tools(info: RequestInfo) -> Fault | None:
        if is_stuck and b'"role":"tool"' in info.body:
            stuck.add(info.body)
            return Fault("hang")
        return None

    async def main() -> None:
        nonlocal is_stuck
        async with server(script=hang_after_tools, keep_requests=True) as fake:
            job = Job(job_file, fake.base_url, run, window=RECORDS)
            process = job.start()
            try:
                await until(lambda: len(stuck) == RECORDS or process.poll() is not None)
                calls = log.read_text()
                kept = RECORDS + len(calls.splitlines())  # an answer a record, and a result a call
                await until(lambda: sum(count_kept([run / ANSWERS]).values()) == kept or process.poll() is not None)
                assert process.poll() is None, process.communicate()
            finally:
                process.kill()
                process.communicate()
            is_stuck = False
            assert fake.log is not None
            before = len(fake.log)
            await asyncio.to_thread(job.finish)
            asked = [info.body for info in fake.log[before:] if b"Count " in info.body]
            assert sorted(asked) == sorted(stuck)  # the turns that were not answered, as they were asked
            assert log.read_text() == calls

    run_async(main())
    rows = [json.loads(line) for line in (run / "result.jsonl").read_text().splitlines()]
    assert [row["instruction"] for row in rows] == [f"Count {number}." for number in range(RECORDS)]
    for row in rows:
        calls = [call for message in row["messages"] for call in message.get("tool_calls") or ()]
        told = [message for message in row["messages"] if message["role"] == "tool"]
        assert [call["id"] for call in calls] == [message["tool_call_id"] for message in told]
        assert row["tool_errors"] == 0
