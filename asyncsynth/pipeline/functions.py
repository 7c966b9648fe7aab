"""Checks of a user's function for `@task` and `@step`: its declared columns, and its return value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from asyncsynth.errors import ConfigurationError, PipelineError, TaskFailure
from asyncsynth.records import Row


def declared_columns(where: str, what: str, columns: Iterable[str]) -> tuple[str, ...]:
    """`columns` as a tuple. Raises PipelineError for a lone string, other types, and a name given twice."""
    given = () if isinstance(columns, str) else tuple(columns)
    if isinstance(columns, str) or any(not isinstance(column, str) or not column for column in given):
        raise PipelineError(f"{where}: {what}={columns!r:.80}; a list of column names was expected")
    if len(set(given)) < len(given):
        raise PipelineError(f"{where}: {what} names a column twice: {', '.join(given)}")
    return given


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
        raise TaskFailure(f"the dict that {where} returned {' and '.join(problems)}", reason="bad_output")
    return dict(made)


def checked_timeout(where: str, timeout: float | None) -> float | None:
    """Raises ConfigurationError for an invalid time limit."""
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and 0 < timeout < float("inf")):
        raise ConfigurationError(f"{where}: timeout={timeout!r}; seconds above 0 were expected")
    return timeout
