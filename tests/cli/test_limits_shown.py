"""What is shown of servers and their limits: in progress, at the end, by `status`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from asyncsynth.cli import show
from asyncsynth.cli.inspect_command import status_command
from asyncsynth.cli.show import ProgressDisplay, progress_line, server_words, summary
from asyncsynth.engine.report import Counts, Progress
from asyncsynth.testing import Fault
from tests.kit.loops import run_async
from tests.kit.pipelines import rows, server, single


def line(name: str = "gpu-1:8000", **fields: Any) -> dict[str, Any]:
    known = {"name": name, "state": "closed", "in_flight": 12, "limit": 16, "waiting": 0, "why": "growing"}
    return known | {"server_waiting": None, "server_running": None, "server_kv": None} | fields


def progress(*servers: dict[str, Any], notes: tuple[str, ...] = ()) -> Progress:
    return Progress("p", 3.0, Counts(), None, 12, 0, 0, 0.0, 0.0, {}, list(servers), notes=list(notes))


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (line(), "gpu-1:8000 12/16: growing"),
        (line(server_waiting=3), "gpu-1:8000 12/16 (its queue 3): growing"),
        (line(server_waiting=3, server_kv=0.412), "gpu-1:8000 12/16 (its queue 3, KV 41 %): growing"),
        (line(limit=272, why="growing 272"), "gpu-1:8000 12/272: growing"),
        (line(limit=64, why="growing 64: +5% tokens/s since 60"), "gpu-1:8000 12/64: growing: +5% tokens/s since 60"),
        (line(limit=64, why="64: the server queues 64 requests"), "gpu-1:8000 12/64: the server queues 64 requests"),
        (
            line(limit=8, why="growing 8; not reached: all 8 records"),
            "gpu-1:8000 12/8: growing; not reached: all 8 records",
        ),
        (line(limit=2, why="fixed at 2"), "gpu-1:8000 12/2: fixed at 2"),
        (line(limit=40, why="cut to 40 after refusals"), "gpu-1:8000 12/40: cut to 40 after refusals"),
        (line(limit=6, why="in each process: growing 3"), "gpu-1:8000 12/6: in each process: growing 3"),
        (line(name="a\x1b[2Jb", why="x\ny"), "a\ufffd[2Jb 12/16: x y"),
    ],
)
def test_a_server_in_words(server: dict[str, Any], words: str) -> None:
    assert server_words(server, 100) == words


def test_progress_tells_the_limits_and_why() -> None:
    told = progress_line(progress(line(), line("gpu-2:8000", limit=64, why="holding")))
    assert "12 of 80 in flight" in told
    assert told.endswith("gpu-1:8000 12/16: growing · gpu-2:8000 12/64: holding")
    many = progress_line(progress(*[line(f"gpu-{n}") for n in range(9)]))
    assert ("gpu-3 " in many, "gpu-4 " in many, many.endswith("5 more servers")) == (True, False, True)


class Noting:
    """A runner of which only the progress is looked at."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def progress(self) -> Progress:
        return progress(notes=tuple(self.notes))


def test_what_became_of_a_server_is_told_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "_PLAIN_EVERY_S", 0.0)
    runner = Noting()

    async def main() -> None:
        display = ProgressDisplay(as_json=False)
        display.start(runner)  # type: ignore[arg-type]  # a runner of which only progress() is asked
        for note in ("a is not ready yet", "a has joined"):
            runner.notes.append(note)
            for _ in range(5):
                await asyncio.sleep(0)
        display.stop()

    asyncio.run(main())
    told = capsys.readouterr().err
    assert [told.count(note) for note in runner.notes] == [1, 1]


def test_status_and_summary_tell_how_the_servers_stood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> Any:
        async with server() as fake:
            return await single(rows(5)).arun(servers=[fake.base_url], output=tmp_path / "run", concurrency=2)

    report = run_async(main()).report
    [name] = {one["name"] for one in report.limits}
    summary(report, {})
    assert f"  limit     {name} 2: fixed at 2" in capsys.readouterr().out
    status_command(tmp_path / "run", as_json=False)
    assert f"  server    {name} 0/2: fixed at 2 (when it last ran)" in capsys.readouterr().out
    status_command(tmp_path / "run", as_json=True)
    assert json.loads(capsys.readouterr().out)["servers"] == report.limits


def test_a_run_whose_paid_answers_are_all_of_no_use_is_told_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": None, "refusal": "no"}}]}
    body = json.dumps({**refusal, "usage": {"prompt_tokens": 5, "completion_tokens": 7}}).encode()

    async def main() -> Any:
        async with server() as fake:

            def began(_: Any) -> None:
                fake.script = lambda info: Fault("status", status=200, body=body)

            made = await single(rows(3)).arun(servers=[fake.base_url], output=tmp_path / "run", on_runner=began)
            return made.report

    report = run_async(main())
    assert (report.requests, report.completion_tokens, report.latency_p50_s) == (3, 21, None)
    summary(report, {})
    told = capsys.readouterr().out
    assert "  requests  3, 21 tokens" in told
    assert "p50" not in told
    assert "--retry-failed tries the failed records again" in told


def test_the_result_of_an_earlier_run_is_told_apart_from_an_unfinished_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    async def main() -> Any:
        async with server() as fake:
            stopped = await single(rows(3)).arun(
                servers=[fake.base_url], output=run, on_runner=lambda runner: runner.drain("a test")
            )
            return stopped.report

    report = run_async(main())
    summary(report, {})
    assert "earlier run" not in capsys.readouterr().out
    for name in ("result.jsonl", "result-judged.jsonl", "mine.jsonl"):
        (run / name).write_text("{}")
    summary(report, {})
    told = [line for line in capsys.readouterr().out.splitlines() if "is of an earlier run" in line]
    assert [line.split()[1] for line in told] == [str(run / "result-judged.jsonl"), str(run / "result.jsonl")]
