"""Every relative link of the pages leads to a file, and every heading that a link names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.kit.files import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_CODE = re.compile(r"^(`{3,}).*?^\1\s*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_TERM = re.compile(r"^\| (\w+) \| ", re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = _HEADING.findall(re.sub(r"^(`{3,}).*?^\1\s*$", "", page.read_text("utf-8"), flags=re.M | re.S))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    links = _LINK.findall(_CODE.sub("", page.read_text("utf-8")))
    for link in links:
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link} leads nowhere"
        assert not anchor or anchor in _anchors(target), f"{page.name}: {link}: no such heading"


def test_every_page_of_the_docs_can_be_reached_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in text]
    assert not missing, f"README.md links to none of {missing}"


def test_what_contributing_names_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(r"`((?:asyncsynth|docs|tests|tools|\.ci|benchmarks)/[\w./-]*|[\w-]+\.(?:md|toml))`", text)
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_glossary_is_short_and_says_each_word_once() -> None:
    terms = [term for term in _TERM.findall((ROOT / "docs" / "glossary.md").read_text("utf-8")) if term != "word"]
    assert len(terms) == len(set(terms)) <= 30
    assert {"record", "row", "key", "step", "stage", "segment", "shard", "replica", "probe", "slot"} <= set(terms)
