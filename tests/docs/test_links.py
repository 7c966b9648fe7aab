"""Every link into the repository leads to a file, and every heading that a link names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.kit.files import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
#: The README is also the package index's page, where relative links lead nowhere.
ABSOLUTE = re.compile(r"https://github\.com/asyncsynth/asyncsynth/(?:blob|tree)/main/")
_CODE = re.compile(r"^(`{3,}).*?^\1\s*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
#: ``[text](link)``, and ``[text]: link`` at the end of a page.
_LINK = re.compile(r"(?:\]\(|^\[[^\]\n]+\]: )([^)\s]+)", re.MULTILINE)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_TERM = re.compile(r"^\| (\w+) \| ", re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = _HEADING.findall(re.sub(r"^(`{3,}).*?^\1\s*$", "", page.read_text("utf-8"), flags=re.M | re.S))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_into_the_repository_leads_somewhere(page: Path) -> None:
    links = _LINK.findall(_CODE.sub("", page.read_text("utf-8")))
    for link in links:
        folder, path = (ROOT, ABSOLUTE.sub("", link)) if ABSOLUTE.match(link) else (page.parent, link)
        if re.match(r"\w+:", path):
            continue
        name, _, anchor = path.partition("#")
        target = (folder / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link} leads nowhere"
        assert not anchor or anchor in _anchors(target), f"{page.name}: {link}: no such heading"


def test_links_of_the_readme_work_on_the_package_index() -> None:
    links = _LINK.findall(_CODE.sub("", (ROOT / "README.md").read_text("utf-8")))
    assert len(links) > 20
    text = _CODE.sub("", (ROOT / "README.md").read_text("utf-8"))
    defined = set(re.findall(r"^\[([^\]\n]+)\]: ", text, re.MULTILINE))
    used = set(re.findall(r"\[([^\]\n]+)\]\[\]", text))
    assert used == defined
    assert not [link for link in links if not re.match(r"https://|#", link)]


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
