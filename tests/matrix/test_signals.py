"""Row 21: SIGINT once, twice, three times, and SIGTERM, at random moments of a run: exit 4, nothing lost.

Rows 27 and 28 with the same signals: an input that fits into the window is not done before every record has ended, and
a stop sends nothing more.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.kit.jobs import Job, write_job
from tests.kit.processes import ends_within
from tests.kit.served import Served
from tests.matrix.plugin import FULL, Tried

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
            while not _holds(command.run, process.pid) and not ends_within(process, 0.002):
                pass
            ends_within(process, rng.uniform(0.0, 0.5))
            for number in KINDS[kind]:
                process.send_signal(number)
                ends_within(process, rng.choice([0.0, rng.uniform(0.0, 0.05)]))
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


@pytest.mark.row(21, 27)
@pytest.mark.parametrize(
    ("kind", "workers"),
    [(kind, workers) for kind in KINDS for workers in (1, 2) if FULL or workers == 1 or kind == "SIGINT twice"],
)
def test_an_input_shorter_than_the_window_is_done_only_when_all_of_it_has_ended(
    tmp_path: Path, tried: Tried, kind: str, workers: int
) -> None:
    records, rng = 40, random.Random(f"{SEED}.{kind}")
    job = write_job(tmp_path, records)
    with Served(delay_s=0.3) as server:
        command = Job(job, server.base_url, tmp_path / "run", window=256, more=("--concurrency", "8"))
        options = ("--workers", str(workers)) if workers > 1 else ()
        process = command.start(*options)
        # The whole input is read at once; eight requests at a time need a second or more for all of it.
        shards = [command.run] if workers == 1 else [command.run / f"shard-{number}" for number in range(workers)]
        while not all((place / "servers.json").exists() for place in shards) and not ends_within(process, 0.01):
            pass
        ends_within(process, rng.uniform(0.2, 0.5))
        for number in KINDS[kind]:
            process.send_signal(number)
            ends_within(process, 0.02)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 4, f"{kind}: exit {process.returncode}: {out} {err}"
        assert not (command.run / "result.jsonl").exists()
        status = command.ask("status")
        assert status["complete"] is False
        assert status["records"] == records
        assert status["unfinished"] == records - status["ok"] - status["failed"] > 0
        if kind != "SIGINT three times":  # which says nothing any more
            said = json.loads(out.splitlines()[-1])
            counts = said["counts"]
            assert said["event"] == "done"
            assert not said["complete"]
            assert counts["read"] == counts["ok"] + counts["failed"] + counts["earlier"] + counts["pending"]
            assert 0 < said["unfinished"] == records - counts["ok"] - counts["failed"]
        exported = command.ask("export", "--to", str(tmp_path / "part.jsonl"))
        assert exported["unfinished"] == status["unfinished"]
        refused = command.ask("export", "--to", str(tmp_path / "none.jsonl"), "--complete-only", code=4)
        assert f"unfinished: {status['unfinished']} of 40" in refused["message"]
        assert not (tmp_path / "none.jsonl").exists()
        tried(1, f"short inputs stopped by {kind}")
        process = command.start(*options)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert command.numbers() == list(range(records))
        assert command.ask("export", "--to", str(tmp_path / "all.jsonl"), "--complete-only")["complete"] is True


@pytest.mark.row(28)
def test_one_signal_stops_as_soon_as_the_slowest_answer_is_there(tmp_path: Path, tried: Tried) -> None:
    job = write_job(tmp_path, 400)
    with Served(delay_s=1.0) as server:
        command = Job(job, server.base_url, tmp_path / "run", window=256, more=("--concurrency", "8"))
        process = command.start()
        while server.tell()["requests"] < 8 and not ends_within(process, 0.05):
            pass
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        server.tell()
        out, err = process.communicate(timeout=60)
        took = time.monotonic() - began
        assert process.returncode == 4, err
        assert took < 1.0 + 2.0, f"{took:.1f} s for answers that take 1 s (400 records of three requests)"
        assert server.tell()["requests"] <= 8, "requests that were on their way"
        assert json.loads(out.splitlines()[-1])["counts"]["failed"] == 0
        tried(1, "stops with a full queue")


def _holds(run: Path, pid: int) -> bool:
    """Whether the process has taken the run's lock."""
    try:
        return (run / "LOCK").read_text().strip() == str(pid)
    except FileNotFoundError:
        return False
