"""`asyncsynth check`, and what a run says of its servers and refuses, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asyncsynth.testing import Abilities, Fault
from tests.kit.commands import Serve, asyncsynth, write_structured_job

IGNORING = Abilities(ignored=frozenset({"response_format", "logprobs", "stop"}), completions=False, context=300)
HOSTILE = "\x1b[31mred\x1b[0m\r\n\x9b2Jgone \u202eturned"


def rows(text: str) -> dict[str, str]:
    """name -> value of the indented rows."""
    lines = [line.split(None, 1) for line in text.splitlines() if line.startswith("    ")]
    return {line[0]: line[1] for line in lines if len(line) == 2}


def test_a_table_of_all_servers(fault_server: Serve) -> None:
    able = fault_server(models=["model-a"], abilities=Abilities(context=4096, version="0.33.0"))
    poor = fault_server(models=["model-b"], abilities=IGNORING)
    done = asyncsynth("check", "--servers", able.base_url, "--servers", poor.base_url)
    assert done.returncode == 0, done.stderr  # nothing was asked for that is lacking
    first, _, second = done.stdout.partition(poor.base_url)
    assert rows(first)["software"] == "vLLM 0.33.0"
    assert rows(first)["context"] == "4,096 tokens"
    assert {rows(first)[name].split()[0] for name in ("chat", "schema", "logprobs", "completions", "stop", "n")} == {
        "yes"
    }
    assert "generation_config.json" in rows(first)["unset"]
    assert rows(second)["schema"].startswith("no       response_format is ignored: the answer was '")
    assert rows(second)["completions"].startswith("no       HTTP 404")
    assert done.stdout.splitlines()[-1] == "2 servers: all fine"


@pytest.mark.row(32)
@pytest.mark.parametrize(("thinks", "where"), [("tags", "text"), ("template", "text"), ("field", "field"), ("", "")])
def test_a_model_that_thinks_is_told_with_what_to_do(fault_server: Serve, thinks: Any, where: str) -> None:
    server = fault_server(models=["model-a"], abilities=Abilities(thinks=thinks))
    done = asyncsynth("check", "--servers", server.base_url)
    assert done.returncode == 0, done.stderr
    told = rows(done.stdout).get("reasoning", "")
    assert told.startswith("thinks before it answers") == bool(where)
    assert ("max_tokens" in told, "enable_thinking" in told) == (bool(where), bool(where))
    done = asyncsynth("check", "--servers", server.base_url, "--json")
    assert json.loads(done.stdout.splitlines()[0])["models"][0]["thinks"] == where


def test_thinking_that_a_pipeline_turns_off_is_not_told(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"], abilities=Abilities(thinks="template"))
    job = write_structured_job(tmp_path)
    text = job.read_text()
    assert "reasoning " in asyncsynth("check", job, "--servers", server.base_url).stdout
    off = 'max_tokens=64, extra_body={"chat_template_kwargs": {"enable_thinking": False}}'
    job.write_text(text.replace("max_tokens=64", off))
    done = asyncsynth("check", job, "--servers", server.base_url)
    assert done.returncode == 0, done.stdout
    assert "reasoning " not in done.stdout


def test_json_and_one_model(fault_server: Serve) -> None:
    server = fault_server(models=["model-a", "model-b"], abilities=IGNORING)
    done = asyncsynth("check", "--servers", server.base_url, "--model", "model-b", "--json")
    assert done.returncode == 0, done.stderr
    told, checked = [json.loads(line) for line in done.stdout.splitlines()]
    assert told["serves"] == ["model-a", "model-b"]
    [one] = told["models"]
    assert (one["model"], one["context"]) == ("model-b", 300)
    assert one["features"]["schema"]["state"] == "no"
    assert checked == {"event": "checked", "problems": [], "exit_code": 0}
    missing = asyncsynth("check", "--servers", server.base_url, "--model", "model-x", "--json")
    assert missing.returncode == 3
    assert "no server serves the model 'model-x'" in json.loads(missing.stdout.splitlines()[-1])["problems"][0]


def test_a_pipeline_on_servers_that_cannot_do_it(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a", "other"], abilities=IGNORING, keep_requests=True)
    refused = asyncsynth("check", write_structured_job(tmp_path, show_schema=False), "--servers", server.base_url)
    assert refused.returncode == 3, refused.stderr
    assert "problem: step 'facts' needs of model-a at 127.0.0.1:" in refused.stdout
    assert "seen: response_format is ignored" in refused.stdout
    assert refused.stdout.splitlines()[-1] == "1 server: 1 problem"
    assert server.log is not None
    assert {info.json["model"] for info in server.log} == {"model-a"}  # what it needs, and nothing else
    assert not any("logprobs" in info.json for info in server.log)
    noted = asyncsynth("check", write_structured_job(tmp_path), "--servers", server.base_url)
    assert noted.returncode == 0, noted.stdout
    assert "note: step facts: schema no: response_format is ignored" in noted.stdout


def test_a_server_that_does_not_answer_hides_no_other(fault_server: Serve) -> None:
    good = fault_server(models=["model-a"])
    locked = fault_server(models=["model-b"], api_key="k")
    done = asyncsynth("check", "--servers", locked.base_url, "--servers", good.base_url)
    assert done.returncode == 3
    assert "model-a" in done.stdout
    assert "problem: " in done.stdout
    assert "wants an API key" in done.stdout
    assert asyncsynth("check").returncode == 2
    assert asyncsynth("check", "--servers", "nowhere.yaml").returncode == 2


def test_a_run_says_what_it_found(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"], abilities=Abilities(context=4096, version="0.33.0"))
    job = write_structured_job(tmp_path)
    ran = asyncsynth("run", job, "--servers", server.base_url, "--output", tmp_path / "run")
    assert ran.returncode == 0, ran.stderr
    assert "model-a at 127.0.0.1" in ran.stderr
    assert "(vLLM 0.33.0): context 4,096 tokens; chat yes; schema yes; unset: min_p" in ran.stderr
    ran = asyncsynth("run", job, "--servers", server.base_url, "--output", tmp_path / "two", "--json")
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    [told] = [event for event in events if event["event"] == "server"]
    assert events[-1]["servers"] == [{name: value for name, value in told.items() if name != "event"}]
    assert told["features"]["schema"]["state"] == "yes"


def test_a_run_that_cannot_work_is_refused_before_a_record_is_sent(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"], abilities=IGNORING, keep_requests=True)
    ran = asyncsynth(
        "run",
        write_structured_job(tmp_path, show_schema=False),
        "--servers",
        server.base_url,
        "--output",
        tmp_path / "r",
    )
    assert ran.returncode == 2
    assert "step 'facts' needs of model-a at 127.0.0.1:" in ran.stderr
    assert "response_format is ignored: the answer was" in ran.stderr
    assert server.log is not None
    assert not any(b"number" in info.body for info in server.log)
    # The same task with the schema in its prompt can do without.
    other = tmp_path / "other"
    other.mkdir()
    ran = asyncsynth("run", write_structured_job(other), "--servers", server.base_url, "--output", tmp_path / "r2")
    assert "note: step facts: schema no" in ran.stderr
    assert ran.returncode == 3  # words are no JSON


@pytest.mark.parametrize("command", ["check", "run"])
def test_hostile_words_of_a_server_are_cleaned(tmp_path: Path, fault_server: Serve, command: str) -> None:
    server = fault_server(
        models=["model-a"],
        abilities=Abilities(version=f"1{HOSTILE}"),
        script=lambda info: Fault("status", status=400, message=HOSTILE) if b"response_format" in info.body else None,
    )
    place = ("--output", tmp_path / "run") if command == "run" else ()
    done = asyncsynth(command, write_structured_job(tmp_path, show_schema=False), "--servers", server.base_url, *place)
    text = done.stdout + done.stderr
    assert "red" in text
    assert not set("\x1b\x9b\u202e\r") & set(text)
