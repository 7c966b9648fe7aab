"""A run's rows, read lazily from the journal in input order: the class of `result["default"]["train"]`.

Only the places of the rows are in memory, 8 bytes per record (16 if records do not have exactly one row).
"""

from __future__ import annotations

import re
import threading
import weakref
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from heapq import merge
from pathlib import Path
from typing import Any, overload

from asyncsynth.errors import ConfigurationError
from asyncsynth.records import Row
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.files import REAL
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.manifest import Manifest
from asyncsynth.storage.provenance import WithProvenance
from asyncsynth.storage.segments import list_segments
from asyncsynth.storage.shard_directories import journals

#: Number of maps kept, so that `result["default"]["train"][0]` in a loop does not read the journal each time.
_KEPT_MAPS = 4
_NUMBERED = re.compile(r"\.\d+\Z")


class RunRows(Sequence[Row]):
    """The rows of one end of a run's graph, as they were when this was made.

    Takes an index, a slice (lazy) or a column's name (lazy): ``rows[0]``, ``rows[:10]``, ``rows["chosen"]``.

    Args:
        directory: the run directory.
        leaf: name of the end of the graph.
        epoch: which state of the pipeline (see `storage.manifest`); None: the last.
        provenance: rows get a column `provenance` as well, see `storage.provenance`.

    Raises ConfigurationError for a directory or leaf that is not there, CorruptJournal, StorageError.
    """

    def __init__(
        self, directory: Path | str, leaf: str = "default", *, epoch: int | None = None, provenance: bool = False
    ) -> None:
        self.directory: Path = Path(directory)
        self.leaf = leaf
        manifest = Manifest.of_run(self.directory)
        chosen = _epoch(self.directory, manifest, epoch)
        known = manifest.epochs[chosen].leaves
        if leaf not in known:
            raise ConfigurationError(
                f"{self.directory}: the run has no rows named {leaf!r}",
                hint=f"It has {', '.join(map(repr, known)) or 'none'}.",
            )
        self._map: _RowMap | WithProvenance = _row_map(self.directory, leaf, chosen, manifest)
        if provenance:
            self._map = WithProvenance(self.directory, manifest, chosen, self._map)
        self._range = range(len(self._map))

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> RunRows: ...
    @overload
    def __getitem__(self, at: str) -> RunColumn: ...
    def __getitem__(self, at: int | slice | str) -> Row | RunRows | RunColumn:
        if isinstance(at, str):
            return RunColumn(self, at)
        if isinstance(at, slice):
            part = object.__new__(RunRows)
            part.directory, part.leaf, part._map = self.directory, self.leaf, self._map
            part._range = self._range[at]
            return part
        try:
            return self._map.row(self._range[at])
        except IndexError:
            raise IndexError(f"row {at} of {len(self)}") from None

    def __iter__(self) -> Iterator[Row]:
        return self._map.rows(self._range)

    def keyed(self) -> Iterator[tuple[str, Row]]:
        """(key, row), in order; see `row_key`. Keys stay the same when other records come and go."""
        return self._map.keyed(self._range)

    @property
    def column_names(self) -> list[str]:
        """The columns of the first row."""
        return list(self[0]) if self else []

    def __repr__(self) -> str:
        return f"RunRows({str(self.directory)!r}, {self.leaf!r}, rows={len(self)})"


class RunColumn(Sequence[Any]):
    """One column of the rows, read lazily. A row without it raises KeyError when it is read."""

    def __init__(self, rows: RunRows, name: str) -> None:
        if rows and name not in rows[0]:
            raise KeyError(f"{name!r}: the rows have {', '.join(rows.column_names)}")
        self._rows = rows
        self.name = name

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> RunColumn: ...
    def __getitem__(self, at: int | slice) -> Any:
        return RunColumn(self._rows[at], self.name) if isinstance(at, slice) else self._rows[at][self.name]

    def __iter__(self) -> Iterator[Any]:
        return (row[self.name] for row in self._rows)

    def __repr__(self) -> str:
        return f"RunColumn({self.name!r}, rows={len(self)})"


def leaves(directory: Path | str) -> list[str]:
    """Names of the ends of the run's graph. Raises ConfigurationError if there is no run."""
    return list(Manifest.of_run(Path(directory)).epochs[-1].leaves)


def row_key(record: str, number: int, count: int) -> str:
    """A key for the `number`-th of a record's `count` rows: the record's own if there is one row, else `17.0`, `17.1`.

    No two rows of a run get the same one: a record's key that ends like a numbered one is always numbered.
    """
    return record if count == 1 and not _NUMBERED.search(record) else f"{record}.{number}"


class _RowMap:
    """Where the n-th row is: the location of its record's last entry, and its place among the record's rows."""

    def __init__(self, parts: Sequence[tuple[Path, Manifest]], leaf: str, epoch: int) -> None:
        self._leaf = leaf
        self._views: list[JournalView] = []  #: one, or one for each shard
        self._where = array("Q")
        self._of = array("H") if len(parts) > 1 else None  #: which view the record is in
        self._starts: array[int] | None = None  #: number of the record's first row; None: one row each
        self._rows = 0
        found = [self._found(number, *part, epoch) for number, part in enumerate(parts)]
        for _, of, where, count in merge(*found):
            if count != 1 and self._starts is None:
                self._starts = array("Q", range(self._rows))
            if self._starts is not None:
                self._starts.append(self._rows)
            self._where.append(where)
            if self._of is not None:
                self._of.append(of)
            self._rows += count

    def _found(
        self, number: int, directory: Path, manifest: Manifest, epoch: int
    ) -> Iterator[tuple[int, int, int, int]]:
        """(position, number, location, rows) of the journal's records that have any, in the order of the input."""
        index = RunIndex(keys=manifest.keys, stride=manifest.stride)
        view = JournalView(directory)
        weakref.finalize(self, view.close)
        view.walk(index)
        self._views.append(view)
        return ((position, number, where, count) for position, where, count in index.final_rows(self._leaf, epoch))

    def __len__(self) -> int:
        return self._rows

    def row(self, number: int) -> Row:
        """The row, 0 <= number < len. Read again each time, because a caller may change it."""
        record, at = self._place(number)
        rows: list[Row] = self._entry(record)["rows"][self._leaf]
        return rows[at]

    def rows(self, numbers: range) -> Iterator[Row]:
        """The rows, each once; neighbours of one record are read together."""
        last = -1
        rows: list[Row] = []
        for number in numbers:
            record, at = self._place(number)
            if record != last:
                last, rows = record, self._entry(record)["rows"][self._leaf]
            yield rows[at]

    def keyed(self, numbers: range) -> Iterator[tuple[str, Row]]:
        """As `rows`, each with its key."""
        last = -1
        rows: list[Row] = []
        key = ""
        for number in numbers:
            record, at = self._place(number)
            if record != last:
                last, entry = record, self._entry(record)
                rows, key = entry["rows"][self._leaf], entry["k"]
            yield row_key(key, at, len(rows)), rows[at]

    def _place(self, number: int) -> tuple[int, int]:
        """The number of the row's record, and the row's place in it."""
        if self._starts is None:
            return number, 0
        record = bisect_right(self._starts, number) - 1
        return record, number - self._starts[record]

    def _entry(self, record: int) -> dict[str, Any]:
        """The last entry of the n-th record."""
        view = self._views[0 if self._of is None else self._of[record]]
        return view.read(self._where[record])


_maps: OrderedDict[tuple[object, ...], _RowMap] = OrderedDict()
_maps_lock = threading.Lock()


def _row_map(directory: Path, leaf: str, epoch: int, manifest: Manifest) -> _RowMap:
    """The map of the journal's present contents; the same object while the journal does not change."""
    parts = list(journals(directory, manifest))
    listed = [segment for place, _ in parts for segment in list_segments(place, REAL)]
    segments = [(segment.path, segment.size, segment.header) for segment in listed]
    state = (directory.resolve(), leaf, epoch, *segments)
    with _maps_lock:
        found = _maps.pop(state, None)
    if found is None:
        found = _RowMap(parts, leaf, epoch)
    with _maps_lock:
        _maps[state] = found
        while len(_maps) > _KEPT_MAPS:
            _maps.popitem(last=False)
    return found


def _epoch(directory: Path, manifest: Manifest, epoch: int | None) -> int:
    last = len(manifest.epochs) - 1
    if epoch is None:
        return last
    if not 0 <= epoch <= last:
        raise ConfigurationError(f"{directory}: there is no epoch {epoch}", hint=f"There are 0 to {last}.")
    return epoch
