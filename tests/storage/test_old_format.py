"""A run directory of manifest format 1, as the version that wrote it left it: read, exported, verified, measured."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from asyncsynth.engine.status import RunStatus
from asyncsynth.errors import StorageError
from asyncsynth.quality.run_quality import RunQuality
from asyncsynth.storage.exports import export
from asyncsynth.storage.extent import completeness
from asyncsynth.storage.journal_stats import journal_stats
from asyncsynth.storage.manifest import Manifest
from asyncsynth.storage.stage_directories import stage_before, stages_before
from asyncsynth.storage.verify import run_directories, verify

DATA = Path(__file__).parent / "data"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Six records, of which a step over all rows kept four, with a model step before it and one after."""
    shutil.copytree(DATA / "run-format-1", tmp_path / "old")
    return tmp_path / "old"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_it_is_exported_byte_for_byte_as_its_version_did(old: Path, tmp_path: Path) -> None:
    before = contents(old)
    export(old, tmp_path / "rows.jsonl", provenance=True)
    assert (tmp_path / "rows.jsonl").read_bytes() == (DATA / "run-format-1.jsonl").read_bytes()
    assert contents(old) == before


def test_it_is_verified_with_all_its_parts(old: Path) -> None:
    assert run_directories(old) == [old / "segment-1", old]
    for place in run_directories(old):
        assert verify(place).findings == []
    segment = old / "segment-1" / "seg-000001.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b"river", b"rivet", 1))
    assert verify(old / "segment-1").findings


def test_its_stages_are_found_from_either_end(old: Path) -> None:
    manifest = Manifest.of_run(old)
    assert (manifest.format, manifest.rows_of) == (1, "segment-1")
    assert stage_before(old, manifest) == old / "segment-1"
    assert [place for place, _ in stages_before(old, manifest)] == [old / "segment-1"]
    first = Manifest.of_run(old / "segment-1")
    assert (first.rows_of, stage_before(old / "segment-1", first)) == ("", None)


def test_its_state_and_its_numbers_are_told(old: Path) -> None:
    assert completeness(old).complete
    status = RunStatus.read(old)
    assert status.before is not None
    assert (status.ok, status.before.ok, status.complete) == (4, 6, True)
    assert status.before.barrier is not None
    assert (status.before.barrier.read, status.before.barrier.kept) == (6, 4)
    assert journal_stats(old).final == 4
    assert {*RunQuality.read(old).steps} >= {"first", "second"}


def test_a_format_of_a_later_version_is_refused(old: Path) -> None:
    path = old / "MANIFEST.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 3'))
    with pytest.raises(StorageError, match="has format 3; this version of asyncsynth reads formats up to 2"):
        Manifest.load(old)
