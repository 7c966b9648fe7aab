"""Every keyword of a user's schema is checked, by jsonschema or by our own check, or the schema is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsynth import LLM, StructuredGeneration
from asyncsynth.errors import ConfigurationError, ParseFailure, TaskFailure
from asyncsynth.tasks.json_schema import RULES
from asyncsynth.tasks.schema_check import BadSchema, check_of
from tests.kit.models import Model, generate

pytestmark = pytest.mark.row(31)

M = LLM(model="m")
TREE = {
    "$defs": {"n": {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/n"}},
                    "required": ["v"], "additionalProperties": False}},
    "$ref": "#/$defs/n",
}  # fmt: skip

#: Schemas, a value that fits and one that does not. Our own check knows those marked True.
CASES: list[tuple[Any, Any, Any, bool]] = [
    ({"contains": {"const": 1}}, [0, 1], [0], False),
    ({"contains": {"const": 1}, "minContains": 2}, [1, 1.0], [1, True], False),
    ({"contains": {"const": 1}, "maxContains": 1}, [1], [1, 1], False),
    ({"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"minimum": 5}}, "ab", 4, False),
    ({"dependentRequired": {"a": ["b"]}}, {"a": 1, "b": 2}, {"a": 1}, False),
    ({"dependentSchemas": {"a": {"required": ["b"]}}}, {"b": 2}, {"a": 1}, False),
    ({"propertyNames": {"maxLength": 1}}, {"a": 1}, {"ab": 1}, False),
    ({"allOf": [{"properties": {"a": True}}], "unevaluatedProperties": False}, {"a": 1}, {"b": 1}, False),
    ({"prefixItems": [True], "unevaluatedItems": False}, [1], [1, 2], False),
    ({"format": "date"}, "2024-02-29", "2023-02-29", False),
    ({"format": "date-time"}, "2024-02-29T10:00:00Z", "2024-02-29 10:00", False),
    ({"format": "email"}, "a@b", "a", False),
    ({"format": "ipv4"}, "10.0.0.1", "10.0.0.256", False),
    ({"format": "uuid"}, "6f1c7f0e-5a0b-4b7f-9f2b-5d1c3e8a9d10", "6f1c", False),
    ({"format": "uri"}, "https://a.b/c?d", "a b", False),
    ({"format": "duration"}, "P1D", "1 day", False),
    ({"$anchor": "top", "properties": {"a": {"$ref": "#leaf"}}, "$defs": {"l": {"$anchor": "leaf", "type": "null"}}},
     {"a": None}, {"a": 1}, False),
    ({"$id": "https://x.y/top", "$ref": "part", "$defs": {"p": {"$id": "part", "type": "null"}}}, None, 1, False),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "null"}], "additionalItems": False},
     [None], [None, 1], False),
    ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}, 2, 1, False),
    ({"const": 1}, 1.0, True, True),
    ({"const": [{"a": True}]}, [{"a": True}], [{"a": 1}], True),
    ({"enum": [[1], None]}, [1.0], [True], True),
    ({"uniqueItems": True}, [1, True, "1"], [1, 1.0], True),
    ({"oneOf": [{"minimum": 1}, {"multipleOf": 2}]}, 1, 2, True),
    ({"not": {"enum": [0]}}, False, 0.0, True),
    ({"multipleOf": 0.01}, 19.99, 19.995, True),
    ({"multipleOf": 0.1}, 0.3, 0.35, True),
    ({"multipleOf": 1}, 1e9, 1000000000.4, True),
    ({"type": "integer"}, 5.0, 5.5, True),
    ({"patternProperties": {"^n": {"type": "integer"}}, "additionalProperties": False}, {"n": 1}, {"m": 1}, True),
    (TREE, {"v": 1, "next": {"v": 2}}, {"v": 1, "next": {"v": "2"}}, True),
    ({"properties": {"$ref": {"type": "null"}, "pattern": {"type": "null"}}}, {"$ref": None}, {"pattern": 1}, True),
    ({"properties": {"a/b~c%": {"type": "null"}, "z": {"$ref": "#/properties/a~1b~0c%25"}}},
     {"z": None}, {"z": 1}, True),
    ({"anyOf": [{"type": "null"}], "items": {"$ref": "#/anyOf/0"}, "x-note": "mine"}, None, [1], True),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "fits", "does_not", "own"), CASES, ids=lambda case: str(case)[:40])
def test_each_keyword_decides(schema: Any, fits: Any, does_not: Any, own: bool) -> None:
    for library in (True, False) if own else (True,):
        check = check_of(schema, library=library)
        assert check(fits) == ""
        assert check(does_not) != ""


@pytest.mark.parametrize("schema", [schema for schema, _, _, own in CASES if not own], ids=lambda case: str(case)[:40])
def test_without_the_package_what_is_not_checked_is_refused(schema: Any) -> None:
    for nested, at in ((schema, "#/"), ({"properties": {"deep": {"items": schema}}}, "#/properties/deep/items/")):
        if "$schema" in schema and nested is not schema:
            continue
        with pytest.raises(BadSchema, match=r"pip install 'asyncsynth\[schema\]'|leads nowhere") as caught:
            check_of(nested, library=False)
        assert str(caught.value).startswith(at)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"minLenght": 3}, "#/minLenght: the keyword 'minLenght'"),
        ({"items": {"nullable": True}}, "#/items/nullable: the keyword 'nullable'"),
        ({"type": "strings"}, "#/type: "),
        ({"properties": {"a": {"type": ["string", "text"]}}}, "#/properties/a/type"),
        ({"properties": {"a": {"pattern": "("}}}, "#/properties/a/pattern: "),
        ({"patternProperties": {"(": {}}}, "#/patternProperties"),
        ({"required": "a"}, "#/required: "),
        ({"minItems": -1}, "#/minItems: "),
        ({"multipleOf": 0}, "#/multipleOf: "),
        ({"items": [{}]}, "#/items: "),
        ({"anyOf": []}, "#/anyOf: "),
        ({"enum": 3}, "#/enum: "),
        ({"properties": {"a": 3}}, "#/properties"),
        ({"$ref": "#/$defs/none"}, "#/$ref: "),
        ({"$ref": "https://example.com/schema.json"}, "never fetched"),
        ({"$ref": "file:///etc/passwd"}, "never fetched"),
        ({"$ref": "other.json#/a"}, "never fetched"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "never fetched"),
        ({"$ref": "#"}, "leads back to itself"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "leads back to itself"),
        ({"$ref": "#/x-hidden", "x-hidden": {"minLenght": 1}}, "'minLenght'"),
        ({"$schema": "https://example.com/mine"}, "#/$schema: "),
        ({"contentEncoding": "base64"}, "'contentEncoding'"),
    ],
    ids=str,
)
def test_schemas_that_cannot_be_used_are_refused_with_their_place(schema: Any, words: str) -> None:
    for library in (True, False):
        with pytest.raises(BadSchema) as caught:
            check_of(schema, library=library)
        assert words in str(caught.value)
    with pytest.raises(ConfigurationError, match="the schema cannot be used"):
        StructuredGeneration(M, schema=schema)


DRAFT_7 = "http://json-schema.org/draft-07/schema#"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"items": {"then": {"type": "string"}}}, "#/items/then: the keyword 'then' checks nothing without 'if'"),
        ({"minContains": 2}, "#/minContains: the keyword 'minContains' checks nothing without 'contains'"),
        (
            {"$schema": DRAFT_7, "definitions": {"a": {}}, "items": {"$ref": "#/definitions/a", "minimum": 5}},
            "#/items/minimum: this draft does not check 'minimum' beside '$ref'",
        ),
    ],
)
def test_a_keyword_that_would_check_nothing_is_refused(schema: Any, words: str) -> None:
    with pytest.raises(BadSchema) as caught:
        check_of(schema, library=True)
    assert str(caught.value).startswith(words)


def test_what_describes_may_stand_beside_a_reference() -> None:
    a = {"$ref": "#/definitions/a", "description": "a number", "x-order": 1}
    check = check_of({"$schema": DRAFT_7, "definitions": {"a": {"type": "integer"}}, "items": a}, library=True)
    assert (check([1]), check(["a"]) != "") == ("", True)
    assert check_of({"$ref": "#/$defs/a", "minimum": 5, "$defs": {"a": {}}}, library=True)(3)


def test_a_format_that_nothing_knows_is_refused() -> None:
    with pytest.raises(BadSchema, match='#/items/format: the format "int32" cannot be checked; known here: date'):
        check_of({"items": {"format": "int32"}}, library=True)


numbers = st.integers(-3, 3) | st.sampled_from([0.5, 1.0, 0.3])
small: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | st.sampled_from(["", "a", "ab"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


def _keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    count = st.integers(0, 3)
    names = st.lists(st.sampled_from("abc"), unique=True, max_size=2)
    named = st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
    some = st.lists(inner, min_size=1, max_size=3)
    types = st.sampled_from(["object", "array", "string", "boolean", "null", "number", "integer"])
    held: dict[str, st.SearchStrategy[Any]] = {
        "type": types | st.lists(types, min_size=1, unique=True),
        "enum": st.lists(small, min_size=1, max_size=3, unique_by=repr),
        "const": small,
        "properties": named,
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "b|c"]), inner, max_size=2),
        "additionalProperties": inner,
        "required": names,
        "minimum": numbers, "maximum": numbers, "exclusiveMinimum": numbers, "exclusiveMaximum": numbers,
        "multipleOf": st.sampled_from([1, 2, 0.1, 0.5]),
        "prefixItems": some, "items": inner, "uniqueItems": st.booleans(),
        "pattern": st.sampled_from(["^a", "b$"]),
        "allOf": some, "anyOf": some, "oneOf": some, "not": inner,
        "$ref": st.just("#/$defs/d"),
    }  # fmt: skip
    held.update({f"{side}{what}": count for side in ("min", "max") for what in ("Items", "Length", "Properties")})
    assert held.keys() == RULES.keys() - {"$defs", "definitions"}
    return st.lists(st.sampled_from(sorted(held)), max_size=3, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({keyword: held[keyword] for keyword in chosen})
    )


schemas = st.recursive(st.booleans() | st.just({}), _keywords, max_leaves=5)


@given(schemas.filter(lambda schema: isinstance(schema, dict)), st.lists(small, min_size=5, max_size=5))
@settings(deadline=None)
def test_our_own_check_and_jsonschema_agree(schema: dict[str, Any], values: list[Any]) -> None:
    whole = {**schema, "$defs": {"d": {"type": ["integer", "array"], "items": {"$ref": "#"}}}}
    verdicts: list[Any] = []
    for library in (False, True):
        try:
            check = check_of(whole, library=library)
        except BadSchema:
            verdicts.append("refused")
        else:
            verdicts.append([check(value) == "" for value in values])
    assert verdicts[0] == verdicts[1]


def test_a_deep_value_is_told_and_not_fatal() -> None:
    value: Any = {"v": 1}
    for _ in range(400):
        value = {"v": 1, "next": value}
    for library in (True, False):
        assert "nested too deep" in check_of(TREE, library=library)(value)


def test_a_rows_schema_follows_the_same_rule_before_anything_is_sent() -> None:
    task = StructuredGeneration(M, max_reasks=0)
    [made] = generate(task, {"instruction": "x", "schema": {"format": "date"}}, Model('"2024-01-01"'))
    assert made["generation"] == "2024-01-01"
    with pytest.raises(ParseFailure, match="is not a 'date'"):
        generate(task, {"instruction": "x", "schema": {"format": "date"}}, Model('"today"'))
    for bad in ({"$ref": "http://169.254.169.254/"}, {"minLenght": 3}, '{"maximum": 99999999999999999999}'):
        model = Model()
        with pytest.raises(TaskFailure, match="schema") as caught:
            generate(task, {"instruction": "x", "schema": bad}, model)
        assert (caught.value.reason, model.requests) == ("bad_input", [])


def test_where_the_package_is_missing_the_step_says_so() -> None:
    code = """
import sys
sys.modules["jsonschema"] = None  # as if it were not installed
from asyncsynth import LLM, StructuredGeneration
from asyncsynth.errors import ConfigurationError
StructuredGeneration(LLM(model="m"), schema={"type": "array", "items": {"minimum": 1}})
try:
    StructuredGeneration(LLM(model="m"), schema={"items": {"format": "date"}})
except ConfigurationError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "#/items/format: the keyword 'format' needs the package jsonschema: pip install 'asyncsynth[schema]'" in (
        done.stdout
    )


def test_the_last_value_that_fits_is_the_answer() -> None:
    task = StructuredGeneration(M, schema={"type": "object", "required": ["a"]}, max_reasks=0)
    text = 'A draft: {"a": 1}. Better: {"a": 2}. Not this: {"b": 3}'
    assert generate(task, {"instruction": "x"}, Model(text))[0]["generation"] == {"a": 2}


def test_a_value_that_a_row_cannot_hold_is_asked_for_again_by_name() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    model = Model('{"n": 123456789012345678901}', '{"n": 12}')
    assert generate(StructuredGeneration(M, schema=schema), {"instruction": "x"}, model)[0]["generation"] == {"n": 12}
    with pytest.raises(ParseFailure, match="n: 123456789012345678901 is an integer beyond 64 bits"):
        generate(
            StructuredGeneration(M, schema=schema, max_reasks=0),
            {"instruction": "x"},
            Model('{"n": 123456789012345678901}'),
        )
