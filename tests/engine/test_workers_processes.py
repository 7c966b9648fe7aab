"""`asyncsynth run --workers N` as processes: one output, and what becomes of it when processes are killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncsynth.engine.status import writer_pid
from asyncsynth.testing import Fault, FaultServer
from tests.kit.commands import asyncsynth, start, write_job

Serve = Callable[..., FaultServer]
RECORDS = 120
WINDOW = 8


def digest(run: Path) -> str:
    return hashlib.sha256((run / "result.jsonl").read_bytes()).hexdigest()


def command(folder: Path, server: FaultServer, output: str, *more: object) -> tuple[object, ...]:
    job = folder / "job.py"
    if not job.exists():
        write_job(folder, RECORDS)
    return ("run", job, "--servers", server.base_url, "--output", folder / output, "--window", WINDOW, *more)


def done(run: Path) -> int:
    ok: int = json.loads(asyncsynth("status", run, "--json").stdout)["ok"]
    return ok


class WhenBothWork:
    """Does something once, when both shards' processes have sent their tenth record; every answer takes a while."""

    def __init__(self, run: Path, action: Callable[[list[int]], object]) -> None:
        self._run = run
        self._action: Callable[[list[int]], object] | None = action
        self._seen = [0, 0]

    def __call__(self, info: Any) -> Fault | None:
        if found := re.search(r"number (\d+)", str(info.json)):
            self._seen[int(found[1]) % 2] += 1
        if min(self._seen) >= 10 and self._action is not None:
            pids = [writer_pid(self._run / f"shard-{k}") for k in range(2)]
            action, self._action = self._action, None
            action([pid for pid in pids if pid is not None])
        return Fault(delay_s=0.05)


def test_workers_make_the_bytes_of_one_process_and_any_number_goes_on(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"])
    one = asyncsynth(*command(tmp_path, server, "one"))
    assert one.returncode == 0, one.stderr
    part = asyncsynth(*command(tmp_path, server, "many", "--workers", 3, "--limit", 20))
    assert part.returncode == 0, part.stderr
    asked = server.requests
    rest = asyncsynth(*command(tmp_path, server, "many", "--workers", 2, "--json"))
    assert rest.returncode == 0, rest.stderr
    said = [json.loads(line) for line in rest.stdout.splitlines()][-1]
    assert said["event"] == "done"
    assert (said["counts"]["ok"], said["counts"]["earlier"]) == (RECORDS - 20, 20)
    assert said["requests"] == RECORDS - 20
    assert server.requests - asked >= RECORDS - 20
    again = asyncsynth(*command(tmp_path, server, "many"))  # as many as it has shards
    assert f"{RECORDS} done earlier" in again.stdout
    assert digest(tmp_path / "many") == digest(tmp_path / "one")
    verified = asyncsynth("journal", "verify", tmp_path / "many")
    assert verified.returncode == 0, verified.stdout
    assert verified.stdout.count("shard-") == 3
    refused = asyncsynth(*command(tmp_path, server, "one", "--workers", 2))
    assert refused.returncode == 2
    assert "run of one process" in refused.stderr


@pytest.mark.row(4)
def test_a_worker_killed_stops_the_run_which_goes_on_to_the_same_bytes(tmp_path: Path, fault_server: Serve) -> None:
    run = tmp_path / "killed"

    server = fault_server(models=["model-a"], script=WhenBothWork(run, lambda pids: os.kill(pids[1], signal.SIGKILL)))
    stopped = asyncsynth(*command(tmp_path, server, "killed", "--workers", 2))
    assert stopped.returncode == 4, stopped.stderr
    assert "worker 1 ended (killed by SIGKILL)" in stopped.stdout
    acknowledged = done(run)
    assert 0 < acknowledged < RECORDS
    before = server.requests
    rest = asyncsynth(*command(tmp_path, server, "killed", "--workers", 2))
    assert rest.returncode == 0, rest.stderr
    assert server.requests - before <= RECORDS - acknowledged + 8  # and canaries
    assert asyncsynth(*command(tmp_path, server, "straight")).returncode == 0
    assert digest(run) == digest(tmp_path / "straight")


@pytest.mark.row(4)
def test_workers_end_with_their_parent_and_the_run_goes_on(tmp_path: Path, fault_server: Serve) -> None:
    pids: list[int] = []
    run = tmp_path / "killed"
    process = None

    def kill(found: list[int]) -> None:
        pids.extend(found)
        assert process is not None
        process.kill()

    server = fault_server(models=["model-a"], script=WhenBothWork(run, kill))
    process = start(*command(tmp_path, server, "killed", "--workers", 2))
    process.communicate(timeout=60)  # returns when the last one that holds its standard error is ending
    assert process.returncode == -signal.SIGKILL
    assert len(pids) == 2
    until = time.monotonic() + 30
    while writers := [pid for k in range(2) if (pid := writer_pid(run / f"shard-{k}")) is not None]:
        assert time.monotonic() < until, f"{writers} still run without their parent"
        os.sched_yield()
    acknowledged = done(run)
    assert 0 < acknowledged < RECORDS
    before = server.requests
    rest = asyncsynth(*command(tmp_path, server, "killed", "--workers", 2))
    assert rest.returncode == 0, rest.stderr
    assert server.requests - before <= RECORDS - acknowledged + 8
    assert asyncsynth(*command(tmp_path, server, "straight")).returncode == 0
    assert digest(run) == digest(tmp_path / "straight")


@pytest.mark.row(21)
@pytest.mark.parametrize("signals", [1, 2])
def test_signals_drain_and_cancel_all_workers(tmp_path: Path, fault_server: Serve, signals: int) -> None:
    process = None

    def send(_: list[int]) -> None:
        assert process is not None
        for _number in range(signals):
            process.send_signal((signal.SIGTERM, signal.SIGINT)[_number])

    server = fault_server(models=["model-a"], script=WhenBothWork(tmp_path / "run", send))
    process = start(*command(tmp_path, server, "run", "--workers", 2))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert "stopped (SIG" in out
    assert "Traceback" not in err
    assert 0 < done(tmp_path / "run") < RECORDS
    rest = asyncsynth(*command(tmp_path, server, "run"))
    assert rest.returncode == 0, rest.stderr
    assert len((tmp_path / "run" / "result.jsonl").read_text().splitlines()) == RECORDS


def test_what_a_worker_meets_ends_the_run_with_its_words_and_its_code(tmp_path: Path, fault_server: Serve) -> None:
    def refuse(info: Any) -> Fault | None:
        return Fault("status", status=401) if info.index > RECORDS // 2 else Fault(delay_s=0.02)

    server = fault_server(models=["model-a"], script=refuse)
    ran = asyncsynth(*command(tmp_path, server, "run", "--workers", 2))
    assert ran.returncode == 4, ran.stderr
    assert "401" in ran.stderr
    alone = asyncsynth(*command(tmp_path, fault_server(models=["model-a"], script=refuse), "alone"))
    assert alone.returncode == ran.returncode


def test_what_cannot_be_shared_is_refused(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"])
    few = asyncsynth(*command(tmp_path, server, "run", "--workers", 4, "--concurrency", 3))
    assert few.returncode == 2
    assert "--concurrency is 3" in few.stderr
    embedded = asyncsynth(*command(tmp_path, server, "run", "--workers", 2, "--embedded"))
    assert embedded.returncode == 2
    assert "embedded" in embedded.stderr
    assert server.requests == 0
    assert not (tmp_path / "run").exists()
