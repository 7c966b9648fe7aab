"""Deterministic answers for the fault server: the same request gets the same text, another gets another."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import orjson

# fmt: off
_WORDS = [
    "data", "model", "token", "answer", "record", "batch", "slot", "queue", "graph", "step", "river",
    "stone", "green", "light", "paper", "number", "simple", "clear", "north", "south", "small", "large",
    "open", "early", "quiet", "bright", "round", "solid", "inner", "outer", "first", "second",
]  # 32: an answer takes five bits a word
# fmt: on
_MAX_DEPTH = 6  #: below it, only required properties and the shortest arrays are made


class Bits:
    """An endless stream of numbers from a seed: a small replacement for `random.Random`, cheap to create."""

    __slots__ = ("_counter", "_seed")

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._counter = 0

    def below(self, bound: int) -> int:
        """A number in [0, bound)."""
        self._counter += 1
        digest = hashlib.blake2b(self._seed + self._counter.to_bytes(4, "big"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % max(1, bound)


def words(seed: bytes, count: int) -> str:
    """`count` words chosen by the seed."""
    return " ".join([_WORDS[byte & 31] for byte in hashlib.shake_128(seed).digest(count)])


def request_seed(body: Mapping[str, Any], choice: int) -> bytes:
    """What an answer depends on: model, prompt, seed, constraint, tools, and which of the `n` choices it is."""
    parts: tuple[Any, ...] = (
        body.get("model"),
        body.get("messages", body.get("prompt")),
        body.get("seed"),
        body.get("response_format"),
        choice,
    )
    if body.get("tools"):
        parts = (*parts, body["tools"], body.get("tool_choice"))
    return hashlib.blake2b(orjson.dumps(parts), digest_size=16).digest()


def schema_instance(schema: Any, seed: bytes) -> Any:
    """A value that the JSON schema accepts, varying with the seed.

    Covers enum, const, bounds, lengths, items, prefixItems, properties, required, anyOf, oneOf, allOf and
    local $ref.
    `pattern`, `format`, `not` and conditionals are ignored.
    """
    return _instance(schema, schema, Bits(seed), 0)


def _instance(schema: Any, root: Any, bits: Bits, depth: int) -> Any:
    if not isinstance(schema, dict):  # `true`: anything goes
        return words(str(bits.below(1 << 30)).encode(), 2)
    if "$ref" in schema:
        return _instance(_resolve(schema["$ref"], root), root, bits, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][bits.below(len(schema["enum"]))]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            options = schema[key]
            # Deep down take the last, in practice the leaf of a recursive schema (`null`).
            return _instance(
                options[bits.below(len(options))] if depth < _MAX_DEPTH else options[-1],
                root,
                bits,
                depth + 1,
            )
    if "allOf" in schema:
        merged: dict[str, Any] = {k: v for k, v in schema.items() if k != "allOf"}
        for part in schema["allOf"]:
            part = _resolve(part["$ref"], root) if "$ref" in part else part
            merged["properties"] = {**merged.get("properties", {}), **part.get("properties", {})}
            merged["required"] = [*merged.get("required", []), *part.get("required", [])]
            merged |= {k: v for k, v in part.items() if k not in ("properties", "required")}
        return _instance(merged, root, bits, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[bits.below(len(kind))]
    if kind == "object":
        return _object(schema, root, bits, depth)
    if kind == "array":
        return _array(schema, root, bits, depth)
    return _scalar(kind, schema, bits)


def _resolve(ref: str, root: Any) -> Any:
    node = root
    for part in ref.removeprefix("#").strip("/").split("/"):
        node = node[part.replace("~1", "/").replace("~0", "~")] if part else node
    return node


def _object(schema: Mapping[str, Any], root: Any, bits: Bits, depth: int) -> dict[str, Any]:
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    names = [name for name in properties if name in required or depth < _MAX_DEPTH]
    names += [name for name in required if name not in properties]
    return {name: _instance(properties.get(name, True), root, bits, depth + 1) for name in names}


def _array(schema: Mapping[str, Any], root: Any, bits: Bits, depth: int) -> list[Any]:
    prefix = schema.get("prefixItems", [])
    high = schema.get("maxItems", max(schema.get("minItems", 0), 3))
    low = schema.get("minItems", 0 if depth >= _MAX_DEPTH else min(1, high))
    size = low if depth >= _MAX_DEPTH else low + bits.below(high - low + 1)
    size = max(size, min(len(prefix), high))
    items = schema.get("items", True)
    made: list[Any] = []
    for position in range(size):
        part = prefix[position] if position < len(prefix) else items
        value = _instance(part, root, bits, depth + 1)
        for _ in range(50 if schema.get("uniqueItems") else 0):
            if value not in made:
                break
            value = _instance(part, root, bits, depth + 1)
        made.append(value)
    return made


def _scalar(kind: str, schema: Mapping[str, Any], bits: Bits) -> Any:
    if kind == "integer":
        step = schema.get("multipleOf", 1)
        low, high = _bounds(schema, step)
        first, last = math.ceil(low / step), math.floor(high / step)
        return int((first + bits.below(last - first + 1)) * step)
    if kind == "number":
        low, high = _bounds(schema, 0.001)
        return round(low + (high - low) * bits.below(1001) / 1000, 6)
    if kind == "boolean":
        return bits.below(2) == 1
    if kind == "null":
        return None
    low = schema.get("minLength", 0)
    high = schema.get("maxLength", max(low, 200))
    text = words(str(bits.below(1 << 30)).encode(), 4 + low // 4)
    return text[:high].ljust(low, "x")


def _bounds(schema: Mapping[str, Any], step: float) -> tuple[Any, Any]:
    low = schema.get("minimum")
    if "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + step
    high = schema.get("maximum")
    if "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - step
    if low is None:
        low = 0 if high is None or high >= 0 else high - 100
    return low, low + 100 if high is None else high


def tool_calls(body: Mapping[str, Any], seed: bytes) -> list[dict[str, Any]]:
    """The calls that the model makes of the tools in a request; [] if it answers with text.

    It calls a tool or two wherever the request offers tools, but not in reply to a tool's result: then only if
    `tool_choice` is "required" or names a function.
    """
    tools = [tool["function"] for tool in body.get("tools") or () if tool.get("type") == "function"]
    choice = body.get("tool_choice") or "auto"
    last = (body.get("messages") or [{}])[-1].get("role")
    if not tools or choice == "none" or (choice == "auto" and last == "tool"):
        return []
    bits = Bits(seed)
    if isinstance(choice, dict):
        wanted = [tool for tool in tools if tool["name"] == choice.get("function", {}).get("name")]
    else:
        count = 1 if body.get("parallel_tool_calls") is False else 1 + bits.below(2)
        wanted = [tools[bits.below(len(tools))] for _ in range(count)]
    made: list[dict[str, Any]] = []
    for number, tool in enumerate(wanted):
        own = hashlib.blake2b(seed + bytes([number]), digest_size=8)
        given = schema_instance(tool.get("parameters") or {"type": "object"}, own.digest())
        function = {"name": tool["name"], "arguments": orjson.dumps(given).decode()}
        made.append({"id": f"call_{own.hexdigest()}", "type": "function", "function": function})
    return made


def answer(body: Mapping[str, Any], *, chat: bool, tokens: int, served_as: str) -> dict[str, Any]:
    """The completion object for a request body; `tokens` is how many words unconstrained text has."""
    limit = body.get("max_tokens") or body.get("max_completion_tokens") or tokens
    count = min(tokens, limit)
    schema = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema") if chat else None
    choices: list[dict[str, Any]] = []
    seeds = [request_seed(body, index) for index in range(body.get("n") or 1)]
    for index, seed in enumerate(seeds):
        if schema is not None:
            text = orjson.dumps(schema_instance(schema, seed)).decode()
        elif (body.get("response_format") or {}).get("type") == "json_object":
            text = orjson.dumps({"answer": words(seed, count)}).decode()
        else:
            text = words(seed, count)
        finish = "length" if limit < tokens and schema is None else "stop"
        if body.get("stop"):
            text, finish = _stopped(text, body["stop"], finish)
        choice: dict[str, Any] = {"index": index, "finish_reason": finish}
        if chat and (calls := tool_calls(body, seed)):
            choice["finish_reason"] = "tool_calls"
            choice["message"] = {"role": "assistant", "content": None, "tool_calls": calls}
        else:
            choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice["logprobs"] = _logprobs(text, body, chat) if body.get("logprobs") not in (None, False) else None
        choices.append(choice)
    prompt = body.get("messages", body.get("prompt"))
    prompt_tokens = 1 + len(orjson.dumps(prompt)) // 5
    total = count * len(choices)
    return {
        "id": "cmpl-" + seeds[0].hex()[:12],
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": served_as,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": total,
            "total_tokens": prompt_tokens + total,
        },
    }


def _stopped(text: str, stop: str | list[str], finish: str) -> tuple[str, str]:
    """`text` up to the first stop text."""
    ends = [text.find(mark) for mark in ([stop] if isinstance(stop, str) else stop)]
    found = [end for end in ends if end >= 0]
    return (text[: min(found)], "stop") if found else (text, finish)


def _logprobs(text: str, body: Mapping[str, Any], chat: bool) -> dict[str, Any]:
    pieces = [piece + " " for piece in text.split(" ")]
    if not chat:
        return {
            "tokens": pieces,
            "token_logprobs": [-0.1] * len(pieces),
            "top_logprobs": [{piece: -0.1} for piece in pieces],
        }
    top = body.get("top_logprobs") or 0
    return {
        "content": [
            {
                "token": piece,
                "logprob": -0.1,
                "bytes": None,
                "top_logprobs": [
                    {"token": piece if k == 0 else str(k), "logprob": -0.1 - 2.0 * k, "bytes": None} for k in range(top)
                ],
            }
            for piece in pieces
        ]
    }
