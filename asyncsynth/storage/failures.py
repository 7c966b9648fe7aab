"""The rows that a run lost, as a file: for a look at them, and for the one who mends the input or the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asyncsynth.errors import ConfigurationError
from asyncsynth.storage.entries import FailedRow
from asyncsynth.storage.exports import Exported, NewFile, json_line
from asyncsynth.storage.files import REAL, FileSystem, make_directory
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.layout import refuse_own_files
from asyncsynth.storage.manifest import Manifest
from asyncsynth.storage.reading import JournalView
from asyncsynth.storage.verify import run_directories


def failures(view: JournalView, index: RunIndex, epoch: int) -> Iterator[tuple[int, FailedRow]]:
    """(position of its record, the row) for each that failed, in the order of the input. The index has seen the view.

    Raises CorruptJournal, StorageError.
    """
    for where in index.finals_with_failures(epoch):
        entry = view.read(where)
        for failed in entry["bad"]:
            yield entry["i"], failed


def failed_rows(directory: Path) -> Iterator[dict[str, Any]]:
    """One object for each row that failed, in the order of the input; parts of a run one after the other.

    `key`, `position` (place of its record in the input, from 0), `step`, `reason`, `message`, `attempts`, and where the
    model's text could not be read `raw`, that text. Raises ConfigurationError, StorageError, CorruptJournal.
    """
    for place in run_directories(directory):
        manifest = Manifest.of_run(place)
        index = RunIndex(keys=manifest.keys, stride=manifest.stride)
        with JournalView(place) as view:
            view.walk(index)
            for position, failed in failures(view, index, len(manifest.epochs) - 1):
                row: dict[str, Any] = {**failed}
                yield {"key": row.pop("k"), "position": position, **row}


def export_failures(directory: Path, to: Path, *, fs: FileSystem = REAL) -> Exported:
    """Writes `failed_rows` to a JSONL file, in place of one that is there. Raises as `failed_rows`."""
    if to.suffix.lower() != ".jsonl":
        raise ConfigurationError(
            f"{to}: failed rows are written as JSON lines", hint="Name a file that ends with .jsonl."
        )
    refuse_own_files(to, directory)
    count = 0
    make_directory(fs, to.resolve().parent)
    with NewFile(to, fs) as file:
        for row in failed_rows(directory):
            file.write(json_line(row))
            count += 1
    return Exported(to, count)
