"""How a server's process ended: what its exit code says, and its log made fit to be read."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

#: Escape sequences of terminals; a lone ESC and other controls go with `_CONTROL`.
_ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-_])")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`kind` is stable, for programs; `line` is what the log says, or ''."""

    kind: str
    cause: str
    advice: str
    line: str = ""


def by_exit_code(exit_code: int | None) -> Diagnosis:
    """What is known without a log. `exit_code`: negative for a signal, None if the process still runs."""
    if exit_code == -signal.SIGKILL:
        advice = "Check the kernel's log (dmesg) for an out-of-memory kill. Or someone used kill -9."
        return Diagnosis("killed", "it was killed (SIGKILL)", advice)
    if exit_code is not None and exit_code < 0:
        return Diagnosis("signal", f"it ended by {_signal_name(-exit_code)}", "Its log may say more.")
    cause = f"it ended with exit code {exit_code}" if exit_code is not None else "it did not become ready"
    return Diagnosis("unknown", cause, "Its log says more.")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def clean(text: str) -> str:
    """Log text without control bytes; of a line that a progress bar rewrote, the last text."""
    plain = _ANSI.sub("", text.replace("\r\n", "\n"))
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in plain.split("\n")]
    return "\n".join(_CONTROL.sub("\ufffd", line) for line in lines)
