"""Files derived from the journal: JSON Lines, CSV, Parquet. They can be made again at any time.

A file appears whole or not at all: it is written beside its place, synced, then renamed. Rows are in input
order, so the same run gives the same bytes however often it was interrupted.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from asyncsynth.errors import ConfigurationError
from asyncsynth.records import Row
from asyncsynth.storage.extent import Completeness, completeness, refuse_unfinished
from asyncsynth.storage.files import (
    EXPORT_MODE,
    FILE_MODE,
    REAL,
    FileSystem,
    make_directory,
    open_temporary,
    remove_stale,
    storage_error,
    write_all,
)
from asyncsynth.storage.layout import refuse_own_files
from asyncsynth.storage.result_rows import RunColumn, RunRows, leaves

__all__ = ["Exported", "RunColumn", "RunRows", "export", "leaves"]

_BUFFER = 1 << 20  #: bytes collected before they are written
_PARQUET_BATCH = 1024  #: rows turned into columns at a time

#: Characters that begin a formula in a spreadsheet, their full-width forms, and those that may hide one: space, a byte
#: order mark (the first cell's is the file's), marks without width.
_FORMULA = re.compile(
    "[\\s\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]*[=+\\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]"
)
#: C0 but tab and line ends, DEL, C1: not to reach a table or a terminal.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
#: DEL and C1 in UTF-8: JSON does not escape them, and a terminal obeys some of them.
_JSON_CONTROL = re.compile(rb"\x7f|\xc2[\x80-\x9f]")


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    path: Path
    rows: int
    completeness: Completeness  #: of the run: an unfinished one has rows that are not there yet


def export(
    directory: Path | str,
    to: Path | str,
    *,
    leaf: str = "default",
    epoch: int | None = None,
    complete_only: bool = False,
    provenance: bool = False,
    fs: FileSystem = REAL,
) -> Exported:
    """Writes the rows of one end of the graph to a file; its suffix is the format (.jsonl, .csv, .parquet).

    `epoch` and `provenance` (a column that says how each row was made) as in `RunRows`. A file that is there is
    replaced. CSV is for viewing: lists and objects become JSON text, control characters U+FFFD, and cells that a
    spreadsheet would run get a `'` in front. JSON Lines and Parquet keep every text unchanged, JSON Lines with control
    characters escaped.

    The result tells whether the run is complete. With `complete_only` a run that is not known to be complete raises
    RunUnfinished, and nothing is written. Raises ConfigurationError, StorageError, CorruptJournal.
    """
    to = Path(to)
    writer = _WRITERS.get(to.suffix.lower())
    if writer is None:
        raise ConfigurationError(
            f"{to}: cannot export to {to.suffix or 'a file without a suffix'}",
            hint=f"Name a file that ends with {', '.join(_WRITERS)}.",
        )
    directory = Path(directory)
    refuse_own_files(to, directory)
    # Read before the rows: a record that ends meanwhile makes it report too few, never too many.
    found = completeness(directory)
    if complete_only:
        refuse_unfinished(directory, found)
    rows = RunRows(directory, leaf, epoch=epoch, provenance=provenance)
    make_directory(fs, to.resolve().parent)
    with NewFile(to, fs, EXPORT_MODE) as file:
        writer(rows, file)
    return Exported(to, len(rows), found)


def _write_jsonl(rows: RunRows, file: NewFile) -> None:
    for row in rows:
        file.write(json_line(row))


def json_line(row: Row) -> bytes:
    """A row as a line of JSON without control characters."""
    line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    # Looking for two bytes is ten times as fast as the expression, and most lines have neither.
    if b"\x7f" in line or b"\xc2" in line:
        line = _JSON_CONTROL.sub(_escape, line)
    return line


def _escape(found: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(found[0].decode())


def _write_csv(rows: RunRows, file: NewFile) -> None:
    columns = _all_columns(rows)
    line = io.StringIO(newline="")
    writer = csv.writer(line)

    def put(cells: list[str]) -> None:
        writer.writerow(cells)
        file.write(line.getvalue().encode())
        line.seek(0)
        line.truncate()

    put([_cell(column) for column in columns])
    for row in rows:
        put([_cell(row.get(column)) for column in columns])


def _all_columns(rows: RunRows) -> list[str]:
    """Every column of every row, in the order in which they are met: one reading of all rows."""
    columns: dict[str, None] = {}
    for row in rows:
        if not row.keys() <= columns.keys():
            columns.update(dict.fromkeys(row))
    return list(columns)


def _cell(value: Any) -> str:
    """A value as a cell. Text that could be run is defused; numbers stay numbers."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return _CONTROL.sub("\ufffd", orjson.dumps(value).decode())
    text = _CONTROL.sub("\ufffd", value)
    return f"'{text}" if _FORMULA.match(text) else text


def _write_parquet(rows: RunRows, file: NewFile) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigurationError(
            f"{file.path}: Parquet needs the package pyarrow, which is not installed",
            hint="Install it with `pip install 'asyncsynth[datasets]'`, or export to .jsonl.",
        ) from None
    columns = dict.fromkeys(_all_columns(rows))
    # Read twice: the first time finds the types, which a column's first rows may not show (nulls, empty lists).
    schema = pyarrow.schema([])
    try:
        for batch in _batches(rows, columns):
            found = pyarrow.Table.from_pylist(batch).schema
            schema = pyarrow.unify_schemas([schema, found], promote_options="permissive")
        with pyarrow.parquet.ParquetWriter(file.sink(), schema) as writer:
            for batch in _batches(rows, columns):
                writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
    except pyarrow.ArrowException as error:
        place = _misfit(rows, list(columns))
        raise ConfigurationError(
            f"{file.path}: {place or 'the rows'} does not fit into Parquet's typed columns ({error})",
            hint="Export to .jsonl, or make the column's values of one type. If it holds messages of which some have "
            'text and others have parts, FormSFT and FormPreference write all in one form: content="text" or "parts".',
        ) from error


def _misfit(rows: RunRows, columns: list[str]) -> str:
    """The first value that is of no type, or of another than those before it in its column; '' if there is none."""
    import pyarrow

    types = {column: pyarrow.schema([]) for column in columns}
    for number, row in enumerate(rows):
        for column in columns:
            try:
                found = pyarrow.schema([(column, pyarrow.infer_type([row.get(column)]))])
                types[column] = pyarrow.unify_schemas([types[column], found], promote_options="permissive")
            except pyarrow.ArrowException:
                return f"the column {column!r} of row {number}"
    return ""


def _batches(rows: RunRows, columns: Row) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append({**columns, **row})  # from_pylist looks for columns in a batch's first row only
        if len(batch) == _PARQUET_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


_WRITERS: dict[str, Callable[[RunRows, NewFile], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}


class NewFile:
    """A file that gets its name only when it is complete and on the disk. Context manager.

    `mode`, less the umask, is the file's.
    """

    def __init__(self, path: Path, fs: FileSystem, mode: int = FILE_MODE) -> None:
        self.path = path
        self._mode = mode
        self._fs = fs
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        remove_stale(self.path.parent, fs=self._fs, of=self.path.name)
        try:
            self._fd, self._temporary = open_temporary(self.path, fs=self._fs, mode=self._mode)
        except OSError as error:
            raise storage_error(error, self.path, "write the file") from error
        return self

    def write(self, data: bytes) -> None:
        """Adds bytes. Raises StorageError."""
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def sink(self) -> io.RawIOBase:
        """As a file object, for libraries that want one."""
        return _Sink(self)

    def _flush(self) -> None:
        try:
            write_all(self._fs, self._fd, bytes(self._buffer))
        except OSError as error:
            raise storage_error(error, self.path, "write the file") from error
        self._buffer.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            try:
                if error is None:
                    self._flush()
                    self._fs.fdatasync(self._fd)
            finally:
                self._fs.close(self._fd)
            if error is None:
                self._fs.rename(self._temporary, self.path)
                self._fs.fsync_dir(self.path.parent)
        except OSError as failure:
            error = failure
            raise storage_error(failure, self.path, "write the file") from failure
        except BaseException as failure:
            error = failure
            raise
        finally:
            if error is not None:
                with contextlib.suppress(OSError):
                    self._fs.unlink(self._temporary)


class _Sink(io.RawIOBase):
    """Write-only view of a `NewFile`; closing it does not close that."""

    def __init__(self, file: NewFile) -> None:
        self._file = file
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._file.write(part)
        self._written += len(part)
        return len(part)

    def tell(self) -> int:
        return self._written
