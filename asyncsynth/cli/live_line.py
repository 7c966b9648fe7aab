"""The one line of a terminal that a command writes again and again while it works."""

from __future__ import annotations

import os
import shutil
import sys

from asyncsynth.cli.text import cut, safe, write

_CLEAR = "\r\x1b[K"


class LiveLine:
    """A line at the bottom of standard error. `is_shown` is false, and nothing is written, if that is no terminal.

    Args:
        as_json: the command writes for programs.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.is_shown: bool = sys.stderr.isatty() and not as_json and os.environ.get("TERM") != "dumb"

    def draw(self, text: str) -> None:
        """Puts `text` in the place of what the line showed, cut to the terminal's width."""
        if self.is_shown:
            write(sys.stderr, _CLEAR + cut(safe(text), _columns() - 1))

    def clear(self) -> None:
        """Removes the line, before something else is written there."""
        if self.is_shown:
            write(sys.stderr, _CLEAR)


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80  # 0: unknown
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns
