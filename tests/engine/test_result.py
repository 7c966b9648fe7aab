"""`Result` and its leaves are mappings, as users of `datasets` expect of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.engine.result import Result
from asyncsynth.testing import FaultServer
from tests.kit.loops import run_async


async def made(directory: Path) -> Result:
    async with FaultServer(models=("m",)) as server:
        with Pipeline("p") as pipeline:
            load = LoadDataFromDicts([{"instruction": "Name a river."}, {"instruction": "Name a lake."}])
            load >> TextGeneration(llm=LLM(model="m"))
        return await pipeline.arun(servers=[server.base_url], output=directory)


async def check(directory: Path) -> None:
    result = await made(directory)
    assert isinstance(result, Mapping)
    assert "default" in result
    assert "elsewhere" not in result
    assert list(result) == ["default"]
    assert len(result) == 1
    assert [(name, list(leaf)) for name, leaf in result.items()] == [("default", ["train"])]
    leaf = result["default"]
    assert isinstance(leaf, Mapping)
    assert "train" in leaf
    assert leaf.get("test") is None
    assert [len(rows) for rows in leaf.values()] == [2]
    with pytest.raises(KeyError, match="this run has 'default'"):
        result["defualt"]
    with pytest.raises(KeyError, match="one split, 'train'"):
        leaf["test"]


def test_a_result_and_its_leaves_are_mappings(tmp_path: Path) -> None:
    run_async(check(tmp_path / "run"))
