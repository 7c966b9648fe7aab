"""Phrases that readers stumble over stay out of the package and its documentation."""

from __future__ import annotations

import re

import pytest

from tests.kit.files import ROOT

#: What to write instead -> the phrases, as a regular expression. Few, and each wrong wherever it occurs.
PLAIN = {
    "so that ... not": r"lest",
    "even if, whether": r"be it that",
    "according to": r"has it that",
    "while": r"for as long as",
    "resumes, continues": r"goes on|going on with|gone on with|went on",
    "must, will": r"(?:is|are|was|were) to (?:be|have)",
    "this many, N": r"so many",
    "no server, no call, no caller": r"nobody",
    "the name of who does it": r"somebody|whoever",
    "the result of": r"what \w+(?: \w+){0,3} came to",
    "is": r"stands (?:at|beside|before|behind|under|where|in (?:a|an|the|its)|there)",
    "is reported, prints, gets": r"(?:is|are|was|were) told (?:of|that|once|when|each|what|about)",
    "if there is none": r"(?:when|where) there (?:is|are) none",
    "useless, cannot be used": r"of no use",
}
_EACH = {plain: re.compile(rf"\b(?:{phrases})\b".replace(" ", r"\s+(?:#:?\s+)?")) for plain, phrases in PLAIN.items()}
#: All of them at once: most files have none, and are read only once.
_ANY = re.compile("|".join(one.pattern for one in _EACH.values()))
FILES = [
    *sorted((ROOT / "asyncsynth").rglob("*.py")),
    # The pages of tasks show prompts as they are sent, and these are part of fingerprints.
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "tasks"),
    *sorted((ROOT / "docs").rglob("*.py")),
    *sorted(ROOT.glob("*.md")),
]


def awkward(text: str) -> list[str]:
    """`line: "phrase": what to write instead` for each phrase in a text, also one that a line break divides."""
    text = text.lower()
    if not _ANY.search(text):
        return []
    return [
        f'{text.count(chr(10), 0, hit.start()) + 1}: "{" ".join(hit[0].split())}": write "{plain}"'
        for plain, phrases in _EACH.items()
        for hit in phrases.finditer(text)
    ]


def test_no_file_has_an_awkward_phrase() -> None:
    assert len(FILES) > 300
    found = [f"{file.relative_to(ROOT)}:{one}" for file in FILES for one in awkward(file.read_text("utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "The name is to be a text.",
        "    # The limit is lowered, lest\n    # it is refused.",
        "#: It waits for as\n#: long as it runs.",
        "What an answer came to, counted.",
        "The run goes\n    on with the others.",
        "None where there is none.",
    ],
)
def test_it_finds_phrases_across_lines_and_comments(text: str) -> None:
    assert awkward(text)


@pytest.mark.parametrize(
    "text",
    [
        "The table that stands for a schema has stood the test.",
        "It was told apart by its key, and so manyfold.",
        "Celestial bodies, at least; as long as it runs; it is told apart.",
        "It has to be a list, and it is to blame.",
    ],
)
def test_it_raises_no_false_alarm(text: str) -> None:
    assert awkward(text) == []
