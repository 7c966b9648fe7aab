"""Row 21: SIGINT once, twice, three times, and SIGTERM, at random moments of a run: exit 4, nothing lost."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests.matrix.jobs import Job, wait, write_job
from tests.matrix.plugin import FULL, Tried
from tests.matrix.served import Served

SEED = int(os.environ.get("ASYNCSYNTH_SEED", "21"))
KINDS = {
    "SIGINT": [signal.SIGINT],
    "SIGINT twice": [signal.SIGINT] * 2,
    "SIGINT three times": [signal.SIGINT] * 3,
    "SIGTERM": [signal.SIGTERM],
}
ROUNDS, RECORDS = (13, 1_000) if FULL else (1, 400)
WINDOW = 32


@pytest.mark.row(21)
@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_signal_at_any_moment_ends_as_documented_and_loses_nothing(tmp_path: Path, tried: Tried, round_: int) -> None:
    rng = random.Random(f"{SEED}.{round_}")
    job = write_job(tmp_path, RECORDS)
    kinds = list(KINDS)
    rng.shuffle(kinds)
    with Served(fault_rate=0.05, seed=round_, delay_s=0.01) as server:
        command = Job(job, server.base_url, tmp_path / "run", window=WINDOW)
        ended: set[str] = set()
        for kind in kinds:
            why = f"seed {SEED}, round {round_}: {kind}"
            process = command.start()
            # Before the lock is there the process is an interpreter that starts, and not yet ours to end well.
            while not _holds(command.run, process.pid) and not wait(process, 0.002):
                pass
            wait(process, rng.uniform(0.0, 0.5))
            for number in KINDS[kind]:
                process.send_signal(number)
                wait(process, rng.choice([0.0, rng.uniform(0.0, 0.05)]))
            out, err = process.communicate(timeout=60)
            if '"exit_code":0' not in out:  # else all was over when the signal came
                assert process.returncode == 4, f"{why}: exit {process.returncode}: {out} {err}"
                assert "Traceback" not in err, f"{why}: {err}"
                tried(1, f"runs stopped by {kind}")
            now = command.finals()
            assert ended <= set(now), f"{why}: records that had ended are gone"
            ended = set(now)
            redone = len(server.tell()["records"])
            assert redone <= WINDOW, why
        command.finish()
    assert command.numbers() == list(range(RECORDS))
    assert set(command.finals().values()) == {1}


def _holds(run: Path, pid: int) -> bool:
    """Whether the process has taken the run's lock."""
    try:
        return (run / "LOCK").read_text().strip() == str(pid)
    except FileNotFoundError:
        return False
