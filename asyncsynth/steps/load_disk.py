"""`LoadDisk`: rows of a data set that the `datasets` library saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from asyncsynth.errors import InputError
from asyncsynth.inputs.reader import BadRowPolicy, Reader
from asyncsynth.inputs.table_reader import TableReader
from asyncsynth.pipeline.step import nearest
from asyncsynth.records import Row
from asyncsynth.steps.loaders import Loader, extra


class LoadDisk(Loader):
    """Rows of a folder written by ``Dataset.save_to_disk``, memory-mapped; needs the extra `datasets`.

    Args:
        path: the folder.
        split: which part, if the folder holds several (a ``DatasetDict``).

    Example::

        import datasets

        datasets.Dataset.from_dict({"instruction": ["Name a river."]}).save_to_disk("questions")

        with Pipeline(name="example") as pipeline:
            LoadDisk("questions")

    Result::

        {'instruction': 'Name a river.'}
    """

    not_fingerprinted: ClassVar[frozenset[str]] = frozenset({"path"})

    def __init__(
        self,
        path: str | Path,
        *,
        split: str | None = None,
        id_column: str | None = None,
        on_bad_row: BadRowPolicy = "stop",
        name: str | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        self.path: Path = Path(path)
        self.split = split
        self._opened: Any = None
        super().__init__(id_column=id_column, on_bad_row=on_bad_row, name=name, output_mappings=output_mappings)

    def open(self) -> Reader:
        """A reader from the first row; the folder is opened when it is iterated."""
        return TableReader(
            self._rows,
            kind="disk",
            name=self.path.name,
            size=lambda: None if self._opened is None else len(self._opened),
            id_column=self.id_column,
            on_bad_row=self.on_bad_row,
            rename=self.output_mappings,
        )

    def _rows(self) -> Iterable[Row]:
        if self._opened is None:
            self._opened = self._load()
        rows: Iterable[Row] = self._opened
        return rows

    def _load(self) -> Any:
        datasets = extra("datasets", self)
        try:
            found = datasets.load_from_disk(str(self.path))
        except (OSError, ValueError) as error:
            raise InputError(
                f"is no data set that can be read ({error})",
                path=str(self.path),
                hint="Name a folder that Dataset.save_to_disk wrote; read Parquet files with LoadParquet.",
            ) from error
        if not isinstance(found, datasets.DatasetDict):
            if self.split is not None:
                raise InputError(
                    f"holds one data set without splits, so there is no {self.split!r}",
                    path=str(self.path),
                    hint="Leave split out.",
                )
            return found
        if self.split not in found:
            wanted = "a split must be named" if self.split is None else f"there is no split {self.split!r}"
            raise InputError(
                wanted + nearest(self.split or "", found),
                path=str(self.path),
                hint=f"It has {', '.join(map(repr, found))}: LoadDisk(path, split=...).",
            )
        return found[self.split]
