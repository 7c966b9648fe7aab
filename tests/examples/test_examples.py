"""Every example runs: pipelines on the fault server here, all of them on the embedded model in the longer check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncsynth.testing import FaultServer
from tests.kit.files import ROOT

EXAMPLES = ROOT / "examples"
#: What the examples name; the fault server answers to all of it.
MODELS = [
    "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen2.5-72B-Instruct",
]
SCRIPTS = sorted(
    path
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("smol_course/*.py")]
    if "with Pipeline(" not in path.read_text()
)
PIPELINES = sorted({*EXAMPLES.glob("*.py"), *EXAMPLES.glob("smol_course/*.py")} - set(SCRIPTS))


def run(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ASYNCSYNTH_SERVERS")}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def name(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


@pytest.mark.parametrize("path", PIPELINES, ids=name)
def test_pipelines_on_the_fault_server(path: Path, tmp_path: Path, fault_server: Callable[..., FaultServer]) -> None:
    server = fault_server(models=MODELS)
    ran = run(
        tmp_path,
        *("-m", "asyncsynth", "run", path, "--servers", server.base_url, "--output", tmp_path / "run"),
        *("--limit", 24, "--json"),
    )
    assert ran.returncode in (0, 3), ran.stderr  # 3: the fault server's words are no SelfInstruct, say
    done = json.loads(ran.stdout.splitlines()[-1])
    counts = done["counts"]
    assert counts["read"] == counts["ok"] + counts["failed"]
    assert counts["ok"] > 0
    assert done["requests"] > 0


@pytest.mark.parametrize("path", [*PIPELINES, *SCRIPTS], ids=name)
def test_every_example_says_how_to_run_it_and_what_to_expect(path: Path) -> None:
    doc = path.read_text().split('"""')[1]
    assert f"examples/{name(path)}" in doc
    assert "Expect" in doc


@pytest.mark.embedded
@pytest.mark.skipif(not os.environ.get("ASYNCSYNTH_ALL_EXAMPLES"), reason="the longer check: ASYNCSYNTH_ALL_EXAMPLES=1")
@pytest.mark.parametrize("path", [*PIPELINES, *SCRIPTS], ids=name)
def test_all_on_the_embedded_model(path: Path, tmp_path: Path) -> None:
    if path in SCRIPTS:
        ran = run(tmp_path, path)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip()
    else:
        ran = run(tmp_path, "-m", "asyncsynth", "run", path, "--embedded", "--output", tmp_path / "run", "--limit", 4)
        assert ran.returncode in (0, 3), ran.stderr
        assert "(embedded)" in ran.stdout


@pytest.mark.embedded
def test_a_script_for_one_task_alone(tmp_path: Path) -> None:
    """The scripts name the embedded model, so that they run anywhere; here one of them on it, for real."""
    pytest.importorskip("xllamacpp")
    ran = run(tmp_path, EXAMPLES / "try_alone.py")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("(embedded)") == 2
