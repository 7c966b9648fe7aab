"""Whether a JSON value is what a JSON schema asks for: servers may ignore the constraint, or stop in its middle."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from asyncsynth.records import canonical_json

_MAX_DEPTH = 64
#: Keywords whose values are data, and no schemas.
_DATA = frozenset({"const", "enum", "default", "examples"})


def mismatch(value: Any, schema: Any) -> str:
    """Where a value is not what a JSON schema asks for, in words; '' when it is.

    Knows what structured output uses: type, enum, const, properties, required, additionalProperties, items,
    prefixItems, sizes, bounds, multipleOf, pattern, uniqueItems, anyOf, oneOf, allOf, not, local $ref.
    Other keywords (`format`) are not looked at.
    """
    return _mismatch(value, schema, schema, "the answer", 0)


def schema_problem(schema: Any) -> str:
    """Why a value cannot be checked against a schema, in words; '' when it can."""

    def walk(node: Any, depth: int) -> str:
        if depth > _MAX_DEPTH:
            return "it is nested too deep"
        if isinstance(node, list):
            return next((found for item in node if (found := walk(item, depth + 1))), "")
        if not isinstance(node, dict):
            return ""
        if isinstance(ref := node.get("$ref"), str):
            try:
                resolve(ref, schema)
            except KeyError:
                return f"the reference {ref!r} leads nowhere within it"
        if isinstance(pattern := node.get("pattern"), str):
            try:
                re.compile(pattern)
            except re.error as error:
                return f"the pattern {pattern!r} does not compile: {error}"
        names = [node["type"]] if isinstance(node.get("type"), str) else node.get("type")
        if isinstance(names, list) and (unknown := [name for name in names if name not in _TYPES]):
            return f"{unknown[0]!r} is no JSON type"
        parts = [item for key, item in node.items() if key not in _DATA]
        return next((found for item in parts if (found := walk(item, depth + 1))), "")

    if found := walk(schema, 0):
        return found
    try:
        samples: list[Any] = [{}, [], "", 0, True, None]
        for value in samples:
            mismatch(value, schema)
    except Exception as error:  # keywords with values of another type than they have
        return f"it is malformed ({type(error).__name__}: {error})"
    return ""


def _mismatch(value: Any, schema: Any, root: Any, at: str, depth: int) -> str:
    if schema is True or schema == {}:
        return ""
    if schema is False or depth > _MAX_DEPTH:
        return f"{at} is not allowed" if schema is False else f"{at} is nested too deep"
    if "$ref" in schema and (found := _mismatch(value, resolve(schema["$ref"], root), root, at, depth + 1)):
        return found
    if "const" in schema and not _same(value, schema["const"]):
        return f"{at} is {_short(value)}, not {_short(schema['const'])}"
    if "enum" in schema and not any(_same(value, option) for option in schema["enum"]):
        return f"{at} is {_short(value)}, none of {_short(schema['enum'])}"
    if found := _wrong_type(value, schema.get("type"), at) or _combined(value, schema, root, at, depth):
        return found
    if isinstance(value, dict):
        return _object(value, schema, root, at, depth)
    if isinstance(value, list):
        return _array(value, schema, root, at, depth)
    if isinstance(value, str):
        return _string(value, schema, at)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(value, schema, at)
    return ""


def resolve(ref: str, root: Any) -> Any:
    """The schema that a local reference (``#/$defs/Item``) names. Raises KeyError for any other."""
    if not ref.startswith("#"):
        raise KeyError(ref)
    node = root
    for part in ref[1:].strip("/").split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if key:
            if not isinstance(node, dict) or key not in node:
                raise KeyError(ref)
            node = node[key]
    return node


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "number": (int, float),
    "integer": (int, float),
}


def _wrong_type(value: Any, wanted: Any, at: str) -> str:
    if wanted is None:
        return ""
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        kinds = _TYPES.get(name, ())
        if isinstance(value, bool) and bool not in kinds:
            continue
        if name == "integer" and isinstance(value, float) and not value.is_integer():
            continue
        if isinstance(value, kinds):
            return ""
    return f"{at} is {_short(value)}; {' or '.join(names)} was expected"


def _combined(value: Any, schema: dict[str, Any], root: Any, at: str, depth: int) -> str:
    for part in schema.get("allOf", ()):
        if found := _mismatch(value, part, root, at, depth + 1):
            return found
    for key in ("anyOf", "oneOf"):
        if key in schema:
            wrong = [_mismatch(value, part, root, at, depth + 1) for part in schema[key]]
            fits = wrong.count("")
            if not fits:
                return f"{at} fits none of {key}: {wrong[0] if wrong else 'it is empty'}"
            if key == "oneOf" and fits > 1:
                return f"{at} fits {fits} of oneOf"
    if "not" in schema and not _mismatch(value, schema["not"], root, at, depth + 1):
        return f"{at} is {_short(value)}, which is excluded"
    return ""


def _object(value: dict[str, Any], schema: dict[str, Any], root: Any, at: str, depth: int) -> str:
    for name in schema.get("required", ()):
        if name not in value:
            return f"{at} lacks {name!r}"
    properties = schema.get("properties", {})
    patterns = schema.get("patternProperties", {})
    rest = schema.get("additionalProperties", True)
    for name, item in value.items():
        here = f"{at}.{name}" if at != "the answer" else name
        parts = [properties[name]] if name in properties else []
        parts += [part for pattern, part in patterns.items() if re.search(pattern, name)]
        if not parts and rest is False:
            return f"{at} has {name!r}, which is not asked for"
        for part in parts or [rest]:
            if found := _mismatch(item, part, root, here, depth + 1):
                return found
    return _size(len(value), schema, "minProperties", "maxProperties", at, "properties")


def _array(value: list[Any], schema: dict[str, Any], root: Any, at: str, depth: int) -> str:
    prefix = schema.get("prefixItems", ())
    for number, item in enumerate(value):
        part = prefix[number] if number < len(prefix) else schema.get("items", True)
        if found := _mismatch(item, part, root, f"{at}[{number}]", depth + 1):
            return found
    if schema.get("uniqueItems") and len({canonical_json(item) for item in value}) < len(value):
        return f"{at} has an item twice"
    return _size(len(value), schema, "minItems", "maxItems", at, "items")


def _string(value: str, schema: dict[str, Any], at: str) -> str:
    if (pattern := schema.get("pattern")) is not None and not re.search(pattern, value):
        return f"{at} is {_short(value)}, which does not match {pattern!r}"
    return _size(len(value), schema, "minLength", "maxLength", at, "characters")


def _number(value: float, schema: dict[str, Any], at: str) -> str:
    step = schema.get("multipleOf")
    wrong = (
        ("minimum" in schema and value < schema["minimum"])
        or ("maximum" in schema and value > schema["maximum"])
        or ("exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"])
        or ("exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"])
        or (step and not math.isclose(value / step, round(value / step), abs_tol=1e-9))
    )
    return f"{at} is {value}, out of bounds" if wrong else ""


def _size(size: int, schema: dict[str, Any], low: str, high: str, at: str, unit: str) -> str:
    if size < schema.get(low, 0) or size > schema.get(high, math.inf):
        return f"{at} has {size} {unit}; {schema.get(low, 0)} to {schema.get(high, 'any')} were expected"
    return ""


def _same(left: Any, right: Any) -> bool:
    """JSON's equality: 1 is 1.0, and true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
