"""Runs that began with manifest format 1 are resumed as they are: their stages stay in `segment-k`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from asyncsynth.storage.exports import export
from asyncsynth.storage.manifest import Manifest
from tests.kit.loops import run_async
from tests.kit.pipelines import completions, rows, server, two_models


def as_format_1(run: Path) -> None:
    """Names everything as format 1 did. It shares no code with the package, so it cannot change with it."""
    (run / "stage-1").rename(run / "segment-1")
    for place in (run, run / "segment-1"):
        manifest: dict[str, Any] = orjson.loads((place / "MANIFEST.json").read_bytes())
        manifest["format"] = 1
        if manifest["source"]["kind"] == "stage":
            source = manifest["source"]
            manifest["source"] = {
                "kind": "segment", "name": source["name"], "segment": "segment-1", "head_bytes": 0, "head_sha256": "",
            }  # fmt: skip
        (place / "MANIFEST.json").write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n")
    barrier = run / "segment-1" / "barrier.json"
    if barrier.exists():
        known = ("read", "kept", "dropped", "made_from")
        facts = {name: value for name, value in orjson.loads(barrier.read_bytes()).items() if name in known}
        barrier.write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2) + b"\n")


def exported(run: Path) -> bytes:
    export(run, run.parent / "rows.jsonl")
    return (run.parent / "rows.jsonl").read_bytes()


def journal(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("seg-*.jsonl")}


def test_a_finished_run_is_resumed_without_a_request_or_a_new_byte_of_journal(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            run, data = tmp_path / "run", rows(5)
            await two_models(data).arun(servers=[fake.base_url], output=run)
            before = exported(run)
            as_format_1(run)
            there, asked = journal(run), completions(fake)
            result = await two_models(data).arun(servers=[fake.base_url], output=run)
            assert result.report.complete
            assert completions(fake) == asked
            assert exported(run) == before
            assert journal(run) == there
            assert Manifest.of_run(run).format == 1
            assert not (run / "stage-1").exists()

    run_async(main())


def test_an_unfinished_run_is_resumed_where_its_stages_are(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            run, whole, data = tmp_path / "run", tmp_path / "whole", rows(8)
            await two_models(data).arun(servers=[fake.base_url], output=run, limit=5)
            as_format_1(run)
            before = completions(fake)
            result = await two_models(data).arun(servers=[fake.base_url], output=run)
            assert result.report.complete
            assert completions(fake) == before + 3 + 3
            await two_models(data).arun(servers=[fake.base_url], output=whole)
            assert exported(run) == exported(whole)
            assert sorted(path.name for path in run.glob("s*-1")) == ["segment-1"]
            assert Manifest.of_run(run).rows_of == "segment-1"
            assert (whole / "stage-1" / "barrier.jsonl").exists()

    run_async(main())
