"""Files are made new: what somebody put at a temporary name is never followed or written to; exports obey the umask."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncsynth.errors import StorageError
from asyncsynth.storage.exports import NewFile, export
from asyncsynth.storage.files import REAL, atomic_write, temporary_path
from tests.kit.entries import one_each, write_run
from tests.kit.journals import write


def atomic(path: Path) -> None:
    atomic_write(path, b"new")


def whole(path: Path) -> None:
    with NewFile(path, REAL) as file:
        file.write(b"new")


@pytest.mark.row(40)
@pytest.mark.parametrize("make", [atomic, whole])
@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "file"])
def test_what_was_planted_at_the_temporary_name_stays_as_it_was(tmp_path: Path, make: object, kind: str) -> None:
    victim, target = tmp_path / "victim", tmp_path / "made"
    if kind != "dangling link":
        victim.write_bytes(b"precious")
    planted = temporary_path(target)
    if kind == "hard link":
        planted.hardlink_to(victim)
    elif kind == "file":
        planted.write_bytes(b"x" * 99)
    else:
        planted.symlink_to(victim)
    assert callable(make)
    make(target)
    assert target.read_bytes() == b"new"
    assert not target.is_symlink()
    assert not planted.exists()
    assert victim.exists() == (kind != "dangling link")
    if victim.exists():
        assert victim.read_bytes() == b"precious"


@pytest.mark.row(40)
def test_a_folder_at_the_temporary_name_is_an_error_with_the_file(tmp_path: Path) -> None:
    temporary_path(tmp_path / "made").mkdir()
    with pytest.raises(StorageError, match="made: cannot write the file"):
        atomic(tmp_path / "made")


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_exports_have_the_mode_of_the_umask_and_a_run_is_private(tmp_path: Path, umask: int) -> None:
    run = write_run(tmp_path / "run", one_each(2))
    export(run, tmp_path / "rows.jsonl")
    assert stat.S_IMODE((tmp_path / "rows.jsonl").stat().st_mode) == 0o666 & ~umask
    asyncio.run(write(run, 2, 1))
    assert {stat.S_IMODE(path.stat().st_mode) for path in run.iterdir()} == {0o600}
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
