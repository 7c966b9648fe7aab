"""One vLLM server: its command line, its environment, its log, and whether it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asyncsynth.client.transport import Timeouts, TransportFailure
from asyncsynth.errors import AsyncsynthError, ConfigurationError, ServerUnreachable
from asyncsynth.servers.configs import ServerConfig
from asyncsynth.servers.exchange import exchange_for
from asyncsynth.servers.launch_settings import GPU_VARIABLE, Launch
from asyncsynth.servers.readiness import Probe, ReadyPolicy
from asyncsynth.serving.guarded import GuardedProcess
from asyncsynth.serving.process_ends import Diagnosis
from asyncsynth.serving.vllm.diagnosis import diagnose, last_lines, read_tail, without_prefix
from asyncsynth.serving.vllm.flags import as_arguments

COMMAND_VARIABLE = "ASYNCSYNTH_VLLM"
READY_S = 1800.0  #: a large model has to be downloaded, loaded and compiled
SHUTDOWN_S = 20  #: for requests in flight, where the file does not say
_GRACE_S = 10.0  #: beyond the shutdown timeout, for vLLM's own processes
_LOADING_GRACE_S = 10.0  #: a server that is still loading has nothing to finish
_CANARY_S = 300.0  #: the first request may compile kernels
_SHOWN_LINES = 12
_LOG_BYTES = 64 << 20  #: a log beyond that is put aside at the next start


@dataclass(frozen=True, slots=True)
class VLLMCommand:
    """The executable with its arguments, before `serve`; and its version where that can be seen."""

    argv: tuple[str, ...]
    version: str | None = None

    @property
    def is_cpu(self) -> bool:
        """Whether it is a build for CPUs."""
        return self.version is not None and self.version.endswith("+cpu")


def find_vllm(given: str = "", environ: Mapping[str, str] | None = None) -> VLLMCommand:
    """The `vllm` command: as given, or of ASYNCSYNTH_VLLM, or `vllm` on the PATH or beside this Python.

    Raises:
        ConfigurationError: there is none.
    """
    variables = os.environ if environ is None else environ
    text = given or variables.get(COMMAND_VARIABLE, "").strip()
    origin = "--vllm-command" if given else COMMAND_VARIABLE
    try:
        argv = shlex.split(text) or ["vllm"]
    except ValueError as error:
        raise ConfigurationError(f"{origin}: {text!r} is no command: {error}") from None
    found = shutil.which(os.path.expanduser(argv[0]), path=variables.get("PATH"))
    if found is None and not text:
        beside = Path(sys.executable).with_name("vllm")  # a virtual environment that was not activated
        found = str(beside) if os.access(beside, os.X_OK) else None
    if found is None:
        where = f"{origin} names {argv[0]!r}, and there is no such command" if text else "there is no command vllm"
        raise ConfigurationError(
            f"vLLM cannot be started: {where}",
            hint="pip install '.[vllm]' in the clone (Linux with a GPU), or name the one of another environment: "
            f"--vllm-command /path/to/bin/vllm, or {COMMAND_VARIABLE}.",
        )
    return VLLMCommand((found, *argv[1:]), _version_beside(Path(found)))


def _version_beside(executable: Path) -> str | None:
    """The version of the environment whose script this is, from the names of its folders: asking takes seconds."""
    prefixes = [executable.parent.parent]
    with contextlib.suppress(OSError), executable.open("rb") as file:
        first = file.readline(512).decode("utf-8", "replace").strip()
        if first.startswith("#!/") and "/env " not in first:
            prefixes.insert(0, Path(first[2:].split()[0]).parent.parent)
    for prefix in prefixes:
        for folder in sorted(prefix.glob("lib*/python3*/site-packages/vllm*.dist-info")):
            if match := re.fullmatch(r"vllm(_cpu)?-([^-]+)\.dist-info", folder.name):
                return f"{match[2].removesuffix('+cpu')}+cpu" if match[1] else match[2]
    return None


def command_line(config: ServerConfig, vllm: VLLMCommand) -> list[str]:
    """What is executed for this server."""
    launch = _launch(config)
    line = [*vllm.argv, "serve", "--config", str(launch.file), *as_arguments(launch.flags, launch.overrides)]
    if "shutdown-timeout" not in launch.flags:
        line.append(f"--shutdown-timeout={SHUTDOWN_S}")  # without it, requests in flight hang when it stops
    return line


def environment(config: ServerConfig, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """All variables of the server's process."""
    launch = _launch(config)
    variables = dict(os.environ if environ is None else environ)
    variables["PYTHONUNBUFFERED"] = "1"  # its last words reach the log
    variables.update(launch.env)
    if launch.gpus is not None:
        variables[GPU_VARIABLE] = ",".join(launch.gpus)
        variables.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the numbers of nvidia-smi
    if launch.key_env and (key := config.key(environ)) is not None:
        variables["VLLM_API_KEY"] = key.reveal()
    return variables


def _launch(config: ServerConfig) -> Launch:
    assert config.launch is not None, "only servers that a file describes are started"
    return config.launch


class VLLMServer:
    """One server process and its log; `start` returns when it is ready. May be started again after its end."""

    def __init__(
        self,
        config: ServerConfig,
        vllm: VLLMCommand,
        logs: Path,
        *,
        ready_s: float = READY_S,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.name: str = config.name
        self.log_path: Path = (
            logs / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', f'{_launch(config).file.stem}-{self.name}')}.log"
        )
        self.process: GuardedProcess | None = None
        self.state: str = "waiting"  #: waiting | loading | ready | down | stopping | stopped | gave up
        self.since: float = time.monotonic()  #: of `state`
        self.starts: int = 0
        self._vllm = vllm
        self._ready_s = ready_s
        self._environ = environ
        self._log_start = 0

    def set_state(self, state: str) -> None:
        """Enter a state, now."""
        self.state, self.since = state, time.monotonic()

    async def start(self) -> None:
        """Start the process and wait until it answers one token.

        Raises:
            ServerUnreachable: it ended, or was not ready in time; with the likely cause and the end of its log.
        """
        self.set_state("loading")
        self.starts += 1
        log = self._open_log()
        try:
            self.process = await GuardedProcess.start(
                command_line(self.config, self._vllm),
                environ=environment(self.config, self._environ),
                stdout=log,
                stderr=log,
            )
        finally:
            os.close(log)
        ended = asyncio.create_task(self.process.wait())
        answers = asyncio.create_task(self._answers())
        try:
            await asyncio.wait([ended, answers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, answers):
                if not task.done():
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, AsyncsynthError):
                        await task
        # Looked at first: what answers while our process is gone is another one.
        if self.process.returncode is not None:
            self.set_state("down")
            raise self.failure(f"{self.name} did not start", self.process.returncode)
        if (error := answers.exception()) is not None:
            await self.process.kill()
            self.set_state("down")
            if not isinstance(error, AsyncsynthError):
                raise error
            raise self.failure(f"{self.name} did not become ready: {error.message}", None)
        self.set_state("ready")

    async def _answers(self) -> None:
        config = self.config
        exchange = exchange_for(config, environ=self._environ)
        policy = ReadyPolicy(connect_s=self._ready_s, load_s=self._ready_s, canary_s=_CANARY_S)
        try:
            probe = Probe(
                exchange,
                key_env=config.key_variable(self._environ),
                has_key=config.key(self._environ) is not None,
                policy=policy,
            )
            await probe.wait_ready()
            listed = await probe.models()
            for model in sorted(config.models or listed or ()):
                await probe.canary(model)
        finally:
            await exchange.aclose()

    async def healthy(self, answer_s: float) -> str:
        """Ask /health once, on a connection of its own, for `answer_s` seconds; '' for a good answer, or what came."""
        exchange = exchange_for(self.config, environ=self._environ)
        try:
            answer = await exchange.get("/health", Timeouts(answer_s, answer_s, answer_s), at_origin=True)
        except TransportFailure as failure:
            return f"{failure.reason}: {failure.message}"
        finally:
            await exchange.aclose()
        return f"HTTP {answer.status}" if answer.status >= 500 else ""  # a server without /health says 404

    async def stop(self) -> None:
        """SIGTERM, time for the requests in flight, and the end of all its processes."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        allowed = _LOADING_GRACE_S
        if self.state == "ready":
            allowed = _launch(self.config).number("shutdown-timeout", SHUTDOWN_S) + _GRACE_S
        self.set_state("stopping")
        process.terminate()
        try:
            async with asyncio.timeout(allowed):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            await process.kill()
            self.set_state("stopped")

    def kill_soon(self) -> None:
        """Kill it without waiting for anything."""
        if self.process is not None:
            self.process.kill_soon()

    # --- its log -------------------------------------------------------------------------------

    def _open_log(self) -> int:
        """Opened for this user only: vLLM logs its arguments, and prompts where it is told to."""
        path = self.log_path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size > _LOG_BYTES:
                    path.replace(path.with_suffix(".log.1"))
            log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"cannot write the log {path}: {error.strerror}", hint="Name another folder: --logs DIR"
            ) from error
        os.fchmod(log, 0o600)
        self._log_start = os.fstat(log).st_size
        return log

    def log_tail(self) -> str:
        """What the present process has logged, the end of it."""
        return read_tail(self.log_path, start=self._log_start)

    def last_line(self) -> str:
        """The last line of the log, for a display."""
        lines = last_lines(read_tail(self.log_path, start=self._log_start, limit=8192), 1)
        return without_prefix(lines[0]) if lines else ""

    def diagnosis(self, exit_code: int | None) -> Diagnosis:
        """Why the process ended, from its log."""
        return diagnose(self.log_tail(), exit_code)

    def failure(self, what: str, exit_code: int | None) -> ServerUnreachable:
        """The error for a process that ended, or was not ready in time."""
        found = self.diagnosis(exit_code)
        shown: Sequence[str] = last_lines(self.log_tail(), _SHOWN_LINES)
        lines = [f"{what}: {found.cause} ({_launch(self.config).place})"]
        lines += [f"  {found.line}"] if found.line else []
        lines += ["  the end of its log:", *(f"  | {line}" for line in shown)] if shown else []
        return ServerUnreachable("\n".join(lines), hint=f"{found.advice}\n  Its log: {self.log_path}")
