"""The pages on tasks, steps and settings are what the code says now, and their examples run."""

from __future__ import annotations

import dataclasses
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from asyncsynth import LLM, RetryPolicy, RunOptions
from asyncsynth.pipeline.step import snake_case
from asyncsynth.steps import __all__ as step_names
from docs import generate
from docs.markdown import COMMAND
from docs.reading import arguments, public_tasks
from docs.reference_pages import command_options
from docs.step_pages import public_steps
from tests.kit.files import ROOT
from tests.kit.pages import blocks, run

MADE = {folder: make() for folder, make in generate.FOLDERS.items()}
#: Examples that need an extra -> its package, which takes long to import.
NEEDS = {"steps/load_parquet.md": "pyarrow", "steps/load_disk.md": "datasets"}
NAMES = [f"{folder}/{name}" for folder in ("steps", "reference") for name in MADE[folder] if name != "README.md"]
EXAMPLES = [pytest.param(name, marks=pytest.mark.slow if name in NEEDS else ()) for name in NAMES]


@pytest.mark.parametrize("folder", MADE)
def test_the_pages_are_those_that_the_code_makes(folder: str) -> None:
    pages = MADE[folder]
    there = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / folder).glob("*.md")}
    stale = sorted(name for name in pages.keys() | there.keys() if pages.get(name) != there.get(name))
    assert not stale, f"docs/{folder} has drifted from the code ({', '.join(stale)}): run `{COMMAND}`"


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_generated_page_is_what_the_code_makes(name: str) -> None:
    there = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert there == generate.PAGES[name](), f"docs/{name} has drifted from the code: run `{COMMAND}`"


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_page_prints_what_the_page_says(name: str, tmp_path: Path) -> None:
    if (needed := NEEDS.get(name)) and find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    folder, page = name.split("/")
    section = MADE[folder][page].split("## Example\n")[1]
    (language, program), (_, printed) = blocks(section)
    assert language == "python"
    assert run(program, tmp_path) == printed


def test_every_page_on_a_task_has_its_parts_and_every_setting_a_meaning() -> None:
    pages = MADE["tasks"]
    assert {"text_generation.md", "ultra_feedback.md"} <= pages.keys()
    for task in public_tasks():
        page = pages[f"{snake_case(task.__name__)}.md"]
        for part in ("## Columns", "## Settings", "## Example", "## Prompt"):
            assert part in page, f"{task.__name__} has no {part}: say it in its docstring"
        assert f"({snake_case(task.__name__)}.md)" in pages["README.md"]


@pytest.mark.parametrize("folder", MADE)
def test_every_setting_has_a_meaning_and_no_page_knows_this_machine(folder: str) -> None:
    for name, page in MADE[folder].items():
        without = re.findall(r"^\| (`\w+`) \|.*\|  \|$", page, re.MULTILINE)
        assert not without, f"{folder}/{name}: say under Args what these mean: {', '.join(without)}"
        assert " at 0x" not in page
        assert str(ROOT) not in page


def test_every_public_step_and_loader_has_a_page() -> None:
    assert {kind.__name__ for kind in public_steps()} == set(step_names)
    for kind in public_steps():
        name = f"{snake_case(kind.__name__)}.md"
        assert f"[{kind.__name__}]({name})" in MADE["steps"]["README.md"]
        page = MADE["steps"][name]
        assert "## Settings" in page
        assert kind.__name__ in page.split("## Example")[1]


def test_every_option_of_a_run_is_on_the_page() -> None:
    page = MADE["reference"]["run-options.md"]
    for field in dataclasses.fields(RunOptions):
        assert f"| `{field.name}` |" in page
    for option, _ in command_options().values():
        assert f"`{option}`" in page
    for kind, name in ((LLM, "llm.md"), (RetryPolicy, "retry-policy.md")):
        for field in dataclasses.fields(kind):
            assert f"| `{field.name}` |" in MADE["reference"][name]


def test_prompts_are_shown_in_full_and_as_sent() -> None:
    page = MADE["tasks"]["ultra_feedback.md"]
    template = (ROOT / "asyncsynth" / "tasks" / "prompts" / "ultra_feedback.jinja").read_text(encoding="utf-8")
    assert template.rstrip() in page
    assert "What is sent first for the example" in page
    assert "arxiv.org/abs/2310.01377" in page


def test_args_are_read_over_several_lines_and_names() -> None:
    text = "    one: first\n        line: two.\n    two, three: both.\n    Others: see `Task`."
    assert arguments(text) == {
        "one": "first line: two.", "two": "both.", "three": "both.", "Others": "see `Task`."
    }  # fmt: skip
    assert arguments("see `Task`.") == {}
