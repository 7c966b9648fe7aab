"""Every code block of the guides runs as a reader would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncsynth.testing import FaultServer
from tests.kit.files import ROOT
from tests.kit.pages import blocks, run

GUIDES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "guides").glob("*.md"))}


def programs(page: str) -> list[tuple[str, str]]:
    """(program, what the page says that it prints) of each Python block."""
    found = blocks(page)
    following = [*found[1:], ("", "")]
    return [
        (text, after if kind == "text" else "")
        for (language, text), (kind, after) in zip(found, following, strict=True)
        if language == "python"
    ]


@pytest.mark.parametrize("number", range(len(programs(GUIDES["custom-steps.md"]))))
def test_a_program_prints_what_the_guide_says(
    number: int, tmp_path: Path, fault_server: Callable[..., FaultServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, printed = programs(GUIDES["custom-steps.md"])[number]
    monkeypatch.setenv("ASYNCSYNTH_SERVERS", fault_server(models=["model-a"]).base_url)
    assert run(program, tmp_path) == printed
    assert printed


def test_the_tests_of_the_guide_pass(tmp_path: Path) -> None:
    files = set()
    for program, _ in programs(GUIDES["testing.md"]):
        name = program.splitlines()[0].removeprefix("# ")
        assert re.fullmatch(r"\w+\.py", name), "the first line of a block is the file's name"
        (tmp_path / name).write_text(f"{program}\n", encoding="utf-8")
        files.add(name)
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "--durations=3"]
    command = [sys.executable, "-m", "pytest", *options]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert files >= {"pool.py", "test_pool.py", "test_faults.py", "test_exact.py", "test_parser.py"}


def test_the_guides_are_linked_and_their_own_links_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, page in GUIDES.items():
        assert f"[docs/guides/{name}][]" in readme
        for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page):
            assert (ROOT / "docs" / "guides" / link).exists(), f"{name}: {link}"
        titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
        headings = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
        assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= headings
