"""Types as schemas: pydantic decides, strictly; the answer's own JSON is what goes into the row."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NotRequired, Optional, TypeVar, Union

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    TypeAdapter,
    WithJsonSchema,
    field_validator,
)
from typing_extensions import TypedDict

from asyncsynth import LLM, StructuredGeneration
from asyncsynth.errors import ConfigurationError, ParseFailure
from tests.kit.models import Model, generate

pytestmark = pytest.mark.row(31)

M = LLM(model="m")
T = TypeVar("T")


def is_odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("it is even")
    return value


class Box(BaseModel, Generic[T]):
    item: T


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Color(Enum):
    red = "red"
    one = 1


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    full_name: str = Field(alias="fullName")
    crew: list[Cat] = []


class Loud(BaseModel):
    word: str

    @field_validator("word")
    @classmethod
    def upper(cls, value: str) -> str:
        return value.upper()


class Numbers(RootModel[list[int]]):
    pass


class Converting(BaseModel):
    n: Annotated[int, BeforeValidator(int), WithJsonSchema({"type": ["integer", "string"]})]


@dataclass
class Voyage:
    miles: int
    left: date


class Port(TypedDict):
    name: str
    depth: NotRequired[float]


CAT = {"kind": "cat", "lives": 9}
DOG = {"kind": "dog", "name": "Rex"}

#: types, answers that fit them, answers that do not
CASES: list[tuple[Any, list[Any], list[Any]]] = [
    (Box[int], [{"item": 1}], [{"item": "1"}, {"item": 1.0}, {"item": True}, {}]),
    (Box[Box[str]], [{"item": {"item": "a"}}], [{"item": {"item": 1}}, {"item": "a"}]),
    (Cat | Dog, [CAT, DOG], [{"kind": "cat", "name": "Rex"}, {"kind": "cow"}]),
    (Union[Cat, Dog], [CAT, DOG], [[]]),  # noqa: UP007
    (Optional[Cat], [None, CAT], [{}]),  # noqa: UP045
    (Annotated[Cat | Dog, Field(discriminator="kind")], [CAT, DOG], [{"kind": "dog", "lives": 9}]),
    (list[Cat], [[], [CAT, CAT]], [[DOG], CAT]),
    (dict[str, int], [{}, {"a": 1}], [{"a": "1"}, {"a": 1.5}]),
    (tuple[int, str], [[1, "a"]], [[1], ["a", 1]]),
    (TypeAdapter(list[int]), [[1, 2]], [["1"]]),
    (Numbers, [[1, 2]], [[1.5], {}]),
    (Voyage, [{"miles": 3, "left": "2024-02-29"}], [{"miles": 3, "left": "2023-02-29"}, {"miles": 3}]),
    (Port, [{"name": "Cadiz"}, {"name": "Cadiz", "depth": 7}], [{"depth": 7.5}]),
    (Annotated[int, AfterValidator(is_odd), Field(ge=0)], [1, 3], [2, -1, "1"]),
    (Literal["a", 1], ["a", 1], ["b", True, "1"]),
    (Color, ["red", 1], ["blue", True]),
    (Closed, [{"fullName": "A"}, {"fullName": "A", "crew": [CAT]}], [{"full_name": "A"}, {"fullName": "A", "x": 1}]),
    (Converting, [{"n": "5"}, {"n": 5}], [{"n": "five"}]),
    (int, [5, 2**64 - 1], [5.0, "5", None]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "fits", "does_not"), CASES, ids=lambda case: str(case)[:40])
def test_types_decide_and_values_stay(schema: Any, fits: list[Any], does_not: list[Any]) -> None:
    task = StructuredGeneration(M, schema=schema, max_reasks=0)
    for value in fits:
        [made] = generate(task, {"instruction": "x"}, Model(json.dumps(value)))
        assert repr(made["generation"]) == repr(value)
    for value in does_not:
        with pytest.raises(ParseFailure, match="does not fit the schema: "):
            generate(task, {"instruction": "x"}, Model(json.dumps(value)))
    json.dumps(task.settings())


def test_what_a_validator_refuses_is_asked_for_again_and_named() -> None:
    task = StructuredGeneration(M, schema=list[Annotated[int, AfterValidator(is_odd)]])
    model = Model("[1, 2]", "[1, 3]")
    assert generate(task, {"instruction": "x"}, model)[0]["generation"] == [1, 3]
    with pytest.raises(ParseFailure, match=r"\[1\]: Value error, it is even"):
        generate(
            StructuredGeneration(M, schema=task._typed.adapter, max_reasks=0), {"instruction": "x"}, Model("[1, 2]")
        )


def test_dump_takes_what_pydantic_made() -> None:
    for dump, expected in ((False, {"word": "hi"}), (True, {"word": "HI"})):
        task = StructuredGeneration(M, schema=Loud, dump=dump)
        assert generate(task, {"instruction": "x"}, Model('{"word": "hi"}'))[0]["generation"] == expected
    aliased = StructuredGeneration(M, schema=Closed, dump=True)
    [made] = generate(aliased, {"instruction": "x"}, Model('{"fullName": "Ana"}'))
    assert made["generation"] == {"fullName": "Ana", "crew": []}
    with pytest.raises(ConfigurationError, match="nothing to dump"):
        StructuredGeneration(M, schema={"type": "object"}, dump=True)


def test_an_error_of_a_validators_own_is_not_taken_for_a_bad_answer() -> None:
    def broken(value: int) -> int:
        raise KeyError("no such table")

    task = StructuredGeneration(M, schema=Annotated[int, AfterValidator(broken)])
    with pytest.raises(KeyError, match="no such table"):
        generate(task, {"instruction": "x"}, Model("1"))


@pytest.mark.parametrize("schema", [print, lambda: 1, object(), type("Own", (), {}), "Cat", 3, [int], {1, 2}])
def test_what_is_no_type_that_pydantic_knows(schema: Any) -> None:
    with pytest.raises(ConfigurationError, match="was expected"):
        StructuredGeneration(M, schema=schema)


NESTED = """
from typing import Annotated, Generic, TypeVar
from pydantic import AfterValidator, BaseModel, field_validator

T = TypeVar("T")

def check(value):
    assert value != "function"
    return value

class Base(BaseModel):
    @field_validator("*")
    @classmethod
    def base(cls, value):
        assert value != "base"
        return value

class Box(BaseModel, Generic[T]):
    item: T

    @field_validator("item")
    @classmethod
    def boxed(cls, value):
        assert value != "box"
        return value

class Outer(Base):
    inner: "list[Inner]"

class Inner(BaseModel):
    word: Annotated[str, AfterValidator(check)]

    @field_validator("word")
    @classmethod
    def inner(cls, value):
        assert value != "inner"
        return value

SCHEMA = dict[str, Box[Outer] | None]
"""


def code_of(source: str, place: Path) -> list[str]:
    """The code that is fingerprinted of a schema in a file."""
    place.write_text(source)
    spec = importlib.util.spec_from_file_location(place.stem, place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[place.stem] = module
    try:
        spec.loader.exec_module(module)
        found: list[str] = StructuredGeneration(M, schema=module.SCHEMA).settings()["schema_code"]
    finally:
        del sys.modules[place.stem]
    return found


def test_an_edit_of_any_validator_shows_in_the_settings(tmp_path: Path) -> None:
    first = code_of(NESTED, tmp_path / "schema_0.py")
    assert {code.partition(":")[0] for code in first} == {"check", "Base", "Box", "Outer", "Inner"}
    assert code_of(NESTED, tmp_path / "schema_1.py") == first
    for number, word in enumerate(("function", "base", "box", "inner"), 2):
        edited = NESTED.replace(f'"{word}"', f'"{word}!"')
        assert code_of(edited, tmp_path / f"schema_{number}.py") != first


def test_where_pydantic_is_missing_the_step_says_so() -> None:
    code = """
import sys
sys.modules["pydantic"] = None  # as if it were not installed
from asyncsynth import LLM, StructuredGeneration
from asyncsynth.errors import ConfigurationError
StructuredGeneration(LLM(model="m"), schema={"type": "array"})
try:
    StructuredGeneration(LLM(model="m"), schema=list[int])
except ConfigurationError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "need the package pydantic (2 or newer), which is not installed" in done.stdout
