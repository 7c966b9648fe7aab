"""Reads JSON so that every value is exactly what was written, or is refused.

The usual readers change values silently: an integer over 64 bits becomes a float, the first value of a duplicate key
is lost, NaN passes.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

_LEAST, _MOST = -(1 << 63), (1 << 64) - 1
_SURROGATE = re.compile("[\ud800-\udfff]")
_DEEP = 200  #: number of brackets from which a value may be nested deeper than orjson writes
_NUMBER = tuple("-0123456789NI")  #: what a number begins with, and what counts as one
_NOT_ZERO = re.compile(r"[1-9]")


class NoJson(ValueError):
    """The text is not one JSON value."""


class InexactJson(ValueError):
    """The text is JSON, but a value in it cannot be kept as it was written. The message names it and its place."""


class _Bad:
    """A value that cannot be kept, in its place."""

    def __init__(self, why: str) -> None:
        self.why = why


def exact_json(text: str) -> Any:
    """The JSON value that the whole text is. Raises NoJson, InexactJson.

    Integers fit 64 bits (-2**63 to 2**64-1), floats are the nearest double of what was written: `5.0` is a float and
    stays one. It refuses other integers, floats beyond the doubles (`1e400`, `1e-400`), `NaN`, `Infinity`, a key that
    comes twice with two values, and halves of surrogate pairs. Strings within an object or an array may hold bare
    control characters.
    """
    if not text.startswith(("{", "[")):
        return _scalar(text)
    bad: list[_Bad] = []

    def refuse(why: str) -> _Bad:
        bad.append(_Bad(why))
        return bad[-1]

    def integer(literal: str) -> Any:
        if len(literal) < 19 or (len(literal) <= 21 and _LEAST <= int(literal) <= _MOST):
            return int(literal)
        return refuse(f"{_short(literal)} is an integer beyond 64 bits")

    def real(literal: str) -> Any:
        value = float(literal)
        if math.isinf(value) or (not value and _NOT_ZERO.search(re.split("[eE]", literal)[0])):
            return refuse(f"{_short(literal)} is beyond the range of a float")
        return value

    def constant(literal: str) -> Any:
        return refuse(f"{literal} is not a JSON number")

    def pairs(items: list[tuple[str, Any]]) -> Any:
        made = dict(items)
        if len(made) < len(items):
            seen: dict[str, Any] = {}
            for key, value in items:
                if key in seen and repr(seen[key]) != repr(value):
                    made[key] = refuse(f"the key {_short(key)!r} comes twice, with two values")
                seen[key] = value
        return made

    decoder = json.JSONDecoder(
        object_pairs_hook=pairs, parse_int=integer, parse_float=real, parse_constant=constant, strict=False
    )
    try:
        value = decoder.decode(text)
        if bad:
            found = _first(value, lambda item: item.why if isinstance(item, _Bad) else "")
            raise InexactJson(found or bad[0].why)
        if ("\\u" in text or not text.isascii()) and (found := _first(value, _half)):
            raise InexactJson(found)
        if text.count("{") + text.count("[") > _DEEP:
            orjson.dumps(value)  # the journal could not hold it
    except json.JSONDecodeError as error:
        raise NoJson(str(error)) from None
    except (RecursionError, TypeError):
        raise NoJson("it is nested too deep") from None
    return value


def _scalar(text: str) -> Any:
    """A number, a string, or a word."""
    if text.startswith(_NUMBER):
        try:
            only = exact_json(f"[{text}]")
        except InexactJson as error:
            raise InexactJson(str(error).removeprefix("[0]: ")) from None
        if len(only) != 1:
            raise NoJson("several values")
        return only[0]
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise NoJson(str(error)) from None


def _half(value: Any) -> str:
    return "half of a surrogate pair is in a text" if isinstance(value, str) and _SURROGATE.search(value) else ""


def _first(value: Any, fault: Any, at: str = "") -> str:
    """The first fault found in a value, and where; '' for none."""
    if why := fault(value):
        return f"{at}: {why}" if at else str(why)
    if isinstance(value, dict):
        for key, item in value.items():
            if _half(key) and fault is _half:
                return f"{at or 'the answer'}: half of a surrogate pair is in a key"
            if found := _first(item, fault, f"{at}.{_short(key)}" if at else _short(key)):
                return found
    if isinstance(value, list):
        for number, item in enumerate(value):
            if found := _first(item, fault, f"{at}[{number}]"):
                return found
    return ""


def _short(text: str) -> str:
    text = _SURROGATE.sub("?", text)
    return text if len(text) <= 40 else f"{text[:37]}..."
