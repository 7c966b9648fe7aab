"""Printing text from models, servers and files: none of it may control the terminal or deceive its reader."""

from __future__ import annotations

import errno
import os
import re
import sys
import unicodedata
from typing import TextIO

#: C0 and C1 controls (ESC among them) except tab and newline, and characters that change the writing direction, break
#: lines or are invisible. The joiners U+200C and U+200D stay: scripts and emoji need them.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)

_GONE = (errno.EPIPE, errno.EIO)


def safe(text: str, limit: int | None = None) -> str:
    """`text` with control characters as U+FFFD, cut to `limit` characters."""
    text = _CONTROL.sub("\ufffd", text)
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def one_line(text: str, limit: int = 200) -> str:
    """`safe`, on one line."""
    return safe(" ".join(text.split()), limit)


def say(text: str = "") -> None:
    """A line to standard output."""
    write(sys.stdout, safe(text) + "\n")


def complain(text: str) -> None:
    """A line to standard error."""
    write(sys.stderr, safe(text) + "\n")


def write(stream: TextIO, text: str) -> None:
    """Writes `text` (checked by the caller); characters that the stream's encoding lacks become escapes.

    If the reader of a pipe or the terminal has gone, the command continues without output: that must not end a run, or
    keep a signal from being handled.
    """
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError as error:
        if error.errno not in _GONE:
            raise
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, stream.fileno())  # what the stream still holds goes there as well
        os.close(silence)


def escaped(text: str) -> str:
    """JSON `text` with JSON escapes for the characters that `safe` replaces: the same values, no control characters."""
    return _CONTROL.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return "".join(f"\\u{unit:04x}" for unit in memoryview(found[0].encode("utf-16-le", "surrogatepass")).cast("H"))


def width(text: str) -> int:
    """How many columns `text` takes in a terminal."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def cut(text: str, columns: int) -> str:
    """`text` cut to at most `columns` columns of a terminal."""
    taken = 0
    for index, char in enumerate(text):
        taken += width(char)
        if taken > columns:
            return text[:index]
    return text


def number(value: float) -> str:
    """1234567 -> '1,234,567'; 0.5 -> '0.5'."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"


def counted(count: int, what: str) -> str:
    """(1, 'request') -> '1 request'; (2000, 'request') -> '2,000 requests'."""
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


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
