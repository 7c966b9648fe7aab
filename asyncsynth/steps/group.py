"""Joins: what the branches made of one record becomes one row. The engine matches rows by key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncsynth.errors import PipelineError
from asyncsynth.pipeline.step import PROVENANCE_COLUMNS, ColumnOrigins, JoinStep
from asyncsynth.records import Row
from asyncsynth.steps.arguments import add_new_column, column_names


class GroupColumns(JoinStep):
    """Collects a column of every branch into a list, in the order in which the branches were joined by `>>`.

    Args:
        columns: the columns to group.
        output_columns: their names afterwards; by default ``grouped_<column>``.

    All other columns are kept. `model_name` is grouped along (to ``grouped_model_name``, if not told
    otherwise), so that no model is named for another's answer.
    """

    def __init__(
        self,
        columns: Sequence[str] | str,
        output_columns: Sequence[str] | str | None = None,
        *,
        name: str | None = None,
    ) -> None:
        self.columns = column_names("GroupColumns", "columns", columns)
        if output_columns is None:
            self.output_columns = tuple(f"grouped_{column}" for column in self.columns)
        else:
            self.output_columns = column_names("GroupColumns", "output_columns", output_columns)
        if len(self.columns) != len(self.output_columns):
            raise PipelineError(
                f"GroupColumns: {len(self.columns)} columns, but {len(self.output_columns)} output_columns",
                hint="Give one output column for each column.",
            )
        self._along = tuple(
            (column, f"grouped_{column}")
            for column in sorted(PROVENANCE_COLUMNS)
            if column not in self.columns and f"grouped_{column}" not in self.output_columns
        )
        super().__init__(name=name)

    def join(self, rows: Sequence[Row]) -> Row:
        """The first branch's row, with what other branches have beside it and the grouped columns."""
        groups: dict[str, list[Any]] = {
            new: [row[old] for row in rows] for old, new in zip(self.columns, self.output_columns, strict=True)
        }
        taken = set(self.columns)
        for old, new in self._along:
            if any(old in row for row in rows):
                groups[new] = [row.get(old) for row in rows]
                taken.add(old)
        joined = {key: value for row in reversed(rows) for key, value in row.items() if key not in taken}
        first = {key: joined[key] for key in rows[0] if key in joined}  # the first branch's order of columns
        return {**first, **joined, **groups}

    def flow(self, incoming: Sequence[ColumnOrigins]) -> ColumnOrigins:
        """The union of the branches' columns, with the groups in place of the columns they are made of."""
        for branch in incoming:
            self.require(branch, self.columns)
        renamed = dict(zip(self.columns, self.output_columns, strict=True))
        renamed.update((old, new) for old, new in self._along if any(old in branch for branch in incoming))
        union: ColumnOrigins = {}
        for branch in incoming:
            for column, maker in branch.items():
                if column not in renamed:
                    _unite(self, union, column, maker, hint="Group it too, or rename it in its branch.")
        for column in renamed.values():
            add_new_column(self, union, column, hint="Choose another name in output_columns.")
        return union


class CombineOutputs(JoinStep):
    """Puts the branches' columns side by side into one row.

    Two branches may not have made the same column; only `model_name` may be in several, and the last
    branch's is kept, as it would be if the steps stood one after the other.
    """

    def join(self, rows: Sequence[Row]) -> Row:
        """One row of all columns."""
        joined: Row = {}
        for row in rows:
            joined.update(row)
        return joined

    def flow(self, incoming: Sequence[ColumnOrigins]) -> ColumnOrigins:
        """The union of the branches' columns."""
        union: ColumnOrigins = {}
        for branch in incoming:
            for column, maker in branch.items():
                if column in PROVENANCE_COLUMNS:
                    union[column] = maker
                else:
                    hint = "Rename one in its branch with output_mappings, or collect both with GroupColumns."
                    _unite(self, union, column, maker, hint=hint)
        return union


def _unite(step: JoinStep, union: ColumnOrigins, column: str, maker: str, *, hint: str) -> None:
    """Adds a branch's column. Two makers of one column would mean that one result is lost without a word."""
    if union.setdefault(column, maker) != maker:
        raise PipelineError(
            f"step {step.name!r}: the column {column!r} comes from two branches, made by {union[column]!r} "
            f"and by {maker!r}",
            step=step.name,
            column=column,
            hint=hint,
        )
