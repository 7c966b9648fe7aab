"""What users of distilabel read when they import its names."""

from __future__ import annotations

from pathlib import Path

import pytest

import asyncsynth
from asyncsynth.distilabel_names import INSTEAD

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-distilabel.md"


@pytest.mark.parametrize("name", INSTEAD)
def test_an_import_of_distilabels_name_tells_the_name_here(name: str) -> None:
    with pytest.raises(ImportError) as told:
        exec(f"from asyncsynth import {name}")
    ours, words = INSTEAD[name]
    assert ours in asyncsynth.__all__
    assert f"its name here is {ours}" in str(told.value)
    assert f"| `{name}` | `{ours}` | {words} |" in PAGE.read_text()


def test_the_page_has_no_other_names() -> None:
    table = PAGE.read_text().split("## What is different")[0]
    rows = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert rows == list(INSTEAD)


def test_other_unknown_names_are_attribute_errors() -> None:
    assert not hasattr(asyncsynth, "NoSuchName")
