"""Which Python values are JSON, and where one that is not stands in a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson

from asyncsynth.records import Row

_MIN_INT, _MAX_INT = -(1 << 63), (1 << 64) - 1
MAX_DEPTH = 200  #: deeper than any honest row; orjson's limits lie at 254 (dumps) and 1,024 (loads)

#: Dates and data classes are refused rather than turned into text that the user did not ask for.
_STRICT = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS


def to_json_row(row: Mapping[str, Any]) -> Row:
    """A copy of `row` as it comes back from a file. Raises TypeError for what would come back changed."""
    encoded = orjson.dumps(row if type(row) is dict else dict(row), option=_STRICT)
    # orjson writes NaN and infinities as null; only then is a look at every value worth its time.
    if b"null" in encoded and explain_unjsonable(dict(row)):
        raise TypeError("NaN or infinity")
    copy: Row = orjson.loads(encoded)
    return copy


def explain_unjsonable(value: Any, place: str = "", depth: int = 0) -> tuple[str, str] | None:
    """(place, what it is) of the first value that JSON cannot carry unchanged; None when there is none."""
    where = place or "the row"
    if depth > MAX_DEPTH:
        return where.split("[")[0].split(".")[0], f"nested more than {MAX_DEPTH} levels deep"
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if _MIN_INT <= value <= _MAX_INT else (where, "an integer over 64 bits")
    if isinstance(value, float):
        return None if math.isfinite(value) else (where, str(value).replace("nan", "NaN"))
    if isinstance(value, str):
        return (where, "text with a lone surrogate") if _has_surrogate(value) else None
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or _has_surrogate(key):
                return where, f"a mapping with the key {ascii(key)[:40]}, not a plain string"
            if found := explain_unjsonable(item, f"{place}.{key}" if place else key, depth + 1):
                return found
        return None
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if found := explain_unjsonable(item, f"{place}[{index}]", depth + 1):
                return found
        return None
    return where, f"of type {type(value).__name__}"


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
