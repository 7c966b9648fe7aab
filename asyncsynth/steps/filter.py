"""`Filter`: keeps the rows that a function of the user's accepts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from asyncsynth.errors import PipelineError, RecordError
from asyncsynth.pipeline.seen import SeenRow
from asyncsynth.pipeline.step import Dropped, RowCount, RowStep
from asyncsynth.records import Row
from asyncsynth.steps.arguments import column_names


class Filter(RowStep):
    """Keeps the rows for which `predicate` is true.

    Args:
        predicate: takes the row (do not change it) and returns whether it stays. It must depend on the row
            alone: it is called again on every resume. A row on which it raises fails; other rows continue.
        columns: the columns it reads, to be checked before the run.
        reason: the reason under which dropped rows are counted.

    Example::

        with Pipeline(name="example") as pipeline:
            data = LoadDataFromDicts([{"text": "a", "score": 5}, {"text": "b", "score": 2}])
            data >> Filter(lambda row: row["score"] >= 4, columns="score", reason="low_score")

    Result::

        {'text': 'a', 'score': 5}
    """

    def __init__(
        self,
        predicate: Callable[[Row], bool],
        *,
        columns: Sequence[str] | str | None = None,
        reason: str = "filtered",
        name: str | None = None,
    ) -> None:
        if not callable(predicate):
            raise PipelineError(
                f"Filter(predicate={predicate!r:.80}): a function of a row was expected",
                hint='Write Filter(lambda row: row["score"] >= 4).',
            )
        if inspect.iscoroutinefunction(predicate):
            raise PipelineError(
                "Filter's predicate is async; a plain function was expected",
                hint="A filter asks no model and waits for nothing; put code that does into a task.",
            )
        self.predicate = predicate
        self.inputs: tuple[str, ...] = column_names("Filter", "columns", columns) if columns is not None else ()
        self.reason = reason
        super().__init__(name=name)

    def row_count(self) -> RowCount:
        """One row, or none."""
        return 1

    def apply(self, row: Row) -> Row:
        """The row itself, or Dropped."""
        seen = SeenRow(row)
        kept: Any = self.predicate(seen)
        if inspect.isawaitable(kept):
            if inspect.iscoroutine(kept):
                kept.close()
            raise RecordError("the predicate returned an awaitable, not a bool", reason="step_error")
        if seen != row:
            raise RecordError(
                "the predicate changed the row; a filter only keeps or drops rows, a @step changes them",
                reason="step_error",
            )
        if not kept:
            raise Dropped(self.reason)
        return row
