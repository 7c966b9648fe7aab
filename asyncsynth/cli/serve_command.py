"""`asyncsynth serve`: check, start, show, wait, drain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from asyncsynth.cli.show import event
from asyncsynth.cli.signals import Stopped, run_until_signal, taken
from asyncsynth.cli.text import complain, duration, one_line, safe, say
from asyncsynth.client.concurrency import all_or_error
from asyncsynth.engine.pipeline import run_in_loop
from asyncsynth.errors import EXIT_OK, EXIT_STOPPED, ConfigurationError
from asyncsynth.servers.configs import ServerConfig, parse_servers
from asyncsynth.servers.problems import Problems
from asyncsynth.serving.vllm.checks import already_served, check_servers, gpu_count, require_sound
from asyncsynth.serving.vllm.launch import VLLMCommand, command_line, find_vllm
from asyncsynth.serving.vllm.starting import placed
from asyncsynth.serving.vllm.supervisor import ServerEvent, Supervisor
from asyncsynth.serving.weights import cache_dir
from asyncsynth.storage.layout import refuse_own_places

_TERMINAL_EVERY_S = 0.5
_PLAIN_EVERY_S = 15.0


def serve_command(
    files: Sequence[str],
    *,
    gpus: Sequence[str],
    vllm_command: str,
    logs: Path | None,
    ready_timeout: float,
    check: bool,
    as_json: bool,
) -> int:
    """Runs servers until a signal ends them; returns the exit code. Raises AsyncsynthError."""
    if logs is not None:
        refuse_own_places(logs)
    problems = Problems()
    servers = read_servers(files, gpus, problems)
    vllm: VLLMCommand | None = None
    if not check or vllm_command:
        vllm = problems.tried(find_vllm, vllm_command)
    else:
        with contextlib.suppress(ConfigurationError):  # a file can be checked where no vLLM is
            vllm = find_vllm()
    machine = gpu_count()
    findings = check_servers(servers, vllm=vllm, gpus=machine)
    running = run_until_signal(lambda: _already_served(servers, problems))
    for warning in require_sound(findings, problems):
        complain(f"warning: {warning}")
    show = ServerDisplay(as_json=as_json)
    for server in running:
        show.on_event(ServerEvent("already_running", server.name, "it is left as it is"))
    if check:
        _show_check(servers, vllm, machine, as_json=as_json)
        return EXIT_OK
    assert vllm is not None
    folder = logs or cache_dir() / "servers"
    chosen = vllm
    wanted = [server for server in servers if server not in running]
    if not wanted:
        return EXIT_OK
    return run_in_loop(lambda: _serve(servers, wanted, chosen, folder, ready_timeout, show))


def read_servers(files: Sequence[str], gpus: Sequence[str], problems: Problems) -> list[ServerConfig]:
    """The servers of the files that can be started here, on the GPUs that the options say.

    What is wrong is kept in `problems`, and raised where nothing is left to look at.
    """
    given = parse_servers(files, origin="serve", problems=problems)
    servers = [server for server in given if server.launch is not None]
    if not servers:
        problems.require_none()
        raise ConfigurationError(
            "none of the files describes a server to start",
            hint="Give vLLM --config files, folders of them, or fleet files with `config` entries.",
        )
    return problems.tried(placed, servers, gpus) or servers


async def _already_served(servers: Sequence[ServerConfig], problems: Problems) -> list[ServerConfig]:
    """Those that answer already; a port that something else holds is kept in `problems`."""

    async def answers(server: ServerConfig) -> bool:
        try:
            return await already_served(server)
        except ConfigurationError as error:
            problems.add(error)
            return False

    found = await all_or_error([answers(server) for server in servers])
    return [server for server, runs in zip(servers, found, strict=True) if runs]


def _show_check(servers: Sequence[ServerConfig], vllm: VLLMCommand | None, machine: int, *, as_json: bool) -> None:
    for server in servers:
        assert server.launch is not None
        line = command_line(server, vllm or VLLMCommand(("vllm",)))
        if as_json:
            event({"event": "checked", "server": server.name, "url": server.base_url, "command": line,
                   "models": sorted(server.models or ()), "gpus": server.launch.gpus,
                   "gpus_seen": machine})  # fmt: skip
            continue
        where = "" if server.launch.gpus is None else f"  on GPU {','.join(server.launch.gpus)}"
        say(f"{server.name}  {', '.join(sorted(server.models or ()))}{where}")
        say(f"  {' '.join(line)}")
    if not as_json:
        if not machine and (vllm is None or not vllm.is_cpu):
            say("GPUs: not checked, none seen here")
        version = "no vLLM is installed here" if vllm is None else f"vLLM {vllm.version or 'of unknown version'}"
        say(f"{len(servers)} servers, nothing wrong found ({version})")


async def _serve(
    servers: Sequence[ServerConfig],
    wanted: Sequence[ServerConfig],
    vllm: VLLMCommand,
    logs: Path,
    ready_timeout: float,
    show: ServerDisplay,
) -> int:
    signals = ServeSignals()
    with signals.installed():
        try:
            supervisor = Supervisor(wanted, vllm, logs, ready_s=ready_timeout, on_event=show.on_event)
            signals.supervisor = supervisor
            with show.watching(supervisor):
                async with supervisor:
                    show.all_ready(servers)
                    await supervisor.wait()
        except asyncio.CancelledError:
            if not signals.count:
                raise
            _uncancel()
            if signals.supervisor is None:
                raise Stopped("a signal before anything was started") from None
    gave_up = signals.supervisor is not None and signals.supervisor.gave_up
    return EXIT_STOPPED if gave_up else EXIT_OK


def _uncancel() -> None:
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


class ServeSignals:
    """SIGINT and SIGTERM: the first drains the servers, the second kills them, the third exits at once."""

    def __init__(self) -> None:
        self.count: int = 0
        self.supervisor: Supervisor | None = None
        self._main: asyncio.Task[Any] | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Takes the signals for as long as the block runs."""
        self._main = asyncio.current_task()
        with taken(self._received):
            yield

    def _received(self, number: int) -> None:
        self.count += 1
        name = signal.Signals(number).name
        if self.count >= 3:
            os._exit(EXIT_STOPPED)  # the guardians see it and kill what is left
        if self.count == 2 and self.supervisor is not None:
            complain(f"{name}: killing the servers")
            self.supervisor.kill_soon()
            return
        complain(f"{name}: waiting for requests in flight. Again: kill the servers.")
        if self._main is not None:
            self._main.cancel()


class ServerDisplay:
    """What becomes of servers: a line for each event, and how loading goes."""

    def __init__(
        self, *, as_json: bool, every_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._as_json = as_json
        self._every_s = every_s
        self._terminal = sys.stderr.isatty() and not as_json and os.environ.get("TERM") != "dumb"
        self._clock = clock
        self._live = False

    def on_event(self, happened: ServerEvent) -> None:
        """Tell one event; never raises for want of somewhere to write."""
        with contextlib.suppress(OSError):
            if self._as_json:
                event({"event": "server", **happened.as_json()})
                return
            self._clear(always=True)  # a run's line of progress may stand there
            complain(_words(happened))

    def all_ready(self, servers: Sequence[ServerConfig]) -> None:
        """All servers answer: where, and how to use them."""
        with contextlib.suppress(OSError):
            if self._as_json:
                event({"event": "ready", "servers": {s.name: s.base_url for s in servers}})
                return
            self._clear()
            for server in servers:
                say(f"{server.base_url}  {', '.join(sorted(server.models or ()))}")
            say(f"export ASYNCSYNTH_SERVERS={','.join(server.base_url for server in servers)}")

    @contextlib.contextmanager
    def watching(self, supervisor: Supervisor) -> Iterator[None]:
        """Shows how loading goes for as long as the block runs."""
        task = asyncio.create_task(self._show(supervisor))
        try:
            yield
        finally:
            task.cancel()
            self._clear()

    async def _show(self, supervisor: Supervisor) -> None:
        every = self._every_s or (_TERMINAL_EVERY_S if self._terminal else _PLAIN_EVERY_S)
        while True:
            await asyncio.sleep(every)
            loading = [server for server in supervisor.servers if server.state == "loading"]
            with contextlib.suppress(OSError):
                for server in loading:
                    seconds = self._clock() - server.since
                    last = one_line(server.last_line(), 160)
                    if self._as_json:
                        event({"event": "loading", "server": server.name, "seconds": round(seconds, 1), "log": last})
                    elif not self._terminal:
                        complain(f"{server.name}: loading, {duration(seconds)}: {last}")
                if self._terminal:
                    self._draw(", ".join(f"{s.name} {duration(self._clock() - s.since)}" for s in loading), loading)

    def _draw(self, names: str, loading: Sequence[Any]) -> None:
        self._clear()
        if not loading:
            return
        text = safe(f"loading {names}: {one_line(loading[0].last_line(), 160)}")
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80  # 0: unknown
        sys.stderr.write(text[: columns - 1])
        sys.stderr.flush()
        self._live = True

    def _clear(self, *, always: bool = False) -> None:
        if self._live or (always and self._terminal):
            sys.stderr.write("\r\x1b[K")
            self._live = False


def _words(happened: ServerEvent) -> str:
    seconds = duration(happened.seconds) if happened.seconds is not None else ""
    said = {
        "starting": f"starting; its log: {happened.log}",
        "ready": f"ready after {seconds}",
        "crashed": f"ended, starts again in {seconds}",
        "gave_up": "is not started again",
        "already_running": "runs already",
        "failed": "did not start",
    }.get(happened.kind, happened.kind)
    # The error of a failed start is told once, whole, at the end.
    why = f": {one_line(happened.message, 400)}" if happened.message and happened.kind != "failed" else ""
    return f"{happened.server}: {said}{why}"
