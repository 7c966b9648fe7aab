"""A sweep as a user does it: one pipeline file, a setting from outside, two runs side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from asyncsynth.testing import FaultServer
from tests.kit.commands import asyncsynth, write_job


def test_a_sweep_over_a_setting(tmp_path: Path, fault_server: Callable[..., FaultServer]) -> None:
    server = fault_server(models=["model-a"])
    job = write_job(tmp_path)
    for tokens in (4, 512):
        setting = f"text_generation_0.llm.max_tokens={tokens}"
        ran = asyncsynth("run", job, "--servers", server.base_url, "--output", tmp_path / str(tokens), "--set", setting)
        assert ran.returncode == 0, ran.stderr
    compared = asyncsynth("compare", tmp_path / "4", tmp_path / "512", "--json")
    assert compared.returncode == 0, compared.stderr
    found = json.loads(compared.stdout)
    assert len(found["settings"]) == 1
    assert "max_tokens: 4 -> 512" in found["settings"][0]
    assert found["steps"]["text_generation_0"]["truncated_share"] == [1.0, 0.0, -1.0]
    measured = asyncsynth("status", tmp_path / "4", "--quality")
    assert measured.returncode == 0, measured.stderr
    assert "truncated" in measured.stdout
    wrong = asyncsynth("run", job, "--output", tmp_path / "x", "--set", "text_generation_0.llm.temprature=1")
    assert wrong.returncode == 2
    assert "did you mean 'temperature'" in wrong.stderr
    assert not (tmp_path / "x").exists()


def test_nothing_to_compare(tmp_path: Path) -> None:
    ran = asyncsynth("compare", tmp_path / "none", tmp_path)
    assert ran.returncode == 2
    assert "not a run directory" in ran.stderr
