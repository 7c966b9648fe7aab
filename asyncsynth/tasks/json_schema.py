"""Whether a JSON value fits a JSON schema: servers may ignore the constraint, or stop in the middle of the value.

Our own check for the keywords that structured output uses, without a dependency. `schema_check` decides which
schemas it is used for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

_MAX_DEPTH = 64


def mismatch(value: Any, schema: Any) -> str:
    """Where a value does not fit a JSON schema, in words; '' if it fits.

    The schema holds only the keywords of `RULES` and those that describe; others are ignored.
    """
    return _mismatch(value, schema, schema, "the answer", 0)


def is_multiple(value: float, step: float) -> bool:
    """Whether one number is a multiple of another, by their written decimals: 0.3 is a multiple of 0.1."""
    return Fraction(repr(value)) % Fraction(repr(step)) == 0


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
    if ref != "#" and not ref.startswith("#/"):
        raise KeyError(ref)  # an anchor
    for part in ref[1:].split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            raise KeyError(ref)
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
    if schema.get("uniqueItems") and len({_key(item) for item in value}) < len(value):
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
        or (step is not None and not is_multiple(value, step))
    )
    return f"{at} is {value}, out of bounds" if wrong else ""


def _size(size: int, schema: dict[str, Any], low: str, high: str, at: str, unit: str) -> str:
    if size < schema.get(low, 0) or size > schema.get(high, math.inf):
        return f"{at} has {size} {unit}; {schema.get(low, 0)} to {schema.get(high, 'any')} were expected"
    return ""


def _same(left: Any, right: Any) -> bool:
    """JSON's equality: 1 is 1.0, and true is not 1, at any depth."""
    return bool(_key(left) == _key(right))


def _key(value: Any) -> Any:
    """Equal and hashable for values that are equal in JSON."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, dict):
        return frozenset((name, _key(item)) for name, item in value.items())
    return tuple(map(_key, value)) if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


# --- which keywords, with which values ----------------------------------------------------------


def _count(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and value == int(value)


def _real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _schema(value: Any) -> bool:
    return isinstance(value, (dict, bool))


def _schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_schema, value))


def _named_schemas(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_schema, value.values()))


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value)) and len(set(value)) == len(value)


def _types(value: Any) -> bool:
    return (_text(value) and value in _TYPES) or (_names(value) and bool(value) and set(value) <= _TYPES.keys())


def _pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError):
        return False
    return True


def _patterns(value: Any) -> bool:
    return _named_schemas(value) and all(map(_pattern, value))


_Rule = tuple[Callable[[Any], bool], str]
_COUNT: _Rule = (_count, "a whole number from 0 on")
_NUMBER: _Rule = (_real, "a number")
_SCHEMAS: _Rule = (_schemas, "a list of schemas")
_ONE_SCHEMA: _Rule = (_schema, "a schema")
_NAMED: _Rule = (_named_schemas, "an object of schemas")

#: The keywords that `mismatch` checks: a test of each one's value, and its description.
RULES: dict[str, _Rule] = {
    "$ref": (_text, "a reference"),
    "$defs": _NAMED,
    "definitions": _NAMED,
    "type": (_types, f"a JSON type ({', '.join(_TYPES)}), or a list of some"),
    "enum": (lambda value: isinstance(value, list), "a list"),
    "const": (lambda value: True, ""),
    "properties": _NAMED,
    "patternProperties": (_patterns, "an object of schemas, by regular expressions that compile"),
    "additionalProperties": _ONE_SCHEMA,
    "required": (_names, "a list of different names"),
    "minProperties": _COUNT,
    "maxProperties": _COUNT,
    "prefixItems": _SCHEMAS,
    "items": _ONE_SCHEMA,
    "minItems": _COUNT,
    "maxItems": _COUNT,
    "uniqueItems": (lambda value: isinstance(value, bool), "true or false"),
    "pattern": (_pattern, "a regular expression that compiles"),
    "minLength": _COUNT,
    "maxLength": _COUNT,
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _NUMBER,
    "exclusiveMaximum": _NUMBER,
    "multipleOf": (lambda value: _real(value) and value > 0, "a number above 0"),
    "allOf": _SCHEMAS,
    "anyOf": _SCHEMAS,
    "oneOf": _SCHEMAS,
    "not": _ONE_SCHEMA,
}
