"""The few JSON schemas that tasks are made of."""

from __future__ import annotations

from typing import Any


def object_of(properties: dict[str, Any]) -> dict[str, Any]:
    """An object with exactly these properties, in this order."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def array_of(items: dict[str, Any], count: int) -> dict[str, Any]:
    """An array of exactly `count` items."""
    return {"type": "array", "items": items, "minItems": count, "maxItems": count}


def whole_number(lowest: int, highest: int) -> dict[str, Any]:
    """A whole number in a range, listed in full: not every server's grammar knows `minimum`."""
    return {"type": "integer", "enum": list(range(lowest, highest + 1))}


def text_up_to(chars: int) -> dict[str, Any]:
    """A bounded text: an endless one would run into max_tokens and leave broken JSON."""
    return {"type": "string", "maxLength": chars}
