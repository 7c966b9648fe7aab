"""The example of docs/journal.md is what the code writes and reads."""

from __future__ import annotations

import asyncio
from pathlib import Path

from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.framing import Header, header_line, mark_line, parse_header
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.journal import Journal

PAGE = Path(__file__).resolve().parents[2] / "docs" / "journal.md"


def test_the_pages_example_is_a_journal(tmp_path: Path) -> None:
    example = PAGE.read_text().partition("```json\n")[2].partition("```")[0].encode()
    header, mark, _ = example.splitlines(keepends=True)
    parsed = parse_header(header[:-1])
    assert parsed is not None
    assert parsed[0] == Header(parsed[0].run_id, 1, parsed[0].salt, 0)
    assert header_line(parsed[0]) == header
    assert mark_line(1, parsed[0].salt) == mark
    (tmp_path / "seg-000001.jsonl").write_bytes(example)
    index = RunIndex(keys="position")
    asyncio.run(Journal.open(tmp_path, visitor=index).close())
    assert (index.counts().ok, dict(index.counts().rows)) == (1, {"default": 1})
    assert index.step_count("3c9683017f9e") == 1
    with JournalView(tmp_path) as view:
        ((_, entry),) = view.entries()
        assert entry["rows"]["default"][0]["generation"] == "Paris."
