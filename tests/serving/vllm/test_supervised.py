"""Servers as processes: real signals, real sockets, a stand-in for vLLM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncsynth.errors import ServerError, ServerUnreachable
from asyncsynth.servers.configs import parse_servers
from asyncsynth.serving.guarded import GuardedProcess
from asyncsynth.serving.keeping import Keeping
from asyncsynth.serving.restarts import RestartPolicy
from asyncsynth.serving.vllm.checks import gpu_count
from asyncsynth.serving.vllm.launch import find_vllm
from asyncsynth.serving.vllm.supervisor import ServerEvent, Supervisor
from asyncsynth.testing import FaultServer
from tests.kit.processes import all_gone, comes_true, runs
from tests.kit.vllm_site import STAND_IN, Site

COMMAND = [sys.executable, "-m", "asyncsynth"]
#: A child in a session of its own leaves the process group; only Linux lets its guardian find it.
ESCAPING = [False, pytest.param(True, marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux only"))]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@contextmanager
def serving(site: Site, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`asyncsynth serve --json`, its standard output as lines; nothing of it is left behind."""
    command = [*COMMAND, "serve", "--json", "--logs", str(site.logs), *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=site.environ(), start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        assert comes_true(lambda: not any(map(runs, site.pids())))


def next_event(process: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    """The next event that is, or whose `kind` is, `kind`; the output's end fails."""
    assert process.stdout is not None
    for line in process.stdout:
        found: dict[str, Any] = json.loads(line)
        if kind in (found.get("kind"), found["event"]):
            return found
    pytest.fail(f"no {kind}: {process.stderr.read() if process.stderr else ''}")


def serve(site: Site, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "serve", "--logs", str(site.logs), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=site.environ(), check=False)


def test_two_start_a_killed_one_comes_back_and_sigterm_drains(site: Site) -> None:
    first, port = site.file("a")
    second, other = site.file("b", model="model-b", more="shutdown-timeout: 7\n")
    with serving(site, first, second, "--gpus", "b.yaml=3") as process:
        assert set(ready(process)) == {port, other}
        [a], [b] = site.starts(port), site.starts(other)
        assert (a["gpus"], b["gpus"]) == (None, "3")
        os.kill(a["pid"], signal.SIGKILL)
        crashed = next_event(process, "crashed")
        assert "killed" in crashed["message"]
        assert 0.25 <= crashed["seconds"] <= 0.5
        assert next_event(process, "ready")["server"].endswith(str(port))
        assert not runs(a["child"])  # the whole group went before it started again
        assert len(site.starts(port)) == 2
        assert len(site.starts(other)) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        # Both were told to drain, with the file's own time or with ours.
        assert [(site.notes / f"{p}.terminated").read_text() for p in (port, other)] == ["20.0\n", "7.0\n"]
    for log in site.logs.iterdir():
        assert stat.S_IMODE(log.stat().st_mode) == 0o600


def ready(process: subprocess.Popen[str]) -> list[int]:
    """The ports of all servers, once all are ready."""
    assert process.stdout is not None
    for line in process.stdout:
        found = json.loads(line)
        if found["event"] == "ready":
            return [int(url.split(":")[2].split("/")[0]) for url in found["servers"].values()]
    pytest.fail(f"not ready: {process.stderr.read() if process.stderr else ''}")


@pytest.mark.parametrize("escaping", ESCAPING)
def test_a_killed_parent_leaves_no_process(site: Site, escaping: bool) -> None:
    file, port = site.file("a")
    if escaping:
        site.ask(port, "escape")
    with serving(site, file) as process:
        ready(process)
        [note] = site.starts(port)
        assert runs(note["pid"])
        assert runs(note["child"])
        process.kill()
        process.wait(10)
        assert all_gone([note["pid"], note["child"]])
        assert comes_true(lambda: not group_lives(note["pid"]))


def group_lives(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_second_signal_kills_a_server_that_does_not_stop(site: Site) -> None:
    file, port = site.file("a")
    site.ask(port, "hang")
    with serving(site, file) as process:
        ready(process)
        process.send_signal(signal.SIGINT)
        assert next_event(process, "stopping")
        assert comes_true(lambda: (site.notes / f"{port}.terminated").exists())
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert all_gone(site.pids())


def test_a_signal_while_loading_stops_all(site: Site) -> None:
    file, port = site.file("a")
    site.ask(port, "never")
    with serving(site, file) as process:
        assert comes_true(lambda: bool(site.starts(port)))
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert all_gone(site.pids())


def test_a_failed_start_tells_why_and_stops_the_others(site: Site) -> None:
    first, _ = site.file("a")
    second, port = site.file("b", model="model-b")
    site.ask(port, "crash")
    done = serve(site, first, second)
    assert done.returncode == 2
    assert f"127.0.0.1:{port} did not start: the GPU's memory does not suffice" in done.stderr
    assert str(second) in done.stderr
    assert "Lower gpu-memory-utilization" in done.stderr
    assert "CUDA out of memory. Tried 2 GiB." in done.stderr
    assert "\x1b" not in done.stderr
    assert all_gone(site.pids())


def test_a_port_that_something_else_holds(site: Site, fault_server: Callable[..., FaultServer]) -> None:
    other = fault_server(models=["model-z"])
    file, port = site.file("a", port=other.port)
    for options in ([], ["--check"]):
        done = serve(site, file, *options)
        assert done.returncode == 2
        assert f"{file}:3: the port of 127.0.0.1:{port} is taken" in done.stderr
        assert "it serves model-z" in done.stderr
    with socket.socket() as holder:  # holds the port, and does not listen
        holder.bind(("127.0.0.1", 0))
        file, port = site.file("b", port=holder.getsockname()[1])
        done = serve(site, file)
    assert done.returncode == 2
    assert f"{file}:3: the port of 127.0.0.1:{port} is taken" in done.stderr
    assert site.pids() == []


def test_a_check_tells_all_at_once_and_starts_nothing(site: Site, fault_server: Callable[..., FaultServer]) -> None:
    held, _ = site.file("held", port=fault_server(models=["model-z"]).port)
    site.file("away", model="/no/such/folder")
    fleet = site.folder / "fleet.yaml"
    fleet.write_text(
        "servers:\n  - {config: away.yaml, api_key_env: NOT_SET, api_key: k}\n  - {config: nowhere.yaml}\n"
    )
    done = serve(site, held, fleet, "--check", "--gpus", "held.yaml=x")
    assert done.returncode == 2
    for said in (
        f"{fleet}:2: unknown key api_key", f"{fleet}:3: config: there is no file", "--gpus held.yaml=x: 'x' is no",
        f"{fleet}:2: the key of", f"{held}:3: the port of", "model: there is no folder /no/such/folder",
    ):  # fmt: skip
        assert said in done.stderr
    assert site.pids() == []


def test_a_check_says_where_gpus_are_not_seen(site: Site) -> None:
    done = serve(site, site.file("a")[0], "--check")
    assert done.returncode == 0, done.stderr
    assert ("GPUs: not checked, there are none on this machine" in done.stdout) is (gpu_count() == 0)
    assert "nothing wrong found" in done.stdout


def test_one_that_answers_already_is_left_as_it_is(site: Site) -> None:
    file, port = site.file("a")
    with serving(site, file) as process:
        ready(process)
        done = serve(site, file)
        assert done.returncode == 0, done.stderr
        assert "runs already" in done.stderr
        assert len(site.starts(port)) == 1


def test_a_server_that_crashes_too_often_is_given_up(site: Site) -> None:
    async def scenario() -> None:
        file, port = site.file("a")
        events: list[ServerEvent] = []
        told: list[str] = []
        pauses: list[float] = []

        class Pool:
            def server_down(self, name: str, why: str) -> None:
                told.append(f"down {why}")

            def server_up(self, name: str) -> None:
                told.append("up")

            def server_lost(self, name: str, why: str, advice: str = "") -> None:
                told.append(f"lost {why}")

        async def pause(seconds: float) -> None:
            pauses.append(seconds)

        environ = site.environ()
        supervisor = Supervisor(
            parse_servers([str(file)]),
            find_vllm(STAND_IN, environ),
            site.logs,
            keeping=Keeping(restart=RestartPolicy(crashes=2), sleep=pause),
            on_event=events.append,
            environ=environ,
        )
        async with supervisor:
            supervisor.watch(Pool())
            site.ask(port, "crash")  # from now on
            [note] = site.starts(port)
            os.kill(note["pid"], signal.SIGKILL)
            await asyncio.wait_for(supervisor.wait(), 20)
        assert [event.kind for event in events] == ["starting", "ready", *["crashed", "starting"] * 2, "gave_up"]
        assert "memory does not suffice" in events[-1].message
        assert supervisor.gave_up == [f"127.0.0.1:{port}"]
        assert [line.split()[0] for line in told] == ["down", "lost"]
        assert "memory does not suffice" in told[-1]
        supervisor.watch(Pool())  # a run that begins afterwards
        assert told[-1] == told[-2]
        assert 0.25 <= pauses[0] <= 0.5 <= pauses[1] <= 1.0
        assert all_gone(site.pids())

    asyncio.run(scenario())


def test_one_that_never_answers_is_told_and_ended(site: Site) -> None:
    async def scenario() -> None:
        file, port = site.file("a")
        site.ask(port, "never")
        environ = site.environ()
        servers = parse_servers([str(file)])
        supervisor = Supervisor(servers, find_vllm(STAND_IN, environ), site.logs, ready_s=1.5, environ=environ)
        with pytest.raises(ServerUnreachable, match="did not become ready"):
            async with supervisor:
                pytest.fail("it was not ready")
        assert all_gone(site.pids())

    asyncio.run(scenario())


@pytest.mark.parametrize("escaping", ESCAPING)
def test_a_guarded_process_takes_its_children_along(escaping: bool) -> None:
    async def scenario() -> None:
        script = f"import subprocess,sys,time\np=subprocess.Popen(['sleep','300'],start_new_session={escaping})\n"
        script += "print(p.pid,flush=True)\ntime.sleep(300)"
        process = await GuardedProcess.start([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.output is not None
        child = int(await asyncio.wait_for(process.output.readline(), 20))
        assert runs(child)
        os.kill(process.pid, signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
        assert all_gone([process.pid, child])
        await process.kill()  # once more does nothing

    asyncio.run(scenario())


def test_a_killed_guardian_takes_the_server_along() -> None:
    async def scenario() -> None:
        process = await GuardedProcess.start([sys.executable, "-c", "import time; time.sleep(300)"])
        guardian = process._guardian
        assert guardian is not None
        guardian.kill()
        assert await process.wait() == -signal.SIGKILL
        assert all_gone([process.pid])

    asyncio.run(scenario())


def test_a_command_that_cannot_be_executed(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(ServerError, match="could not be started: No such file"):
            await GuardedProcess.start([str(tmp_path / "nothing")])
        process = await GuardedProcess.start([sys.executable, "-c", "raise SystemExit(3)"])
        assert await process.wait() == 3

    asyncio.run(scenario())
