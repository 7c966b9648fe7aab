"""Runs a step over all rows: it reads the rows of a finished stage and writes the file that the next stage reads.

The file has one line for each kept row, `{"k": key, "row": {...}}`. A second file says what the first was made from,
and its counts. It is written last and removed first: where it exists, the first file is whole and belongs to it.
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
from asyncsynth.storage.barrier_rows import RowsWriter, damage, decode_row, read_facts, unchecked
from asyncsynth.storage.exports import NewFile
from asyncsynth.storage.files import REAL, atomic_write
from asyncsynth.storage.manifest import OLD_STAGE_KIND, STAGE_KIND
from asyncsynth.storage.result_rows import RunRows

OUTPUT_NAME = layout.BARRIER_ROWS
FACTS_NAME = layout.BARRIER_FACTS
_END: Any = object()  #: no more decisions. Not None, which a step may give by mistake


class BarrierStopped(Exception):
    """The run stops, so that the barrier stopped, too. It left no file."""


@dataclass(slots=True)
class BarrierCounts:
    """How many rows were kept and dropped. `read == kept + sum of dropped`."""

    read: int = 0
    kept: int = 0
    #: reason -> rows. A plain dict: `asdict`, which `status --json` uses, breaks a Counter in Python 3.11.
    dropped: dict[str, int] = field(default_factory=dict)


class BarrierReader(JsonlReader):
    """The rows that a barrier kept, by key. There may be none.

    It counts as the same input in every run: rows that came, went or changed are found by their keys and hashes. The
    user accepted the input already, and is not asked again about what the steps before made of it.
    """

    may_be_empty = True

    def __init__(self, directory: Path, step: str) -> None:
        super().__init__(directory / OUTPUT_NAME, id_column="k")
        self.name = step
        self.kind = OLD_STAGE_KIND if layout.is_old_stage(directory.name) else STAGE_KIND

    def _item(self, number: int, content: bytes) -> SourceRow:
        try:
            return SourceRow(number, *decode_row(content))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptJournal(
                f"{self.path}:{number}: is damaged ({error})",
                hint=f"Remove {self.path.with_name(FACTS_NAME)}, and the next run makes the file again.",
            ) from error

    def identity(self) -> dict[str, Any]:
        """The step, and the folder of the stage whose rows went through it."""
        folder = self.path.parent.name
        return {"kind": self.kind, "name": self.name, self.kind: folder, "head_bytes": 0, "head_sha256": ""}

    def extends(self, old: Mapping[str, Any]) -> bool:
        """True for the rows of any stage."""
        return bool(old.get("kind") == self.kind)


def earlier_output(
    directory: Path, state: Mapping[str, Any] | None, notes: list[str] | None = None
) -> BarrierCounts | None:
    """The counts of the output that is there, if it was made from this very state and is whole; else None.

    `state` is JSON: the step and the run that its rows come from. None takes any, and does not read the rows. What
    a user must know of the output is added to `notes`. Raises StorageError.
    """
    facts = read_facts(directory)
    if facts is None or state not in (None, facts["made_from"]) or not (directory / OUTPUT_NAME).is_file():
        return None  # made again
    if state is not None:
        wrong, other = damage(directory, facts), unchecked(facts)
        if notes is not None and (wrong or other):
            notes.append(f"{directory / OUTPUT_NAME}: {f'{wrong}: it is made again' if wrong else other}")
        if wrong:
            return None
    return BarrierCounts(facts["read"], facts["kept"], facts["dropped"])


def pass_barrier(
    step: GlobalStep, directory: Path, state: Mapping[str, Any], stopped: Callable[[], bool]
) -> BarrierCounts:
    """Decides on every row of the run in `directory` and writes the kept ones. It blocks: call it in a thread.

    Raises BarrierStopped soon after `stopped` turns true, PipelineError for a fault of the step, StorageError.
    """
    with contextlib.suppress(FileNotFoundError):
        (directory / FACTS_NAME).unlink()
        REAL.fsync_dir(directory)
    rows = RunRows(directory)
    counts = BarrierCounts()
    with NewFile(directory / OUTPUT_NAME, REAL) as file:
        writer = RowsWriter(file)
        for key, row in _kept(step, rows, counts, stopped):
            writer.write(key, row)
    facts = {
        "read": counts.read, "kept": counts.kept, "dropped": counts.dropped, "made_from": state, "crc": writer.crc,
    }  # fmt: skip
    atomic_write(directory / FACTS_NAME, orjson.dumps(facts, option=orjson.OPT_INDENT_2) + b"\n")
    return counts


def _kept(
    step: GlobalStep, rows: RunRows, counts: BarrierCounts, stopped: Callable[[], bool]
) -> Iterator[tuple[str, Row]]:
    """The rows that the step keeps, with its outputs added."""
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
    """The step's decisions. An error in the step's code becomes a PipelineError that names the step."""
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
    except BaseException as error:  # SystemExit too: it must not end the process silently
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


def _wrong_number(step: GlobalStep, decided: str, rows: int) -> PipelineError:
    return PipelineError(
        f"step {step.name!r} decided on {decided} of {rows} rows",
        step=step.name,
        hint="decide() must give one decision for each row, in order.",
    )


class _Watched:
    """Rows that may be read several times, until the run stops."""

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
