"""A step over all rows, done: from the rows of a finished run directory to a file that the next one reads.

The file holds a line a kept row, `{"k": key, "row": {...}}`. Beside it stands what it was made from and what
it came to; it is written last and taken away first, so where it is, the file is whole and belongs to it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from asyncsynth.errors import AsyncsynthError, CorruptJournal, PipelineError, RecordError
from asyncsynth.inputs.jsonl import JsonlReader
from asyncsynth.inputs.reader import SourceRow
from asyncsynth.pipeline import Dropped, GlobalStep
from asyncsynth.pipeline.functions import checked_outputs
from asyncsynth.pipeline.seen import SeenRow, keepable, plain_row, row_error, runs_foreign_code
from asyncsynth.records import NotPlainJson, Row
from asyncsynth.storage import layout
from asyncsynth.storage.exports import NewFile
from asyncsynth.storage.files import REAL, atomic_write, storage_error
from asyncsynth.storage.result_rows import RunRows

OUTPUT_NAME = layout.BARRIER_ROWS
FACTS_NAME = layout.BARRIER_FACTS
_END: Any = object()  #: no more decisions; a step may give None by mistake


class BarrierStopped(Exception):
    """The barrier was told to stop; it left nothing."""


@dataclass(slots=True)
class BarrierCounts:
    """What became of the rows. `read == kept + sum of dropped`."""

    read: int = 0
    kept: int = 0
    #: reason -> rows. A plain dict: `asdict`, which `status --json` uses, breaks a Counter in Python 3.11.
    dropped: dict[str, int] = field(default_factory=dict)


class BarrierReader(JsonlReader):
    """The rows that a barrier let through, by key. There may be none.

    It is always "the same input": rows that came, went or changed are found by their keys and hashes, and the
    user is not asked about what the steps before made of an input that was accepted.
    """

    kind = "segment"
    may_be_empty = True

    def __init__(self, directory: Path, step: str) -> None:
        super().__init__(directory / OUTPUT_NAME, id_column="k")
        self.name = step

    def _item(self, number: int, content: bytes) -> SourceRow:
        try:
            item = orjson.loads(content)
            return SourceRow(number, item["k"], item["row"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptJournal(
                f"{self.path}:{number}: is damaged ({error})",
                hint=f"Remove {self.path.with_name(FACTS_NAME)}: the file is then made again.",
            ) from error

    def identity(self) -> dict[str, Any]:
        """The step, and the folder of the segment whose rows went through it."""
        folder = self.path.parent.name
        return {"kind": self.kind, "name": self.name, "segment": folder, "head_bytes": 0, "head_sha256": ""}

    def extends(self, old: Mapping[str, Any]) -> bool:
        """True for every segment."""
        return bool(old["kind"] == self.kind)


def earlier_output(directory: Path, state: Mapping[str, Any] | None) -> BarrierCounts | None:
    """What the output that is there came to, when it was made from this very state; else None.

    `state` is JSON: the step and the run that its rows come from; None takes any.
    """
    try:
        facts = orjson.loads((directory / FACTS_NAME).read_bytes())
        if state not in (None, facts["made_from"]) or not (directory / OUTPUT_NAME).is_file():
            return None
        return BarrierCounts(facts["read"], facts["kept"], dict(facts["dropped"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, directory / FACTS_NAME, "read the file") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # made again


def pass_barrier(
    step: GlobalStep, directory: Path, state: Mapping[str, Any], stopped: Callable[[], bool]
) -> BarrierCounts:
    """Decides on every row of the run in `directory` and writes those that are kept. Blocking: call in a thread.

    Raises BarrierStopped soon after `stopped` turns true, PipelineError for a fault of the step, StorageError.
    """
    with contextlib.suppress(FileNotFoundError):
        (directory / FACTS_NAME).unlink()
        REAL.fsync_dir(directory)
    rows = RunRows(directory)
    counts = BarrierCounts()
    with NewFile(directory / OUTPUT_NAME, REAL) as file:
        for key, row in _kept(step, rows, counts, stopped):
            file.write(_line(key, row))
    facts = {"read": counts.read, "kept": counts.kept, "dropped": counts.dropped, "made_from": state}
    atomic_write(directory / FACTS_NAME, orjson.dumps(facts, option=orjson.OPT_INDENT_2) + b"\n")
    return counts


def _kept(
    step: GlobalStep, rows: RunRows, counts: BarrierCounts, stopped: Callable[[], bool]
) -> Iterator[tuple[str, Row]]:
    """The rows that the step keeps, with what it adds."""
    decisions = _decisions(step, _Watched(rows, stopped, is_foreign=runs_foreign_code(step)))
    for key, row in rows.keyed():
        if stopped():
            raise BarrierStopped
        decision = next(decisions, _END)
        if decision is _END:
            raise _wrong_number(step, f"only {counts.read}", len(rows))
        counts.read += 1
        if isinstance(decision, Dropped):
            reason = keepable(decision.reason)
            counts.dropped[reason] = counts.dropped.get(reason, 0) + 1
        else:
            counts.kept += 1
            outputs = _plain(step, key, decision)
            yield key, step.merge(row, outputs) if outputs else row
    if next(decisions, _END) is not _END:
        raise _wrong_number(step, "more", len(rows))


def _decisions(step: GlobalStep, rows: _Watched) -> Iterator[Row | Dropped]:
    """The step's decisions; a bug of the step comes out under its name."""
    try:
        decisions: Any = step.decide(rows)
        if not isinstance(decisions, Iterable):
            if inspect.iscoroutine(decisions):
                decisions.close()
            forgotten = "; is a `return` missing?" if decisions is None else ""
            what = type(decisions).__name__
            raise TypeError(f"decide returned {what}; one decision for each row was expected{forgotten}")
        yield from decisions
    except (AsyncsynthError, BarrierStopped, GeneratorExit):
        raise
    except BaseException as error:  # SystemExit too: it must not end the process without a word
        raise PipelineError(
            f"step {step.name!r} failed over all rows: {row_error(error, {}).message}",
            step=step.name,
            hint="The results of the steps before it are kept: fix the step and run the same command again.",
        ) from error


def _plain(step: GlobalStep, key: str, decision: Any) -> Row:
    """The outputs that the step adds to a row, as JSON. Raises PipelineError."""
    try:
        made = plain_row(decision, f"{type(step).__name__}.decide")
        return checked_outputs(made, step.outputs, where=step.name) if made and step.outputs else made
    except (NotPlainJson, RecordError) as error:
        what = row_error(error, {}).message
        raise PipelineError(
            f"step {step.name!r} made what row {key} cannot hold: {what}",
            step=step.name,
            hint="The results of the steps before it are kept: fix the step and run the same command again.",
        ) from error


def _line(key: str, row: Row) -> bytes:
    return orjson.dumps({"k": key, "row": row}, option=orjson.OPT_APPEND_NEWLINE)


def _wrong_number(step: GlobalStep, decided: str, rows: int) -> PipelineError:
    return PipelineError(
        f"step {step.name!r} decided on {decided} of {rows} rows",
        step=step.name,
        hint="decide() must give one decision for each row, in order.",
    )


class _Watched:
    """Rows that may be read several times, until the run is told to stop."""

    def __init__(self, rows: RunRows, stopped: Callable[[], bool], *, is_foreign: bool) -> None:
        self._rows = rows
        self._stopped = stopped
        self._is_foreign = is_foreign

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            if self._stopped():
                raise BarrierStopped
            yield SeenRow(row) if self._is_foreign else row
