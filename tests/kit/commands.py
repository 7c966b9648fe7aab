"""The `asyncsynth` command: as a process, and inside this one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from asyncsynth.cli.commands import app
from asyncsynth.errors import AsyncsynthError
from asyncsynth.testing import Fault, FaultServer
from tests.kit.files import read_rows, write_rows
from tests.kit.processes import environment

Serve = Callable[..., FaultServer]

PIPELINE = """
from asyncsynth import LLM, LoadJSONL, Pipeline, TextGeneration

with Pipeline(name="cli") as pipeline:
    load = LoadJSONL({path!r})
    load >> TextGeneration(llm=LLM(model="model-a", temperature={temperature})) {more}
"""

STRUCTURED = """
from asyncsynth import LLM, LoadJSONL, Pipeline, StructuredGeneration, TextGeneration

SCHEMA = {{"type": "object", "properties": {{"a": {{"enum": [1]}}}}, "required": ["a"]}}
with Pipeline(name="job") as pipeline:
    LoadJSONL({path!r}) >> StructuredGeneration(
        llm=LLM(model="model-a", max_tokens=64), schema=SCHEMA, show_schema={show_schema}, name="facts"
    )
"""


def asyncsynth(*arguments: object, timeout: float = 60, **extra: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user does. `extra`: environment variables."""
    return subprocess.run(
        _command(arguments), capture_output=True, text=True, timeout=timeout, env=environment(**extra), check=False
    )


def asyncsynth_bytes(*arguments: object, timeout: float = 120, **extra: str) -> subprocess.CompletedProcess[bytes]:
    """The same, with the bytes that it wrote."""
    return subprocess.run(
        _command(arguments), capture_output=True, timeout=timeout, env=environment(**extra), check=False
    )


def start(*arguments: object, **extra: str) -> subprocess.Popen[str]:
    """Starts the command; its output goes to pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(_command(arguments), env=environment(**extra), text=True, **pipes)


def _command(arguments: Iterable[object]) -> list[str]:
    return [sys.executable, "-m", "asyncsynth", *map(str, arguments)]


def write_job(folder: Path, count: int = 12, *, temperature: float = 0.7, more: str = "") -> Path:
    """A pipeline file that generates one text for each of `count` rows."""
    data = write_rows(folder / "in.jsonl", ({"instruction": f"number {n}."} for n in range(count)))
    job = folder / "job.py"
    job.write_text(PIPELINE.format(path=str(data), temperature=temperature, more=more))
    return job


def write_structured_job(folder: Path, *, show_schema: bool = True) -> Path:
    """A pipeline file that generates JSON objects for three rows; without `show_schema` only the server enforces it."""
    data = write_rows(folder / "in.jsonl", ({"instruction": f"number {n}."} for n in range(3)))
    job = folder / "job.py"
    job.write_text(STRUCTURED.format(path=str(data), show_schema=show_schema))
    return job


def result_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run directory's result."""
    return read_rows(folder / "result.jsonl")


class Gate:
    """A server's script: answers after `delay_s` seconds, and from request `count` on sends `signals` to `process`."""

    def __init__(self, count: int, delay_s: float = 0.4) -> None:
        self.count = count
        self.delay_s = delay_s
        self.process: subprocess.Popen[str] | None = None
        self.signals: list[int] = []

    def __call__(self, info: Any) -> Fault | None:
        if self.process is not None and self.signals and info.index >= self.count:
            self.process.send_signal(self.signals.pop(0))
        return Fault(delay_s=self.delay_s)


def here(*arguments: object) -> None:
    """Runs the command inside this process, for commands that only read. Raises AsyncsynthError."""
    app(list(map(str, arguments)), standalone_mode=False)


def message_of(*arguments: object) -> str:
    """The message of the error that a command ends with."""
    try:
        here(*arguments)
    except AsyncsynthError as error:
        return str(error)
    raise AssertionError("no error")
