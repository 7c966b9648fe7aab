"""The result of `run()`: the rows, read lazily from the run directory, and the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from asyncsynth.engine.report import RunReport
from asyncsynth.storage.result_rows import RunRows, leaves

#: The one split of a generated dataset, by the name the `datasets` library gives it.
SPLIT = "train"


class Leaf(Mapping[str, RunRows]):
    """The rows of one end of the graph, by split: ``result["default"]["train"]``."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name

    def __getitem__(self, split: str) -> RunRows:
        if split != SPLIT:
            raise KeyError(f"{split!r}: a generated dataset has one split, {SPLIT!r}")
        return RunRows(self._directory, self._name)

    def __iter__(self) -> Iterator[str]:
        return iter((SPLIT,))

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return f"Leaf({self._name!r}, rows={len(self[SPLIT])})"


class Result(Mapping[str, Leaf]):
    """The result of a run, by end of the graph and split, as in ``result["default"]["train"][0]``.

    Rows are read from the journal when you access them, in input order.
    """

    def __init__(self, report: RunReport) -> None:
        self.report = report
        self.directory: Path = report.directory

    def __getitem__(self, leaf: str) -> Leaf:
        known = leaves(self.directory)
        if leaf not in known:
            raise KeyError(f"{leaf!r}: this run has {', '.join(map(repr, known)) or 'no rows yet'}")
        return Leaf(self.directory, leaf)

    @property
    def complete(self) -> bool:
        """Whether every record of the input has ended. If not, the rows are a part of the result."""
        return self.report.complete

    def __iter__(self) -> Iterator[str]:
        """Names of the graph's ends; "default" if there is one only."""
        return iter(leaves(self.directory))

    def __len__(self) -> int:
        return len(leaves(self.directory))

    def __repr__(self) -> str:
        unfinished = "" if self.complete else ", unfinished"
        return f"Result({str(self.directory)!r}, {', '.join(self.keys())}{unfinished})"
