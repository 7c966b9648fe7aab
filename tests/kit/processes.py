"""Environments, ports and processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.kit.files import ROOT


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, without what configures asyncsynth or names keys."""
    unwanted = ("ASYNCSYNTH", "OPENAI", "VLLM", "CUDA", "HF_TOKEN")
    keep = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    return {**keep, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **extra}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def runs(pid: int) -> bool:
    """True if the process exists and is no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return sys.platform != "linux"


def comes_true(condition: Callable[[], bool], within_s: float = 15.0) -> bool:
    """True if `condition` becomes true. For what other processes do, which sets no event here."""
    deadline = time.monotonic() + within_s
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return met


def all_gone(pids: list[int]) -> bool:
    """True if all these processes end. There must be at least one."""
    assert pids
    return comes_true(lambda: not any(map(runs, pids)))


def ends_within(process: subprocess.Popen[str], seconds: float) -> bool:
    """True if the process ends within `seconds`."""
    try:
        process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        return False
    return True
