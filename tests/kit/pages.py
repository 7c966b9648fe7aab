"""Code blocks of pages: found, and run as a reader would."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from pathlib import Path

_BLOCK = re.compile(r"^(`{3,})(\w*)\n(.*?)\n\1$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each code block."""
    return [(found[2], found[3]) for found in _BLOCK.finditer(page)]


def run(code: str, folder: Path) -> str:
    """What a program prints, run in `folder`. It is written to a file, since steps read their own source."""
    file = folder / "example.py"
    file.write_text(f"{code}\n", encoding="utf-8")
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        runpy.run_path(str(file), run_name="__main__")
    return printed.getvalue().rstrip()
