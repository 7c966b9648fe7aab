"""Server configurations: every form, and errors that name file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncsynth.client.secret import Secret
from asyncsynth.errors import ConfigurationError, InputError
from asyncsynth.servers.configs import ServerConfig, parse_servers, require_keys, servers_from_environment
from asyncsynth.servers.problems import Problems


def write(folder: Path, text: str, name: str = "a.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def one(folder: Path, text: str) -> ServerConfig:
    [server] = parse_servers([write(folder, text)])
    return server


@pytest.mark.parametrize(
    ("given", "base_url"),
    [
        ("http://0.0.0.0:8000", "http://127.0.0.1:8000/v1"),
        ("http://gpu-3:8000/v1/", "http://gpu-3:8000/v1"),
        ("https://host/a/b", "https://host/a/b"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
    ],
)
def test_urls(given: str, base_url: str) -> None:
    [server] = parse_servers([given])
    assert server.base_url == base_url
    assert server.models is None


def test_urls_in_one_value() -> None:
    given = ["http://a:1/v1, http://b:2/v1", "http://c:3"]
    assert [server.name for server in parse_servers(given)] == ["a:1", "b:2", "c:3"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions/"])
def test_the_url_of_an_endpoint_is_refused_with_the_one_to_give(path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--servers: .*completions") as caught:
        parse_servers([f"http://a:1{path}"])
    assert caught.value.hint == "The base URL ends in /v1: http://a:1/v1"


@pytest.mark.parametrize(
    "given",
    [
        "ftp://host",
        "http://",
        "http://host/v1?x=1",
        "http://user:s3cret@host/v1",
        "http://a/v1,http://user:x,s3cret@host/v1",
        "http://host:99999",
    ],
)
def test_urls_that_are_none(given: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_servers([given])
    assert "s3cret" not in str(caught.value)
    assert "--servers" in str(caught.value)


def test_environment() -> None:
    environ = {"ASYNCSYNTH_SERVERS": "http://a:1/v1, http://b:2/v1"}
    assert [s.name for s in servers_from_environment(environ)] == ["a:1", "b:2"]
    assert servers_from_environment({}) == []
    with pytest.raises(ConfigurationError, match="ASYNCSYNTH_SERVERS"):
        servers_from_environment({"ASYNCSYNTH_SERVERS": "nowhere.yaml"})


def test_vllm_file(tmp_path: Path) -> None:
    server = one(
        tmp_path,
        "model: Qwen/Qwen2.5-1.5B-Instruct\nhost: 0.0.0.0\nport: 8001\nmax-num-seqs: 256\n"
        "dtype: bfloat16\napi-key: k3y\n",
    )
    assert server.base_url == "http://127.0.0.1:8001/v1"
    assert server.models == {"Qwen/Qwen2.5-1.5B-Instruct"}
    assert (server.limit, server.slots) == (None, 256)
    assert server.key({}) == Secret("k3y")
    assert "k3y" not in repr(server)


def test_vllm_file_with_underscores_names_and_tls(tmp_path: Path) -> None:
    server = one(tmp_path, "model: m\nserved_model_name: [a, b]\nssl_certfile: c.pem\n")
    assert server.base_url == "https://127.0.0.1:8000/v1"
    assert server.models == {"a", "b"}
    assert server.key({"VLLM_API_KEY": " x "}) == Secret("x")
    assert server.key({"OPENAI_API_KEY": "y"}) == Secret("y")
    assert server.key({"OPENAI_API_KEY": "y", "VLLM_API_KEY": "x"}) == Secret("x")
    assert server.key({}) is None


def test_fleet_file(tmp_path: Path) -> None:
    text = """\
servers:
  - url: http://gpu-1:8000
    models: [a, b]
    api_key_env: GPU_KEY
    limit: 32
  - {url: "http://gpu-2:8000", name: second}
"""
    first, second = parse_servers([write(tmp_path, text)])
    assert (first.name, first.models, first.limit) == ("gpu-1:8000", {"a", "b"}, 32)
    assert first.key({"GPU_KEY": "x", "VLLM_API_KEY": "y"}) == Secret("x")
    assert first.key({"VLLM_API_KEY": "y"}) is None
    assert (second.name, second.models, second.limit) == ("second", None, None)
    assert second.origin.endswith("a.yaml:6")


def test_fleet_limits(tmp_path: Path) -> None:
    text = """\
servers:
  - {url: "http://gpu-1:8000", max_concurrency: 300, max_num_seqs: 128, orca: true}
  - {url: "https://api.example.com/v1", requests_per_minute: 500, tokens-per-minute: 200000}
"""
    first, second = parse_servers([write(tmp_path, text)])
    assert (first.limit, first.max_concurrency, first.slots, first.orca) == (None, 300, 128, True)
    assert (second.requests_per_minute, second.tokens_per_minute, second.orca) == (500, 200_000, False)


def test_slots_of_a_data_parallel_server_are_those_of_all_its_engines(tmp_path: Path) -> None:
    assert one(tmp_path, "model: m\nmax-num-seqs: 256\ndata-parallel-size: 4\n").slots == 1024
    assert one(tmp_path, "model: m\n").slots is None


def test_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    write(tmp_path, "model: b\nport: 2\n", "b.yml")
    write(tmp_path, "model: a\nport: 1\n", "a.yaml")
    write(tmp_path, "not looked at", "README.md")
    assert [s.models for s in parse_servers([str(tmp_path)])] == [{"a"}, {"b"}]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nmodel: [}\n", 2, "not YAML"),
        ("model: m\nport: eighty\n", 2, "port must be int, not str"),
        ("model: m\nport: true\n", 2, "port must be int, not bool"),
        ("model: m\nport: 0\n", 2, "between 1 and 65535"),
        ("model: m\nport: 1\nport: 2\n", 3, "given twice"),
        ("model: m\nuds: /tmp/x\n", 2, "Unix socket"),
        ("model: m\nmax-num-seqs: 0\n", 2, "at least 1"),
        ("model: m\nserved-model-name: [1]\n", 2, "list of names"),
        ("\nport: 8000\n", 2, "no model is named"),
        ("- a\n", 1, "keys and values"),
        ("servers: 3\n", 1, "list"),
        ("servers:\n  - limit: 3\n", 2, "without a url"),
        ("servers:\n  - url: http://a\n    limit: 3\n    max_concurrency: 4\n", 4, "exclude each other"),
        ("servers:\n  - url: http://a\n    requests_per_minute: 0\n", 3, "at least 1"),
        ("servers:\n  - url: http://a\n    tokens_per_minute: many\n", 3, "must be int, not str"),
        ("servers:\n  - url: http://a\n    orca: 1\n", 3, "must be bool, not int"),
        ("servers:\n  - url: http://a\n    limt: 3\n", 3, "Did you mean limit"),
        ("servers:\n  - url: http://a\n    api_key: k\n", 3, "environment variable"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        one(tmp_path, text)
    assert caught.value.line == line
    assert caught.value.path.endswith("a.yaml")


BAD_FLEET = """\
servers:
  - config: none.yaml
  - confg: good.yaml
  - url: gpu:8000
  - {url: "http://a:1", limt: 3, limit: 0, api_key: k, api_key_env: NOT_SET}
  - {config: good.yaml, gpus: -1, env: {HF_TOKEN: x}}
  - {config: bad.yaml, flags: {model: m}}
  - just words
"""
SAID = [
    "{fleet}:8: expected keys and values",  # what is no entry at all is met first
    "{fleet}:2: config: there is no file",
    "{fleet}:3: unknown key confg",
    "{fleet}:4: 'gpu:8000' is not the base URL",
    "{fleet}:5: unknown key limt",
    "{fleet}:5: unknown key api_key",
    "{fleet}:5: limit must be at least 1",
    "{fleet}:6: gpus: -1 is no index or UUID",
    "{fleet}:6: env: HF_TOKEN looks like a secret",
    "{fleet}:7: model cannot be among a fleet's flags",
    "{bad}:2: port must be between",
    "{bad}:3: max-num-seqs must be at least 1",
]


def starts_of_errors(error: ConfigurationError) -> list[str]:
    return [line for line in error.message.splitlines() if not line.startswith("  ")]


def test_all_that_is_wrong_with_a_fleet_is_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "model: m\n", "good.yaml")
    bad = write(tmp_path, "model: m\nport: 0\nmax-num-seqs: 0\n", "bad.yaml")
    fleet = write(tmp_path, BAD_FLEET, "fleet.yaml")
    expected = [start.format(fleet=fleet, bad=bad) for start in SAID]
    with pytest.raises(ConfigurationError) as caught:
        parse_servers([fleet])
    told = starts_of_errors(caught.value)
    assert [line[: len(start)] for line, start in zip(told, expected, strict=True)] == expected
    assert "Did you mean config?" in caught.value.message
    # What could be read is there for further checks, which are reported with the rest.
    problems = Problems()
    [server] = parse_servers([fleet], problems=problems)
    with pytest.raises(ConfigurationError, match="NOT_SET, which is not set") as caught:
        require_keys([server], {}, problems=problems)
    assert len(starts_of_errors(caught.value)) == len(SAID) + 1


def test_all_bad_files_and_values_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "model: m\nport: 0\n", "a.yaml")
    write(tmp_path, "model: [}\n", "b.yaml")
    write(tmp_path, "servers: 3\n", "c.yaml")
    write(tmp_path, "servers: [{config: nowhere.yaml}, {config: e.yaml, limit: 0}]\n", "d.yaml")
    write(tmp_path, "model: m\n", "e.yaml")
    with pytest.raises(ConfigurationError) as caught:
        parse_servers([str(tmp_path), str(tmp_path / "nope"), "ftp://host"])
    told = starts_of_errors(caught.value)
    files = [tmp_path / place for place in ("b.yaml:1", "a.yaml:2", "c.yaml:1", "d.yaml:1", "d.yaml:1")]
    assert [line.partition(": ")[0] for line in told] == [*map(str, files), "--servers", "--servers"]


def test_fleet_url_error_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"a\.yaml:2: 'gpu:8000' is not"):
        one(tmp_path, "servers:\n  - url: gpu:8000\n")


def test_yaml_tags_build_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not determine a constructor"):
        one(tmp_path, "model: !!python/object/apply:os.getcwd []\n")


@pytest.mark.parametrize("text", ["", "\n# nothing\n"])
def test_empty_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="empty"):
        one(tmp_path, text)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no file or folder"):
        parse_servers([str(tmp_path / "nope")])
    with pytest.raises(ConfigurationError, match=r"no \.yaml"):
        parse_servers([str(tmp_path)])


def test_one_address_twice(tmp_path: Path) -> None:
    write(tmp_path, "model: a\n", "a.yaml")
    write(tmp_path, "model: b\nhost: 127.0.0.1\n", "b.yaml")
    with pytest.raises(ConfigurationError, match=r"a\.yaml:1 and .*b\.yaml:1"):
        parse_servers([str(tmp_path)])
