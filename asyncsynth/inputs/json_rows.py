"""Which rows of the input are JSON, and where a value that is not one is in its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asyncsynth.records import MAX_DEPTH, Row, not_json, plain_json

__all__ = ["MAX_DEPTH", "explain_unjsonable", "to_json_row"]


def to_json_row(row: Mapping[str, Any]) -> Row:
    """A copy of `row` as it comes back from a file. Raises TypeError for what would come back changed."""
    copy: Row = plain_json(row)
    return copy


def explain_unjsonable(value: Any) -> tuple[str, str] | None:
    """(place, what it is) of the first value that JSON cannot carry unchanged; None if there is none."""
    found = not_json(value)
    return None if found is None else (found[0] or "the row", found[1])
