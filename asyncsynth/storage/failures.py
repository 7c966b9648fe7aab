"""The rows that failed in a run, as a file: to inspect them, and to correct the input or the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asyncsynth.errors import ConfigurationError
from asyncsynth.storage.entries import FailedRow
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.exports import Exported, NewFile, json_line
from asyncsynth.storage.extent import completeness, refuse_unfinished
from asyncsynth.storage.files import EXPORT_MODE, REAL, FileSystem, make_directory
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.layout import refuse_own_files
from asyncsynth.storage.manifest import Manifest
from asyncsynth.storage.verify import run_directories


def failure_examples(view: JournalView, index: RunIndex, epoch: int) -> Iterator[FailedRow]:
    """The first row that failed for each step and reason, in the order of the input. The index has seen the view.

    Raises CorruptJournal, StorageError.
    """
    shown: set[tuple[str, str]] = set()
    for where in index.first_failures(epoch):
        for failed in view.record(where).failed:
            kind = failed.step, failed.reason
            if kind not in shown:
                shown.add(kind)
                yield failed


def failed_rows(directory: Path) -> Iterator[dict[str, Any]]:
    """One object for each row that failed, in the order of the input; the parts of a run follow one another.

    `key`, `position` (place of its record in the input, from 0), `step`, `reason`, `message`, `attempts`, and, if the
    model's text could not be read `raw`, that text; last `input`, the input row of its record: None if the row could
    not be read, and in journals of versions that did not keep it. Of a record that came through a step over all rows,
    that is the row that the step kept. Raises ConfigurationError, StorageError, CorruptJournal.
    """
    for place in run_directories(directory):
        manifest = Manifest.of_run(place)
        index = RunIndex(keys=manifest.keys, stride=manifest.stride)
        with JournalView(place) as view:
            view.walk(index)
            for where in index.finals_with_failures(len(manifest.epochs) - 1):
                entry = view.record(where)
                for failed in entry.failed:
                    row: dict[str, Any] = asdict(failed)
                    if failed.raw is None:
                        del row["raw"]
                    yield {"key": row.pop("key"), "position": entry.position, **row, "input": entry.input}


def export_failures(directory: Path, to: Path, *, complete_only: bool = False, fs: FileSystem = REAL) -> Exported:
    """Writes `failed_rows` to a JSONL file, in place of one that is there. Raises as `failed_rows`, and RunUnfinished
    under `complete_only`."""
    if to.suffix.lower() != ".jsonl":
        raise ConfigurationError(
            f"{to}: failed rows are written as JSON lines", hint="Name a file that ends with .jsonl."
        )
    refuse_own_files(to, directory)
    found = completeness(directory)
    if complete_only:
        refuse_unfinished(directory, found)
    count = 0
    make_directory(fs, to.resolve().parent)
    with NewFile(to, fs, EXPORT_MODE) as file:
        for row in failed_rows(directory):
            file.write(json_line(row))
            count += 1
    return Exported(to, count, found)
