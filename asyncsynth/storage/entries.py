"""The entries of a run's journal: one JSON object per entry, and the classes that hold it in memory.

- `{"t":"rec","k":key,"i":position,"h":row hash,"s":[{"f":step fingerprint,"r":[result…]}…]}`: results of steps.
  The record's last entry also has `"e":epoch,"st":"ok"|"failed","rows":{leaf:[row…]}`, and, if there are any,
  `"bad":[failed row…]` with `"in":row`, the record's input row, and `"drop":{step:{reason:n}}`.
- `{"t":"pos","k":key,"i":position}`: the record is now at another place of the input, or is back in it.
- `{"t":"drop","k":key}`: the input no longer has the record.

A later entry of a record, or of one of its steps, replaces an earlier one.

The short keys are for the disk only. Modules outside `storage` use the classes below instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import orjson

from asyncsynth.errors import RecordError
from asyncsynth.records import Row, not_json
from asyncsynth.storage.facts import SegmentFacts

#: orjson must not turn dates and data classes into text. Steps' outputs and rows are checked before
#: (`records.plain_json`).
_STRICT = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS

Status = Literal["ok", "failed"]
_NO_ROWS: dict[str, list[Row]] = {}
_NO_DROPS: dict[str, dict[str, int]] = {}


class NotJson(RecordError, TypeError):
    """A value that JSON cannot hold: a lone surrogate, an integer over 64 bits, an object of another kind."""

    reason = "not_json"


@dataclass(slots=True)
class StepResult:
    """What one step made of one row."""

    key: str  #: row key: the record's, or one below it if a step made several rows
    input_hash: str  #: hash of the columns that the step read
    outputs: list[Row]  #: one for each row that the step made: column -> value
    meta: dict[str, Any] | None  #: model, tokens, finish reason, the step's notes ...

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> StepResult:
        """The result that a journal line holds."""
        return cls(wire["k"], wire["h"], wire["o"], wire["m"])


@dataclass(slots=True)
class FailedRow:
    """A row that ended at a step."""

    key: str
    step: str
    reason: str
    message: str
    attempts: int
    raw: str | None = None  #: the model's text that could not be read; None if there was none to read

    def to_wire(self) -> dict[str, Any]:
        """As the journal holds it; `raw` only if there is one."""
        wire: dict[str, Any] = {
            "k": self.key, "step": self.step, "reason": self.reason, "message": self.message,
            "attempts": self.attempts,
        }  # fmt: skip
        if self.raw is not None:
            wire["raw"] = self.raw
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> FailedRow:
        """The row that a journal line holds."""
        raw = (wire["raw"] or "") if "raw" in wire else None
        return cls(wire["k"], wire["step"], wire["reason"], wire["message"], wire["attempts"], raw)


class Entry(Protocol):
    """What `RunJournal.append` takes."""

    def encode(self) -> bytes:
        """The entry's line without its frame. Raises NotJson."""

    def note(self, facts: SegmentFacts, where: int) -> None:
        """Adds the entry to the facts of its segment. `where`: its location."""


class RecordEntry:
    """Results of a record's steps, and with `status` and `epoch` its end.

    Args:
        row_hash: hash of the record's input row.
        steps: (step fingerprint, results) of each step.
        rows: leaf -> result rows.
        dropped: step -> reason -> number of rows.
        input: the record's input row; kept only in an entry that has failed rows.
    """

    __slots__ = (
        "dropped", "epoch", "failed", "input", "key", "position", "row_hash", "rows", "status", "steps",
    )  # fmt: skip

    def __init__(
        self,
        key: str,
        position: int,
        row_hash: str,
        steps: Sequence[tuple[str, Sequence[StepResult]]] = (),
        epoch: int | None = None,
        status: Status | None = None,
        rows: dict[str, list[Row]] = _NO_ROWS,
        failed: Sequence[FailedRow] = (),
        dropped: Mapping[str, Mapping[str, int]] = _NO_DROPS,
        input: Row | None = None,
    ) -> None:
        self.key = key
        self.position = position
        self.row_hash = row_hash
        self.steps = steps
        self.epoch = epoch
        self.status = status
        self.rows = rows
        self.failed = failed
        self.dropped = dropped
        self.input = input

    def encode(self) -> bytes:
        """See `Entry`."""
        wire: dict[str, Any] = {"t": "rec", "k": self.key, "i": self.position, "h": self.row_hash}
        if self.steps:
            wire["s"] = steps = []
            for fingerprint, results in self.steps:  # loops: a comprehension costs a call for each
                made = []
                for one in results:
                    made.append({"k": one.key, "h": one.input_hash, "o": one.outputs, "m": one.meta})  # noqa: PERF401
                steps.append({"f": fingerprint, "r": made})
        if self.status is not None:
            wire["e"] = self.epoch
            wire["st"] = self.status
            wire["rows"] = self.rows
            if self.failed:
                wire["bad"] = [failed.to_wire() for failed in self.failed]
                if self.input is not None:
                    wire["in"] = self.input
            if self.dropped:
                wire["drop"] = self.dropped
        return _dump(wire)

    def note(self, facts: SegmentFacts, where: int) -> None:
        """See `Entry`."""
        if self.status is None:
            facts.results(where, self.key, self.position, self.steps)
            return
        facts.final(
            where, self.key, self.position, self.steps, self.row_hash, self.epoch or 0, self.status, self.rows,
            [(failed.step, failed.reason) for failed in self.failed] if self.failed else (), self.dropped,
        )  # fmt: skip

    def results(self, fingerprint: str) -> dict[str, StepResult]:
        """The results of one step, by row key."""
        return {made.key: made for step, results in self.steps if step == fingerprint for made in results}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> RecordEntry:
        """The entry that a journal line holds. The line must be a `rec`."""
        return cls(
            wire["k"],
            wire["i"],
            wire["h"],
            [(step["f"], [StepResult.from_wire(made) for made in step["r"]]) for step in wire.get("s", ())],
            wire.get("e"),
            wire.get("st"),
            wire.get("rows", _NO_ROWS),
            failed_of(wire),
            wire.get("drop", _NO_DROPS),
            wire.get("in"),
        )


class MovedEntry:
    """The record is at another position now, or is in the input again."""

    __slots__ = ("key", "position")

    def __init__(self, key: str, position: int) -> None:
        self.key = key
        self.position = position

    def encode(self) -> bytes:
        """See `Entry`."""
        return _dump({"t": "pos", "k": self.key, "i": self.position})

    def note(self, facts: SegmentFacts, where: int) -> None:
        """See `Entry`."""
        facts.results(where, self.key, self.position, ())


class DroppedEntry:
    """The record is no longer in the input."""

    __slots__ = ("key",)

    def __init__(self, key: str) -> None:
        self.key = key

    def encode(self) -> bytes:
        """See `Entry`."""
        return _dump({"t": "drop", "k": self.key})

    def note(self, facts: SegmentFacts, where: int) -> None:
        """See `Entry`."""
        facts.drop(self.key)


def failed_of(wire: Mapping[str, Any]) -> list[FailedRow]:
    """The failed rows of a journal line."""
    return [FailedRow.from_wire(failed) for failed in wire.get("bad", ())]


def _dump(wire: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(wire, option=_STRICT)
    except TypeError as error:
        found = not_json(wire)
        what = f"{found[0]} is {found[1]}" if found else str(error)
        raise NotJson(f"not JSON: {what}") from error
