"""Printing text that models and files wrote: control bytes never reach the terminal."""

from __future__ import annotations

import re
import sys
import unicodedata

#: C0 and C1 controls (ESC among them) but tab and newline, and the marks that turn the writing direction.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def safe(text: str, limit: int | None = None) -> str:
    """`text` with control characters as U+FFFD, cut to `limit` characters."""
    text = _CONTROL.sub("\ufffd", text)
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def one_line(text: str, limit: int = 200) -> str:
    """`safe`, on one line."""
    return safe(" ".join(text.split()), limit)


def say(text: str = "") -> None:
    """A line to standard output."""
    sys.stdout.write(safe(text) + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """A line to standard error."""
    sys.stderr.write(safe(text) + "\n")
    sys.stderr.flush()


def width(text: str) -> int:
    """Columns that `text` takes in a terminal."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def number(value: float) -> str:
    """1234567 -> '1,234,567'; 0.5 -> '0.5'."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"


def duration(seconds: float | None) -> str:
    """3725 -> '1 h 02 min'."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60):02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
