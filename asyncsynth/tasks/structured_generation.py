"""`StructuredGeneration`: answers that are JSON of a given schema."""

from __future__ import annotations

from typing import Any

import orjson

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice, Message
from asyncsynth.client.needs import Feature
from asyncsynth.errors import ConfigurationError, ParseFailure, TaskFailure
from asyncsynth.pipeline.context import Context
from asyncsynth.pipeline.fingerprint import function_identity
from asyncsynth.records import Row, canonical_json
from asyncsynth.tasks.base import Task, text_of
from asyncsynth.tasks.json_schema import mismatch, schema_problem
from asyncsynth.tasks.parsing import last_value
from asyncsynth.tasks.templates import prompt_source, render


class StructuredGeneration(Task):
    """Answers an instruction with JSON that fits a JSON schema. The server constrains the answer where it can
    (``response_format``); in any case it is parsed and checked here, and asked for again when it does not fit.

    Columns: ``instruction``, optionally ``system_prompt`` and ``schema`` (a JSON schema for this row, as an
    object or as its text; wins over the task's) -> ``generation`` (the JSON value, not its text),
    ``model_name``. Without a `schema` argument every row must have the column.

    Args:
        schema: a JSON schema as a dict, or a pydantic model class: its schema is sent, its validators check
            the answer, and ``generation`` is its ``model_dump(mode="json")``.
        show_schema: put the schema into the prompt as well: the model then sees descriptions, and servers that
            ignore constraints are told the format. False sends the instruction as it is.
        Others: see `Task`.

    The check covers types, enum, const, required and additional properties, items, sizes, bounds, pattern,
    anyOf, oneOf, allOf, not and local references; ``format`` is not looked at. Bound texts by ``maxLength``:
    a weak model fills an open one until max_tokens.

    Example::

        schema = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                  "required": ["name", "age"]}
        StructuredGeneration(llm=LLM(model="Qwen/Qwen2.5-1.5B-Instruct"), schema=schema)

    ``{"instruction": "Invent a sailor."}`` gives ``{"generation": {"name": "Ana Ruiz", "age": 41},
    "model_name": "Qwen/Qwen2.5-1.5B-Instruct"}``.
    """

    version = 2  # of several values in an answer the last one counts
    outputs = ("generation", "model_name")
    prompt = "structured_generation"

    def __init__(self, llm: LLM, *, schema: Any = None, show_schema: bool = True, **settings: Any) -> None:
        self._model_class = schema if isinstance(schema, type) else None
        self.json_schema = None if schema is None else task_schema(schema)
        self.show_schema = show_schema
        self.inputs = ("instruction",) if schema is not None else ("instruction", "schema")
        self.optional_inputs = ("system_prompt", "schema") if schema is not None else ("system_prompt",)
        super().__init__(llm, **settings)

    def settings(self) -> dict[str, Any]:
        """The task's settings; of a pydantic model also its source, for its validators decide as well."""
        settings = super().settings()
        if self._model_class is not None:
            settings["model_class"] = function_identity(self._model_class, where=f"step {self.name!r}")
        return settings

    def does_without(self) -> frozenset[Feature]:
        """The server's constraint, where the prompt shows the schema; else nothing tells the model of it."""
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
            found = orjson.loads(given) if isinstance(given, str) else given
        except orjson.JSONDecodeError as error:
            raise TaskFailure(f"the input 'schema' is not JSON: {error}", reason="bad_input") from None
        if not isinstance(found, dict) or (problem := schema_problem(found)):
            raise TaskFailure(
                f"the input 'schema' is no JSON schema: {problem if isinstance(found, dict) else f'{found!r:.60}'}",
                reason="bad_input",
            )
        return found

    def parse(self, choice: Choice, row: Row) -> Row:
        """The last JSON value in the answer that fits: those before it are drafts."""
        schema = self.schema(row)
        wrong = "there is no JSON in it"
        if choice.finish_reason == "length":
            wrong += ": it was cut at max_tokens"
        fitting: tuple[Any, str] | None = None

        def fits(value: Any) -> tuple[Any] | None:
            nonlocal wrong
            wrong = mismatch(value, schema)
            return None if wrong else (value,)

        if (fitting := last_value(choice.text, fits)) is not None:
            return {"generation": self._validated(fitting[0][0], row, choice)}
        raise ParseFailure(f"the answer does not fit the schema: {wrong}", raw=choice.text)

    def _validated(self, value: Any, row: Row, choice: Choice) -> Any:
        """The value as the pydantic model has it, where the task's schema is one."""
        if self._model_class is None or row.get("schema") is not None:
            return value
        try:
            return self._model_class.model_validate(value).model_dump(mode="json")  # type: ignore[attr-defined]
        except ValueError as error:  # pydantic's ValidationError is one
            raise ParseFailure(f"the answer is not valid: {error}", raw=choice.text) from error


def task_schema(schema: Any) -> dict[str, Any]:
    """The JSON schema in a dict or of a pydantic model class. Raises ConfigurationError for anything else."""
    if isinstance(schema, type) and hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    if not isinstance(schema, dict):
        raise ConfigurationError(
            f"StructuredGeneration(schema={schema!r:.60}): a JSON schema or a pydantic model class was expected"
        )
    try:
        canonical_json(schema)
    except TypeError as error:
        raise ConfigurationError(f"StructuredGeneration: the schema is not JSON: {error}") from None
    if problem := schema_problem(schema):
        raise ConfigurationError(f"StructuredGeneration: the schema cannot be used: {problem}")
    return dict(schema)
