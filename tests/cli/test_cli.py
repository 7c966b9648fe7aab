"""The command as a user runs it: a process, its exit code, its words."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from asyncsynth.testing import Fault, FaultServer
from tests.kit.commands import Gate, asyncsynth, result_rows, start, write_job
from tests.kit.files import ROOT
from tests.kit.processes import environment

Serve = Callable[..., FaultServer]


def test_run_resume_status_export(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"])
    job, run = write_job(tmp_path), tmp_path / "run"
    first = asyncsynth("run", job, "--servers", server.base_url, "--output", run)
    assert first.returncode == 0, first.stderr
    assert "12 ok" in first.stdout
    assert "model-a" in first.stdout
    assert len(result_rows(run)) == 12
    asked = server.requests
    second = asyncsynth("run", job, "--servers", server.base_url, "--output", run, "--json")
    assert second.returncode == 0, second.stderr
    done = json.loads(second.stdout.splitlines()[-1])
    assert done["event"] == "done"
    assert done["counts"]["earlier"] == 12
    assert server.requests - asked <= 1  # a canary at most
    status = asyncsynth("status", run, "--json")
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["ok"] == 12
    exported = asyncsynth("export", run, "--to", tmp_path / "out.jsonl")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == (run / "result.jsonl").read_bytes()


def test_the_version_is_printed_either_way() -> None:
    assert asyncsynth("--version").stdout == asyncsynth("version").stdout == f"{version('asyncsynth')}\n"


@pytest.mark.parametrize("tool", ["verify", "repair", "stats"])
def test_a_place_that_is_no_run_is_bad_usage(tmp_path: Path, tool: str) -> None:
    for place in (tmp_path / "nothing", tmp_path):
        told = asyncsynth("journal", tool, place)
        assert told.returncode == 2
        assert "is not a run directory" in told.stderr


def test_done_with_failed_records_is_3_and_says_which(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(
        models=["model-a"], script=lambda info: Fault("status", status=400) if b"number 5." in info.body else None
    )
    job, run = write_job(tmp_path), tmp_path / "run"
    ran = asyncsynth("run", job, "--servers", server.base_url, "--output", run)
    assert ran.returncode == 3, ran.stderr
    assert "bad_request 1" in ran.stdout
    told = asyncsynth("status", run)
    assert "record 5" in told.stdout
    again = asyncsynth("run", job, "--servers", server.base_url, "--output", run)
    assert again.returncode == 3, "it is still without its rows"
    assert "12 done earlier (1 of them with failures)" in again.stdout
    failed = asyncsynth("export", run, "--failed", "--to", tmp_path / "failed.jsonl")
    assert failed.returncode == 0, failed.stderr
    (row,) = map(json.loads, (tmp_path / "failed.jsonl").read_text().splitlines())
    assert (row["key"], row["position"], row["reason"], row["attempts"]) == ("5", 5, "bad_request", 1)
    server.script = None
    mended = asyncsynth("run", job, "--servers", server.base_url, "--output", run, "--retry-failed")
    assert mended.returncode == 0, mended.stderr
    assert len(result_rows(run)) == 12


@pytest.mark.row(33)
def test_cut_answers_are_told_with_the_setting_to_change(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"])
    job, run = write_job(tmp_path), tmp_path / "run"
    job.write_text(job.read_text().replace("temperature=0.7", "max_tokens=5"))
    done = asyncsynth("run", job, "--servers", server.base_url, "--output", run)
    assert done.returncode == 0, done.stderr
    words = "cut       text_generation_0: 100 % of answers (12 of 12) ended at max_tokens=5; raise LLM(max_tokens=...)"
    assert words in done.stdout
    again = asyncsynth("run", job, "--servers", server.base_url, "--output", tmp_path / "other", "--json")
    [cut] = json.loads(again.stdout.splitlines()[-1])["cut"]
    assert cut == {"step": "text_generation_0", "limit": "max_tokens=5", "cut": 12, "answers": 12, "share": 1.0}
    quality = asyncsynth("status", run, "--quality", "--json")
    [step] = json.loads(quality.stdout)["steps"]
    assert step["truncated_share"] == 1.0
    exported = asyncsynth("export", run, "--to", tmp_path / "out.jsonl", "--provenance")
    assert exported.returncode == 0, exported.stderr
    facts = [json.loads(line)["provenance"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(fact["finish_reason"], fact["cut"]) for [fact] in facts] == [("length", 1)] * 12
    both = asyncsynth("export", run, "--to", tmp_path / "out.jsonl", "--provenance", "--failed")
    assert both.returncode == 2


@pytest.mark.parametrize("workers", [2])
def test_workers_tell_cut_answers_too(tmp_path: Path, fault_server: Serve, workers: int) -> None:
    server = fault_server(models=["model-a"])
    job = write_job(tmp_path)
    job.write_text(job.read_text().replace("temperature=0.7", "max_tokens=5"))
    done = asyncsynth(
        "run", job, "--servers", server.base_url, "--output", tmp_path / "run", "--workers", workers, "--json"
    )
    [cut] = json.loads(done.stdout.splitlines()[-1])["cut"]
    assert (cut["cut"], cut["answers"]) == (12, 12)


def test_json_tells_the_failures_by_reason(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(
        models=["model-a"], script=lambda info: Fault("status", status=422) if b"number 3." in info.body else None
    )
    job, run = write_job(tmp_path), tmp_path / "run"
    ran = asyncsynth("run", job, "--servers", server.base_url, "--output", run, "--json")
    assert ran.returncode == 3, ran.stderr
    done = json.loads(ran.stdout.splitlines()[-1])
    assert done["event"] == "done"
    assert sum(done["counts"]["failures"].values()) == 1
    assert all(isinstance(reason, str) for reason in done["counts"]["failures"])
    shown = json.loads(asyncsynth("status", run, "--json").stdout)
    assert sum(shown["failed_rows"].values()) == 1


def test_limit_and_input(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"])
    job, other = write_job(tmp_path), tmp_path / "other.jsonl"
    other.write_text('{"instruction": "another"}\n{"instruction": "more"}\n')
    run = tmp_path / "run"
    ran = asyncsynth("run", job, "--servers", server.base_url, "--output", run, "--input", other, "--limit", 1)
    assert ran.returncode == 0, ran.stderr
    assert [row["instruction"] for row in result_rows(run)] == ["another"]
    taken = tmp_path / "taken"
    taken.mkdir()
    other.rename(taken / "result.jsonl")
    for more in ((), ("--workers", 2)):
        own = asyncsynth(
            "run", job, "--servers", server.base_url, "--output", taken, "--input", taken / "result.jsonl", *more
        )
        assert own.returncode == 2
        assert "would write its result over it" in own.stderr
        assert [path.name for path in taken.iterdir()] == ["result.jsonl"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"instruction": "ok"}\n{"instruction": \n', ":2: "),
        (b'{"instruction": "ok"}\n["no object"]\n', ":2: "),
        (b'{"instruction": "\xff\xfe"}\n', ":1: "),
        (b"", "holds no rows"),
        (b'{"instructions": "x"}\n', "did you mean 'instructions'"),
    ],
)
def test_bad_input_names_its_place_and_loses_nothing(
    tmp_path: Path, fault_server: Serve, content: bytes, words: str
) -> None:
    server = fault_server(models=["model-a"])
    job, run = write_job(tmp_path), tmp_path / "run"
    (tmp_path / "in.jsonl").write_bytes(content)
    ran = asyncsynth("run", job, "--servers", server.base_url, "--output", run)
    assert ran.returncode == 2, (ran.stdout, ran.stderr)
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr
    if content.startswith(b'{"instruction": "ok"}'):
        status = json.loads(asyncsynth("status", run, "--json").stdout)
        assert status["ok"] == 1


def test_bad_servers(tmp_path: Path, fault_server: Serve) -> None:
    job = write_job(tmp_path)
    other = fault_server()  # serves "test-model" only
    unknown = asyncsynth("run", job, "--servers", other.base_url, "--output", tmp_path / "a")
    assert unknown.returncode == 2
    assert "model-a" in unknown.stderr
    assert "test-model" in unknown.stderr
    none = asyncsynth("run", job, "--output", tmp_path / "b")
    assert none.returncode == 2
    assert "--embedded" in none.stderr
    both = asyncsynth("run", job, "--servers", other.base_url, "--embedded", "--output", tmp_path / "b")
    assert both.returncode == 2
    assert "Leave out --embedded" in both.stderr
    locked = fault_server(models=["model-a"], api_key="right")
    key = asyncsynth("run", job, "--servers", locked.base_url, "--output", tmp_path / "c")
    assert key.returncode == 2
    assert "401" in key.stderr
    for ran in (unknown, none, both, key):
        assert "Traceback" not in ran.stderr


def test_bad_directories(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"])
    job = write_job(tmp_path)
    (tmp_path / "file").write_text("x")
    ran = asyncsynth("run", job, "--servers", server.base_url, "--output", tmp_path / "file")
    assert ran.returncode == 2
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "thesis.txt").write_text("x")
    ran = asyncsynth("run", job, "--servers", server.base_url, "--output", tmp_path / "busy")
    assert ran.returncode == 2
    assert "not a run directory" in ran.stderr
    ran = asyncsynth("run", job, "--servers", server.base_url, "--output", "/proc/nowhere/run")
    assert ran.returncode == 5
    assert "/proc" in ran.stderr
    ran = asyncsynth("status", tmp_path / "busy")
    assert ran.returncode == 2


def test_a_changed_pipeline_asks_for_update(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"])
    run = tmp_path / "run"
    asyncsynth("run", write_job(tmp_path), "--servers", server.base_url, "--output", run)
    changed = write_job(tmp_path, temperature=0.1)
    refused = asyncsynth("run", changed, "--servers", server.base_url, "--output", run)
    assert refused.returncode == 2
    assert "temperature" in refused.stderr
    assert "--update" in refused.stderr
    agreed = asyncsynth("run", changed, "--servers", server.base_url, "--output", run, "--update")
    assert agreed.returncode == 0, agreed.stderr


@pytest.mark.row(21)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains_and_the_run_resumes(tmp_path: Path, fault_server: Serve, number: int) -> None:
    gate = Gate(6, delay_s=0.05)
    server = fault_server(models=["model-a"], script=gate)
    arguments = (
        "run",
        write_job(tmp_path, 60),
        "--servers",
        server.base_url,
        "--output",
        tmp_path / "run",
        "--window",
        4,
    )
    gate.signals = [number]
    gate.process = process = start(*arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert "sending nothing more; waiting for" in err
    assert "same command" in out
    assert "unfinished: " in out
    gate.process = None
    before = json.loads(asyncsynth("status", tmp_path / "run", "--json").stdout)["ok"]
    assert 0 < before < 60
    asked = server.requests
    rest = asyncsynth(*arguments)
    assert rest.returncode == 0, rest.stderr
    assert server.requests - asked <= 60 - before + 1  # what was in flight was finished, not thrown away
    assert len(result_rows(tmp_path / "run")) == 60


@pytest.mark.row(21)
@pytest.mark.parametrize("signals", [[], [signal.SIGTERM]])
def test_a_run_nobody_listens_to_goes_to_its_end_and_hears_signals(
    tmp_path: Path, fault_server: Serve, signals: list[int]
) -> None:
    gate = Gate(6, delay_s=0.02)
    server = fault_server(models=["model-a"], script=gate)
    arguments = ("run", write_job(tmp_path, 30), "--servers", server.base_url, "--output", tmp_path / "run")
    reader, writer = os.pipe()
    os.close(reader)
    gate.signals = list(signals)
    gate.process = process = subprocess.Popen(
        [sys.executable, "-m", "asyncsynth", *map(str, arguments), "--window", "4"],
        stdout=writer, stderr=writer, env=environment(), text=True,
    )  # fmt: skip
    os.close(writer)
    assert process.wait(timeout=60) == (4 if signals else 0)
    gate.process = None
    status = json.loads(asyncsynth("status", tmp_path / "run", "--json").stdout)
    assert status["complete"] == (not signals)
    assert (tmp_path / "run/result.jsonl").exists() == (not signals)


@pytest.mark.row(21)
def test_the_second_signal_cancels(tmp_path: Path, fault_server: Serve) -> None:
    gate = Gate(6, delay_s=0.05)
    server = fault_server(models=["model-a"], script=gate)
    gate.signals = [signal.SIGINT, signal.SIGINT]
    gate.process = process = start(
        "run", write_job(tmp_path, 60), "--servers", server.base_url, "--output", tmp_path / "run", "--window", 8
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert "Traceback" not in err


@pytest.mark.row(4)
def test_kill_9_loses_nothing_acknowledged_and_redoes_at_most_the_window(tmp_path: Path, fault_server: Serve) -> None:
    gate = Gate(25, delay_s=0.02)
    server = fault_server(models=["model-a"], script=gate)
    arguments = (
        "run",
        write_job(tmp_path, 80),
        "--servers",
        server.base_url,
        "--output",
        tmp_path / "run",
        "--window",
        8,
    )
    gate.signals = [signal.SIGKILL]
    gate.process = process = start(*arguments)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    gate.process = None
    acknowledged = json.loads(asyncsynth("status", tmp_path / "run", "--json").stdout)["ok"]
    assert acknowledged > 0
    rest = asyncsynth(*arguments)
    assert rest.returncode == 0, rest.stderr
    assert len(result_rows(tmp_path / "run")) == 80
    assert server.requests <= 80 + 8 + 4  # the window once more, and canaries


@pytest.mark.row(8)
def test_a_second_process_is_refused(tmp_path: Path, fault_server: Serve) -> None:
    refusals: list[subprocess.CompletedProcess[str]] = []
    server = fault_server(models=["model-a"], script=lambda info: Fault(delay_s=0.1))
    arguments = (
        "run",
        write_job(tmp_path, 4000),
        "--servers",
        server.base_url,
        "--output",
        tmp_path / "run",
        "--window",
        4,
    )
    process = start(*arguments)
    while not (tmp_path / "run" / "MANIFEST.json").exists() and process.poll() is None:
        os.sched_yield()
    refusals.append(asyncsynth(*arguments))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert refusals[0].returncode == 2
    assert str(process.pid) in refusals[0].stderr


def test_help_names_every_command_and_the_reference_names_every_option() -> None:
    shown = asyncsynth("--help")
    assert shown.returncode == 0
    reference = (ROOT / "docs" / "cli.md").read_text()
    commands = re.findall(r"^\s{2}(\w[\w-]*)\s{2,}", shown.stdout.partition("Commands:")[2], re.M)
    assert {"run", "status", "export", "draw"} <= set(commands)
    for command in commands:
        assert f"## asyncsynth {command}" in reference
        for option in re.findall(r"--[a-z][a-z-]+", asyncsynth(command, "--help").stdout):
            assert option == "--help" or f"`{option}" in reference, f"{command} {option} is not in docs/cli.md"


def test_draw(tmp_path: Path) -> None:
    job = write_job(tmp_path, more="")
    text = asyncsynth("draw", job)
    assert text.returncode == 0, text.stderr
    assert "text_generation_0" in text.stdout
    mermaid = asyncsynth("draw", job, "--form", "mermaid")
    assert "flowchart" in mermaid.stdout


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    code = "import sys, asyncsynth.cli.commands; print({'httpx', 'jinja2', 'uvloop', 'yaml'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert ran.stdout.strip() == "set()"


@pytest.mark.row(21)
def test_the_third_signal_exits_at_once(tmp_path: Path, fault_server: Serve) -> None:
    gate = Gate(6, delay_s=0.05)
    server = fault_server(models=["model-a"], script=gate)
    gate.signals = [signal.SIGINT] * 3
    gate.process = process = start(
        "run", write_job(tmp_path, 60), "--servers", server.base_url, "--output", tmp_path / "run", "--window", 8
    )
    process.communicate(timeout=60)
    assert process.returncode == 4
    gate.process = None
    status = json.loads(asyncsynth("status", tmp_path / "run", "--json").stdout)
    assert status["writer_pid"] is None


@pytest.mark.row(7)
def test_a_disk_that_takes_no_more_is_5_and_loses_nothing(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"])
    job, run = write_job(tmp_path, 200), tmp_path / "run"
    # The kernel refuses to let any file of this process grow past 32 KiB: a real failing write, mid-run.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (32768, 32768));"
        "sys.argv = ['asyncsynth', *sys.argv[1:]]; from asyncsynth.cli.main import main; main()"
    )
    arguments = ["run", str(job), "--servers", server.base_url, "--output", str(run)]
    full = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert full.returncode == 5, (full.stdout, full.stderr)
    assert str(run) in full.stderr
    assert "Traceback" not in full.stderr
    kept = json.loads(asyncsynth("status", run, "--json").stdout)["ok"]
    rest = asyncsynth(*arguments, "--json")
    assert rest.returncode == 0, rest.stderr
    assert json.loads(rest.stdout.splitlines()[-1])["counts"]["earlier"] >= kept
    assert len(result_rows(run)) == 200


@pytest.mark.row(21)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_run_is_4_without_a_traceback(tmp_path: Path, number: int) -> None:
    job = write_job(tmp_path)
    job.write_text(f"import os\nos.kill(os.getpid(), {int(number)})\n" + job.read_text())
    for command in ("run", "draw"):
        stopped = asyncsynth(command, job, *(["--json"] if command == "run" else []))
        assert stopped.returncode == 4, stopped.stderr
        assert command == "draw" or json.loads(stopped.stdout)["exit_code"] == 4
        assert stopped.stderr.count("\n") == 1
        assert "stopped" in stopped.stderr


@pytest.mark.row(21)
def test_a_second_signal_before_the_run_does_not_break_the_end_that_the_first_began(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    text = job.read_text()
    kill = f"os.kill(os.getpid(), {int(signal.SIGINT)})"
    job.write_text(f"import os\ntry:\n    {kill}\nfinally:\n    {kill}\n{text}")
    stopped = asyncsynth("run", job)
    assert (stopped.returncode, stopped.stdout) == (4, ""), stopped.stderr
    assert stopped.stderr.splitlines() == ["SIGINT: stopped. Run the same command again to continue."]
    # Code that swallows the first is ended by the third.
    job.write_text(f"import os\nfor _ in range(3):\n    try:\n        {kill}\n    except BaseException: pass\n{text}")
    swallowed = asyncsynth("run", job)
    assert (swallowed.returncode, swallowed.stdout, swallowed.stderr) == (4, "", "")


@pytest.mark.row(21)
def test_a_signal_after_the_run_takes_the_half_written_export_away(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"])
    job, run = write_job(tmp_path), tmp_path / "run"
    # The signal comes when the export has written its first row.
    code = (
        "import os, signal, sys; from asyncsynth.storage.exports import NewFile; write = NewFile.write\n"
        "def then_signal(self, data):\n    write(self, data)\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "NewFile.write = then_signal\n"
        "sys.argv = ['asyncsynth', *sys.argv[1:]]; from asyncsynth.cli.main import main; main()"
    )
    arguments = ["run", str(job), "--servers", server.base_url, "--output", str(run)]
    stopped = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert stopped.returncode == 4, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert sorted(path.name for path in run.iterdir()) == [
        "LOCK",
        "MANIFEST.json",
        "extent.json",
        "seg-000001.jsonl",
        "servers.json",
    ]
    asked = server.requests
    assert asyncsynth(*arguments).returncode == 0
    assert server.requests - asked <= 1  # a canary
    assert len(result_rows(run)) == 12


def test_a_server_that_begins_to_refuse_is_4_and_the_same_command_goes_on(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(
        models=["model-a"], script=lambda info: Fault("status", status=401) if info.index > 20 else None
    )
    arguments = ("run", write_job(tmp_path, 60), "--servers", server.base_url, "--output", tmp_path / "run")
    refused = asyncsynth(*arguments)
    assert refused.returncode == 4, refused.stderr
    assert "HTTP 401" in refused.stderr
    server.script = None
    assert asyncsynth(*arguments).returncode == 0
    assert len(result_rows(tmp_path / "run")) == 60


def test_pipeline_files_that_end_the_process_or_import_what_is_broken(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text("import sys\n\nsys.exit(3)\n")
    ended = asyncsynth("run", job)
    assert ended.returncode == 2
    assert f"{job}:3: " in ended.stderr
    (tmp_path / "broken_neighbour.py").write_text("\n" * 7 + "def f(:\n")
    job.write_text("\nimport broken_neighbour\n")
    broken = asyncsynth("run", job)
    assert broken.returncode == 2
    assert f"{job}:2: SyntaxError" in broken.stderr
    assert "broken_neighbour.py, line 8" in broken.stderr


def test_an_unexpected_fault_is_1_and_shows_its_traceback_when_asked(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text(
        "from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration\n"
        "class Broken(LoadDataFromDicts):\n"
        "    def open(self):\n"
        "        raise RuntimeError('broken \\x1b[31m')\n"
        "with Pipeline() as pipeline:\n"
        "    Broken(data=[{'instruction': 'x'}]) >> TextGeneration(llm=LLM(model='m'))\n"
    )
    told = asyncsynth("run", job, "--output", tmp_path / "run", "--json")
    assert told.returncode == 1
    assert json.loads(told.stdout)["error"] == "RuntimeError"
    assert f"{job}:4)" in told.stderr
    assert "Traceback" not in told.stderr
    assert "\x1b" not in told.stderr
    command = [sys.executable, "-m", "asyncsynth", "run", str(job), "--output", str(tmp_path / "run")]
    shown = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment() | {"ASYNCSYNTH_TRACEBACK": "1"},
        check=False,
    )
    assert "Traceback" in shown.stderr
