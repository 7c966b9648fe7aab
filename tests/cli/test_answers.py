"""Kept answers as a user meets them: a file that is edited between two commands, processes, `kill -9`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncsynth.client.needs import SAMPLE_SEED
from asyncsynth.testing import Fault, FaultServer, RequestInfo
from tests.kit.commands import asyncsynth, result_rows, start
from tests.kit.files import write_rows

Serve = Callable[..., FaultServer]
RECORDS = 120

JOB = """
from asyncsynth import LLM, LoadJSONL, Pipeline, task

@task(llm=LLM(model="model-a"), inputs=["n"], outputs=["first", "second"])
async def twice(row, ctx):
    first = await ctx.chat("{prompt} number %d." % row["n"])
    second = await ctx.chat("Then? " + first.text)
    return {{"first": {read}(first.text), "second": {read}(second.text)}}

with Pipeline(name="answers") as pipeline:
    LoadJSONL({data!r}) >> twice()
"""


def write(folder: Path, read: str, *, prompt: str = "Tell of") -> Path:
    """The job with its answers read in this way."""
    data = folder / "in.jsonl"
    if not data.exists():
        write_rows(data, ({"n": n} for n in range(RECORDS)))
    job = folder / "job.py"
    job.write_text(JOB.format(read=read, prompt=prompt, data=str(data)))
    return job


def paid(server: FaultServer) -> int:
    """Requests of records: what a run's start tries has no seed, or the samples'."""
    assert server.log is not None
    return sum(1 for info in server.log if info.json.get("seed", SAMPLE_SEED) != SAMPLE_SEED)


def run(job: Path, server: FaultServer, output: Path, *more: object) -> dict[str, Any]:
    """The command to its end, which must be good; what it says last."""
    ran = asyncsynth("run", job, "--servers", server.base_url, "--output", output, "--json", *more)
    assert ran.returncode == 0, ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return said


@pytest.mark.row(35)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_edited_file_pays_nothing_and_a_fresh_run_makes_the_same(
    tmp_path: Path, fault_server: Serve, workers: int
) -> None:
    server = fault_server(models=["model-a"], keep_requests=True)
    more = ("--workers", workers)
    run(write(tmp_path, "str.upper"), server, tmp_path / "run", *more)
    assert paid(server) == 2 * RECORDS
    if workers == 1:
        counted = json.loads(asyncsynth("journal", "stats", tmp_path / "run", "--json").stdout)
        assert counted["answers"] == 2 * RECORDS
        kept = tmp_path / "run" / "answers"
        assert counted["answer_bytes"] == sum(path.stat().st_size for path in kept.iterdir())
        assert f"answers   {2 * RECORDS} kept" in asyncsynth("journal", "stats", tmp_path / "run").stdout
    said = run(write(tmp_path, "str.title"), server, tmp_path / "run", "--update", *more)
    assert paid(server) == 2 * RECORDS
    assert (said["reread_answers"], said["requests"]) == (2 * RECORDS, 0)
    run(tmp_path / "job.py", server, tmp_path / "straight", "--answers", "none")
    assert not (tmp_path / "straight" / "answers").exists()
    assert (tmp_path / "run" / "result.jsonl").read_bytes() == (tmp_path / "straight" / "result.jsonl").read_bytes()


@pytest.mark.row(35)
def test_workers_and_other_runs_share_a_cache(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"], keep_requests=True)
    cache = ("--answers", tmp_path / "cache")
    run(write(tmp_path, "str.upper"), server, tmp_path / "one", *cache, "--workers", 2)
    assert len(list((tmp_path / "cache").glob("*.jsonl"))) == 2
    run(write(tmp_path, "str.title"), server, tmp_path / "two", *cache)
    assert paid(server) == 2 * RECORDS
    assert result_rows(tmp_path / "two")[7]["first"] == result_rows(tmp_path / "one")[7]["first"].title()
    told = asyncsynth(
        "run", write(tmp_path, "str.lower"), "--servers", server.base_url, "--output", tmp_path / "3", *cache
    )
    assert f"re-read   {2 * RECORDS} answers paid for earlier" in told.stdout
    for wrong, why in (("", "must be own, run, none or"), (tmp_path / "one", "is a run directory")):
        refused = asyncsynth("run", tmp_path / "job.py", "--output", tmp_path / "4", "--answers", wrong)
        assert refused.returncode == 2
        assert why in refused.stderr


@pytest.mark.row(35)
@pytest.mark.parametrize("at", [30, 150])
def test_after_kill_9_an_edited_file_pays_for_what_was_lost_only(tmp_path: Path, fault_server: Serve, at: int) -> None:
    process = None

    def script(info: RequestInfo) -> Fault | None:
        if b'"seed"' in info.body and paid(server) == at and process is not None:
            process.kill()
        return Fault(delay_s=0.02)

    server = fault_server(models=["model-a"], keep_requests=True, script=script)
    command = ("run", write(tmp_path, "str.upper"), "--servers", server.base_url, "--output", tmp_path / "run")
    process = start(*command, "--window", 8)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    before = paid(server)
    said = run(write(tmp_path, "str.title"), server, tmp_path / "run", "--update")
    assert said["counts"]["ok"] == RECORDS
    assert said["reread_answers"] + said["requests"] == 2 * RECORDS
    # Those of the last moments, and what was in flight: a window of 8, some groups of 50 ms.
    assert said["reread_answers"] >= before - 80
    process = None
    run(tmp_path / "job.py", server, tmp_path / "straight", "--answers", "none")
    assert (tmp_path / "run" / "result.jsonl").read_bytes() == (tmp_path / "straight" / "result.jsonl").read_bytes()
