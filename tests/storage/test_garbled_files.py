"""Files beside the journal that a person, a disk or a tool has garbled: an error that names the file, or told state."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from asyncsynth.engine.server_lines import keep_lines, kept_lines
from asyncsynth.errors import StorageError
from asyncsynth.storage.exports import NewFile
from asyncsynth.storage.files import REAL
from asyncsynth.storage.manifest import Epoch, Manifest
from tests.matrix.plugin import Tried

pytestmark = pytest.mark.row(49)

STEPS = {"data": {"after": []}, "text": {"num_generations": 1, "after": ["data"]}}
LINE = {
    "name": "a", "state": "closed", "in_flight": 1, "limit": 4, "waiting": 0, "server_waiting": None,
    "server_running": 2.0, "server_kv": 0.5, "why": "",
}  # fmt: skip
OTHER = (None, [], {}, "x", 7, 1.5, True, [[]], -1)


def manifest() -> Manifest:
    """One with a value in every field."""
    epoch = Epoch("f" * 12, {"text": "e" * 12}, {"run_seed": 0, "steps": STEPS}, ["default"], ["m"], {"numpy": "2.0"})
    source = {"kind": "jsonl", "name": "rows.jsonl", "head_bytes": 3, "head_sha256": "00"}
    return Manifest("id", "p", 0, "position", source, [epoch], "2026-01-01T00:00:00+00:00")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in JSON."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, one in inside for found in [(*path, key), *places(one, (*path, key))]]


def use(read: Manifest) -> None:
    """What the engine does with the parts of a manifest, and would raise for one of another kind."""
    assert {*map(type, (read.run_id, read.pipeline, read.keys, read.rows_of, read.created))} == {str}
    assert {*map(type, (read.run_seed, read.shards, read.stride))} == {int}
    read.source.get("kind")
    for epoch in read.epochs:
        assert all(isinstance(fingerprint, str) for fingerprint in epoch.steps.values())
        assert all(isinstance(version, str) for version in epoch.packages.values())
        for step in epoch.fields.get("steps", {}).values():
            assert all(isinstance(name, str) for name in step.get("after", ()))


def refusal(directory: Path) -> str:
    """What is said of the manifest; '' if it can be used. Any error but a StorageError fails the test."""
    try:
        read = Manifest.load(directory)
    except StorageError as error:
        assert error.hint  # noqa: PT017
        return str(error)
    assert read is not None
    use(read)
    return ""


def test_a_manifest_with_any_value_replaced_is_usable_or_refused_by_name(tmp_path: Path, tried: Tried) -> None:
    manifest().save(tmp_path)
    file = tmp_path / "MANIFEST.json"
    whole = file.read_bytes()
    refused = 0
    for path in places(orjson.loads(whole)):
        for value in OTHER:
            changed = orjson.loads(whole)
            within = changed
            for key in path[:-1]:
                within = within[key]
            within[path[-1]] = value
            file.write_bytes(orjson.dumps(changed))
            said = refusal(tmp_path)
            assert not said or str(file) in said, (path, value)
            refused += bool(said)
            tried(1, "values replaced")
    assert refused > 100


def test_a_manifest_cut_anywhere_or_replaced_by_other_text_is_refused_by_name(tmp_path: Path, tried: Tried) -> None:
    manifest().save(tmp_path)
    file = tmp_path / "MANIFEST.json"
    whole = file.read_bytes()
    others = [b"[]", b"{}", b"3", b"null", b"\xff\xfe", b"[" * 50_000, b'{"a":' * 20_000, bytes(len(whole))]
    for garbled in [*(whole[:at] for at in range(len(whole) - 2)), *others]:
        file.write_bytes(garbled)
        with pytest.raises(StorageError, match=r"MANIFEST\.json"):
            Manifest.load(tmp_path)
        tried(1, "files cut or replaced")


@pytest.mark.parametrize("name", LINE)
def test_a_server_line_of_another_kind_is_not_shown(tmp_path: Path, name: str) -> None:
    keep_lines(tmp_path, [LINE])
    assert kept_lines(tmp_path) == [LINE]
    for value in ([], {}, ["x"], True):
        (tmp_path / "servers.json").write_bytes(orjson.dumps([{**LINE, name: value}, LINE]))
        assert kept_lines(tmp_path) == [LINE]


@pytest.mark.row(40)
def test_server_lines_never_go_through_a_planted_link(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.write_text("precious")
    for name in ("servers.json", "servers.json.new"):
        (run / name).symlink_to(other)
    keep_lines(run, [LINE])
    assert other.read_text() == "precious"
    assert kept_lines(run) == [LINE]
    assert not (run / "servers.json").is_symlink()


@pytest.mark.row(40)
def test_two_threads_that_export_to_one_file_do_not_meet(tmp_path: Path) -> None:
    """Each writes a file of its own; the last to end is the file."""
    target, first_writes, second_ended = tmp_path / "rows.jsonl", threading.Event(), threading.Event()

    def slow() -> None:
        with NewFile(target, REAL) as file:
            first_writes.set()
            file.write(b"first\n")
            assert second_ended.wait(30)

    thread = threading.Thread(target=slow)
    thread.start()
    assert first_writes.wait(30)
    with NewFile(target, REAL) as file:
        file.write(b"second\n")
    assert target.read_bytes() == b"second\n"
    second_ended.set()
    thread.join()
    assert target.read_bytes() == b"first\n"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
