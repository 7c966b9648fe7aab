"""A row as a user's code sees it, and the cause of an error in that code."""

from __future__ import annotations

import asyncio
import inspect
import os
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any, NoReturn

from asyncsynth.calling import nearest
from asyncsynth.client.concurrency import first_error
from asyncsynth.errors import InputError, RecordError
from asyncsynth.records import NotPlainJson, Row, plain_json

_OWN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_STDLIB = os.path.join(sysconfig.get_path("stdlib"), "")
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


class MissingColumn(KeyError):
    """A step asked its row for a column that is missing; any other KeyError has another cause."""

    def __init__(self, column: Any, columns: tuple[str, ...]) -> None:
        super().__init__(column)
        self.column = column
        self.columns = columns

    def __str__(self) -> str:
        return (
            f"the row has no column {self.column!r}{nearest(str(self.column), self.columns)}; "
            f"this step sees {', '.join(self.columns) or 'none'}"
        )


class SeenRow(dict[str, Any]):
    """A deep copy of a row of JSON values: changes by a user's code are visible to that code only.

    It names a missing column: `row["instrction"]` raises MissingColumn.
    """

    __slots__ = ()

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        for column, value in row.items():
            if type(value) is list or type(value) is dict:
                self[column] = plain_json(value)

    def __missing__(self, column: Any) -> NoReturn:
        raise MissingColumn(column, tuple(self))

    def __delitem__(self, column: str) -> None:
        self[column]
        super().__delitem__(column)

    def pop(self, column: str, *default: Any) -> Any:
        """As in a dict."""
        return super().pop(column, *default) if default else super().pop(column, self[column])

    def copy(self) -> SeenRow:
        """A copy that also names a missing column."""
        made = SeenRow({})
        made.update(self)
        return made


def runs_foreign_code(step: object) -> bool:
    """Whether a step's class is not this package's own: then its errors and values are the user's."""
    return type(step).__module__.split(".")[0] != "asyncsynth"


def row_error(error: BaseException, row: Mapping[str, Any]) -> RecordError:
    """Why a step failed on `row`, from whatever it raised."""
    if isinstance(error, BaseExceptionGroup):  # of a TaskGroup in the step's code
        return row_error(first_error(error), row)
    if isinstance(error, RecordError):
        return error
    if isinstance(error, NotPlainJson):
        output = f"the output {error.place!r}" if error.place else "an output"
        message = f"{output} is {error.what}, which JSON cannot carry unchanged. {error.advice}"
        return RecordError(message, reason="not_json")
    place = place_of(error)
    if isinstance(error, KeyError) and not isinstance(error, MissingColumn) and not place:
        # No line of user code is involved: this package's own steps look up columns, and nothing else, by key.
        error = MissingColumn(error.args[0] if error.args else "", tuple(row))
    where = f" ({place})" if place else ""
    if isinstance(error, MissingColumn):
        return RecordError(f"{error}{where}", reason="missing_column")
    said = keepable(error)
    if isinstance(error, asyncio.CancelledError):
        said = said or "the step's own code cancelled a task or a future, or awaited one that was cancelled"
    return RecordError(f"{type(error).__name__}{': ' if said else ''}{said}{where}", reason="step_error")


def keepable(said: object) -> str:
    """A reason or a message of a user's as text that the journal can hold; '' if it has no text."""
    try:
        return str(said).encode("utf-8", "backslashreplace").decode()
    except Exception:  # an exception with a faulty __str__
        return ""


def place_of(error: BaseException) -> str:
    """ "file.py:12", the innermost line of the user's own code that the error passed through; "" if there is none.

    A line of another installed package is given only if there is no line of user code.
    """
    return _place(traceback.walk_tb(error.__traceback__))


def place_of_frames(frames: Iterable[FrameType]) -> str:
    """As `place_of`, for the frames of a running stack, the innermost first."""
    return _place((frame, frame.f_lineno) for frame in reversed(list(frames)))


def _place(frames: Iterable[tuple[FrameType, int]]) -> str:
    users = installed = ""
    for frame, line in frames:
        path = frame.f_code.co_filename
        if path.startswith((_OWN, "<frozen ")):
            continue
        if any(folder in path for folder in _INSTALLED):
            installed = f"{path}:{line}"
        elif not path.startswith(_STDLIB):
            users = f"{path}:{line}"
    return (users or installed).removeprefix(os.path.join(os.getcwd(), ""))


def plain_row(made: Any, what: str) -> Row:
    """What a user's step made, as a row of JSON values. Raises RecordError (`bad_output`) and NotPlainJson."""
    if not isinstance(made, Mapping):
        advice = "; is a `return` missing?" if made is None else ""
        if inspect.iscoroutine(made):
            made.close()
            advice = "; it must be no `async def`"
        raise RecordError(f"{what} returned {type(made).__name__}; a dict was expected{advice}", reason="bad_output")
    row: Row = plain_json(made)
    return row


def plain_input(key: str, row: Any) -> Row:
    """A row of a user's own source, by the rule that this package's readers follow. Raises InputError."""
    try:
        return plain_row(row, f"record {key}: the source")
    except NotPlainJson as problem:
        message = f"record {key}: {problem}; a plain JSON value was expected"
        raise InputError(message, column=problem.place, hint=problem.advice) from None
    except RecordError as error:
        raise InputError(error.message, hint="Give each row as a dict of its columns.") from None
