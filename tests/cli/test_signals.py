"""Ctrl-C and SIGTERM in commands that ask servers and have nothing to drain: the first one ends them, at once."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from asyncsynth.testing import Fault, RequestInfo
from tests.kit.commands import Gate, Serve, start, write_structured_job
from tests.kit.processes import environment

HELD_S = 600.0  #: longer than a test waits: what ends in time was stopped


class Held(Gate):
    """Answers the first requests, signals at the next one, and keeps it and all others waiting."""

    def __call__(self, info: RequestInfo) -> Fault | None:
        fault = super().__call__(info)
        return fault if info.index >= self.count else None


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it wrote till its end, which must come soon."""
    try:
        return process.communicate(timeout=60)
    finally:
        process.kill()  # nothing, where it has ended


@pytest.mark.row(21)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("command", "answered"),
    [
        (("bench", "--seconds", HELD_S), 0),  # while it looks whether the server answers
        (("bench", "--seconds", HELD_S), 20),  # in the first level
        (("check",), 0),
        (("check",), 3),
    ],
)
def test_the_first_signal_ends_the_command(
    fault_server: Serve, command: tuple[object, ...], answered: int, number: signal.Signals
) -> None:
    gate = Held(answered, delay_s=HELD_S)
    gate.signals = [number]
    server = fault_server(models=["model-a"], script=gate)
    gate.process = process = start(*command, "--servers", server.base_url)
    _, err = ended(process)
    assert process.returncode == 4, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"{number.name}: stopped")


@pytest.mark.row(21)
def test_no_other_server_is_loaded_after_a_signal(fault_server: Serve) -> None:
    gate = Held(20, delay_s=HELD_S)
    gate.signals = [signal.SIGINT]
    first = fault_server(models=["model-a"], script=gate)
    second = fault_server(models=["model-a"])
    servers = ("--servers", first.base_url, "--servers", second.base_url)
    gate.process = process = start("bench", *servers, "--seconds", HELD_S, "--json")
    out, err = ended(process)
    assert process.returncode == 4, err
    assert json.loads(out.splitlines()[-1])["exit_code"] == 4
    assert second.requests == 0


@pytest.mark.row(21)
def test_a_check_of_a_pipeline_is_stopped_on_all_servers(tmp_path: Path, fault_server: Serve) -> None:
    gate = Held(1, delay_s=HELD_S)
    gate.signals = [signal.SIGTERM]
    first = fault_server(models=["model-a"], script=lambda info: Fault(delay_s=HELD_S))
    second = fault_server(models=["model-a"], script=gate)
    servers = ("--servers", first.base_url, "--servers", second.base_url)
    gate.process = process = start("check", write_structured_job(tmp_path), *servers)
    out, err = ended(process)
    assert process.returncode == 4, err
    assert out == ""
    *planned, stopped = err.splitlines()
    assert all("small requests" in line for line in planned), err
    assert "SIGTERM" in stopped


@pytest.mark.row(21)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_command_loads_ends_it_with_its_exit_code(number: signal.Signals) -> None:
    """The process sends itself a signal at the moment when it imports the module with all commands."""
    code = (
        "import os, sys\n"
        "class Loading:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'asyncsynth.cli.commands':\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Loading())\n"
        "from asyncsynth.cli.main import main\n"
        "sys.argv = ['asyncsynth', *sys.argv[1:]]\n"
        "main()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, "status", "nowhere", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    message = f"{number.name}: stopped. Run the same command again to continue."
    assert (ran.returncode, ran.stderr) == (4, message + "\n")
    assert json.loads(ran.stdout) == {"event": "error", "error": "Stopped", "message": message, "exit_code": 4}


@pytest.mark.row(21)
def test_serve_is_stopped_while_it_looks_whether_a_server_runs_already(tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file.write_text(f"model: model-a\nhost: 127.0.0.1\nport: {silent.getsockname()[1]}\n")
        silent.settimeout(60)
        process = start("serve", file, "--check")
        asked = b""
        while not asked:  # the first connection only looks whether the port is held
            connection, _ = silent.accept()
            with connection:
                connection.settimeout(60)
                if asked := connection.recv(1000):
                    process.send_signal(signal.SIGINT)
                    _, err = ended(process)
    assert process.returncode == 4, err
    assert err.splitlines()[-1].startswith("SIGINT: stopped")
