"""The shipped configuration files: valid for the vLLM that the `vllm` extra pins, commented, free of clashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from asyncsynth.servers.configs import ServerConfig, parse_servers
from asyncsynth.serving.vllm.flags import check_flags, load_table
from tests.kit.files import ROOT

FOLDER = ROOT / "server_configs"
FILES = sorted(FOLDER.rglob("*.yaml"))
IDS = [str(path.relative_to(FOLDER)) for path in FILES]


def servers_of(path: Path) -> list[ServerConfig]:
    servers = parse_servers([str(path)])
    assert servers, path
    return servers


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_flag_is_one_of_the_pinned_version(path: Path) -> None:
    for server in servers_of(path):
        assert server.launch is not None, f"{server.origin} cannot be started"
        findings = check_flags(server.launch.flags, load_table())
        assert not findings, "\n".join(map(str, findings))


def test_the_check_would_find_a_flag_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text((FOLDER / "qwen2.5-1.5b.yaml").read_text() + "disable-log-request: true\nmax-num-seq: 3\n")
    (server,) = servers_of(path)
    assert server.launch is not None
    found = {finding.message.split()[-1] for finding in check_flags(server.launch.flags, load_table())}
    assert found == {"disable-log-request", "max-num-seq"}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_flag_says_why(path: Path) -> None:
    says_itself = re.compile(r"\s*(- )?(model|port|config|servers|flags|disable_any_whitespace):")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    assert lines
    assert [line for line in lines if "#" not in line and not says_itself.match(line)] == []


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_bounds_fit_each_other(path: Path) -> None:
    for server in servers_of(path):
        assert server.launch is not None
        number = server.launch.number
        slots = number("max-num-seqs", 0)
        assert slots, f"{server.origin}: the client keeps as many in flight, so the file must say it"
        # vLLM counts running requests among the queued: a bound below the slots would leave slots empty.
        assert slots < number("max-num-queued-reqs", 0) <= 2 * slots, server.origin
        assert slots <= number("max-num-batched-tokens", 0), server.origin
        assert number("shutdown-timeout", 0) >= 20, f"{server.origin}: requests in flight would hang on SIGTERM"
        assert 0 < number("gpu-memory-utilization", 1) <= 0.95, server.origin


def test_no_two_files_share_a_port() -> None:
    alone = [path for path in FILES if path.name != "one-gpu.yaml"]
    ports = {server.base_url for path in alone for server in servers_of(path)}
    assert len(ports) == len(alone)


def test_one_card_holds_both_small_models() -> None:
    both = servers_of(FOLDER / "one-gpu.yaml")
    launches = [server.launch for server in both]
    assert [launch.gpus for launch in launches if launch] == [("0",), ("0",)]
    assert sum(launch.number("gpu-memory-utilization", 1) for launch in launches if launch) <= 0.9
    # The folder as a whole means the same: the fleet's placement wins over the files it names.
    assert {(s.base_url, s.slots) for s in parse_servers([str(FOLDER)])} == {(s.base_url, s.slots) for s in both}


def test_the_models_of_the_examples_are_served() -> None:
    named = set(re.findall(r"\"((?:Qwen|HuggingFaceTB)/[^\"]+)\"", (ROOT / "examples" / "preference.py").read_text()))
    served = {name for server in servers_of(FOLDER / "one-gpu.yaml") for name in server.models or ()}
    assert len(named) == 2
    assert named == served


def test_the_table_is_of_the_version_that_the_extra_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pin,) = [item for item in project["optional-dependencies"]["vllm"] if item.startswith("vllm")]
    assert re.split(r"[;\s]", pin)[0] == f"vllm=={load_table().version}"
