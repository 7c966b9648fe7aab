"""`asyncsynth demo`: the example that comes with the package."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from asyncsynth.cli import demo_command
from asyncsynth.engine.status import RunStatus
from tests.kit.files import ROOT


def test_the_wheel_gets_every_file_of_the_example() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source, target in wheel["force-include"].items():
        assert (ROOT / source).is_file()
        assert target == f"asyncsynth/{source}"
    assert {"examples/preference.py", "examples/instructions.jsonl"} <= wheel["force-include"].keys()


@pytest.mark.embedded
def test_the_demo_runs_on_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo_command.demo_command(tmp_path / "run", limit=1, as_json=False) == 0
    assert "preference.py on a small model on this CPU" in capsys.readouterr().err
    status = RunStatus.read(tmp_path / "run")
    assert (status.ok, status.failed) == (1, 0)
