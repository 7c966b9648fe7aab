"""Checks of the arguments of steps, with messages of one form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from asyncsynth.errors import PipelineError
from asyncsynth.pipeline.step import ColumnOrigins, Step


def column_names(step: str, argument: str, value: Any) -> tuple[str, ...]:
    """`value` as a tuple of different column names; a single name may be given alone. Raises PipelineError."""
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise PipelineError(
            f"{step}({argument}={value!r:.80}): column names were expected",
            step=step,
            hint=f'Write {argument}=["generation"], say.',
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise PipelineError(f"{step}: {argument} names the column {twice!r} twice", step=step, column=twice)
    return names


def add_new_column(step: Step, columns: ColumnOrigins, column: str, *, hint: str) -> None:
    """Adds a column that the step makes. Raises PipelineError if there is one of that name."""
    if column in columns:
        raise PipelineError(
            f"step {step.name!r} would overwrite the column {column!r} made by {columns[column]!r}",
            step=step.name,
            column=column,
            hint=hint,
        )
    columns[column] = step.name


def one_of(step: str, argument: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises PipelineError unless `value` is one of `choices`."""
    if value not in choices:
        raise PipelineError(
            f"{step}: {argument} is {value!r}", step=step, hint=f"Choose {' or '.join(map(repr, choices))}."
        )
