"""Schemas that are Python types: pydantic models, generics, unions, lists, dataclasses, TypedDicts, a TypeAdapter.

pydantic is not a dependency: it is imported only for such a type.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import orjson

from asyncsynth.errors import ConfigurationError, PipelineError
from asyncsynth.pipeline.fingerprint import function_identity
from asyncsynth.tasks.json_schema import mismatch
from asyncsynth.tasks.schema_check import structure

_NOT_THE_USERS = frozenset(
    ["builtins", "typing", "types", "abc", "collections", "enum", "dataclasses", "pydantic", "pydantic_core",
     "annotated_types", "typing_extensions", "datetime", "decimal", "uuid", "pathlib", "ipaddress"]
)  # fmt: skip
_FAULTS_SHOWN = 3


class TypedSchema:
    """pydantic's form of a type. `json_schema` is its JSON schema, by the names that answers have (aliases).

    Raises ConfigurationError if pydantic is missing or does not accept the type.
    """

    def __init__(self, given: Any) -> None:
        adapter_class = _adapter_class(given)
        try:
            self.adapter = given if isinstance(given, adapter_class) else adapter_class(given)
            self.json_schema: dict[str, Any] = self.adapter.json_schema()
        except Exception as error:  # pydantic's errors have no base of their own; a NameError for a forward reference
            raise ConfigurationError(
                f"schema={given!r:.80}: a JSON schema or a type that pydantic knows was expected"
                f" ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
            ) from error
        self._structure = structure(self.json_schema)
        self._type = getattr(given, "_type", None) if isinstance(given, adapter_class) else given
        if self._type is None and given is not None:
            raise ConfigurationError(
                f"schema={given!r:.80}: this version of pydantic does not say what the TypeAdapter is for",
                hint="Give the type itself.",
            )

    def parsed(self, value: Any) -> tuple[Any, str]:
        """pydantic's value of an answer, and ''; or None and where the answer does not fit, in words.

        Strictly: the answer fits the JSON schema, and pydantic turns no type into another (a `Literal[1]` takes `true`
        even so). An error of a validator other than ValueError and AssertionError is raised as it is.
        """
        from pydantic import ValidationError

        try:
            made = self.adapter.validate_json(orjson.dumps(value), strict=True)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)
            words = [f"{_place(fault['loc'])}: {fault['msg']}" for fault in faults[:_FAULTS_SHOWN]]
            more = [f"and {len(faults) - _FAULTS_SHOWN} more"] if len(faults) > _FAULTS_SHOWN else []
            return None, "; ".join([*words, *more])
        words_of_schema = mismatch(value, self._structure)
        return (None, words_of_schema) if words_of_schema else (made, "")

    def dumped(self, made: Any) -> Any:
        """pydantic's value as JSON, under the names that answers have."""
        return self.adapter.dump_python(made, mode="json", by_alias=True)

    def code(self, *, where: str) -> list[str]:
        """Identities of the user's classes and functions that decide on an answer: models within models, base
        classes, validators in annotations."""
        return sorted(_identity(item, where=where) for item in self._users_parts())

    @property
    def has_own_code(self) -> bool:
        """True if a user's class or function decides on an answer."""
        return bool(self._users_parts())

    def _users_parts(self) -> list[Any]:
        seen: dict[int, Any] = {}
        _collect(self._type, seen)
        return [item for item in seen.values() if _is_users(item)]


def _adapter_class(given: Any) -> Any:
    if inspect.isroutine(given) or isinstance(given, (str, bytes, bool, int, float, list, tuple, set)):
        raise ConfigurationError(
            f"schema={given!r:.60}: a JSON schema as a dict, or a type such as a pydantic model was expected",
            hint="Read a schema that is a text with json.loads first.",
        )
    try:
        from pydantic import TypeAdapter
    except ImportError:
        raise ConfigurationError(
            f"schema={given!r:.60}: types as schemas need the package pydantic (2 or newer), which is not installed",
            hint="Install it with `pip install 'pydantic>=2'`, or give a JSON schema as a dict.",
        ) from None
    return TypeAdapter


def _collect(item: Any, seen: dict[int, Any]) -> None:
    """Adds all parts of a type, each once; holding the parts keeps their ids distinct."""
    if id(item) in seen or isinstance(item, (str, bytes, int, float, type(None))):
        return
    seen[id(item)] = item
    for part in _parts(item):
        _collect(part, seen)
    if isinstance(item, type) and _is_users(item):
        for part in (*item.__bases__, *_annotations(item)):
            _collect(part, seen)


def _is_users(item: Any) -> bool:
    """Whether it is a class or a function in user code."""
    if not (isinstance(item, type) or inspect.isroutine(item)) or typing.get_origin(item) is not None:
        return False
    generic = getattr(item, "__pydantic_generic_metadata__", None)
    if generic and generic["origin"] is not None:  # Box[int] is made when it is named; the code is Box's
        return False
    return str(getattr(item, "__module__", "builtins")).split(".")[0] not in _NOT_THE_USERS


def _parts(item: Any) -> Iterator[Any]:
    """The parts of a type."""
    origin = typing.get_origin(item)
    if origin is not None:
        yield origin
        yield from typing.get_args(item)
        yield from getattr(item, "__metadata__", ())  # of Annotated
    if generic := getattr(item, "__pydantic_generic_metadata__", None):
        if generic["origin"] is not None:
            yield generic["origin"]
        yield from generic["args"]
    # What AfterValidator and its like hold; `type X = ...`; fields.
    for attribute in ("func", "__value__", "default_factory", "discriminator"):
        if not isinstance(item, type) and (held := getattr(item, attribute, None)) is not None:
            yield held
    if not isinstance(item, type) and not inspect.isroutine(item):
        yield type(item)  # a marker of the user's own in Annotated


def _annotations(item: type) -> Iterator[Any]:
    if not getattr(item, "__pydantic_complete__", True) and hasattr(item, "model_rebuild"):
        item.model_rebuild(raise_errors=False)  # names of classes that came later in the file
    fields = getattr(item, "model_fields", None) or getattr(item, "__pydantic_fields__", None)
    if isinstance(fields, dict):  # annotations that were resolved where the class was made
        for field in fields.values():
            yield field.annotation
            yield field.default_factory
            yield from field.metadata
        return
    try:
        yield from typing.get_type_hints(item, include_extras=True).values()
    except (NameError, TypeError, AttributeError):
        yield from getattr(item, "__annotations__", {}).values()


def _identity(item: Any, *, where: str) -> str:
    try:
        return function_identity(item, where=where)
    except PipelineError:
        if not isinstance(item, type):
            raise
    # A class without a source, made by a call or typed at a prompt: its functions represent it.
    functions = [getattr(value, "__func__", value) for _, value in sorted(vars(item).items())]
    parts = [function_identity(each, where=where) for each in functions if inspect.isfunction(each)]
    return ":".join([item.__qualname__, *parts])


def _place(loc: tuple[int | str, ...]) -> str:
    words = ""
    for part in loc:
        words += f"[{part}]" if isinstance(part, int) else f".{part}" if words else str(part)
    return words or "the answer"
