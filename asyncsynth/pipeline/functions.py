"""What `@task` and `@step` need of a user's function: its identity, and the columns it is declared with."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from asyncsynth.errors import PipelineError, TaskFailure
from asyncsynth.pipeline.fingerprint import function_identity, jsonable
from asyncsynth.records import Row

_MAX_DEPTH = 3  #: how far functions that call functions are followed


def declared_columns(where: str, what: str, columns: Iterable[str]) -> tuple[str, ...]:
    """`columns` as a tuple. Raises PipelineError for a lone string, other types, and a name given twice."""
    given = () if isinstance(columns, str) else tuple(columns)
    if isinstance(columns, str) or any(not isinstance(column, str) or not column for column in given):
        raise PipelineError(f"{where}: {what}={columns!r:.80}; a list of column names was expected")
    if len(set(given)) < len(given):
        raise PipelineError(f"{where}: {what} names a column twice: {', '.join(given)}")
    return given


def referenced_globals(function: Callable[..., Any]) -> dict[str, Any]:
    """The module-level constants and functions that a function uses, as JSON, for its fingerprint.

    A prompt kept in a constant beside the function decides its results as much as the source does. Classes,
    modules and objects without a stable form are left out; so are the functions of other packages.
    """
    found: dict[str, Any] = {}
    _collect(function, found, depth=0)
    return found


def _collect(function: Any, found: dict[str, Any], depth: int) -> None:
    code = getattr(function, "__code__", None)
    if code is None or depth > _MAX_DEPTH:
        return
    module = function.__module__
    for name in sorted(set(_names(code))):
        value = function.__globals__.get(name, code)
        if value is code or isinstance(value, (type, types.ModuleType)):
            continue
        if callable(value) and (not inspect.isfunction(value) or value.__module__ != module):
            continue
        key = f"{module}.{name}"
        if key in found:
            continue
        try:
            found[key] = (
                function_identity(value, where=name) if inspect.isfunction(value) else jsonable(value, where=name)
            )
        except PipelineError:
            continue
        _collect(value, found, depth + 1)


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that the code may look up, those of nested functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def checked_outputs(made: Any, outputs: tuple[str, ...], *, where: str, filled: tuple[str, ...] = ()) -> Row:
    """What a user's function returned, with exactly the declared columns (`filled` ones may be left out).

    Raises TaskFailure (`bad_output`) that says what is missing or not declared.
    """
    if not isinstance(made, Mapping):
        forgotten = "; is a `return` missing?" if made is None else ""
        raise TaskFailure(
            f"{where} returned {type(made).__name__}, a dict was expected{forgotten}", reason="bad_output"
        )
    missing = [name for name in outputs if name not in made and name not in filled]
    unknown = [str(name) for name in made if name not in outputs]
    if missing or unknown:
        problems = [f"lacks {', '.join(missing)}"] if missing else []
        problems += [f"has {', '.join(unknown)}, which outputs= does not declare"] if unknown else []
        raise TaskFailure(f"what {where} returned {' and '.join(problems)}", reason="bad_output")
    return dict(made)
