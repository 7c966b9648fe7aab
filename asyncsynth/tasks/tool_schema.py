"""JSON schemas of tools, made from the signatures of Python functions, and the check of a call's arguments.

A plain type (`str`, `int`, `float`, `bool`, `list[...]`, `dict[str, ...]`, `Literal`, unions of these) needs no
package. Every other type (dataclasses, enums, TypedDicts, pydantic models) goes through pydantic.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asyncsynth.errors import ConfigurationError
from asyncsynth.records import not_json
from asyncsynth.tasks.schema_check import BadSchema, Check, check_of
from asyncsynth.tasks.typed_schema import TypedSchema

ToolFunction = Callable[..., Any]
#: What the `tools` of a task may hold: schemas in the form of the OpenAI API, or functions.
ToolGiven = Mapping[str, Any] | ToolFunction

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
    list: {"type": "array"},
    dict: {"type": "object"},
}
_ANSWER = ("the answer", "the arguments")  #: the name of the value in a check's message
_ARGS_HEAD = re.compile(r"^(\s*)(?:Args|Arguments|Parameters):\s*$")
_ARG_LINE = re.compile(r"^\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
_PARAM_LINE = re.compile(r"^\s*:param\s+(?:[\w\[\], .|]+\s)?(\w+)\s*:\s*(.*)$")


class Tool:
    """A function that a model may call.

    Attributes:
        name: as the model calls it: the function's name.
        function: the function itself, sync or async.
        schema: ``{"type": "function", "function": {"name", "description", "parameters"}}``.

    Raises ConfigurationError for a function whose signature makes no schema.
    """

    def __init__(self, function: ToolFunction) -> None:
        self.name: str = getattr(function, "__name__", "")
        self.function = function
        if not callable(function) or not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"the tool {function!r:.80} has no name that a model can call",
                hint="Give a function whose name has at most 64 letters, digits, underscores and hyphens.",
            )
        parameters, self._typed = _parameters(self.name, function)
        described = _description(function)
        about = {"description": described} if described else {}
        self.schema: dict[str, Any] = {
            "type": "function",
            "function": {"name": self.name, **about, "parameters": parameters},
        }
        try:
            self._check = _check_of(parameters)
        except BadSchema as error:
            raise ConfigurationError(f"the tool {self.name}: its parameters make no JSON schema: {error}") from None
        self._whole = [name for name, said in parameters["properties"].items() if said.get("type") == "integer"]

    @property
    def is_async(self) -> bool:
        """True if calling it returns an awaitable."""
        call = getattr(self.function, "__call__", None)  # noqa: B004 - an object's method, not whether there is one
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(call)

    def arguments(self, given: Any) -> dict[str, Any]:
        """The keyword arguments that a model's JSON object stands for. Raises ValueError with the fault."""
        if not isinstance(given, dict):
            raise ValueError(f"the arguments must be a JSON object, not {type(given).__name__}")
        if fault := self._check(given):
            for said, meant in (("answer lacks", "arguments lack"), ("answer has", "arguments have"), _ANSWER):
                fault = fault.replace(said, meant)
            raise ValueError(fault)
        made = dict(given)
        for name in self._whole:  # 3.0 is an integer in JSON
            if isinstance(made.get(name), float):
                made[name] = int(made[name])
        for name, kind in self._typed.items():
            if name in made:
                value, fault = kind.parsed(made[name])
                if fault:
                    raise ValueError(f"{name}: {fault}")
                made[name] = value
        return made


def _check_of(parameters: dict[str, Any]) -> Check:
    """The check of arguments. Our own where possible, so that the model reads the same errors whatever is installed."""
    try:
        return check_of(parameters, library=False)
    except BadSchema:
        return check_of(parameters)


def tool_schemas(where: str, tools: Sequence[ToolGiven]) -> list[dict[str, Any]]:
    """`tools` as schemas in the form of the OpenAI API. Raises ConfigurationError that names `where` and the tool."""
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise ConfigurationError(f"{where}: tools={tools!r:.60}; a list of functions or of tool schemas was expected")
    made: list[dict[str, Any]] = []
    for number, tool in enumerate(tools):
        if isinstance(tool, Mapping):
            function = tool.get("function")
            is_function = tool.get("type") == "function"
            if not isinstance(tool.get("type"), str) or (
                is_function and not (isinstance(function, Mapping) and isinstance(function.get("name"), str))
            ):
                raise ConfigurationError(
                    f"{where}: tools[{number}] is {tool!r:.80}; a schema of the OpenAI API was expected",
                    hint='Give a function, or {"type": "function", "function": {"name": ..., "parameters": {...}}}.',
                )
            if (found := not_json(tool)) is not None:
                raise ConfigurationError(f"{where}: tools[{number}].{found[0]} is {found[1]}; JSON was expected")
            made.append(dict(tool))
        elif callable(tool):
            made.append(Tool(tool).schema)
        else:
            raise ConfigurationError(f"{where}: tools[{number}] is {tool!r:.60}; a function or a schema was expected")
    names = [tool["function"]["name"] for tool in made if tool["type"] == "function"]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigurationError(f"{where}: two tools have the name {min(twice)!r}")
    return made


def _parameters(tool: str, function: ToolFunction) -> tuple[dict[str, Any], dict[str, TypedSchema]]:
    """The schema of a function's parameters, and the converters of those that pydantic converts."""
    try:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function if inspect.isroutine(function) else function.__call__)  # type: ignore[operator]
    except (TypeError, ValueError, NameError) as error:
        raise ConfigurationError(f"the tool {tool}: its type hints cannot be read: {error}") from None
    described = _argument_descriptions(function)
    properties: dict[str, Any] = {}
    required: list[str] = []
    typed: dict[str, TypedSchema] = {}
    definitions: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigurationError(
                f"the tool {tool}: its parameter {name!r} cannot be given by name, as a model gives arguments"
            )
        if name not in hints:
            raise ConfigurationError(
                f"the tool {tool}: its parameter {name!r} has no type hint",
                hint=f"Write for example `{name}: str`. The JSON schema that the model sees is made of the hints.",
            )
        schema = _plain_schema(hints[name])
        if schema is None:
            try:
                typed[name] = TypedSchema(hints[name])
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"the tool {tool}: its parameter {name!r}: {error.message}", hint=error.hint
                ) from None
            schema = dict(typed[name].json_schema)
            definitions.update(schema.pop("$defs", {}))
        if name in described:
            schema = {**schema, "description": described[name]}
        if parameter.default is parameter.empty:
            required.append(name)
        elif not_json(parameter.default) is None:
            schema = {**schema, "default": parameter.default}
        properties[name] = schema
    made = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return ({**made, "$defs": definitions} if definitions else made), typed


def _plain_schema(hint: Any) -> dict[str, Any] | None:
    """The schema of a type whose values are JSON as they are; None for any other type."""
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return {"enum": list(args)} if all(isinstance(arg, (str, int, bool, type(None))) for arg in args) else None
    if origin in (typing.Union, types.UnionType):
        parts = [_plain_schema(arg) for arg in args]
        found = [part for part in parts if part is not None]
        return {"anyOf": found} if len(found) == len(parts) else None
    if origin is list:
        items = _plain_schema(args[0])
        return None if items is None else {"type": "array", "items": items}
    if origin is dict and args[0] is str:
        values = _plain_schema(args[1])
        return None if values is None else {"type": "object", "additionalProperties": values or True}
    return None


def _description(function: ToolFunction) -> str:
    """The text of a docstring before its sections."""
    lines = (inspect.getdoc(function) or "").splitlines()
    kept: list[str] = []
    for line in lines:
        if re.match(r"\s*(?:Args|Arguments|Parameters|Returns|Raises|Yields|Examples?):", line) or line.startswith(":"):
            break
        kept.append(line)
    return "\n".join(kept).strip()


def _argument_descriptions(function: ToolFunction) -> dict[str, str]:
    """A docstring's text for each parameter, in Google's form (``Args:``) or Sphinx's (``:param x:``)."""
    found: dict[str, str] = {}
    indent: int | None = None  #: of the lines that name parameters; None outside of the section
    inside, name = False, ""
    for line in (inspect.getdoc(function) or "").splitlines():
        if (sphinx := _PARAM_LINE.match(line)) is not None:
            found[sphinx[1]] = sphinx[2].strip()
            continue
        if _ARGS_HEAD.match(line):
            inside, indent = True, None
            continue
        depth = len(line) - len(line.lstrip())
        if not inside or not line.strip():
            continue
        if not depth:
            inside = False
            continue
        indent = depth if indent is None else indent
        if depth <= indent and (entry := _ARG_LINE.match(line)) is not None:
            name = entry[1]
            found[name] = entry[2].strip()
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found
