"""The directories of a run's stages, where steps over all rows split its pipeline.

The last stage is in the run's own directory. Stage k before it is in `stage-k` inside, or in `segment-k` if the run
began with manifest format 1: a run keeps its format and the names of its folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from asyncsynth.storage import layout
from asyncsynth.storage.manifest import FORMAT, Manifest


def stage_path(root: Path, number: int, run_format: int = FORMAT) -> Path:
    """The directory of stage `number` (from 1), which is not the last one, of the run in `root`."""
    return root / (layout.stage_name(number) if run_format > 1 else layout.old_stage_name(number))


def stage_before(directory: Path, manifest: Manifest) -> Path | None:
    """The directory of the stage that a stage's rows come from; None for the first one.

    `directory` may be any stage's: the last one's holds all others.
    """
    folder = manifest.rows_of
    if not folder:
        return None
    place = directory / folder if (directory / folder).is_dir() else directory.parent / folder
    return place if Manifest.exists(place) else None


def stages_before(directory: Path, manifest: Manifest) -> Iterator[tuple[Path, Manifest]]:
    """The directories of the stages before the last one, in order, each with its manifest. Raises StorageError."""
    number = 1
    while manifest.rows_of:
        place = stage_path(directory, number, manifest.format)
        part = Manifest.load(place)
        if part is None:
            return
        yield place, part
        number += 1
