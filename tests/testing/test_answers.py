"""Answers of the fault server: the same request, the same text; every schema instance valid and varied."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsynth.testing.answers import answer, schema_instance


def ask(text: str = "hi", **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    return answer(body, chat=True, tokens=16, served_as="m")


def texts(made: dict[str, Any]) -> list[str]:
    return [choice["message"]["content"] for choice in made["choices"]]


def test_same_request_same_answer_other_request_other_answer() -> None:
    assert ask() == ask()
    assert texts(ask()) != texts(ask("ho"))
    assert texts(ask(seed=1)) != texts(ask(seed=2))
    assert texts(ask(temperature=0.1)) == texts(ask())
    assert len(texts(ask())[0].split()) == 16


def test_n_and_max_tokens_and_logprobs() -> None:
    made = ask(n=3, max_tokens=4, logprobs=True, top_logprobs=2)
    assert len(set(texts(made))) == 3
    assert {choice["finish_reason"] for choice in made["choices"]} == {"length"}
    assert made["usage"]["completion_tokens"] == 12
    tokens = made["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 4
    assert len(tokens[0]["top_logprobs"]) == 2


RATINGS = {
    "type": "object",
    "properties": {
        "ratings": {
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "maximum": 5},
            "minItems": 3,
            "maxItems": 3,
        },
        "why": {"type": "string", "maxLength": 20},
    },
    "required": ["ratings"],
}


def test_ratings_are_valid_and_differ_between_rows() -> None:
    made = [schema_instance(RATINGS, str(row).encode()) for row in range(100)]
    assert all(len(one["ratings"]) == 3 for one in made)
    assert {rating for one in made for rating in one["ratings"]} == {1, 2, 3, 4, 5}
    assert all(len(one["why"]) <= 20 for one in made)
    assert len({str(one) for one in made}) > 80


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"enum": ["a", "b"]},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["v", "next", "kids"],
        }
    },
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize("seed", range(20))
def test_recursive_schemas_end(seed: int) -> None:
    assert schema_instance(TREE, bytes([seed]))["v"] in "ab"


@given(low=st.integers(-50, 50), span=st.integers(0, 50), step=st.integers(1, 7), seed=st.binary(max_size=4))
def test_integers_keep_their_bounds(low: int, span: int, step: int, seed: bytes) -> None:
    schema = {"type": "integer", "minimum": low, "maximum": low + span + step, "multipleOf": step}
    value = schema_instance(schema, seed)
    assert low <= value <= low + span + step
    assert value % step == 0


@pytest.mark.parametrize(
    ("schema", "accepts"),
    [
        ({"const": 7}, lambda v: v == 7),
        ({"enum": [None, 3]}, lambda v: v in (None, 3)),
        ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 3}, lambda v: v == 2),
        ({"type": "integer", "maximum": -200}, lambda v: v <= -200),
        ({"type": "number", "minimum": 0, "maximum": 1}, lambda v: 0 <= v <= 1),
        ({"type": "number", "exclusiveMinimum": 0}, lambda v: v > 0),
        ({"type": ["string", "null"]}, lambda v: v is None or isinstance(v, str)),
        ({"type": "string", "minLength": 300}, lambda v: len(v) >= 300),
        ({"type": "boolean"}, lambda v: v in (True, False)),
        ({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}]}, lambda v: v[:2] == [1, 2]),
        (
            {"type": "array", "uniqueItems": True, "items": {"enum": [1, 2, 3]}, "minItems": 3, "maxItems": 3},
            lambda v: sorted(v) == [1, 2, 3],
        ),
        ({"type": "array", "maxItems": 0}, lambda v: v == []),
        ({"type": "object", "required": ["x"]}, lambda v: "x" in v),
        (
            {"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 2}}}]},
            lambda v: v == {"a": 1, "b": 2},
        ),
        ({"oneOf": [{"const": 1}, {"const": 2}]}, lambda v: v in (1, 2)),
        (True, lambda v: isinstance(v, str)),
    ],
)
@pytest.mark.parametrize("seed", [b"a", b"b", b"c"])
def test_instances(schema: Any, accepts: Any, seed: bytes) -> None:
    assert accepts(schema_instance(schema, seed))
