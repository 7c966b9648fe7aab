"""Values of every kind, and how those that are no JSON are refused."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import uuid
from typing import Any

from hypothesis import strategies as st


class Colour(enum.StrEnum):
    RED = "red"


class Text(str):
    __slots__ = ()


class Real(float):
    """As numpy's float64 is one."""


class Pair(collections.namedtuple("Pair", "a b")):
    __slots__ = ()


@dataclasses.dataclass
class Point:
    x: int


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


REFUSED: list[tuple[Any, str, str]] = [
    (float("nan"), "NaN", "None"),
    (float("-inf"), "-inf", "None"),
    (Real("nan"), "NaN", "None"),
    (2**64, "an integer over 64 bits", "str(value)"),
    (-(2**63) - 1, "an integer over 64 bits", "str(value)"),
    ("\ud83d", "text with a lone surrogate", "replace"),
    (Text("é\ud83d"), "text with a lone surrogate", "replace"),
    (datetime.datetime(2024, 1, 1), "of type datetime", "isoformat()"),
    (datetime.date(2024, 1, 1), "of type date", "isoformat()"),
    (decimal.Decimal("1.1"), "of type Decimal", "float(value)"),
    (uuid.UUID(int=1), "of type UUID", "str(value)"),
    (Colour.RED, "of type Colour, an enum", "value.value"),
    (Point(1), "of type Point", "asdict"),
    (Pair(1, 2), "of type Pair", "list(value)"),
    ({1}, "of type set", "sorted(value)"),
    (b"x", "of type bytes", "decode()"),
    ({1: 2}, "a mapping with the key 1, not a plain string", "str(key)"),
    ({"\ud83d": 2}, "a mapping with the key '\\ud83d', not a plain string", "str(key)"),
    (iter([1]), "of type list_iterator", "list(value)"),
    (object(), "of type object", "str(value)"),
]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)
