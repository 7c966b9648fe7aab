"""`LoadParquet`: rows of Parquet files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from asyncsynth.errors import InputError
from asyncsynth.inputs.reader import BadRowPolicy, Reader
from asyncsynth.inputs.table_reader import TableReader
from asyncsynth.pipeline.step import nearest
from asyncsynth.records import Row
from asyncsynth.steps.arguments import column_names
from asyncsynth.steps.loaders import Loader, extra

_BATCH_ROWS = 256


class LoadParquet(Loader):
    """Rows of a Parquet file, or of all ``*.parquet`` files of a directory in the order of their names.

    Read in batches of 256 rows; needs the extra `datasets`. Dates and times become ISO 8601 text; binary
    values are refused, unless `columns` leaves them out.

    Args:
        path: the file or directory.
        columns: read these columns only.

    Example::

        import pyarrow.parquet

        table = pyarrow.table({"instruction": ["Name a river.", "Name a lake."], "id": [1, 2]})
        pyarrow.parquet.write_table(table, "questions.parquet")

        with Pipeline(name="example") as pipeline:
            LoadParquet("questions.parquet", columns="instruction")

    Result::

        {'instruction': 'Name a river.'}
        {'instruction': 'Name a lake.'}
    """

    not_fingerprinted: ClassVar[frozenset[str]] = frozenset({"path"})

    def __init__(
        self,
        path: str | Path,
        *,
        columns: Sequence[str] | str | None = None,
        id_column: str | None = None,
        on_bad_row: BadRowPolicy = "stop",
        name: str | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(path, (str, Path)) or not str(path):
            raise InputError(
                f"LoadParquet(path={path!r:.80}): the path of a Parquet file was expected",
                hint="Rows in Python are read with LoadDataFromDicts(data=...).",
            )
        self.path: Path = Path(path)
        self.columns: tuple[str, ...] | None = (
            None if columns is None else column_names("LoadParquet", "columns", columns)
        )
        super().__init__(id_column=id_column, on_bad_row=on_bad_row, name=name, output_mappings=output_mappings)

    def open(self) -> Reader:
        """A reader from the first row; files are opened when it is iterated."""
        return TableReader(
            self._rows,
            kind="parquet",
            name=self.path.name,
            size=self._size,
            id_column=self.id_column,
            on_bad_row=self.on_bad_row,
            rename=self.output_mappings,
        )

    def _rows(self) -> Iterator[Row]:
        columns = None if self.columns is None else list(self.columns)
        for path in self._files():
            with self._opened(path) as file:
                self._check_columns(path, file.schema_arrow.names)
                for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                    yield from batch.to_pylist()

    def _size(self) -> int | None:
        total = 0
        try:
            for path in self._files():
                with self._opened(path) as file:
                    total += file.metadata.num_rows
        except InputError:
            return None  # reported when the rows are read
        return total

    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        files = sorted(self.path.glob("*.parquet"))
        if not files:
            raise self._error("holds no *.parquet files", self.path)
        return files

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        parquet = extra("pyarrow.parquet", self)
        arrow = extra("pyarrow", self)
        try:
            with parquet.ParquetFile(path) as file:
                yield file
        except FileNotFoundError:
            raise self._error("does not exist", path) from None
        except (OSError, arrow.ArrowException) as error:
            raise self._error(f"cannot be read ({error})", path) from error

    def _check_columns(self, path: Path, names: list[str]) -> None:
        for column in self.columns or ():
            if column not in names:
                raise InputError(
                    f"has no column {column!r}{nearest(column, names)}",
                    path=str(path),
                    column=column,
                    hint=f"It has {', '.join(names)}.",
                )

    def _error(self, what: str, path: Path) -> InputError:
        return InputError(
            f"{what}; a Parquet file was expected",
            path=str(path),
            hint=f"Check the path; it is taken relative to {Path.cwd()}.",
        )
