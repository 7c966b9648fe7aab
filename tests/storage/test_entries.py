"""Entries as classes and as journal lines; the short keys of the lines stay in `storage`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncsynth
from asyncsynth.storage.entries import Entry, FailedRow, MovedEntry, RecordEntry, StepResult
from asyncsynth.storage.facts import SegmentFacts

PACKAGE = Path(asyncsynth.__file__).parent
#: The keys of journal lines, and "bad", which is the one of them that no other JSON here uses.
WIRE_KEYS = {*"tkihsfrome", "bad"}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
values = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | texts, lambda inner: st.lists(inner, max_size=3))
rows = st.dictionaries(texts, values, max_size=3)
results = st.builds(StepResult, texts, texts, st.lists(rows, max_size=2), st.none() | rows)
failures = st.builds(FailedRow, texts, texts, texts, texts, st.integers(0, 9), st.none() | texts)
steps = st.lists(st.tuples(texts, st.lists(results, max_size=3)), max_size=3, unique_by=lambda step: step[0])
hashes = st.integers(0, (1 << 64) - 1).map(lambda number: f"{number:016x}")
unfinished = st.builds(RecordEntry, st.integers(0, 99).map(str), st.integers(0, 99), hashes, steps)
finished = st.builds(
    RecordEntry, st.integers(0, 99).map(str), st.integers(0, 99), hashes, steps, st.integers(0, 3),
    st.sampled_from(["ok", "failed"]), st.dictionaries(texts, st.lists(rows, max_size=2), max_size=2),
    st.lists(failures, max_size=2), st.dictionaries(texts, st.dictionaries(texts, st.integers(1, 9)), max_size=2),
    st.none() | rows,
)  # fmt: skip


def fields(entry: RecordEntry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in RecordEntry.__slots__} | {"failed": list(entry.failed)}


@given(unfinished | finished)
def test_an_entry_is_read_back_as_it_was_written(entry: RecordEntry) -> None:
    read = RecordEntry.from_wire(orjson.loads(entry.encode()))
    if not entry.failed:
        assert read.input is None  # kept for failed rows only
        read.input = entry.input
    assert fields(read) == fields(entry)
    assert read.encode() == entry.encode()
    for fingerprint, made in entry.steps:
        assert read.results(fingerprint) == {one.key: one for one in made}


@given(st.lists(unfinished | finished, max_size=5), st.booleans())
def test_an_entry_notes_what_a_reading_of_its_line_finds(entries: list[RecordEntry], by_position: bool) -> None:
    noted, read = SegmentFacts(by_position=by_position), SegmentFacts(by_position=by_position)
    for where, entry in enumerate(entries, 100):
        for one in (entry, MovedEntry(entry.key, where)):
            one.note(noted, where)
            read.add(where, orjson.loads(one.encode()))
    assert noted.same_as(read)
    assert noted.entries == 2 * len(entries)


def test_every_kind_of_entry_is_one() -> None:
    entry: Entry = MovedEntry("1", 2)
    assert orjson.loads(entry.encode()) == {"t": "pos", "k": "1", "i": 2}


def wire_keys(source: str) -> Iterator[tuple[int, str]]:
    """(line, key) of each subscript, `get`, `pop` and dict literal that uses a key of journal lines."""
    for node in ast.walk(ast.parse(source)):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.Subscript):
            found = [node.slice]
        elif isinstance(node, ast.Dict):
            found = [*node.keys]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop"):
            found = node.args[:1]
        for key in found:
            if isinstance(key, ast.Constant) and key.value in WIRE_KEYS:
                yield key.lineno, str(key.value)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('result["o"]', ["o"]),
        ('old.get("h")', ["h"]),
        ('made = {"k": key, "m": meta}', ["k", "m"]),
        ('row["outputs"]; rows[0]; old.get(key)', []),
    ],
)  # fmt: skip
def test_a_wire_key_is_noticed(source: str, found: list[str]) -> None:
    assert [key for _, key in wire_keys(source)] == found


@pytest.mark.slow
def test_wire_keys_do_not_leave_storage() -> None:
    places = [
        f"{path.relative_to(PACKAGE)}:{line}: {key!r}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "storage"
        for line, key in wire_keys(path.read_text())
    ]
    assert not places, "journal lines are read and written in asyncsynth/storage/entries.py only"
