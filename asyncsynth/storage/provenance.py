"""How each row of a run was made, from the journal: the column `provenance` of exports.

The column is a list of objects, one for each result of a model step that went into the row's record, in the order of
the steps: `step`, `row` (the row's key at that step: a record that became several rows has several), `model`, `server`,
`calls`, `attempts`, `prompt_tokens`, `completion_tokens`, `finish_reason` (of the last call), `cut` (answers that ended
at max_tokens), `latency_s` (seconds). Results of the steps before a step over all rows are among them.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from asyncsynth.records import Row
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.manifest import Manifest
from asyncsynth.storage.shard_directories import journals
from asyncsynth.storage.stage_directories import stages_before

#: The column's name.
COLUMN = "provenance"
_NUMBERED = re.compile(r"(.+)\.\d+\Z")


class KeyedRows(Protocol):
    """Rows by number, as `storage.result_rows` maps them."""

    def __len__(self) -> int: ...

    def keyed(self, numbers: range) -> Iterator[tuple[str, Row]]: ...


class WithProvenance:
    """The rows of a map with the column `provenance`. Holds an index of each journal of the run."""

    def __init__(self, directory: Path, manifest: Manifest, epoch: int, rows: KeyedRows) -> None:
        self._rows = rows
        self._parts = [_Results(place, part) for place, part in stages_before(directory, manifest)]
        self._parts += [_Results(place, part, epoch) for place, part in journals(directory, manifest)]
        for part in self._parts:
            weakref.finalize(self, part.view.close)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> Row:
        """The row, 0 <= number < len."""
        return next(self.rows(range(number, number + 1)))

    def rows(self, numbers: range) -> Iterator[Row]:
        """The rows, in order."""
        return (row for _, row in self.keyed(numbers))

    def keyed(self, numbers: range) -> Iterator[tuple[str, Row]]:
        """(key, row), in order."""
        for key, row in self._rows.keyed(numbers):
            yield key, {**row, COLUMN: [fact for part in self._parts for fact in part.facts(key)]}


class _Results:
    """The results in one journal."""

    def __init__(self, directory: Path, manifest: Manifest, epoch: int = -1) -> None:
        self._index = RunIndex(keys=manifest.keys, stride=manifest.stride)
        self._steps = {fingerprint: name for name, fingerprint in manifest.epochs[epoch].steps.items()}
        self.view = JournalView(directory)
        self.view.walk(self._index)

    def facts(self, key: str) -> Iterator[dict[str, Any]]:
        """The journal's results of a row's record, given the row's key at the end or at a later stage."""
        record: str | None = key
        while record is not None:
            found = self._index.steps_of(record) if self._may_be_key(record) else {}
            if found:
                for fingerprint, name in self._steps.items():
                    if fingerprint in found:
                        yield from self._of_step(found[fingerprint], fingerprint, name)
                return
            shorter = _NUMBERED.match(record)  # a row that was one of several of its record
            record = shorter[1] if shorter is not None else None

    def _may_be_key(self, record: str) -> bool:
        return not self._index.by_position or record.isdecimal()

    def _of_step(self, where: int, fingerprint: str, name: str) -> Iterator[dict[str, Any]]:
        for made in self.view.read(where).get("s", ()):
            if made["f"] == fingerprint:
                for result in made["r"]:
                    yield _fact(name, result["k"], result["m"] or {})


def _fact(step: str, key: str, meta: dict[str, Any]) -> dict[str, Any]:
    finish = meta.get("finish")
    return {
        "step": step,
        "row": key,
        **{name: meta.get(name) for name in ("model", "server", "calls", "attempts")},
        **{name: meta.get(name) for name in ("prompt_tokens", "completion_tokens")},
        "finish_reason": finish,
        "cut": len(meta["cut"]) if "cut" in meta else int(finish == "length"),
        "latency_s": meta.get("latency_s"),
    }
