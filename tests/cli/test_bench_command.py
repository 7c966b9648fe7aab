"""`asyncsynth bench` as a user meets it. What it finds is tested in virtual time (tests/servers/test_load_test.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asyncsynth.testing import Abilities, RequestInfo
from tests.kit.commands import Serve, asyncsynth

QUICK = ("--seconds", "2", "--max-concurrency", "16", "--max-tokens", "32")


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_levels_knee_and_what_limits(fault_server: Serve) -> None:
    server = fault_server(models=["model-a"], delay_s=0.01)
    done = asyncsynth("bench", "--servers", server.base_url, *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    told = events(done.stdout)
    assert [one["event"] for one in told] == ["server", "level", "level", "level", "bench", "done"]
    assert [one["concurrency"] for one in told[1:3]] == [8, 16]
    assert all(one["tokens_per_s"] > 0 and one["p50_s"] > 0 for one in told[1:4])
    found = told[4]
    assert found["knee"] in (8, 16)
    assert found["limited_by"]
    assert found["adaptive_share"] > 0
    assert told[5]["exit_code"] == 0


def test_thoughts_are_measured_as_answers_are(fault_server: Serve) -> None:
    """With 32 tokens, each answer of a model that thinks is a thought."""
    abilities = Abilities(thinks="field", thinking_tokens=64)
    server = fault_server(models=["model-a"], delay_s=0.01, abilities=abilities)
    done = asyncsynth("bench", "--servers", server.base_url, *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    levels = [one for one in events(done.stdout) if one["event"] == "level"]
    assert levels
    assert all(one["tokens_per_s"] > 0 and not one["failed"] for one in levels)


def test_it_says_what_it_will_send_and_keeps_to_it(fault_server: Serve) -> None:
    server = fault_server(models=["model-a"], delay_s=0.001)
    done = asyncsynth("bench", "--servers", server.base_url, *QUICK, "--max-requests", "50")
    assert "model-a, 8 to 16 requests at once, for 2 s. It may cost at most 50 requests of up to 32" in done.stderr
    assert server.requests <= 50 + 1  # the one before: does it answer at all?
    assert "tokens/s" in done.stdout
    assert done.returncode == 0, done.stderr
    assert "  ended      --max-requests 50 reached" in done.stdout
    assert "  adaptive   not measured: --max-requests 50 reached" in done.stdout
    assert " 0.0 " not in done.stdout  # no row of what was not sent
    assert "limited by the server" not in done.stdout


def test_no_more_are_in_flight_than_was_said_also_of_the_adaptive_limit(fault_server: Serve) -> None:
    server = fault_server(models=["model-a"], delay_s=0.01)
    done = asyncsynth("bench", "--servers", server.base_url, "--seconds", 2, "--max-concurrency", 4, "--json")
    assert done.returncode == 0, done.stderr
    told = events(done.stdout)
    assert [(one["concurrency"], one["adaptive"]) for one in told if one["event"] == "level"] == [(4, False), (4, True)]
    assert server.highest_in_flight == 4


def test_refusals_are_what_limits(fault_server: Serve) -> None:
    server = fault_server(models=["model-a"], delay_s=0.02, max_in_flight=9)
    done = asyncsynth("bench", "--servers", server.base_url, *QUICK, "--json")
    found = next(one for one in events(done.stdout) if one["event"] == "bench")
    assert "429 or 503" in found["limited_by"]
    assert found["ended"] == "the server refuses more"


def test_prompts_of_a_file(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"], delay_s=0.01, keep_requests=True)
    path = tmp_path / "prompts.jsonl"
    turns = [{"role": "user", "content": "a whole conversation"}]
    path.write_text("\n".join(map(json.dumps, [{"prompt": "one of mine"}, {"messages": turns}])))
    done = asyncsynth("bench", "--servers", server.base_url, *QUICK, "--prompts", path)
    assert done.returncode == 0, done.stderr
    requests: list[RequestInfo] = server.log or []
    asked = {json.loads(request.body)["messages"][0]["content"] for request in requests[1:]}
    assert asked == {"one of mine", "a whole conversation"}
    path.write_text('{"prompt": "x"}\n{"text": "y"}\n')
    wrong = asyncsynth("bench", "--servers", server.base_url, *QUICK, "--prompts", path)
    assert wrong.returncode == 2
    assert "row 2 has no column" in wrong.stderr


def test_servers_that_cannot_be_measured(fault_server: Serve) -> None:
    none = asyncsynth("bench", "--servers", "http://127.0.0.1:9/v1", *QUICK)
    assert none.returncode == 3
    assert "no server is ready" in none.stderr
    server = fault_server(models=["model-a", "model-b"])
    several = asyncsynth("bench", "--servers", server.base_url, *QUICK)
    assert several.returncode == 3
    assert "model-a, model-b" in several.stderr
    assert "--model" in several.stderr
    missing = asyncsynth("bench", "--servers", server.base_url, "--model", "model-c", *QUICK, "--json")
    assert missing.returncode == 3
    assert [one["event"] for one in events(missing.stdout)] == ["server", "done"]
    assert server.requests <= 2  # a real request decided it, as a chat and as a raw completion
    assert asyncsynth("bench").returncode == 2
