"""Rows 19 and 20: a long run keeps its size; a resume over its journal, and its status, come soon.

Times are held only where there are a million records: the promise is about those.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.kit.files import ROOT
from tests.kit.processes import environment
from tests.matrix.plugin import FULL, Tried
from tests.matrix.soak import WINDOW

RECORDS = 1_000_000 if FULL else 5_000
#: Records after which the caches are warm and the pool has its connections.
SETTLED = 50_000 if FULL else 2_000


def part(name: str, url: str, run: Path) -> dict[str, Any]:
    """One part in a process of its own; the time counts from its start, imports included."""
    command = [sys.executable, "-m", "tests.matrix.soak", name, str(RECORDS), url, str(run), str(time.monotonic())]
    ran = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=2400, check=False
    )
    assert ran.returncode == 0, ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return said


def by_tenth(samples: Sequence[float]) -> tuple[list[float], list[float]]:
    """(what was had for most of the time, the most there was) in each tenth of a run.

    Saving a segment's sidecar takes some MB for a moment. Such peaks come from the first segment on, so that they are
    compared with each other, and not with what happened to be held when the first sample was taken.
    """
    size = len(samples) // 10
    tenths = [samples[at : at + size] for at in range(0, 10 * size, size)]
    return [statistics.median(tenth) for tenth in tenths], [max(tenth) for tenth in tenths]


@pytest.mark.row(19, 20)
def test_a_long_run_keeps_its_size_and_comes_back_soon(tmp_path: Path, tried: Tried) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "asyncsynth.testing.fault_server", "--model", "model-a", "--fault-rate", "0.05"]
    # No 503: it would say, for a million requests, that the server has no room, and the limit would stay low.
    command += ["--fault-status", "500", "--fault-status", "502"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().strip()
            whole = part("run", url, run)
            again = part("resume", url, run)
        finally:
            server.kill()
    status = part("status", url, run)

    assert whole["complete"]
    assert whole["ok"] + whole["failed"] == RECORDS
    assert whole["rows"] == whole["ok"]
    assert whole["failed"] < RECORDS * 0.001, "an answer spoilt three times in a row is rare"
    assert whole["retries"] > RECORDS * 2 * 0.04
    assert again["earlier"] == status["ok"] + status["failed"] == RECORDS
    assert status["failed"] == whole["failed"]
    settled = [sample for sample in whole["samples"] if SETTLED <= sample[0] < RECORDS - WINDOW]
    assert len(settled) > (100 if FULL else 1), "too few samples"
    _, memory, descriptors, tasks = zip(*settled, strict=True)
    if FULL:
        held, highest = by_tenth(memory)
        tried(0, "", f"{held[0]:.1f} MB held in the first tenth of the run, {max(held):.1f} MB at most later", row=19)
        assert max(held) <= 1.10 * held[0], f"MB held, by tenths of the run: {held}"
        assert max(highest) <= 1.10 * highest[0], f"most MB, by tenths of the run: {highest}"
    else:
        assert max(memory) <= 1.25 * memory[0], f"from {memory[0]:.1f} to {max(memory):.1f} MB"
    assert max(tasks) <= WINDOW + 16, f"{max(tasks)} tasks for a window of {WINDOW}"
    assert max(descriptors) <= 256 + 64, f"{min(descriptors)} to {max(descriptors)} descriptors"
    if FULL:  # a few samples of a short run say nothing of growth
        usual, _ = by_tenth(descriptors)  # their peaks are connections that faults have closed, several at once
        assert max(usual) <= usual[0] + 16, f"descriptors in use, by tenths of the run: {usual}"
    tried(RECORDS, "records", f"{whole['failed']} of them dead letters, {whole['retries']:,} retries", row=19)
    tried(0, "", f"{memory[0]:.1f} MB after {SETTLED:,}, at most {max(memory):.1f} MB", row=19)
    tried(0, "", f"{min(descriptors)}-{max(descriptors)} descriptors, at most {max(tasks)} tasks", row=19)

    if FULL:
        assert again["begun_s"] <= 5.0
        assert status["seconds"] <= 2.0
    assert again["highest_mb"] <= 150
    tried(RECORDS, "records in the journal", row=20)
    tried(0, "", f"resumed after {again['begun_s']:.1f} s with {again['highest_mb']:.0f} MB", row=20)
    tried(0, "", f"status after {status['seconds']:.1f} s", row=20)
