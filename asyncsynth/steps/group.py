"""Joins: the rows that the branches made from one row become one row. The engine matches rows by key
(`engine.joins`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from asyncsynth.errors import PipelineError
from asyncsynth.pipeline.step import PROVENANCE_COLUMNS, ColumnOrigins, JoinStep
from asyncsynth.records import Row
from asyncsynth.steps.arguments import add_new_column, column_names, one_of


class GroupColumns(JoinStep):
    """Collects a column of every branch into a list, in the order in which the branches were joined by `>>`.

    Args:
        columns: the columns to group.
        output_columns: their names afterwards; by default ``grouped_<column>``.
        missing: what happens to a row that a branch failed or dropped: "drop" or "none".

    All other columns are kept. `model_name` is grouped too, to ``grouped_model_name`` unless you name it in `columns`,
    so that each answer keeps the name of its model.

    Rows are matched by key. With ``missing="drop"`` a row that is not in every branch is dropped and counted; with
    ``missing="none"`` a row that a branch failed or dropped is kept, with None in that branch's place of each list and
    in the columns that only that branch makes. FormPreference and UltraFeedback skip an answer that is None.

    Example::

        @step(inputs=["instruction"], outputs=["generation"])
        def shout(row):
            return {"generation": row["instruction"].upper()}

        @step(inputs=["instruction"], outputs=["generation"])
        def whisper(row):
            return {"generation": row["instruction"].lower()}

        with Pipeline(name="example") as pipeline:
            data = LoadDataFromDicts([{"instruction": "Name a river."}])
            data >> [shout(), whisper()] >> GroupColumns("generation", "generations")

    Result::

        {'instruction': 'Name a river.', 'generations': ['NAME A RIVER.', 'name a river.']}
    """

    def __init__(
        self,
        columns: Sequence[str] | str,
        output_columns: Sequence[str] | str | None = None,
        *,
        missing: Literal["drop", "none"] = "drop",
        name: str | None = None,
    ) -> None:
        self.columns: tuple[str, ...] = column_names("GroupColumns", "columns", columns)
        if output_columns is None:
            self.output_columns: tuple[str, ...] = tuple(f"grouped_{column}" for column in self.columns)
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
        self._branches = _Branches()
        _set_missing(self, missing)
        super().__init__(name=name)

    def join(self, rows: Sequence[Row]) -> Row:
        """The first branch's row, with the other branches' further columns and the grouped columns."""
        groups: dict[str, list[Any]] = {
            new: [row[old] if row else None for row in rows]  # an empty row is one that its branch does not have
            for old, new in zip(self.columns, self.output_columns, strict=True)
        }
        taken = set(self.columns)
        for old, new in self._along:
            if any(old in row for row in rows):
                groups[new] = [row.get(old) for row in rows]
                taken.add(old)
        joined = {key: value for row in reversed(rows) for key, value in row.items() if key not in taken}
        if not all(rows):
            joined.update((column, None) for column in self._branches.absent(rows) if column not in taken)
        first = {key: joined[key] for key in rows[0] if key in joined}  # the first branch's order of columns
        return {**first, **joined, **groups}

    def flow(self, incoming: Sequence[ColumnOrigins]) -> ColumnOrigins:
        """The union of the branches' columns, with the groups in place of their columns."""
        for branch in incoming:
            self.require(branch, self.columns)
        self._branches = _Branches(incoming)
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
    branch's is kept, as it would be if the steps followed one another.

    Args:
        missing: what happens to a row that a branch failed or dropped: "drop" it (counted), or keep it with None
            ("none") in the columns that this branch makes.

    Example::

        @step(inputs=["text"], outputs=["words"])
        def count_words(row):
            return {"words": len(row["text"].split())}

        @step(inputs=["text"], outputs=["capitals"])
        def count_capitals(row):
            return {"capitals": sum(letter.isupper() for letter in row["text"])}

        with Pipeline(name="example") as pipeline:
            LoadDataFromDicts([{"text": "Name a river."}]) >> [count_words(), count_capitals()] >> CombineOutputs()

    Result::

        {'text': 'Name a river.', 'words': 3, 'capitals': 1}
    """

    def __init__(self, *, missing: Literal["drop", "none"] = "drop", name: str | None = None) -> None:
        self._branches = _Branches()
        _set_missing(self, missing)
        super().__init__(name=name)

    def join(self, rows: Sequence[Row]) -> Row:
        """One row of all columns."""
        joined: Row = {}
        for row in rows:
            joined.update(row)
        if not all(rows):
            joined.update(dict.fromkeys(self._branches.absent(rows)))
        return joined

    def flow(self, incoming: Sequence[ColumnOrigins]) -> ColumnOrigins:
        """The union of the branches' columns."""
        self._branches = _Branches(incoming)
        union: ColumnOrigins = {}
        for branch in incoming:
            for column, maker in branch.items():
                if column in PROVENANCE_COLUMNS:
                    union[column] = maker
                else:
                    hint = (
                        "Rename one in its branch with output_mappings, or collect both with GroupColumns. Where each "
                        "row takes one branch only, use MergeBranches."
                    )
                    _unite(self, union, column, maker, hint=hint)
        return union


class MergeBranches(JoinStep):
    """Passes on rows from whichever branch delivers them, in the order of the input.

    It ends a fork in which each row takes one of several branches::

        data >> Filter(is_short) >> small_model
        data >> Filter(is_long) >> large_model
        [small_model, large_model] >> MergeBranches() >> judge

    A row that several branches deliver is taken from the first of them, in the order of `>>`; those of the others are
    dropped and counted (`other_branch`). The branches may make different numbers of rows.

    Columns: all that the branches have; a column that only some branches make is None in the rows of the others.

    Example::

        @step(inputs=["text"], outputs=["size"])
        def mark_short(row):
            return {"size": "short"}

        @step(inputs=["text"], outputs=["size"])
        def mark_long(row):
            return {"size": "long"}

        with Pipeline(name="example") as pipeline:
            data = LoadDataFromDicts([{"text": "Hi."}, {"text": "Name a river in Asia."}])
            short, long = mark_short(), mark_long()
            data >> Filter(lambda row: len(row["text"]) < 10) >> short
            data >> Filter(lambda row: len(row["text"]) >= 10) >> long
            [short, long] >> MergeBranches()

    Result::

        {'text': 'Hi.', 'size': 'short'}
        {'text': 'Name a river in Asia.', 'size': 'long'}
    """

    whichever = True

    def __init__(self, *, name: str | None = None) -> None:
        self._branches = _Branches()
        super().__init__(name=name)

    def join(self, rows: Sequence[Row]) -> Row:
        """The row that is present, with all columns."""
        (row,) = (row for row in rows if row)
        return {**row, **{column: None for column in self._branches.columns if column not in row}}

    def flow(self, incoming: Sequence[ColumnOrigins]) -> ColumnOrigins:
        """The union of the branches' columns; a column that several steps make is this step's from here on."""
        self._branches = _Branches(incoming)
        union: ColumnOrigins = {}
        for branch in incoming:
            for column, maker in branch.items():
                union[column] = maker if union.get(column, maker) == maker else self.name
        return union


class _Branches:
    """The columns of a join's branches and the steps that make them, if they are known before the run."""

    def __init__(self, incoming: Sequence[ColumnOrigins] = ()) -> None:
        self._incoming = [dict(branch) for branch in incoming]
        self.columns = tuple(dict.fromkeys(column for branch in self._incoming for column in branch))
        #: column -> the step that makes the kept one: the last branch's, as in CombineOutputs
        self._makers = {column: maker for branch in self._incoming for column, maker in branch.items()}

    def absent(self, rows: Sequence[Row]) -> list[str]:
        """The columns that only branches without a row make."""
        there = [branch for branch, row in zip(self._incoming, rows, strict=False) if row]
        return [
            column for column, maker in self._makers.items() if not any(branch.get(column) == maker for branch in there)
        ]


def _set_missing(step: JoinStep, missing: Literal["drop", "none"]) -> None:
    one_of(type(step).__name__, "missing", missing, ("drop", "none"))
    if missing != "drop":  # the default is not listed, so that runs from before this setting can be resumed
        step.missing = missing


def _unite(step: JoinStep, union: ColumnOrigins, column: str, maker: str, *, hint: str) -> None:
    """Adds a branch's column. If two steps made one column, one result would be lost silently."""
    if union.setdefault(column, maker) != maker:
        raise PipelineError(
            f"step {step.name!r}: the column {column!r} comes from two branches, made by {union[column]!r} "
            f"and by {maker!r}",
            step=step.name,
            column=column,
            hint=hint,
        )
