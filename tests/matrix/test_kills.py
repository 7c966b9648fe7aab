"""Row 4: `kill -9` of the whole engine at random moments, resumed each time, against a server of its own process."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.jobs import Job, write_job
from tests.kit.processes import ends_within
from tests.kit.served import Served
from tests.matrix.plugin import FULL, Tried

SEED = int(os.environ.get("ASYNCSYNTH_SEED", "4"))
WINDOW = 32
ROUNDS, KILLS, RECORDS = (10, 20, 300) if FULL else (1, 4, 150)

Ended = Callable[[], bool]


def at_start(run: Path, rng: random.Random) -> Ended:
    """Anywhere from the interpreter's own start to the first answers."""
    return _after(rng.uniform(0.0, 1.2))


def in_flight(run: Path, rng: random.Random) -> Ended:
    """Some time after the journal has grown."""
    before, grow = _size(run), rng.randrange(1, 120_000 if FULL else 25_000)
    return lambda: _size(run) > before + grow


def at_roll(run: Path, rng: random.Random) -> Ended:
    """As a segment begins: this process's own first one, or one that follows a full one."""
    before, more = _segments(run), rng.choice([1, 2])
    return lambda: _segments(run) >= before + more


def at_export(run: Path, rng: random.Random) -> Ended:
    """As the result is being written, or was written just now."""
    return lambda: any(name.startswith((".result", "result")) for name in _names(run))


MOMENTS = {"at start-up": at_start, "in flight": in_flight, "at a segment's end": at_roll, "at the export": at_export}


def _names(run: Path) -> list[str]:
    try:
        return os.listdir(run)
    except FileNotFoundError:
        return []


def _size(run: Path) -> int:
    size = 0
    for name in _names(run):
        with contextlib.suppress(FileNotFoundError):  # recovery takes a segment without a header away
            size += (run / name).stat().st_size if name.startswith("seg-") else 0
    return size


def _segments(run: Path) -> int:
    return sum(name.startswith("seg-") and name.endswith(".jsonl") for name in _names(run))


def _after(seconds: float) -> Ended:
    left = [seconds]

    def passed() -> bool:
        left[0] -= STEP_S
        return left[0] < 0

    return passed


STEP_S = 0.002


def kill_when(process: subprocess.Popen[str], moment: Ended, rng: random.Random) -> bool:
    """Kills the process at the moment, or up to 3 ms later; False when it ended before."""
    while not moment():
        if ends_within(process, STEP_S):
            return False
    if ends_within(process, rng.choice([0.0, rng.uniform(0, 0.003)])):
        return False
    process.kill()
    return True


@pytest.mark.row(4)
@pytest.mark.parametrize("round_", range(ROUNDS))
def test_killed_anywhere_and_resumed_it_ends_as_if_it_had_run_straight(
    tmp_path: Path, tried: Tried, round_: int
) -> None:
    rng = random.Random(f"{SEED}.{round_}")
    why = f"seed {SEED}, round {round_}"
    job = write_job(tmp_path, RECORDS)
    with Served(fault_rate=0.05, seed=round_, delay_s=0.01, tokens=40) as server:
        straight = Job(job, server.base_url, tmp_path / "straight", window=WINDOW)
        straight.finish()
        server.tell(forget=True)
        command = Job(job, server.base_url, tmp_path / "run", window=WINDOW)
        ended: set[str] = set()
        most = kills = tries = 0
        while kills < KILLS:
            tries += 1
            assert tries <= 4 * KILLS, "the run ends before it can be killed"
            name = _moment(rng, len(ended))
            # What was exported before is not the export that is waited for.
            command.result.unlink(missing_ok=True)
            process = command.start()
            killed = kill_when(process, MOMENTS[name](command.run, rng), rng)
            _, err = process.communicate(timeout=60)
            if killed:
                kills += 1
                tried(1, f"kills {name}")
            else:
                assert process.returncode == 0, f"{why}: {err}"
            now = command.finals()
            assert ended <= set(now), f"{why}: records that had ended are gone"
            assert set(now.values()) <= {1}, f"{why}: a record ended twice"
            ended = set(now)
            again = server.tell()
            assert len(again["records"]) <= WINDOW, f"{why}: {len(again['records'])} records redone after one restart"
            most = max(most, len(again["records"]))
        said = command.finish()
        assert len(server.tell()["records"]) <= WINDOW
    assert said["counts"]["failed"] == 0, why
    assert command.numbers() == list(range(RECORDS)), f"{why}: lost or duplicated"
    assert command.sha256() == straight.sha256(), f"{why}: the export differs from a straight run's"
    assert set(command.finals().values()) == {1}
    tried(RECORDS, "records", most=(most, f"records of a window of {WINDOW} redone after a kill"))


def _moment(rng: random.Random, ended: int) -> str:
    """Once all records have ended, what is left to be killed is the start and the export."""
    if ended == RECORDS:
        return rng.choice(["at start-up", "at the export"])
    return rng.choices(["at start-up", "in flight", "at a segment's end"], [2, 4, 2])[0]
