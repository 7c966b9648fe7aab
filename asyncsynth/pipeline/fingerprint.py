"""What a result depends on, as JSON, and the short hashes that key the journal."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from types import CellType, CodeType
from typing import Any

from asyncsynth.client.llm import LLM
from asyncsynth.errors import PipelineError
from asyncsynth.records import canonical_json


def jsonable(value: Any, *, where: str) -> Any:
    """`value` as JSON for a fingerprint. Raises PipelineError naming `where` for what has no stable form."""
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return _checked(value, where=where)
    if isinstance(value, LLM):
        kept = {} if value.reasoning == "separate" else {"reasoning": value.reasoning}  # runs from before it have none
        return {"model": value.model, "embedded": value.is_embedded, **kept, **jsonable(value.params(), where=where)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item, where=where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item, where=where) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((jsonable(item, where=where) for item in value), key=repr)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, re.Pattern):
        return {"pattern": str(value.pattern), "flags": value.flags}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: jsonable(getattr(value, field.name), where=where) for field in fields}
    if isinstance(value, type) and hasattr(value, "model_json_schema"):  # a pydantic model
        return value.model_json_schema()
    if callable(value):
        return function_identity(value, where=where)
    raise PipelineError(
        f"{where}: a {type(value).__name__} cannot be fingerprinted",
        hint="Use JSON values, or override settings() to say what decides the results.",
    )


def _checked(value: Any, *, where: str) -> Any:
    """A scalar that JSON can hold exactly."""
    try:
        canonical_json(value)
    except TypeError as error:  # a lone surrogate, an integer over 64 bits
        raise PipelineError(f"{where}: {error}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise PipelineError(f"{where}: {value} is not a JSON number")
    return value


def function_identity(function: Any, *, where: str) -> str:
    """Name and hash of a function: of its source, its defaults and the values it closes over.

    An edited function means redone results, and so does one made again over another value
    (``make_filter(3)``, ``make_filter(4)``), though their source is the same.
    """
    if isinstance(function, functools.partial):
        parts = jsonable([function.args, function.keywords], where=where)
        return f"partial:{function_identity(function.func, where=where)}:{short_hash(parts)}"
    code = getattr(function, "__code__", None)
    if code is None and not isinstance(function, type):  # an object with __call__
        return f"{_class_identity(type(function))}:{_state(getattr(function, '__dict__', {}), where=where)}"
    bound = [
        getattr(function, "__defaults__", None),
        getattr(function, "__kwdefaults__", None),
        [_cell(cell) for cell in getattr(function, "__closure__", None) or ()],
    ]
    source = _source(function, code, where=where)
    digest = hashlib.blake2b(source.encode() + _state(bound, where=where).encode(), digest_size=8).hexdigest()
    return f"{getattr(function, '__qualname__', type(function).__name__)}:{digest}"


def user_code(kind: type) -> list[str]:
    """Source hashes of the classes that are not this package's own (those have a `version`): a task of the
    user's whose `messages` or `parse` was edited means redone results."""
    return [
        _class_identity(base)
        for base in kind.__mro__
        if base is not object and base.__module__.split(".")[0] not in ("asyncsynth", "abc", "typing")
    ]


def _class_identity(kind: type) -> str:
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # typed at a prompt: the functions' code has to do
        functions = {name: value for name, value in vars(kind).items() if inspect.isfunction(value)}
        source = repr({name: _code_text(value.__code__) for name, value in sorted(functions.items())})
        if not functions:
            source = kind.__qualname__
    return f"{kind.__qualname__}:{hashlib.blake2b(source.encode(), digest_size=8).hexdigest()}"


def _source(function: Any, code: Any, *, where: str) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        if code is None:
            raise PipelineError(
                f"{where}: the source of {function!r} cannot be read, so its results could not be told apart",
                hint="Define it in a file.",
            ) from None
        return _code_text(code)


def _code_text(code: CodeType) -> str:
    """Instructions, names and constants, those of nested functions included; no addresses."""
    consts = [
        _code_text(item)
        if isinstance(item, CodeType)
        else repr(sorted(map(repr, item)))  # a set's order changes from process to process
        if isinstance(item, frozenset)
        else repr(item)
        for item in code.co_consts
    ]
    return repr((code.co_code.hex(), code.co_names, consts))


def _cell(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet: a function that refers to itself
        return None


def _state(values: Any, *, where: str) -> str:
    """Hash of the values that a function holds; a value with no stable form counts by its type."""

    def walk(value: Any, depth: int) -> Any:
        if depth > 4:
            return type(value).__qualname__
        if isinstance(value, dict):
            return {str(key): walk(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [walk(item, depth + 1) for item in value]
        if inspect.isfunction(value):  # itself perhaps: its source only
            return _source(value, value.__code__, where=where)
        try:
            return jsonable(value, where=where)
        except PipelineError:
            return type(value).__qualname__

    return short_hash(walk(values, 0))


def short_hash(value: Any) -> str:
    """12 hex digits (48 bits) of the canonical JSON of `value`."""
    return hashlib.blake2b(canonical_json(value), digest_size=6).hexdigest()
