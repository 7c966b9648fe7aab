"""Drawings: every step with its class and model, columns and mappings; nothing that escapes its label."""

from pathlib import Path

import pytest

from asyncsynth.client.llm import LLM
from asyncsynth.errors import PipelineError
from asyncsynth.pipeline import Graph
from asyncsynth.pipeline.draw import mermaid, plain_text
from asyncsynth.steps.group import GroupColumns
from asyncsynth.steps.loaders import LoadDataFromDicts
from asyncsynth.tasks.text_generation import TextGeneration


def pool() -> Graph:
    with Graph("pool 'n' \"co\"") as graph:
        data = LoadDataFromDicts(data=[{"prompt": "a"}])
        a = TextGeneration(LLM(model="org/A"), input_mappings={"instruction": "prompt"})
        b = TextGeneration(
            LLM(model='B"]<x>\x1b[2J'),
            input_mappings={"instruction": "prompt"},
            output_mappings={"model_name": "judge"},
        )
        data >> [a, b] >> GroupColumns(columns=["generation"])
    return graph


def test_mermaid() -> None:
    assert mermaid(pool()).splitlines() == [
        "---",
        "title: 'pool ''n'' \"co\"'",
        "---",
        "flowchart TD",
        '    s0(["load_data_from_dicts_0<br/>LoadDataFromDicts<br/>writes prompt"])',
        '    s1["text_generation_0<br/>TextGeneration<br/>org/A<br/>writes generation, model_name"]',
        '    s2["text_generation_1<br/>TextGeneration<br/>B#quot;]#lt;x#gt;?[2J'
        '<br/>writes generation, model_name → judge"]',
        '    s3{{"group_columns_0<br/>GroupColumns<br/>writes grouped_generation, grouped_model_name"}}',
        '    s0 -- "prompt → instruction" --> s1',
        '    s0 -- "prompt → instruction" --> s2',
        '    s1 -- "generation" --> s3',
        '    s2 -- "generation" --> s3',
    ]


def test_plain_text() -> None:
    text = plain_text(pool())
    assert "text_generation_0 + text_generation_1 → group_columns_0  (GroupColumns)" in text
    assert "(TextGeneration, org/A)\n      reads  prompt → instruction\n" in text
    assert "\x1b" not in text


def test_a_pipeline_that_is_not_valid_can_be_drawn() -> None:
    with Graph() as graph:
        one, two = TextGeneration(LLM(model="m")), TextGeneration(LLM(model="m"))
        one >> two >> one
    assert 's1 -- "instruction" --> s0' in mermaid(graph)
    assert plain_text(graph).count("TextGeneration") == 2


def test_draw_writes_by_suffix(tmp_path: Path) -> None:
    graph = pool()
    assert graph.draw() == mermaid(graph)
    assert graph.draw(tmp_path / "p.mmd") == (tmp_path / "p.mmd").read_text() == mermaid(graph)
    graph.draw(str(tmp_path / "p.md"))
    assert (tmp_path / "p.md").read_text() == f"```mermaid\n{mermaid(graph)}```\n"
    assert graph.draw(tmp_path / "p.txt") == (tmp_path / "p.txt").read_text() == plain_text(graph)
    with pytest.raises(PipelineError, match=r"\.png"):
        graph.draw(tmp_path / "p.png")
