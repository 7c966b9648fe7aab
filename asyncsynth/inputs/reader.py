"""What all readers of rows share: keys, renaming, what to do about a bad row, the input's identity."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from asyncsynth.errors import InputError
from asyncsynth.records import Part, Row

HEAD_BYTES = 1 << 20  #: how much of the input's beginning identifies it

BadRowPolicy = Literal["stop", "skip"]


class SourceRow(NamedTuple):
    """One good row. `number` is its line (1-based) or index (0-based); `key` its id, if asked for."""

    number: int
    key: str | None
    row: Row


class BadRow(NamedTuple):
    """A row that cannot be used, under ``on_bad_row="skip"``."""

    number: int
    message: str


class Reader:
    """A source of rows: may be iterated again from the start, and can say whether it is still the same input.

    Args:
        id_column: column whose value is the row's key; None when rows are known by their position.
        on_bad_row: "stop" raises InputError at the first bad row, "skip" yields a BadRow in its place.
        rename: column of the input -> column of the rows; `id_column` is a name of the input.
    """

    kind = ""
    name = ""
    path: Path | None = None  #: the file that is read, where there is one
    may_be_empty = False

    def __init__(
        self,
        *,
        id_column: str | None = None,
        on_bad_row: BadRowPolicy = "stop",
        rename: Mapping[str, str] | None = None,
    ) -> None:
        if on_bad_row not in ("stop", "skip"):
            raise InputError(f"on_bad_row is {on_bad_row!r}", hint='Use "stop" or "skip".')
        self.id_column = id_column
        self.rename: dict[str, str] = dict(rename or {})
        self.on_bad_row: BadRowPolicy = on_bad_row

    def __iter__(self) -> Iterator[SourceRow | BadRow]:
        return (item for _, item in self.placed())

    def _item(self, number: int, content: Any) -> SourceRow | BadRow:
        try:
            row = self._row(number, content)
            key = self._key(number, row) if self.id_column else None
            return SourceRow(number, key, self._renamed(number, row) if self.rename else row)
        except InputError as error:
            if self.on_bad_row == "stop":
                raise
            return BadRow(number, error.message)

    def placed(self, limit: int | None = None, shard: Part | None = None) -> Iterator[tuple[int, SourceRow | BadRow]]:
        """(position, row) of the first `limit` rows, from 0; of a shard only its own.

        Where rows are known by position, those of other shards are read over without being parsed.
        """
        position = -1
        for position, (number, content) in islice(enumerate(self._numbered()), limit):
            if shard is None:
                yield position, self._item(number, content)
                continue
            if self.id_column is None:
                if shard.has(position):
                    yield position, self._item(number, content)
                continue
            item = self._item(number, content)
            if shard.has_key(str(position) if isinstance(item, BadRow) else cast(str, item.key)):
                yield position, item
        if position < 0 and limit != 0 and not self.may_be_empty:
            raise self._error("holds no rows; at least one was expected", hint="Check which input is meant.")

    def identity(self) -> dict[str, Any]:
        """What this input is known by: its kind, its name, and a digest of its first MiB."""
        count, digest = _digest(self._chunks(), HEAD_BYTES)
        return {"kind": self.kind, "name": self.name, "head_bytes": count, "head_sha256": digest}

    def extends(self, old: Mapping[str, Any]) -> bool:
        """Whether this input begins as the one with that identity did: the same, or with rows added."""
        wanted = old.get("head_bytes")
        if old.get("kind") != self.kind or not isinstance(wanted, int):
            return False
        return _digest(self._chunks(), wanted) == (wanted, old.get("head_sha256"))

    def columns(self) -> tuple[str, ...]:
        """The columns of the first good row. Raises InputError if there is none."""
        for item in self:
            if isinstance(item, SourceRow):
                return tuple(item.row)
        raise self._error("holds no usable row; every row is bad", hint='See why with on_bad_row="stop".')

    def _renamed(self, number: int, row: Row) -> Row:
        renamed = {self.rename.get(column, column): value for column, value in row.items()}
        if len(renamed) < len(row):
            twice = next(new for old, new in self.rename.items() if old in row and new in row)
            raise self._error(
                f"renaming leaves two columns named {twice!r}; columns of different names were expected",
                number,
                column=twice,
                hint="Rename to a column that the rows do not have.",
            )
        return renamed

    def size_hint(self) -> int | None:
        """About how many rows there are, where that is known cheaply; for progress."""
        return None

    @abstractmethod
    def _numbered(self) -> Iterator[tuple[int, Any]]:
        raise NotImplementedError

    @abstractmethod
    def _row(self, number: int, content: Any) -> Row:
        raise NotImplementedError

    @abstractmethod
    def _chunks(self) -> Iterator[bytes]:
        """The input's bytes from the start, for its digest."""
        raise NotImplementedError

    @abstractmethod
    def _error(self, message: str, number: int | None = None, *, hint: str, column: str = "") -> InputError:
        raise NotImplementedError

    def _key(self, number: int, row: Row) -> str:
        column = cast(str, self.id_column)
        if column not in row:
            raise self._error(
                f"the row has no id column {column!r}; its columns are {', '.join(map(repr, row)) or 'none'}",
                number,
                column=column,
                hint="Give every row an id, name another id_column, or leave it out to use row positions.",
            )
        value = row[column]
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise self._error(
                f"the id {column!r} is {json.dumps(value)[:60]}; a non-empty string or integer was expected",
                number,
                column=column,
                hint="Write ids as strings or integers.",
            )
        return str(value)


def _digest(chunks: Iterator[bytes], limit: int) -> tuple[int, str]:
    """How many of the first `limit` bytes there are, and their SHA-256."""
    digest = hashlib.sha256()
    count = 0
    for chunk in chunks:
        part = chunk[: limit - count]
        digest.update(part)
        count += len(part)
        if count >= limit:
            break
    return count, digest.hexdigest()
