"""Every benchmark runs, at tiny sizes, and prints one JSON line with what docs/performance.md promises."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit.files import ROOT

PROMISED = ("cpu_us_per_record", "records_per_s", "p50_ms", "p99_ms", "peak_rss_mb")


def script(name: str, *options: str, folder: Path) -> dict[str, Any]:
    """What a script prints; it has one line on standard output, and a table on standard error."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert len(done.stderr.splitlines()) >= 2
    found: dict[str, Any] = json.loads(line)
    assert found["benchmark"] == name
    assert found["machine"]["cores"] >= 1
    return found


def test_engine_overhead(tmp_path: Path) -> None:
    options = ("--records", "60", "--concurrency", "8,32", "--repeat", "2", "--resume", "--delay-ms", "5")
    found = script("engine_overhead", *options, folder=tmp_path)
    assert [row["concurrency"] for row in found["results"]] == [8, 32]
    for row in found["results"]:
        assert all(row[name] > 0 for name in PROMISED)
        least, greatest = row["spread"]["cpu_us_per_record"]
        assert least <= row["cpu_us_per_record"] <= greatest
        assert row["resume_s"] > 0
    assert found["cpu_us_per_record"] == found["results"][0]["cpu_us_per_record"]


def test_scaling(tmp_path: Path) -> None:
    sizes = ("--sizes", "20,60", "--levels", "4,8", "--steps", "1,3", "--records", "60")
    found = script("scaling", *sizes, folder=tmp_path)
    assert [len(row["values"]) for row in found["series"]] == [2] * 6
    for row in found["series"]:
        assert row["growth"] > 0
        assert row["reached"] == (row["growth"] <= row["goal"])


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind counts the instructions")
def test_instructions_are_counted(tmp_path: Path) -> None:
    found = script("instructions", "--only", "", "--sizes", "10,60", "--repeat", "1", folder=tmp_path)
    assert found["instructions_per_record"]["all"] > 10_000


def test_kept_answers(tmp_path: Path) -> None:
    found = script("answers", "--answers", "500", folder=tmp_path)
    assert 560 < found["bytes"] < 1200
    assert found["memory_bytes"] <= 48


def test_the_engine_runs_without_each_of_the_parts(tmp_path: Path) -> None:
    """What `instructions.py` leaves out is still there to be left out, and called: it says so itself."""
    import_parts = "import instructions; print(*instructions.PARTS)"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", "TMPDIR": str(tmp_path)}
    listed = subprocess.run(
        [sys.executable, "-c", import_parts], capture_output=True, text=True, env=environment, check=True
    )
    parts = listed.stdout.split()
    assert len(parts) > 5
    command = [sys.executable, str(ROOT / "benchmarks" / "instructions.py"), "--sizes", "20", "--child"]
    for part in parts:
        done = subprocess.run([*command, part], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, (part, done.stderr)


def test_peers_without_the_peers(tmp_path: Path) -> None:
    """The others are installed from an index, which tests do not do."""
    found = script("peers", "--only", "asyncsynth", "--records", "80", "--concurrency", "8,16", folder=tmp_path)
    assert [row["times"] for row in found["results"]] == [1.0, 1.0]
    assert found["failed"] == {}
    for row in found["results"]:
        assert row["cpu_us_per_record"] > 0
        assert row["records_per_s"] > 0


def test_a_peer_that_does_not_install_is_told(tmp_path: Path) -> None:
    blocked = tmp_path / "asyncsynth" / "peers"
    blocked.parent.mkdir()
    blocked.write_text("a file where the folder of the environments should be")
    found = script("peers", "--only", "bare_aiohttp", "--records", "40", "--concurrency", "8", folder=tmp_path)
    assert found["failed"]["bare_aiohttp"].startswith("did not install")
    assert "cpu_us_per_record" not in found["results"][0]


def test_the_engine_keeps_the_slots_busy(tmp_path: Path) -> None:
    """In virtual time, so the same each time: the share of slots busy, and the makespan against list scheduling."""
    found = script("utilisation", "--slots", "50", "--steps", "1,3", "--rounds", "8", folder=tmp_path)
    assert [(row["steps"], row["limit"]) for row in found["results"]] == [
        (1, "fixed"), (1, "adaptive"), (3, "fixed"), (3, "adaptive"),
    ]  # fmt: skip
    for row in found["results"]:
        assert row["share_full"] >= 0.98
        assert row["of_greedy"] >= (0.97 if row["limit"] == "fixed" else 0.9)  # finding a limit takes seconds
        assert row["share_busy"] <= row["share_full"]


def test_virtual_time_is_the_same_each_time(tmp_path: Path) -> None:
    sizes = ("--slots", "20", "--steps", "2", "--rounds", "4")
    first, second = (script("utilisation", *sizes, folder=tmp_path)["results"] for _ in range(2))
    assert first == second


def test_a_window_that_is_too_small_is_seen_as_empty_slots(tmp_path: Path) -> None:
    """The measure can fail: with fewer records in flight than slots, some slots never have anything to do."""
    sizes = ("--slots", "50", "--steps", "2", "--rounds", "6", "--limits", "fixed")
    found = script("utilisation", *sizes, "--window", "40", folder=tmp_path)
    assert found["results"][0]["share_busy"] < 0.8
    assert not found["results"][0]["reached"]
