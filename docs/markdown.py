"""Pieces of Markdown that the generated pages share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from docs.reading import cell, settings_of

__all__ = ["COMMAND", "NOTE", "cell", "fence", "names", "settings_table", "tidy"]

COMMAND = "python -m docs.generate"
NOTE = f"<!-- Written by `{COMMAND}` from the code; change that instead. -->\n"


def names(columns: Iterable[str]) -> str:
    """Names of columns in a line."""
    return ", ".join(f"`{name}`" for name in columns) or "none"


def fence(text: str, language: str) -> str:
    """A code block, whatever backticks are in it."""
    marks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{marks}{language}\n{text}\n{marks}"


def tidy(parts: Iterable[str]) -> str:
    """A page of its parts."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(part for part in parts if part)).rstrip() + "\n"


def settings_table(kind: type[Any]) -> str:
    """The settings of a step, their types, defaults and meanings."""
    settings, meanings = settings_of(kind)
    if not settings:
        return "None.\n"
    lines = ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
    for one in settings:
        kind_shown = f"`{one.type}`".replace("|", r"\|") if one.type else ""
        default = one.default.replace("|", r"\|")
        lines.append(f"| `{one.name}` | {kind_shown} | {default} | {cell(meanings.get(one.name, ''))} |")
    lines += [
        f"\nDefault of `{one.name}`:\n\n{fence(one.long_default, 'text')}" for one in settings if one.long_default
    ]
    return "\n".join(lines) + "\n"
