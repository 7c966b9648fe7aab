"""Steps that keep, rename, expand and merge columns, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asyncsynth.errors import PipelineError, RecordError
from asyncsynth.pipeline.step import ColumnOrigins, Dropped, RowCount, RowStep
from asyncsynth.records import Row
from asyncsynth.steps.arguments import add_new_column, column_names


class KeepColumns(RowStep):
    """Keeps the given columns, in the given order, and drops all others.

    Args:
        columns: the columns to keep; a step later than this one sees no others.

    Example::

        with Pipeline(name="example") as pipeline:
            LoadDataFromDicts([{"id": 7, "instruction": "Name a river."}]) >> KeepColumns(["instruction"])

    Result::

        {'instruction': 'Name a river.'}
    """

    def __init__(self, columns: Sequence[str] | str, *, name: str | None = None) -> None:
        self.columns: tuple[str, ...] = column_names("KeepColumns", "columns", columns)
        super().__init__(name=name)

    def row_count(self) -> RowCount:
        """One row for each row."""
        return 1

    def apply(self, row: Row) -> Row:
        """The row with only the kept columns."""
        return {column: row[column] for column in self.columns}

    def flow(self, incoming: Sequence[ColumnOrigins]) -> ColumnOrigins:
        """The kept columns."""
        self.require(incoming[0], self.columns)
        return {column: incoming[0][column] for column in self.columns}


class RenameColumns(RowStep):
    """Renames columns: ``RenameColumns({"generation": "response"})``. Names may be exchanged.

    Args:
        rename_mappings: old name -> new name.

    Example::

        with Pipeline(name="example") as pipeline:
            LoadDataFromDicts([{"prompt": "Name a river."}]) >> RenameColumns({"prompt": "instruction"})

    Result::

        {'instruction': 'Name a river.'}
    """

    def __init__(self, rename_mappings: Mapping[str, str], *, name: str | None = None) -> None:
        if not isinstance(rename_mappings, Mapping):
            raise PipelineError(
                f"RenameColumns(rename_mappings={rename_mappings!r:.80}): a dict was expected",
                hint='Write RenameColumns({"old": "new"}).',
            )
        self.rename_mappings: dict[str, str] = dict(
            zip(
                column_names("RenameColumns", "rename_mappings", rename_mappings),
                column_names("RenameColumns", "rename_mappings", rename_mappings.values()),
                strict=True,
            )
        )
        super().__init__(name=name)

    def row_count(self) -> RowCount:
        """One row for each row."""
        return 1

    def apply(self, row: Row) -> Row:
        """The row under its new names, columns in their old order."""
        for column in self.rename_mappings:
            row[column]  # a KeyError means a missing column
        renamed = {self.rename_mappings.get(column, column): value for column, value in row.items()}
        if len(renamed) < len(row):
            raise RecordError("renaming leaves two columns of one name", reason="column_exists")
        return renamed

    def flow(self, incoming: Sequence[ColumnOrigins]) -> ColumnOrigins:
        """The columns under their new names."""
        columns = incoming[0]
        self.require(columns, tuple(self.rename_mappings))
        flowing: ColumnOrigins = {}
        for column, maker in columns.items():
            new = self.rename_mappings.get(column, column)
            if new in flowing or (new != column and new in columns and new not in self.rename_mappings):
                raise PipelineError(
                    f"step {self.name!r} would rename a column to {new!r}, made by {columns[new]!r}",
                    step=self.name,
                    column=new,
                    hint="Choose another name, or rename that column too.",
                )
            flowing[new] = self.name if column in self.rename_mappings else maker
        return flowing


class ExpandColumns(RowStep):
    """Makes a row of every item of a list. Several columns are expanded side by side.

    Args:
        columns: the list columns, or ``{column: name of the item's column}``.

    Lists of one row must be of equal length (else the row fails, `unequal_lists`); a row whose lists are
    empty is dropped and counted (`empty_list`).

    Example::

        with Pipeline(name="example") as pipeline:
            data = LoadDataFromDicts([{"topic": "rivers", "questions": ["Which is longest?", "Which is widest?"]}])
            data >> ExpandColumns({"questions": "instruction"})

    Result::

        {'topic': 'rivers', 'instruction': 'Which is longest?'}
        {'topic': 'rivers', 'instruction': 'Which is widest?'}
    """

    def __init__(self, columns: Sequence[str] | str | Mapping[str, str], *, name: str | None = None) -> None:
        self.columns: tuple[str, ...] = column_names("ExpandColumns", "columns", columns)
        names = columns.values() if isinstance(columns, Mapping) else columns
        self.output_columns: tuple[str, ...] = column_names("ExpandColumns", "columns", names)
        super().__init__(name=name)

    def row_count(self) -> RowCount:
        """One row for each item of the lists."""
        return "list"

    def apply(self, row: Row) -> list[Row]:
        """One row for each item; the other columns are the same in all."""
        lists = [row[column] for column in self.columns]
        for column, value in zip(self.columns, lists, strict=True):
            if not isinstance(value, list):
                raise RecordError(
                    f"{column!r} is {type(value).__name__}; a list to expand was expected",
                    reason="not_a_list",
                )
        lengths = {column: len(value) for column, value in zip(self.columns, lists, strict=True)}
        if len(set(lengths.values())) > 1:
            raise RecordError(f"lists of unequal length: {lengths}", reason="unequal_lists")
        if not lists[0]:
            raise Dropped("empty_list")
        rest = {column: value for column, value in row.items() if column not in self.columns}
        expanded = zip(*lists, strict=True)
        return [{**rest, **dict(zip(self.output_columns, items, strict=True))} for items in expanded]

    def flow(self, incoming: Sequence[ColumnOrigins]) -> ColumnOrigins:
        """The columns, expanded ones under their new names."""
        return _replaced(self, incoming[0], self.columns, self.output_columns)


class MergeColumns(RowStep):
    """Puts the values of several columns into one list column; values that are lists are concatenated.

    Args:
        columns: the columns to merge; they are dropped.
        output_column: name of the list.

    Example::

        with Pipeline(name="example") as pipeline:
            data = LoadDataFromDicts([{"best": "The Nile.", "others": ["The Danube.", "The Volga."]}])
            data >> MergeColumns(["best", "others"], output_column="generations")

    Result::

        {'generations': ['The Nile.', 'The Danube.', 'The Volga.']}
    """

    def __init__(
        self,
        columns: Sequence[str] | str,
        output_column: str = "merged_column",
        *,
        name: str | None = None,
    ) -> None:
        self.columns: tuple[str, ...] = column_names("MergeColumns", "columns", columns)
        self.output_column: str = column_names("MergeColumns", "output_column", [output_column])[0]
        super().__init__(name=name)

    def row_count(self) -> RowCount:
        """One row for each row."""
        return 1

    def apply(self, row: Row) -> Row:
        """The row with the merged list."""
        merged: list[Any] = []
        for column in self.columns:
            value = row[column]
            if isinstance(value, list):
                merged.extend(value)
            else:
                merged.append(value)
        rest = {column: value for column, value in row.items() if column not in self.columns}
        return {**rest, self.output_column: merged}

    def flow(self, incoming: Sequence[ColumnOrigins]) -> ColumnOrigins:
        """The columns, with the list in place of the merged ones."""
        return _replaced(self, incoming[0], self.columns, (self.output_column,))


def _replaced(step: RowStep, columns: ColumnOrigins, old: tuple[str, ...], new: tuple[str, ...]) -> ColumnOrigins:
    """`columns` with `new` in the place of `old`; PipelineError if a new one exists already."""
    step.require(columns, old)
    flowing = {column: maker for column, maker in columns.items() if column not in old}
    for column in new:
        add_new_column(step, flowing, column, hint="Choose another name for what this step makes.")
    return flowing
