"""What the engine writes into the journal: one JSON object per entry, and how it is built.

- `{"t":"rec","k":key,"i":position,"h":row hash,"s":[{"f":step fingerprint,"r":[result…]}…]}`: results of steps.
  The record's last entry also has `"e":epoch,"st":"ok"|"failed","rows":{leaf:[row…]}`, and where there are any,
  `"bad":[failed row…]` with `"in":row`, the record's input row, and `"drop":{step:{reason:n}}`.
- `{"t":"pos","k":key,"i":position}`: the record now stands elsewhere in the input, or is back in it.
- `{"t":"drop","k":key}`: the input no longer has it.

What a later entry says of a record or of one of its steps replaces what an earlier one said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

import orjson

from asyncsynth.errors import RecordError
from asyncsynth.records import Row, not_json

#: Dates and data classes become no text here. Steps' outputs and rows are checked before (`records.plain_json`).
_STRICT = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS

INPUT = "in"  #: of an entry: the input row of a record that has failed rows
Status = Literal["ok", "failed"]


class StepResult(TypedDict):
    """What one step made of one row."""

    k: str  #: row key: the record's, or below it where a step made several rows of one
    h: str  #: hash of the step's input
    o: Any  #: outputs: column -> value
    m: Any  #: metadata: model, tokens, finish reason ...


class FailedRow(TypedDict):
    """A dead letter."""

    k: str
    step: str
    reason: str
    message: str
    attempts: int
    raw: NotRequired[str | None]  #: the model's text, where there is one


class StepEntry(TypedDict):
    """The results of one step for one record."""

    f: str  #: the step's fingerprint
    r: list[StepResult]


class RecEntry(TypedDict):
    """A `rec` entry as it is read back. `e`, `st` and `rows` are there when the record is finished."""

    t: Literal["rec"]
    k: str
    i: int
    h: str
    s: NotRequired[list[StepEntry]]
    e: NotRequired[int]
    st: NotRequired[Status]
    rows: NotRequired[dict[str, list[Row]]]
    bad: NotRequired[list[FailedRow]]
    drop: NotRequired[dict[str, dict[str, int]]]


class NotJson(RecordError, TypeError):
    """A value that JSON cannot hold: a lone surrogate, an integer over 64 bits, an object of another kind."""

    reason = "not_json"


def rec_entry(
    *,
    key: str,
    position: int,
    row_hash: str,
    steps: Sequence[tuple[str, Sequence[StepResult]]] = (),
    epoch: int | None = None,
    status: Status | None = None,
    rows: Mapping[str, Sequence[Row]] | None = None,
    failed: Sequence[FailedRow] = (),
    dropped: Mapping[str, Mapping[str, int]] | None = None,
    input: Row | None = None,
) -> bytes:
    """Results of a record's steps, and with `status` and `epoch` its end. Raises NotJson."""
    entry: dict[str, Any] = {"t": "rec", "k": key, "i": position, "h": row_hash}
    if steps:
        entry["s"] = [{"f": fingerprint, "r": results} for fingerprint, results in steps]
    if status is not None:
        entry["e"] = epoch
        entry["st"] = status
        entry["rows"] = rows or {}
        if failed:
            entry["bad"] = failed
            if input is not None:
                entry[INPUT] = input
        if dropped:
            entry["drop"] = dropped
    return _dump(entry)


def pos_entry(key: str, position: int) -> bytes:
    """The record stands at another position now, or is in the input again. Raises NotJson."""
    return _dump({"t": "pos", "k": key, "i": position})


def drop_entry(key: str) -> bytes:
    """The record is no longer in the input. Raises NotJson."""
    return _dump({"t": "drop", "k": key})


def _dump(entry: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(entry, option=_STRICT)
    except TypeError as error:
        found = not_json(entry)
        what = f"{found[0]} is {found[1]}" if found else str(error)
        raise NotJson(f"not JSON: {what}") from error
