"""`asyncsynth serve`: check, start, show, wait, drain."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from asyncsynth.cli.live_line import LiveLine
from asyncsynth.cli.show import event
from asyncsynth.cli.signals import Stopped, StopSignals, run_until_signal
from asyncsynth.cli.text import complain, duration, one_line, say
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
        with contextlib.suppress(ConfigurationError):  # a file can be checked without vLLM
            vllm = find_vllm()
    machine = gpu_count()
    findings = check_servers(servers, vllm=vllm, gpus=machine)
    running = run_until_signal(lambda: _already_served(servers, problems))
    for warning in require_sound(findings, problems):
        complain(f"warning: {warning}")
    show = ServerDisplay(as_json=as_json)
    for server in running:
        show.on_event(ServerEvent("already_running", server.name, "it is not changed"))
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
    """The servers of the files that can be started here, on the GPUs that the options name.

    Keeps errors in `problems`, and raises them if no server is left to check.
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
    """Those that answer already. A port that another program holds goes into `problems`."""

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
            say("GPUs: not checked, there are none on this machine")
        version = "vLLM is not installed here" if vllm is None else f"vLLM {vllm.version or 'of unknown version'}"
        say(f"{len(servers)} servers, nothing wrong found ({version})")


async def _serve(
    servers: Sequence[ServerConfig],
    wanted: Sequence[ServerConfig],
    vllm: VLLMCommand,
    logs: Path,
    ready_timeout: float,
    show: ServerDisplay,
) -> int:
    supervisor: Supervisor | None = None

    def drain(name: str) -> None:
        complain(f"{name}: waiting for requests in flight. Again: kill the servers.")
        signals.cancel()

    def kill(name: str) -> None:
        if supervisor is None:
            drain(name)
            return
        complain(f"{name}: killing the servers")
        supervisor.kill_soon()

    signals = StopSignals(drain, kill)
    with signals.installed():
        try:
            supervisor = Supervisor(wanted, vllm, logs, ready_s=ready_timeout, on_event=show.on_event)
            with show.watching(supervisor):
                async with supervisor:
                    show.all_ready(servers)
                    await supervisor.wait()
        except asyncio.CancelledError:
            if not signals.caused_cancel():
                raise
            if supervisor is None:
                raise Stopped("a signal before anything was started") from None
    return EXIT_STOPPED if supervisor.gave_up else EXIT_OK


class ServerDisplay:
    """What happens to servers: a line for each event, and the progress of loading."""

    def __init__(
        self, *, as_json: bool, every_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._as_json = as_json
        self._every_s = every_s
        self._line = LiveLine(as_json=as_json)
        self._clock = clock

    def on_event(self, happened: ServerEvent) -> None:
        """Prints one event. Never raises, even if nothing reads the output."""
        with contextlib.suppress(OSError):
            if self._as_json:
                event({"event": "server", **happened.as_json()})
                return
            self._line.clear()
            complain(_words(happened))

    def all_ready(self, servers: Sequence[ServerConfig]) -> None:
        """All servers answer: where, and how to use them."""
        with contextlib.suppress(OSError):
            if self._as_json:
                event({"event": "ready", "servers": {s.name: s.base_url for s in servers}})
                return
            self._line.clear()
            for server in servers:
                say(f"{server.base_url}  {', '.join(sorted(server.models or ()))}")
            say(f"export ASYNCSYNTH_SERVERS={','.join(server.base_url for server in servers)}")

    @contextlib.contextmanager
    def watching(self, supervisor: Supervisor) -> Iterator[None]:
        """Shows the progress of loading while the block runs."""
        task = asyncio.create_task(self._show(supervisor))
        try:
            yield
        finally:
            task.cancel()
            self._line.clear()

    async def _show(self, supervisor: Supervisor) -> None:
        every = self._every_s or (_TERMINAL_EVERY_S if self._line.is_shown else _PLAIN_EVERY_S)
        while True:
            await asyncio.sleep(every)
            loading = [server for server in supervisor.servers if server.state == "loading"]
            with contextlib.suppress(OSError):
                for server in loading:
                    seconds = self._clock() - server.since
                    last = one_line(server.last_line(), 160)
                    if self._as_json:
                        event({"event": "loading", "server": server.name, "seconds": round(seconds, 1), "log": last})
                    elif not self._line.is_shown:
                        complain(f"{server.name}: loading, {duration(seconds)}: {last}")
                if loading:
                    names = ", ".join(f"{s.name} {duration(self._clock() - s.since)}" for s in loading)
                    self._line.draw(f"loading {names}: {one_line(loading[0].last_line(), 160)}")
                else:
                    self._line.clear()


def _words(happened: ServerEvent) -> str:
    seconds = duration(happened.seconds) if happened.seconds is not None else ""
    said = {
        "starting": f"starting; its log: {happened.log}",
        "ready": f"ready after {seconds}",
        "crashed": f"ended; restarts in {seconds}",
        "gave_up": "is not restarted",
        "already_running": "runs already",
        "failed": "did not start",
    }.get(happened.kind, happened.kind)
    # The error of a failed start is printed once, whole, at the end.
    why = f": {one_line(happened.message, 400)}" if happened.message and happened.kind != "failed" else ""
    return f"{happened.server}: {said}{why}"
