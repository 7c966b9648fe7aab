"""An input that lost rows behind its first MiB, which is all that identifies it, is told on resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asyncsynth import LLM, LoadJSONL, Pipeline, TextGeneration
from tests.kit.loops import run_async
from tests.kit.pipelines import server


def pipeline(path: Path) -> Pipeline:
    with Pipeline(name="long") as made:
        LoadJSONL(path) >> TextGeneration(llm=LLM(model="model-a"), template="{{ instruction[:9] }}")
    return made


@pytest.mark.row(38)
def test_an_input_that_became_shorter_is_told_and_one_that_grew_is_not(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"instruction": f"{number} " + "x" * (1 << 18)}) + "\n" for number in range(10)]

    async def notes(count: int) -> list[str]:
        path.write_text("".join(lines[:count]))
        async with server() as fake:
            result = await pipeline(path).arun(servers=[fake.base_url], output=tmp_path / "run")
        assert result.report.complete
        assert len(result["default"]["train"]) == count
        return [note for note in result.report.notes if "the input has" in note]

    async def main() -> None:
        assert await notes(8) == []
        assert await notes(10) == []
        (note,) = await notes(7)
        assert note.startswith("the input has 7 records now and had 10 in an earlier run: those that are gone")
        assert await notes(7) == []

    run_async(main())
