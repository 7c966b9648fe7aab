"""`StructuredGeneration`: answers that are JSON of a given schema."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import orjson

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice, Message
from asyncsynth.client.needs import Feature
from asyncsynth.errors import ConfigurationError, ParseFailure, TaskFailure
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row, canonical_json
from asyncsynth.tasks.base import Task, TaskSettings, text_of
from asyncsynth.tasks.exact_json import InexactJson, NoJson, exact_json
from asyncsynth.tasks.parsing import last_value
from asyncsynth.tasks.schema_check import BadSchema, Check, check_of
from asyncsynth.tasks.templates import prompt_source, render
from asyncsynth.tasks.typed_schema import TypedSchema


class StructuredGeneration(Task):
    """Answers an instruction with JSON that fits a JSON schema. The server constrains the answer if it can
    (``response_format``); in any case it is parsed and checked here, and requested again if it does not fit.

    Columns: ``instruction``, optionally ``system_prompt`` and ``schema`` (a JSON schema for this row, as an
    object or as its text; wins over the task's) -> ``generation`` (the JSON value, not its text),
    ``model_name``. Without a `schema` argument every row must have the column.

    Args:
        schema: a JSON schema as a dict, or a type that pydantic knows: a model (also generic, ``Box[int]``), a union,
            ``list[Model]``, ``dict[str, int]``, a dataclass, a TypedDict, an ``Annotated`` type, a ``TypeAdapter``. The
            type's JSON schema is sent, and pydantic checks the answer, with your validators.
        dump: with a type as the schema: ``generation`` is the value that pydantic made of the answer (with defaults and
            the changes of validators), dumped as JSON by its aliases. False keeps the answer's own JSON.
        show_schema: put the schema into the prompt as well: the model then sees descriptions, and servers that
            ignore constraints get the format. False sends the instruction unchanged.
        Others: see `Task`.

    Every keyword of a JSON schema is checked, or the schema is refused: when the step is made, or for a row's schema
    before anything is sent. With the extra ``asyncsynth[schema]``, the package jsonschema checks, by draft 2020-12 or
    the draft that ``$schema`` names, and checks ``format`` too. Without it, the step itself checks types, enum, const,
    properties, required, items, sizes, bounds, pattern, anyOf, oneOf, allOf, not and references. It refuses keywords
    that nothing checks, unless they begin with ``x-``, and references to outside the schema: nothing is fetched.

    Values stay as the model wrote them. For a JSON schema, ``5.0`` is an integer and stays 5.0. For a type it is not:
    an answer must fit the type's JSON schema and pydantic's strict mode, which converts nothing. An answer with an
    integer beyond 64 bits, a float out of range, NaN or a duplicate key never fits. If several values fit, the last
    one counts. Bound texts with ``maxLength``: a weak model fills an unbounded text until max_tokens.

    Example::

        schema = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                  "required": ["name", "age"]}
        StructuredGeneration(llm=LLM(model="Qwen/Qwen2.5-1.5B-Instruct"), schema=schema)

    ``{"instruction": "Invent a sailor."}`` gives ``{"generation": {"name": "Ana Ruiz", "age": 41},
    "model_name": "Qwen/Qwen2.5-1.5B-Instruct"}``.
    """

    version = 2  # if an answer holds several values, the last one counts; none is changed on its way
    outputs: tuple[str, ...] = ("generation", "model_name")
    prompt: ClassVar[str | None] = "structured_generation"

    def __init__(
        self,
        llm: LLM,
        *,
        schema: Any = None,
        show_schema: bool = True,
        dump: bool = False,
        **settings: Unpack[TaskSettings],
    ) -> None:
        self._typed = None if schema is None or isinstance(schema, dict) else TypedSchema(schema)
        self.json_schema: dict[str, Any] | None = (
            None if schema is None else task_schema(self._typed.json_schema if self._typed else schema)
        )
        self._check = None if schema is None or self._typed else _checked(schema)
        if dump and self._typed is None:
            raise ConfigurationError(
                "StructuredGeneration(dump=True): there is nothing to dump without a type as the schema",
                hint="Give a pydantic model or another type as the schema, or leave dump out.",
            )
        self.show_schema = show_schema
        self.dump = dump
        self.inputs: tuple[str, ...] = ("instruction",) if schema is not None else ("instruction", "schema")
        self.optional_inputs: tuple[str, ...] = (
            ("system_prompt", "schema") if schema is not None else ("system_prompt",)
        )
        super().__init__(llm, **settings)

    def argument(self, name: str) -> Any:
        """The schema as it was given; `schema` itself is a method."""
        if name == "schema":
            return self.json_schema if self._typed is None else self._typed.adapter
        return super().argument(name)

    def settings(self) -> dict[str, Any]:
        """The task's settings; for a type also the code of its classes, because their validators decide too."""
        settings = super().settings()
        if self._typed is not None:
            settings["schema_code"] = self._typed.code(where=f"step {self.name!r}")
        return settings

    def does_without(self) -> frozenset[Feature]:
        """The server's constraint is optional if the prompt shows the schema; else the model would not know it."""
        return super().does_without() if self.show_schema else frozenset()

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """The instruction, and the schema under it."""
        text = text_of(row, "instruction")
        if self.show_schema:
            shown = orjson.dumps(self.schema(row)).decode()
            text = render(prompt_source("structured_generation"), {"instruction": text, "schema": shown})
        return [{"role": "user", "content": text}]

    def schema(self, row: Row) -> dict[str, Any]:
        """The row's own schema, or the task's."""
        given = row.get("schema")
        if given is None and self.json_schema is not None:
            return self.json_schema
        try:
            found = exact_json(given.strip()) if isinstance(given, str) else given
            if not isinstance(found, dict):
                raise BadSchema(f"{found!r:.60}")
            check_of(found)
        except (NoJson, InexactJson) as error:
            raise TaskFailure(f"the input 'schema' is not JSON: {error}", reason="bad_input") from None
        except BadSchema as error:
            raise TaskFailure(f"the input 'schema' is not a JSON schema: {error}", reason="bad_input") from None
        return found

    def parse(self, choice: Choice, row: Row) -> Row:
        """The last JSON value in the answer that fits: those before it are drafts."""
        wrong = "there is no JSON in it"
        if choice.finish_reason == "length":
            wrong += ": it was cut at max_tokens"

        def fitting(value: Any) -> tuple[Any] | None:
            nonlocal wrong
            generation, wrong = self._fitting(value, row)
            return None if wrong else (generation,)

        refused: list[str] = []
        if (last := last_value(choice.text, fitting, refused)) is not None:
            return {"generation": last[0][0]}
        if refused:
            raise ParseFailure(f"the answer cannot be kept as it is: {refused[-1]}", raw=choice.text)
        raise ParseFailure(f"the answer does not fit the schema: {wrong}", raw=choice.text)

    def _fitting(self, value: Any, row: Row) -> tuple[Any, str]:
        """(the value for the row, '') if it fits; else why it does not, in words."""
        if row.get("schema") is not None or (self._typed is None and self._check is None):
            return value, check_of(self.schema(row))(value)
        if self._typed is None:
            assert self._check is not None
            return value, self._check(value)
        made, words = self._typed.parsed(value)
        return (self._typed.dumped(made) if self.dump and not words else value), words


def _checked(schema: dict[str, Any]) -> Check:
    """The check of the step's schema. Raises ConfigurationError if a part of it cannot be checked."""
    try:
        return check_of(schema)
    except BadSchema as error:
        raise ConfigurationError(f"StructuredGeneration: the schema cannot be used: {error}") from None


def task_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that can be sent and fingerprinted. Raises ConfigurationError."""
    try:
        canonical_json(schema)
    except TypeError as error:
        raise ConfigurationError(f"StructuredGeneration: the schema is not JSON: {error}") from None
    return dict(schema)
