"""Rows from libraries that read tables: Parquet files, data sets of the `datasets` library."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from asyncsynth.inputs.dicts import DictsReader
from asyncsynth.inputs.json_rows import to_json_row
from asyncsynth.inputs.reader import BadRowPolicy
from asyncsynth.records import Row


class TableReader(DictsReader):
    """Rows of a function that reads them again at each call. Dates and times become ISO 8601 text.

    Args:
        read: returns the rows from the first one, lazily; raises InputError for what cannot be read.
        kind, name: of the input, for its identity and for errors.
        size: how many rows there are, where that is known without reading them.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[Mapping[str, Any]]],
        *,
        kind: str,
        name: str,
        size: Callable[[], int | None],
        id_column: str | None = None,
        on_bad_row: BadRowPolicy = "stop",
        rename: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(read, id_column=id_column, on_bad_row=on_bad_row, rename=rename)
        self.kind = kind
        self.name = name
        self._size = size

    def size_hint(self) -> int | None:
        """The number of rows, where it is known."""
        return self._size()

    def _row(self, number: int, content: Any) -> Row:
        try:
            return to_json_row(content)
        except TypeError:
            return super()._row(number, _dates_as_text(content))


def _dates_as_text(value: Any) -> Any:
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: _dates_as_text(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_dates_as_text(item) for item in value]
    return value
