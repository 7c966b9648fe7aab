"""The rows that a step over all rows let through, as a file: a line `{"k": key, "row": {...}}` for each."""

from __future__ import annotations

import orjson

from asyncsynth.records import Row


def encode_row(key: str, row: Row) -> bytes:
    """The line of one row. Raises TypeError for a row that JSON cannot hold."""
    return orjson.dumps({"k": key, "row": row}, option=orjson.OPT_APPEND_NEWLINE)


def decode_row(line: bytes) -> tuple[str, Row]:
    """(key, row) of a line. Raises ValueError, KeyError or TypeError for one that is damaged."""
    item = orjson.loads(line)
    return item["k"], item["row"]
