"""A run that several processes share: its records are dealt out to shards, each an ordinary run directory.

The run's own directory has a manifest that says how many shards there are, and no journal. A record's shard is
decided by its position in the input or, where rows have ids, by its id: the same at every start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asyncsynth.errors import CorruptJournal
from asyncsynth.storage import layout
from asyncsynth.storage.facts import key_hash
from asyncsynth.storage.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Part:
    """The `number`-th (from 0) of `count` equal parts: of the records of an input, or of a server's limit."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ValueError(f"part {self.number} of {self.count}")

    def has(self, position: int) -> bool:
        """Whether the record at this position belongs to it, where records are known by position."""
        return position % self.count == self.number

    def has_key(self, key: str) -> bool:
        """Whether the record with this id belongs to it."""
        # The upper half: the index's table goes by the lower bits, which would be alike within a shard.
        return (key_hash(key) >> 32) % self.count == self.number

    def of(self, total: int) -> int:
        """This part of `total`; the parts add up to it."""
        return total // self.count + (self.number < total % self.count)

    def least_one(self, total: int | None) -> int | None:
        """`of`, and 1 at least; None stays None."""
        return None if total is None else max(1, self.of(total))


def shard_path(directory: Path, number: int) -> Path:
    """Where shard `number` (from 0) of a run lies."""
    return directory / layout.shard_name(number)


def journals(directory: Path, manifest: Manifest) -> Iterator[tuple[Path, Manifest]]:
    """The directories that hold the run's journal, with their manifests: itself, or its shards in order.

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
