"""JSON of a schema: a task's, a row's, a pydantic model's; checked, whatever the server did."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from asyncsynth import LLM, StructuredGeneration
from asyncsynth.client.messages import Choice
from asyncsynth.errors import ConfigurationError, ParseFailure, TaskFailure
from asyncsynth.tasks.json_schema import mismatch
from asyncsynth.tasks.schema_check import check_of
from asyncsynth.testing.answers import schema_instance
from tests.kit.models import Model, generate

M = LLM(model="m")
SAILOR = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Ship(BaseModel):
    name: str
    masts: int = 3
    crew: list["Sailor"]

    @field_validator("masts")
    @classmethod
    def few(cls, value: int) -> int:
        if value > 7:
            raise ValueError("too many masts")
        return value


class Sailor(BaseModel):
    name: str


def test_a_tasks_schema_constrains_and_checks() -> None:
    model = Model('{"name": "Ana", "age": 41}')
    task = StructuredGeneration(M, schema=SAILOR)
    [made] = generate(task, {"instruction": "Invent a sailor."}, model)
    assert made == {"generation": {"name": "Ana", "age": 41}, "model_name": "model-that-answered"}
    [request] = model.requests
    assert request.schema == SAILOR
    assert "maxLength" in request.messages[0]["content"]
    assert request.messages[0]["content"].startswith("Invent a sailor.")


def test_what_does_not_fit_is_asked_for_again_and_then_told() -> None:
    model = Model("none", '{"name": "Ana"}', 'Here:\n```json\n{"name": "Ana", "age": 4.0}\n```')
    [made] = generate(StructuredGeneration(M, schema=SAILOR, show_schema=False), {"instruction": "x"}, model)
    assert made["generation"] == {"name": "Ana", "age": 4.0}
    told = "That answer could not be read: the answer does not fit the schema: "
    assert [prompt[: len(told)] for prompt in model.prompts()] == ["x", told, told]
    with pytest.raises(ParseFailure, match="'age'") as caught:
        generate(StructuredGeneration(M, schema=SAILOR, max_reasks=0), {"instruction": "x"}, Model('{"name": "Ana"}'))
    assert caught.value.raw == '{"name": "Ana"}'
    cut = Model(by=lambda _: Choice('{"name": "An', "length"))
    with pytest.raises(ParseFailure, match="max_tokens"):
        generate(StructuredGeneration(M, schema=SAILOR), {"instruction": "x"}, cut)


def test_a_rows_schema_wins_as_object_or_text() -> None:
    task = StructuredGeneration(M, schema=SAILOR)
    schema = {"type": "array", "items": {"enum": ["a", "b"]}}
    for given in (schema, json.dumps(schema)):
        model = Model('["a", "c"]', '["a", "b"]')
        [made] = generate(task, {"instruction": "x", "schema": given}, model)
        assert made["generation"] == ["a", "b"]
        assert model.requests[0].schema == schema


def test_without_a_tasks_schema_the_column_is_needed() -> None:
    task = StructuredGeneration(M, input_mappings={"schema": "shape"})
    assert task.inputs == ("instruction", "schema")
    assert task.view({"instruction": "x", "shape": SAILOR})["schema"] == SAILOR
    for bad in ("{", 3, None, {"$ref": "#/nowhere"}, {"properties": {"a": {"pattern": "("}}}):
        with pytest.raises(TaskFailure, match="schema") as caught:
            generate(task, {"instruction": "x", "schema": bad}, Model())
        assert caught.value.reason == "bad_input"


def test_a_pydantic_model_checks_with_its_validators() -> None:
    task = StructuredGeneration(M, schema=Ship)
    good = {"name": "Argo", "crew": [{"name": "Ana"}]}
    model = Model(json.dumps({**good, "masts": 9}), json.dumps(good))
    [made] = generate(task, {"instruction": "x"}, model)
    assert made["generation"] == good
    [made] = generate(StructuredGeneration(M, schema=Ship, dump=True), {"instruction": "x"}, Model(json.dumps(good)))
    assert made["generation"] == {**good, "masts": 3}
    settings = task.settings()
    assert "crew" in settings["json_schema"]["properties"]
    assert [code.partition(":")[0] for code in settings["schema_code"]] == ["Sailor", "Ship"]
    with pytest.raises(ParseFailure, match="too many masts"):
        generate(
            StructuredGeneration(M, schema=Ship, max_reasks=0),
            {"instruction": "x"},
            Model(json.dumps({**good, "masts": 9})),
        )


@pytest.mark.parametrize(
    "schema", [3, "{}", [], True, print, {"$ref": "http://x/y"}, {"items": {"type": "strings"}}, {"enum": {1, 2}}]
)
def test_schemas_that_are_none(schema: Any) -> None:
    with pytest.raises(ConfigurationError, match="schema"):
        StructuredGeneration(M, schema=schema)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (True, [1, "a", None], []),
        (False, [], [1]),
        ({"type": "integer"}, [1, 1.0, -3], [1.5, True, "1", None]),
        ({"type": "number"}, [1, 1.5], [True, "1"]),
        ({"type": ["string", "null"]}, ["", None], [0, []]),
        ({"type": "boolean"}, [True], [1, 0]),
        ({"const": 1}, [1, 1.0], [True, 2]),
        ({"enum": ["a", None]}, ["a", None], ["b", 0]),
        ({"minLength": 2, "maxLength": 3}, ["ab", 5], ["a", "abcd"]),
        ({"pattern": "^a"}, ["ab"], ["ba"]),
        ({"minimum": 1, "maximum": 3}, [1, 3], [0, 4]),
        ({"exclusiveMinimum": 1, "exclusiveMaximum": 3}, [2], [1, 3]),
        ({"multipleOf": 0.1}, [0.3, 2], [0.35]),
        ({"items": {"type": "string"}, "minItems": 1, "maxItems": 2}, [["a"]], [[], [1], ["a", "b", "c"]]),
        ({"prefixItems": [{"type": "string"}], "items": {"type": "integer"}}, [["a", 1]], [[1], ["a", "b"]]),
        ({"uniqueItems": True}, [[1, 2]], [[{"a": 1}, {"a": 1}]]),
        ({"required": ["a"]}, [{"a": 1, "b": 2}, "not an object"], [{"b": 1}]),
        (
            {"properties": {"a": {"type": "string"}}, "additionalProperties": False},
            [{}, {"a": ""}],
            [{"a": 1}, {"b": 1}],
        ),
        ({"additionalProperties": {"type": "integer"}, "maxProperties": 1}, [{"x": 1}], [{"x": "1"}, {"x": 1, "y": 2}]),
        ({"patternProperties": {"^n": {"type": "integer"}}}, [{"n": 1, "o": ""}], [{"n": ""}]),
        ({"anyOf": [{"type": "string"}, {"minimum": 5}]}, ["a", 6], [4]),
        ({"oneOf": [{"minimum": 1}, {"maximum": 3}]}, [0, 4], [2]),
        ({"allOf": [{"minimum": 1}, {"maximum": 3}]}, [2], [0, 4]),
        ({"not": {"type": "null"}}, [1], [None]),
        (
            {
                "$ref": "#/$defs/n",
                "$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}, "v": {"type": "integer"}}}},
            },
            [{"v": 1, "next": {"v": 2}}],
            [{"next": {"next": {"v": "x"}}}],
        ),
    ],
)
def test_the_check(schema: Any, good: list[Any], bad: list[Any]) -> None:
    for library in (False, True):
        check = check_of(schema, library=library)
        for value in good:
            assert check(value) == "", value
        for value in bad:
            assert check(value) != "", value


def test_what_the_fault_server_makes_fits() -> None:
    for number in range(50):
        for schema in (SAILOR, Ship.model_json_schema()):
            assert not mismatch(schema_instance(schema, str(number).encode()), schema)


def test_depth_is_bounded() -> None:
    value: Any = 1
    for _ in range(500):
        value = [value]
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "integer"}, {"items": {"$ref": "#/$defs/a"}}]}}}
    assert mismatch(value, schema) != ""
