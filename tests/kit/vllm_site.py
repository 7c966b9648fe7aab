"""Folders of vLLM server files, and what the stand-ins noted there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.kit.files import read_rows
from tests.kit.processes import environment, free_port

STAND_IN = f"{sys.executable} {Path(__file__).with_name('vllm_stand_in.py')}"


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
        """Makes the stand-in on `port` do something; see vllm_stand_in.py."""
        (self.notes / f"{port}.{what}").touch()

    def starts(self, port: int) -> list[dict[str, Any]]:
        """The notes of each start of the server on `port`."""
        path = self.notes / f"{port}.starts"
        return read_rows(path) if path.exists() else []

    def pids(self) -> list[int]:
        """Every process that was ever started here."""
        found = [json.loads(line) for path in self.notes.glob("*.starts") for line in path.read_text().splitlines()]
        return [note[key] for note in found for key in ("pid", "child")]

    def environ(self) -> dict[str, str]:
        return environment(
            STAND_IN=str(self.notes), ASYNCSYNTH_VLLM=STAND_IN, ASYNCSYNTH_CACHE=str(self.folder / "cache")
        )
