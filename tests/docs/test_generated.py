"""The pages on tasks are what the code says now."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "tasks"


@pytest.fixture(scope="module")
def generate() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        return importlib.import_module("docs.generate")


@pytest.fixture(scope="module")
def pages(generate: Any) -> dict[str, str]:
    return dict(generate.pages())


def test_the_pages_are_those_that_the_code_makes(generate: Any, pages: dict[str, str]) -> None:
    there = {path.name: path.read_text(encoding="utf-8") for path in PAGES.glob("*.md")}
    stale = sorted(name for name in pages.keys() | there.keys() if pages.get(name) != there.get(name))
    assert not stale, f"docs/tasks has drifted from the code ({', '.join(stale)}): run `{generate.COMMAND}`"


def test_every_page_has_its_parts_and_every_setting_a_meaning(generate: Any, pages: dict[str, str]) -> None:
    assert {"text_generation.md", "ultra_feedback.md"} <= pages.keys()
    for task in generate.public_tasks():
        page = pages[f"{generate.snake_case(task.__name__)}.md"]
        for part in ("## Columns", "## Settings", "## Example", "## Prompt"):
            assert part in page, f"{task.__name__} has no {part}: say it in its docstring"
        without = re.findall(r"^\| (`\w+`) \|.*\|  \|$", page, re.MULTILINE)
        assert not without, f"{task.__name__}: say under Args what these mean: {', '.join(without)}"
        assert f"({generate.snake_case(task.__name__)}.md)" in pages["README.md"]
        assert " at 0x" not in page
        assert str(ROOT) not in page


def test_prompts_are_shown_in_full_and_as_sent(generate: Any, pages: dict[str, str]) -> None:
    page = pages["ultra_feedback.md"]
    template = (ROOT / "asyncsynth" / "tasks" / "prompts" / "ultra_feedback.jinja").read_text(encoding="utf-8")
    assert template.rstrip() in page
    assert "What is sent first for the example" in page
    assert "arxiv.org/abs/2310.01377" in page


def test_args_are_read_over_several_lines_and_names(generate: Any) -> None:
    arguments = importlib.import_module("docs.reading").arguments
    text = "    one: first\n        line: two.\n    two, three: both.\n    Others: see `Task`."
    assert arguments(text) == {
        "one": "first line: two.", "two": "both.", "three": "both.", "Others": "see `Task`."
    }  # fmt: skip
    assert arguments("see `Task`.") == {}
