"""`run --start`: servers that live as long as the run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.cli.serve_command import ServerDisplay
from asyncsynth.errors import RunStopped
from asyncsynth.serving.keeping import HangPolicy
from asyncsynth.serving.restarts import RestartPolicy
from asyncsynth.serving.vllm.starting import StartOptions
from asyncsynth.serving.vllm.supervisor import ServerEvent, Supervisor
from tests.kit.files import write_rows
from tests.kit.processes import all_gone, comes_true
from tests.kit.vllm_site import STAND_IN, Site

PIPELINE = """
from asyncsynth import LLM, LoadJSONL, Pipeline, TextGeneration

with Pipeline(name="started") as pipeline:
    LoadJSONL({path!r}) >> TextGeneration(llm=LLM(model="model-a"))
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def job(site: Site, records: int = 20) -> list[str]:
    data = site.folder / "in.jsonl"
    write_rows(data, ({"instruction": f"number {n}."} for n in range(records)))
    script = site.folder / "job.py"
    script.write_text(PIPELINE.format(path=str(data)))
    command = [sys.executable, "-m", "asyncsynth", "run", str(script), "--output", str(site.folder / "run")]
    return [*command, "--servers", str(site.folder / "fleet.yaml"), "--start"]


def run(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*job(site), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=site.environ(), check=False)


def fleet(site: Site, *files: Path) -> None:
    entries = "".join(f"  - {{config: {file.name}}}\n" for file in files)
    (site.folder / "fleet.yaml").write_text(f"servers:\n{entries}")


def test_it_starts_what_the_models_need_and_stops_it(site: Site) -> None:
    needed, port = site.file("a")
    other, unused = site.file("b", model="model-b")
    fleet(site, needed, other)
    done = run(site)
    assert done.returncode == 0, done.stderr
    assert "20 ok" in done.stdout
    assert f"127.0.0.1:{port}: ready after" in done.stderr
    assert len(site.starts(port)) == 1
    assert site.starts(unused) == []
    assert all_gone(site.pids())
    assert list((site.folder / "run" / "servers").iterdir())


def test_a_server_that_dies_while_it_runs_comes_back_without_a_lost_record(site: Site) -> None:
    file, port = site.file("a")
    fleet(site, file)
    site.ask(port, "slow")
    process = subprocess.Popen(
        [*job(site, 400), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=site.environ()
    )
    assert comes_true(lambda: (site.notes / f"{port}.answering").exists())
    os.kill(site.starts(port)[0]["pid"], signal.SIGKILL)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    done = json.loads(said.splitlines()[-1])
    assert done["counts"]["ok"] == 400
    assert [json.loads(line).get("kind") for line in said.splitlines()].count("crashed") == 1
    assert len(site.starts(port)) == 2
    assert all_gone(site.pids())


def in_process(site: Site, monkeypatch: pytest.MonkeyPatch, options: StartOptions) -> list[ServerEvent]:
    """Runs the job here, with `options`; what happened to its servers."""
    events: list[ServerEvent] = []
    for name, value in site.environ().items():
        monkeypatch.setenv(name, value)
    with Pipeline(name="started") as pipeline:
        rows = LoadDataFromDicts([{"instruction": f"number {n}."} for n in range(400)])
        rows >> TextGeneration(llm=LLM(model="model-a"))
    result = pipeline.run(
        output=site.folder / "run",
        servers=[str(site.folder / "fleet.yaml")],
        start=replace(options, vllm_command=STAND_IN, on_event=events.append),
    )
    assert (result.report.counts.ok + result.report.counts.earlier, result.report.counts.failed) == (400, 0)
    return events


def killer(site: Site, port: int, number: signal.Signals, *, crash: bool = False) -> threading.Thread:
    """Sends a signal to the server on `port` once it answers; it crashes at its next start where that is said."""

    def kill() -> None:
        assert comes_true(lambda: (site.notes / f"{port}.answering").exists())
        if crash:
            site.ask(port, "crash")
        os.kill(site.starts(port)[0]["pid"], number)

    site.ask(port, "slow")
    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_a_server_that_is_given_up_ends_the_run_at_once_with_the_cause(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, port = site.file("a")
    fleet(site, file)
    thread = killer(site, port, signal.SIGKILL, crash=True)
    with pytest.raises(RunStopped) as caught:
        in_process(site, monkeypatch, StartOptions(restart=RestartPolicy(first_s=0.01, crashes=1)))
    thread.join()
    assert caught.value.exit_code == 4
    message = caught.value.message
    assert f"127.0.0.1:{port} is not started again: crashed more than 1 times" in message
    assert "the GPU's memory does not suffice" in message
    assert str(site.folder / "run" / "servers") in message
    assert "gpu-memory-utilization" in (caught.value.hint or "")
    assert all_gone(site.pids())
    (site.notes / f"{port}.crash").unlink()
    in_process(site, monkeypatch, StartOptions())  # the rest


def test_with_another_replica_the_run_goes_on(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    first, port = site.file("a")
    second, other = site.file("b")
    fleet(site, first, second)
    site.ask(other, "slow")
    thread = killer(site, port, signal.SIGKILL)
    events = in_process(site, monkeypatch, StartOptions(restart=RestartPolicy(crashes=0)))
    thread.join()
    assert [event.server for event in events if event.kind == "gave_up"] == [f"127.0.0.1:{port}"]
    assert (len(site.starts(port)), len(site.starts(other))) == (1, 1)
    assert all_gone(site.pids())


def test_a_server_that_hangs_is_killed_and_started_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    file, port = site.file("a")
    fleet(site, file)
    thread = killer(site, port, signal.SIGSTOP)
    hang = HangPolicy(every_s=0.05, answer_s=0.3, hung_s=0.5, least=2)
    events = in_process(site, monkeypatch, StartOptions(restart=RestartPolicy(first_s=0.01), hang=hang))
    thread.join()
    [crashed] = [event for event in events if event.kind == "crashed"]
    assert "its process lives, but /health gave no good answer" in crashed.message
    assert len(site.starts(port)) == 2
    assert all_gone(site.pids())


def test_a_terminal_shows_how_loading_goes(site: Site) -> None:
    file, port = site.file("a")
    fleet(site, file)
    site.ask(port, "never")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    process = subprocess.Popen(job(site), stdout=theirs, stderr=theirs, env={**site.environ(), "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    while b"loading model-a" not in shown:  # the last line of its log, without its colours
        shown += os.read(ours, 4096)
    assert f"loading 127.0.0.1:{port} ".encode() in shown
    assert b"\x1b[32m" not in shown
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the terminal's end
        while os.read(ours, 4096):
            pass
    os.close(ours)
    assert process.wait(30) == 4
    assert all_gone(site.pids())


@pytest.mark.parametrize("as_json", [True, False])
def test_without_a_terminal_lines_say_how_loading_goes(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    class Loading:
        name, state, since = "s", "loading", 0.0

        def last_line(self) -> str:
            told.set()
            return "loading \x1b[31mweights"

    class Fleet:
        servers = (Loading(),)

    told = asyncio.Event()

    async def show() -> None:
        display = ServerDisplay(as_json=as_json, every_s=1e-9, clock=lambda: 75.0)
        with display.watching(cast(Supervisor, Fleet())):
            await told.wait()
            await asyncio.sleep(0)

    asyncio.run(show())
    said = capsys.readouterr()
    if as_json:
        assert json.loads(said.out.splitlines()[0])["event"] == "loading"
    else:
        assert "s: loading, 1" in said.err.splitlines()[0]
        assert "\x1b" not in said.err


def test_ctrl_c_stops_what_it_started(site: Site) -> None:
    file, port = site.file("a")
    fleet(site, file)
    site.ask(port, "never")
    process = subprocess.Popen(job(site), stderr=subprocess.PIPE, text=True, env=site.environ())
    assert comes_true(lambda: bool(site.starts(port)))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 4
    assert all_gone(site.pids())


def test_what_cannot_work_is_told_before_anything_starts(site: Site) -> None:
    file, port = site.file("a", model="model-z")
    fleet(site, file)
    done = run(site)
    assert done.returncode == 2
    assert "no server serves the model 'model-a'" in done.stderr
    assert "served: model-z" in done.stderr
    file.write_text(f"model: model-a\nport: {port}\nhost: 127.0.0.1\nmax-num-seqs: 8\nshutdown-timeout: 1\nx-y: 1\n")
    done = run(site, "--vllm-command", "no-such-vllm")
    assert done.returncode == 2
    assert "no-such-vllm" in done.stderr
    assert site.pids() == []
    command = job(site)[:-1]
    done = subprocess.run(
        [*command, "--gpus", "a.yaml=0"], capture_output=True, text=True, timeout=60, env=site.environ(), check=False
    )
    assert done.returncode == 2
    assert "--start" in done.stderr
