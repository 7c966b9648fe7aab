"""Row 7: a file system that is really full, or really read-only, in a mount that only the run can see."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from asyncsynth.testing import FaultServer
from tests.kit.commands import write_job
from tests.kit.processes import environment
from tests.matrix.plugin import Tried

#: Runs asyncsynth in a 1 MiB file system, frees what filled it, runs again. The mount ends with the shell.
FULL_THEN_FREED = """
mount -t tmpfs -o size=1m none "$1" || exit 99
head -c $((1024 * 1024 - $4)) /dev/zero > "$1/filler"
"$2" -m asyncsynth run "$3" --servers "$5" --output "$1/run" > "$6" 2>&1
first=$?
rm "$1/filler"
"$2" -m asyncsynth run "$3" --servers "$5" --output "$1/run" > "$6.again" 2>&1
echo "$first $? $(sort -u "$1/run/result.jsonl" | wc -l)"
"""
READ_ONLY = """
mount -t tmpfs -o size=1m none "$1" && mkdir "$1/run" && mount -o remount,ro "$1" || exit 99
"$2" -m asyncsynth run "$3" --servers "$5" --output "$1/run" > "$6" 2>&1
echo "$?"
"""


@cache
def why_not() -> str:
    """Why no file system can be mounted here; empty when one can."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "no mount of one's own without Linux and unshare"
    tried = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/mnt"], capture_output=True, check=False
    )
    return "mounting is not permitted" if tried.returncode else ""


def in_mount(script: str, folder: Path, free: int, base_url: str) -> list[str]:
    """What the script prints, word by word."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    (folder / "mount").mkdir()
    job = write_job(folder, 200)
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(folder / "mount"), sys.executable, str(job), str(free)]
    ran = subprocess.run(
        [*command, base_url, str(folder / "said")],
        capture_output=True, text=True, env=environment(), timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


@pytest.mark.row(7)
@pytest.mark.parametrize("free", [0, 4096, 40_000])
def test_a_full_file_system_ends_the_run_with_5_and_the_same_command_goes_on(
    tmp_path: Path, fault_server: Callable[..., FaultServer], tried: Tried, free: int
) -> None:
    server = fault_server(models=["model-a"])
    first, second, rows = in_mount(FULL_THEN_FREED, tmp_path, free, server.base_url)
    said = (tmp_path / "said").read_text()
    assert first == "5", said
    assert "ENOSPC" in said
    assert str(tmp_path / "mount" / "run") in said
    assert "Traceback" not in said
    assert second == "0", (tmp_path / "said.again").read_text()
    assert rows == "200"
    tried(1, "file systems really full")


@pytest.mark.row(7)
def test_a_read_only_file_system_is_5_and_named(
    tmp_path: Path, fault_server: Callable[..., FaultServer], tried: Tried
) -> None:
    server = fault_server(models=["model-a"])
    assert in_mount(READ_ONLY, tmp_path, 0, server.base_url) == ["5"]
    said = (tmp_path / "said").read_text()
    assert "EROFS" in said
    assert str(tmp_path / "mount" / "run") in said
    tried(1, "file systems read-only")
