"""Files, ports and processes for the tests of servers."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
STAND_IN = f"{sys.executable} {Path(__file__).with_name('stand_in.py')}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Site:
    """A folder with server files, and the notes of their stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.logs = folder / "logs"

    def file(self, name: str, *, model: str = "model-a", port: int | None = None, more: str = "") -> tuple[Path, int]:
        """A vLLM file for `model` on a free port."""
        port = port or free_port()
        path = self.folder / f"{name}.yaml"
        path.write_text(f"model: {model}\nhost: 127.0.0.1\nport: {port}\n{more}")
        return path, port

    def ask(self, port: int, what: str) -> None:
        """Have the stand-in on `port` do something; see stand_in.py."""
        (self.notes / f"{port}.{what}").touch()

    def starts(self, port: int) -> list[dict[str, Any]]:
        """What each start of the server on `port` noted."""
        path = self.notes / f"{port}.starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def pids(self) -> list[int]:
        """Every process that was ever started here."""
        found = [json.loads(line) for path in self.notes.glob("*.starts") for line in path.read_text().splitlines()]
        return [note[key] for note in found for key in ("pid", "child")]

    def environ(self) -> dict[str, str]:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("ASYNCSYNTH", "OPENAI", "VLLM", "CUDA"))}
        return {
            **keep, "STAND_IN": str(self.notes), "PYTHONPATH": str(ROOT), "NO_COLOR": "1",
            "ASYNCSYNTH_VLLM": STAND_IN, "ASYNCSYNTH_CACHE": str(self.folder / "cache"),
        }  # fmt: skip


def runs(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return sys.platform != "linux"


def until(condition: Callable[[], bool], within_s: float = 15.0) -> bool:
    """Whether `condition` comes true; for other processes' doings, which set no event here."""
    deadline = time.monotonic() + within_s
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return met


def all_gone(pids: list[int]) -> bool:
    """Whether these processes, and there are some, come to their end."""
    assert pids
    return until(lambda: not any(map(runs, pids)))
