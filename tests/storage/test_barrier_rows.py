"""The rows between stages: every byte of them is checked, by a run and by `journal verify`."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson
import pytest

from asyncsynth.storage.barrier_rows import RowsWriter, check_rows, damage, decode_row, read_facts
from asyncsynth.storage.exports import NewFile
from asyncsynth.storage.files import REAL
from asyncsynth.storage.repair import repair
from asyncsynth.storage.verify import verify

DATA = Path(__file__).parent / "data"


def written(directory: Path, rows: int) -> bytes:
    directory.mkdir(parents=True, exist_ok=True)
    with NewFile(directory / "barrier.jsonl", REAL) as file:
        writer = RowsWriter(file)
        for number in range(rows):
            writer.write(f"{number}", {"text": "line\n" * number})
    facts = {"read": rows + 1, "kept": rows, "dropped": {"short": 1}, "made_from": {}, "crc": writer.crc}
    (directory / "barrier.json").write_bytes(orjson.dumps(facts))
    return (directory / "barrier.jsonl").read_bytes()


def test_rows_are_read_back(tmp_path: Path) -> None:
    lines = written(tmp_path, 3).splitlines()
    assert [decode_row(line) for line in lines] == [(f"{n}", {"text": "line\n" * n}) for n in range(3)]
    assert check_rows(tmp_path) == ("", "")
    written(tmp_path, 0)
    assert check_rows(tmp_path) == ("", "")


@pytest.mark.row(37)
def test_every_cut_and_every_flipped_byte_is_found(tmp_path: Path) -> None:
    whole = written(tmp_path, 4)
    facts = read_facts(tmp_path)
    assert facts is not None
    path = tmp_path / "barrier.jsonl"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert "where 4 were written" in damage(tmp_path, facts)
        flipped = bytearray(whole)
        flipped[size] ^= 1
        path.write_bytes(flipped)
        assert damage(tmp_path, facts)
    path.write_bytes(whole + b'{"k":"9","row":{}}\n')
    assert damage(tmp_path, facts) == "has 5 rows where 4 were written"
    path.unlink()
    assert damage(tmp_path, facts) == "is missing"


@pytest.mark.row(37)
def test_rows_without_a_checksum_are_counted_and_said_to_be_unchecked(tmp_path: Path) -> None:
    shutil.copytree(DATA / "run-format-1", tmp_path / "old")
    stage = tmp_path / "old" / "segment-1"
    wrong, other = check_rows(stage)
    assert wrong == ""
    assert "kept no checksum" in other
    assert [note for note in verify(stage).notes if "kept no checksum" in note]
    path = stage / "barrier.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert "where 4 were written" in check_rows(stage)[0]


@pytest.mark.row(37)
def test_verify_names_them_and_a_repair_lets_them_be_made_again(tmp_path: Path) -> None:
    shutil.copytree(DATA / "run-format-1", tmp_path / "run")
    stage = tmp_path / "run" / "segment-1"
    path = stage / "barrier.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    (finding,) = verify(stage).findings
    assert finding.path == path
    assert "has 3 rows and a part of one where 4 were written" in finding.what
    repair(tmp_path / "run")
    assert verify(stage).findings == []
    assert not (stage / "barrier.json").exists()
    assert (stage / "damaged" / "barrier.json").exists()
