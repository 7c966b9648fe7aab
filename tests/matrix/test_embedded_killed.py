"""Row 4, in the long form: the embedded model, a real llama.cpp in a process of its own, is killed while it answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.commands import result_rows
from tests.kit.jobs import write_job
from tests.kit.processes import ends_within, environment
from tests.matrix.plugin import FULL, Tried

RECORDS = 6


def children(pid: int) -> list[int]:
    """Processes started by this one and by those (Linux)."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


@pytest.mark.row(4)
@pytest.mark.embedded
@pytest.mark.skipif(not FULL, reason="part of the long form")
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process by Linux's /proc")
def test_a_killed_embedded_model_costs_no_record(tmp_path: Path, tried: Tried) -> None:
    pytest.importorskip("xllamacpp")
    job, run = write_job(tmp_path, RECORDS), tmp_path / "run"
    command = [sys.executable, "-m", "asyncsynth", "run", str(job), "--embedded", "--output", str(run), "--json"]
    settings = [f"text_generation_{number}.llm.max_tokens=24" for number in range(3)]
    command += [word for setting in settings for word in ("--set", setting)]
    process = subprocess.Popen(command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not any(path.stat().st_size > 2_000 for path in run.glob("seg-*.jsonl")):
        if ends_within(process, 0.05):
            pytest.fail(f"it ended before the model could be killed: {process.communicate()}")
    models = children(process.pid)
    assert models, "there is no process of the embedded model"
    os.kill(models[-1], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode in (0, 4), f"exit {process.returncode}: {out} {err}"
    assert "Traceback" not in err
    again = subprocess.run(command, env=environment(), text=True, capture_output=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    rows = result_rows(run)
    assert [row["n"] for row in rows] == list(range(RECORDS))
    assert not [pid for pid in models if Path(f"/proc/{pid}").exists()]
    tried(1, "kills of the embedded model")
