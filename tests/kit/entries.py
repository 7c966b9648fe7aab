"""Journal entries, and run directories made of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncsynth.records import content_hash
from asyncsynth.storage.entries import Entry, FailedRow, RecordEntry, StepResult
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.journal import Journal
from asyncsynth.storage.manifest import Epoch, Manifest
from tests.kit.journals import SMALL

HASH = content_hash({"a": 1})


def result(key: str) -> StepResult:
    return StepResult(key, HASH, [{"generation": "x"}], {"model": "m"})


def dead(key: str, reason: str = "timeout") -> FailedRow:
    return FailedRow(key, "gen", reason, "no", 8)


def step(key: str, position: int, fp: str = "f" * 12) -> RecordEntry:
    return RecordEntry(key=key, position=position, row_hash=HASH, steps=[(fp, [result(key)])])


def final(key: str, position: int, *, epoch: int = 0, row_hash: str = HASH) -> RecordEntry:
    rows = {"default": [{"a": 1}]}
    return RecordEntry(key=key, position=position, row_hash=row_hash, epoch=epoch, status="ok", rows=rows)


def lost(key: str, position: int) -> RecordEntry:
    return RecordEntry(
        key=key, position=position, row_hash=HASH, epoch=0, status="failed", failed=[dead(key)],
        dropped={"filter": {"short": 2}},
    )  # fmt: skip


def journal_of(run: Path, entries: Iterable[Entry | bytes], **options: object) -> list[int]:
    """Writes the entries in a session of their own; their locations."""

    async def scene() -> list[int]:
        opened = Journal.open(run, **options) if run.exists() else Journal.create(run, **options)
        async with opened as journal:
            return [journal.append(entry if isinstance(entry, bytes) else entry.encode()) for entry in entries]

    options = {**SMALL, **options}
    return asyncio.run(scene())


def index_of(run: Path, keys: str = "position", sidecar_min_bytes: int = 1 << 20) -> RunIndex:
    index = RunIndex(keys=keys, sidecar_min_bytes=sidecar_min_bytes)
    asyncio.run(Journal.open(run, visitor=index).close())
    return index


def manifest() -> Manifest:
    epoch = Epoch("f" * 16, {"gen": "a" * 12}, {"steps": {"gen": {"model": "m", "params": {"temperature": 0.7}}}})
    return Manifest("r1", "pool", 42, "position", {"name": "in.jsonl"}, [epoch], "2026-01-01T00:00:00+00:00")


Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def write_run(
    directory: Path,
    records: Sequence[tuple[int, Rows]],
    *,
    epoch: int = 0,
    epochs: int = 1,
    names: Sequence[str] = ("default",),
    keys: str = "position",
    extra: Sequence[bytes] = (),
) -> Path:
    """A run directory whose records end in the given order, each with its position and rows."""

    async def write() -> None:
        there = directory.exists()
        async with Journal.open(directory) if there else Journal.create(directory) as journal:
            for position, made in records:
                key = str(position) if keys == "position" else f"id-{position}"
                ending: dict[str, Any] = {"epoch": epoch, "status": "ok" if any(made.values()) else "failed"}
                journal.append(RecordEntry(key, position, "00" * 8, rows=made, **ending).encode())
                if position % 256 == 255:
                    await journal.flushed()
            for entry in extra:
                journal.append(entry)

    asyncio.run(write())
    states = [Epoch("f", {}, {}, leaves=list(names)) for _ in range(epochs)]
    Manifest("run", "p", 0, keys, {}, states, "2026-01-01T00:00:00+00:00").save(directory)
    return directory


def one_each(count: int) -> list[tuple[int, Rows]]:
    return [(n, {"default": [{"n": n, "text": f"row {n}"}]}) for n in range(count)]
