"""Rows from Python: dictionaries in memory, or a function that makes them."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import orjson

from asyncsynth.errors import AsyncsynthError, InputError
from asyncsynth.inputs.json_rows import explain_unjsonable, to_json_row
from asyncsynth.inputs.reader import BadRowPolicy, Reader
from asyncsynth.records import Row


class DictsReader(Reader):
    """Rows from Python: an iterable of mappings, or a function that returns a fresh one at each call.

    An iterator can be read once only; a resume then needs the same rows again, from a new one.
    """

    kind = "dicts"
    name = "data"

    def __init__(
        self,
        data: Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]],
        *,
        id_column: str | None = None,
        on_bad_row: BadRowPolicy = "stop",
        rename: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(id_column=id_column, on_bad_row=on_bad_row, rename=rename)
        if isinstance(data, (str, bytes, Mapping)) or not (callable(data) or isinstance(data, Iterable)):
            raise InputError(
                f"data is {type(data).__name__}; a list (or other iterable) of dicts was expected",
                hint='Write data=[{"instruction": "..."}, ...]; read a file with LoadJSONL.',
            )
        self._data = data
        self._held: list[Any] = []  # what was peeked at of an iterator that cannot be read again
        self._spent = False

    def size_hint(self) -> int | None:
        """The number of rows of what has a length."""
        return len(self._data) if isinstance(self._data, Sized) else None

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        return self._pulled(self._fresh)

    def _pulled(self, rows: Callable[[], Iterable[Any]]) -> Iterator[tuple[int, Any]]:
        """The rows with their numbers; an exception of the code that makes them is reported with its place."""
        number = -1
        try:
            for number, content in enumerate(rows()):
                yield number, content
        except AsyncsynthError:
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise self._error(
                f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})",
                number + 1,
                hint="The code that makes the rows failed. Fix it, then run the same command again.",
            ) from error

    def _fresh(self) -> Iterable[Any]:
        if callable(self._data):
            return self._data()
        if not isinstance(self._data, Iterator):
            return self._data
        if self._spent:
            raise self._error(
                "is an iterator that was read already; rows that can be read again were expected",
                hint="Give a list, or a function that returns a new iterator.",
            )
        self._spent = True
        return itertools.chain(self._held, self._data)

    def columns(self) -> tuple[str, ...]:
        """The columns of the first good row; an iterator's first row is kept for the reading."""
        if not isinstance(self._data, Iterator) or callable(self._data) or self._spent:
            return super().columns()
        if not self._held:
            data = self._data
            self._held.extend(row for _, row in self._pulled(lambda: itertools.islice(data, 1)))
        if not self._held:
            raise self._error("holds no rows; at least one was expected", hint="Check which input is meant.")
        return tuple(self._renamed(0, self._row(0, self._held[0])))

    def _row(self, number: int, content: Any) -> Row:
        if not isinstance(content, Mapping):
            raise self._error(
                f"is {type(content).__name__}; a dict was expected",
                number,
                hint='Write each row as {"column": value, ...}.',
            )
        try:
            return to_json_row(content)
        except TypeError:
            place, what = explain_unjsonable(dict(content)) or ("the row", "not JSON")
            raise self._error(
                f"{place} is {what}; a plain JSON value was expected",
                number,
                column=place,
                hint="Convert it to a string, a number that JSON has, a list or a dict.",
            ) from None

    def _chunks(self) -> Iterator[bytes]:
        if isinstance(self._data, Iterator) and not callable(self._data):
            return  # looking would use it up; rows are then told apart by their own hashes
        for number, content in self._numbered():
            try:
                yield orjson.dumps(self._row(number, content)) + b"\n"
            except InputError:
                yield b"\n"  # told with its index when the rows are read

    def _error(self, message: str, number: int | None = None, *, hint: str, column: str = "") -> InputError:
        place = self.name if number is None else f"{self.name}[{number}]"
        return InputError(f"{place}: {message}", column=column, hint=hint)
