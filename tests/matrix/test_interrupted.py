"""Row 9: a run that is interrupted ten times exports what a straight one does, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
from pathlib import Path
from typing import Any

import pytest

from asyncsynth.engine.runner import Runner
from asyncsynth.storage.exports import export
from asyncsynth.testing import Fault, FaultServer, RequestInfo
from tests.kit.loops import run_async
from tests.kit.pipelines import preference, rows, server
from tests.matrix.plugin import FULL, Tried

SEED = int(os.environ.get("ASYNCSYNTH_SEED", "9"))
RECORDS = 120


async def interrupted(options: dict[str, Any], fake: FaultServer, after: int, how: str) -> bool:
    """One run, cancelled or drained at its `after`-th request; whether it was."""
    runners: list[Runner] = []
    task: asyncio.Task[Any] | None = None
    struck = False

    def script(info: RequestInfo) -> Fault | None:
        nonlocal struck, after
        after -= 1
        if after == 0 and task is not None:
            struck = True
            if how == "drain" and runners:  # there is none while servers are being tried
                runners[0].drain("a test")
            else:
                task.cancel()
        return None

    fake.script = script
    task = asyncio.create_task(preference(rows(RECORDS)).arun(on_runner=runners.append, **options))
    with contextlib.suppress(asyncio.CancelledError):
        await task
    fake.script = None
    return struck


@pytest.mark.row(9)
@pytest.mark.parametrize("round_", range(20 if FULL else 1))
def test_ten_interruptions_leave_no_trace_in_the_export(tmp_path: Path, tried: Tried, round_: int) -> None:
    rng = random.Random(f"{SEED}.{round_}")

    async def main() -> None:
        async with server() as fake:
            await preference(rows(RECORDS)).arun(servers=[fake.base_url], output=tmp_path / "straight")
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run", "window": 8}
            times = 0
            for _ in range(10):
                # The first requests of a run are its canaries: a run may be interrupted there, too.
                times += await interrupted(options, fake, rng.randrange(1, 30), rng.choice(["cancel", "drain"]))
            assert times == 10, f"seed {SEED}, round {round_}: it ended before"
            whole = await preference(rows(RECORDS)).arun(**options)
            assert whole.report.counts.ok + whole.report.counts.earlier == RECORDS
            tried(times, "interruptions")

    run_async(main())
    sums = []
    for name in ("straight", "run"):
        target = tmp_path / f"{name}.jsonl"
        assert export(tmp_path / name, target).rows == RECORDS
        sums.append(hashlib.sha256(target.read_bytes()).hexdigest())
    assert sums[0] == sums[1], f"seed {SEED}, round {round_}"
