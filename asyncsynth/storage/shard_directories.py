"""A run that several processes share: its records are distributed over shards, each an ordinary run directory.

The run's own directory has a manifest with the number of shards, and no journal. A record's shard is decided by its
position in the input or, if rows have ids, by its id: the same at every start.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from asyncsynth.errors import CorruptJournal
from asyncsynth.storage import layout
from asyncsynth.storage.manifest import Manifest


def shard_path(directory: Path, number: int) -> Path:
    """The directory of shard `number` (from 0) of a run."""
    return directory / layout.shard_name(number)


def journals(directory: Path, manifest: Manifest) -> Iterator[tuple[Path, Manifest]]:
    """The directories that hold the run's journal, with their manifests: its own, or its shards in order.

    A shard that no process has begun yet is left out. Raises StorageError, CorruptJournal.
    """
    if not manifest.shards:
        yield directory, manifest
        return
    for number in range(manifest.shards):
        place = shard_path(directory, number)
        if not place.is_dir():
            continue  # made after the run's own manifest, and only then written to
        part = Manifest.load(place)
        if part is None:
            raise CorruptJournal(
                f"{place}: this shard of the run has no manifest",
                hint="Restore it from a copy, or resume the run, which writes it again.",
            )
        yield place, part
