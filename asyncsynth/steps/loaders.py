"""Sources of rows: Python dicts and JSON Lines files, read lazily."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from asyncsynth.errors import ConfigurationError, InputError, PipelineError
from asyncsynth.inputs.dicts import DictsReader
from asyncsynth.inputs.jsonl import JsonlReader
from asyncsynth.inputs.reader import BadRowPolicy, Reader
from asyncsynth.pipeline.step import SourceStep, nearest


class Loader(SourceStep):
    """What loaders share.

    Args:
        id_column: column that holds each row's unique id; None: rows are identified by their position.
        on_bad_row: "stop" the run at a row that cannot be used (InputError tells which and why), or "skip" it.
        output_mappings: column of the input -> column of the rows.
    """

    not_fingerprinted: ClassVar[frozenset[str]] = frozenset({"data", "path"})

    def __init__(
        self,
        *,
        id_column: str | None = None,
        on_bad_row: BadRowPolicy = "stop",
        name: str | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        self.id_column = id_column
        self.on_bad_row: BadRowPolicy = on_bad_row
        super().__init__(name=name, output_mappings=output_mappings)

    def known_columns(self) -> tuple[str, ...] | None:
        """The columns of the first good row, renamed. Raises InputError if the input is not usable."""
        columns = self.open().columns()
        came_from = {new: old for old, new in self.output_mappings.items()}
        known = tuple(came_from.get(column, column) for column in columns)
        for old in self.output_mappings:
            if old not in known:
                raise PipelineError(
                    f"step {self.name!r}: output_mappings names the column {old!r}, which the input does not "
                    f"have{nearest(old, known)}",
                    step=self.name,
                    column=old,
                    hint=f"It has {', '.join(known)}.",
                )
        return columns


class LoadDataFromDicts(Loader):
    """Rows given in Python: a list of dicts, any iterable, or a function that returns a fresh one each time.

    Give a list or a function: an iterator can be read only once.

    Args:
        data: the rows, or the function that returns them.

    Example::

        def numbers():
            return ({"id": f"n{number}", "prompt": f"What is {number} + 1?"} for number in range(2))

        with Pipeline(name="example") as pipeline:
            LoadDataFromDicts(numbers, id_column="id", output_mappings={"prompt": "instruction"})

    Result::

        {'id': 'n0', 'instruction': 'What is 0 + 1?'}
        {'id': 'n1', 'instruction': 'What is 1 + 1?'}
    """

    def __init__(
        self,
        data: Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]],
        *,
        id_column: str | None = None,
        on_bad_row: BadRowPolicy = "stop",
        name: str | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        # Made once: the reader keeps the rows that it has peeked at in an iterator.
        self._reader = DictsReader(data, id_column=id_column, on_bad_row=on_bad_row, rename=output_mappings)
        super().__init__(id_column=id_column, on_bad_row=on_bad_row, name=name, output_mappings=output_mappings)

    def open(self) -> Reader:
        """The reader of the data."""
        return self._reader


class LoadJSONL(Loader):
    """Rows of a JSON Lines file, plain or gzip; one line is in memory at a time.

    Args:
        path: the file; one whose name ends in ``.gz`` is unpacked while it is read.

    Example::

        Path("questions.jsonl").write_text('{"instruction": "Name a river."}\\nno JSON\\n')

        with Pipeline(name="example") as pipeline:
            LoadJSONL("questions.jsonl", on_bad_row="skip")

    Result::

        {'instruction': 'Name a river.'}
    """

    def __init__(
        self,
        path: str | Path,
        *,
        id_column: str | None = None,
        on_bad_row: BadRowPolicy = "stop",
        name: str | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(path, (str, Path)) or not str(path):
            raise InputError(
                f"LoadJSONL(path={path!r:.80}): the path of a JSON Lines file was expected",
                hint="Rows in Python are read with LoadDataFromDicts(data=...).",
            )
        self.path: Path = Path(path)
        super().__init__(id_column=id_column, on_bad_row=on_bad_row, name=name, output_mappings=output_mappings)

    def open(self) -> Reader:
        """A reader from the file's first line; the file is opened when it is iterated."""
        return JsonlReader(self.path, id_column=self.id_column, on_bad_row=self.on_bad_row, rename=self.output_mappings)


def extra(module: str, step: Loader) -> Any:
    """A module of the extra `datasets`. Raises ConfigurationError if it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"{type(step).__name__} needs the package {module.split('.')[0]}, which is not installed",
            hint="Install it with `pip install 'asyncsynth[datasets]'`.",
        ) from error
