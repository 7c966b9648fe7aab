"""Fleets and vLLM files with anything in them: servers, or an error with the file. And keys typed as a name."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest

from asyncsynth import LLM
from asyncsynth.client.secret import check_variable
from asyncsynth.errors import ConfigurationError
from asyncsynth.servers.access import check_values, expanded
from asyncsynth.servers.configs import parse_servers
from tests.matrix.plugin import FULL, Tried

FLEET = """servers:
  - url: http://127.0.0.1:8000/v1
    models: [a, b]
    limit: 4
    headers: {x-a: "${HOME}", x-b: "2"}
    request_timeout: 3.5
  - config: v.yaml
    gpus: [0, 1]
    env: {A: 1}
    flags: {port: 8001}
    name: q
"""
VLLM = """model: Qwen/Qwen2.5
port: 8000
host: 0.0.0.0
served-model-name: [a, b]
max-num-seqs: 256
"""
JUNK = [
    "[", "]", "{", "}", ":", "-", "&a", "*a", "<<:", "!!int", "!!timestamp", "2024-13-45", "0x", "0b2", "1e999", "\t",
    "\x07", "\u0085", "\ufeff", "'", '"', "|", ">", "%", "@", "?", "null", "~", "true", "-5", "{[a]:1}", "!!binary",
    "!!set", "!!float", "!!bool", "=", "1:2:3", "1_", "0o9", "2001-01-01T99:99:99", "[[[", "\x00", "#", "~nobody/x",
    "http://[",
]  # fmt: skip
JUNK += ["9" * 400, "[" * 2000, "a: " * 2000]
SPOT = re.compile(r"(?<=[:\-,\[] )[^\n,\]\}]+")
KEYS = (
    "sk-abc123DEF456ghi789", "sk_live_51HabcDEFghiJKL", "hf_aBcDeFgHiJkLmNoPqRsT", "gsk_0a1b2c3d4e5f6071829a",
    "a3f4c5d6e7f80912a3f4c5d6e7f80912", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.abc", "xai_abcdefghijklmnopqrstuvwxyzabcdef",
)  # fmt: skip
NAMES = ("OPENAI_API_KEY", "my_key", "AZURE_OPENAI_KEY_2024", "KEY1", "HF_TOKEN", "_X", "K8S_TOKEN", "AZURE_GPT4O_KEY")


def garbled(text: str, rng: random.Random) -> str:
    """The text with one to three faults."""
    for _ in range(rng.randint(1, 3)):
        at, kind = rng.randrange(len(text)), rng.random()
        spots = [*SPOT.finditer(text)]
        if kind < 0.3:
            text = text[:at] + rng.choice(JUNK) + text[at:]
        elif kind < 0.7 and spots:
            spot = rng.choice(spots)
            text = text[: spot.start()] + rng.choice(JUNK) + text[spot.end() :]
        else:
            text = text[:at] if kind < 0.8 else text[:at] + text[at + rng.randint(1, 5) :]
        text = text or "x"
    return text


def refusal(file: Path) -> str:
    """What is said of a file; '' if it is read. Any error but a ConfigurationError fails the test."""
    try:
        parse_servers([str(file)])
    except ConfigurationError as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.row(49)
def test_a_garbled_fleet_or_vllm_file_is_read_or_refused_with_the_file(tmp_path: Path, tried: Tried) -> None:
    seed = int(os.environ.get("ASYNCSYNTH_SEED", "1"))
    rng = random.Random(seed)
    fleet, vllm = tmp_path / "f.yaml", tmp_path / "v.yaml"
    for at in range(2000 if FULL else 150):
        fleet.write_text(garbled(FLEET, rng) if at % 2 else FLEET)
        vllm.write_text(VLLM if at % 2 else garbled(VLLM, rng))
        said = refusal(fleet)
        assert not said or ".yaml" in said, (seed, at, fleet.read_text(), vllm.read_text())
        tried(1, "YAML files garbled")


@pytest.mark.row(50)
@pytest.mark.parametrize("key", KEYS)
def test_a_key_typed_as_the_name_of_a_variable_is_refused_and_not_shown(tmp_path: Path, key: str) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(
        f"servers:\n  - url: http://127.0.0.1:1\n    api_key_env: {key}\n    headers: {{x-a: '${{{key}}}'}}\n"
    )
    header = {"x-a": f"${{{key}}}"}
    for attempt in (
        lambda: parse_servers([str(file)]),
        lambda: LLM(model="m", api_key_env=key),
        lambda: check_values("headers", header, "LLM('m')"),
        lambda: expanded(header, "LLM('m')", {}),
    ):
        with pytest.raises(ConfigurationError, match="the name of an environment variable was expected") as caught:
            attempt()
        assert key not in f"{caught.value!r} {caught.value} {caught.value.hint}"


@pytest.mark.row(50)
def test_names_that_people_give_to_variables_pass_and_others_do_when_they_are_set() -> None:
    for name in NAMES:
        check_variable(name, "here", {})
    check_variable("myCompanyKeyOf2026", "here", {"myCompanyKeyOf2026": "x"})
    with pytest.raises(ConfigurationError, match=r"^here: "):
        check_variable("myCompanyKeyOf2026", "here", {})
