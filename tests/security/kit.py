"""What the security tests share: the command as a process and in this one, and an echoing server's script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from asyncsynth.cli.commands import app
from asyncsynth.errors import AsyncsynthError
from asyncsynth.testing import Fault, RequestInfo
from tests.security.corpus import BODIES, ERRORS

ROOT = Path(__file__).resolve().parents[2]


def environment(**extra: str) -> dict[str, str]:
    """This process's, without what steers asyncsynth or names keys."""
    unwanted = ("ASYNCSYNTH", "OPENAI", "VLLM", "HF_")
    keep = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    return {**keep, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **extra}


def process(*arguments: object, **extra: str) -> subprocess.CompletedProcess[bytes]:
    """The command as a user runs it; `extra` are environment variables."""
    command = [sys.executable, "-m", "asyncsynth", *map(os.fspath, map(_argument, arguments))]
    return subprocess.run(command, capture_output=True, timeout=120, env=environment(**extra), check=False)


def _argument(value: object) -> str:
    return os.fspath(value) if isinstance(value, Path) else str(value)


def here(*arguments: object) -> None:
    """The command inside this process: for the commands that read. Raises AsyncsynthError."""
    app([_argument(value) for value in arguments], standalone_mode=False)


def message_of(*arguments: object) -> str:
    """The words of the error that a command ends with."""
    try:
        here(*arguments)
    except AsyncsynthError as error:
        return str(error)
    raise AssertionError("no error")


def chat(text: str, model: str = "m") -> bytes:
    """The body of a chat answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"model": model, "choices": [choice], "usage": {"completion_tokens": 1}}).encode()


def echo(info: RequestInfo) -> Fault | None:
    """Answers with the prompt, or as it asks for by name: `ask-body:NAME`, `ask-error:NAME`."""
    said: Any = info.json["messages"][-1]["content"]
    kind, _, name = said.partition(":")
    if kind == "ask-error":
        return Fault("status", status=400, body=ERRORS[name])
    return Fault("status", status=200, body=BODIES[name] if kind == "ask-body" else chat(said, "m\x1b[31m\nerror: no"))
