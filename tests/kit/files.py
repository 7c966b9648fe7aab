"""The repository's folder, and JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes one JSON object a line."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
