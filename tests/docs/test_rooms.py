"""The package as a reader finds it: file names in one room, no code that only tests use, "probe" with one meaning."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "asyncsynth"
FILES = sorted(PACKAGE.rglob("*.py"))

#: What others call: users, test code of users (`asyncsynth.testing`), libraries by name, and our own tests on purpose.
CALLED_FROM_OUTSIDE = frozenset(
    {
        "change_speed",  # asyncsynth.testing
        "run_virtually",  # asyncsynth.testing
        "on_headers_complete",  # httptools
        "on_message_begin",  # httptools
        "on_url",  # httptools
        "idle_connections",  # shows tests what a pool keeps
        "remove_server",  # the counterpart of `add_server`
    }
)


def test_no_file_name_is_in_two_rooms() -> None:
    names = Counter(file.name for file in FILES)
    assert {name for name, times in names.items() if times > 1} == {"__init__.py"}


@pytest.mark.slow
def test_nothing_is_defined_that_only_tests_use() -> None:
    words: Counter[str] = Counter()
    for file in FILES:
        words.update(re.findall(r"\w+", file.read_text()))
    unused = {
        node.name
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and words[node.name] == 1
        and not node.name.startswith("__")
    }
    assert unused <= CALLED_FROM_OUTSIDE


def test_a_probe_is_what_finds_out_an_ability() -> None:
    """The glossary has other words for what the scheduler does: a health check, a canary, a test call."""
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for room in ("core", "client", "engine", "storage")
        for file in sorted((PACKAGE / room).rglob("*.py"))
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(r"\bprob(e|es|ed|ing)\b|_probe", line, re.IGNORECASE)
    ]
    assert found == []
