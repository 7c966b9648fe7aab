"""EmbeddedServer: a small model on this machine's CPU, in a child process with an OpenAI-compatible API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from asyncsynth.client.llm import EMBEDDED_DEFAULT
from asyncsynth.errors import ConfigurationError, ServerUnreachable
from asyncsynth.servers.guarded import PIPE, GuardedProcess
from asyncsynth.servers.weights import Progress, cache_dir, display_name, ensure_weights

_CHILD = Path(__file__).with_name("embedded_child.py")
_INSTALL = "Install the extra that holds llama.cpp: pip install 'asyncsynth[local]'"


@dataclass(frozen=True, kw_only=True)
class EmbeddedSpec:
    """How to run an embedded model.

    Args:
        model: a name in `weights.KNOWN`, or the path of a GGUF file.
        slots: sequences decoded together.
        context: tokens of context per slot, prompt and answer.
        threads: CPU threads, or None for llama.cpp's own choice.
        ready_timeout_s: seconds to load the model, download not counted.
    """

    model: str = EMBEDDED_DEFAULT
    slots: int = 16
    context: int = 2048
    threads: int | None = None
    ready_timeout_s: float = 120.0

    @property
    def display_name(self) -> str:
        """The name under which its answers are recorded."""
        return display_name(self.model)


class EmbeddedServer:
    """One child process that serves one model; it ends with `stop()`, or with this process however that ends.

    Use as ``async with EmbeddedServer(spec) as server: server.base_url``, or call `start` and `stop`.
    """

    def __init__(
        self, spec: EmbeddedSpec | None = None, *, cache: Path | None = None, progress: Progress | None = None
    ) -> None:
        self.spec = spec or EmbeddedSpec()
        self.name = self.spec.display_name
        self.base_url = ""  #: ``http://127.0.0.1:PORT/v1`` once started
        self.log_path: Path | None = None  #: llama.cpp's log; kept when something went wrong
        self._cache = cache or cache_dir()
        self._progress = progress
        self._process: GuardedProcess | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Fetch the weights if need be, start the child, and return once it answers.

        Raises:
            ConfigurationError: no weights, or the ``local`` extra is not installed.
            ServerUnreachable: the child ended or was not ready in time; the message names its log.
        """
        if self._process is not None:
            return
        model = await anyio.to_thread.run_sync(
            lambda: ensure_weights(self.spec.model, cache=self._cache, progress=self._progress)
        )
        try:
            await self._spawn(model)
            address = await self._await_ready()
        except BaseException:
            await self._end(keep_log=True)
            raise
        self.base_url = f"{address}/v1"

    async def _spawn(self, model: Path) -> None:
        spec = self.spec
        settings = {
            "model": str(model),
            "alias": self.name,
            "slots": spec.slots,
            "context": spec.context,
            "threads": spec.threads,
        }
        descriptor, log = tempfile.mkstemp(prefix="asyncsynth-embedded-", suffix=".log")
        self.log_path = Path(log)
        try:
            # -P: this folder stays off the child's import path
            command = [sys.executable, "-P", str(_CHILD), json.dumps(settings)]
            self._process = await GuardedProcess.start(command, stdout=PIPE, stderr=descriptor)
        finally:
            os.close(descriptor)

    async def _await_ready(self) -> str:
        process = self._process
        assert process is not None
        assert process.output is not None
        line = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(self.spec.ready_timeout_s):
                line = await process.output.readline()
        said = json.loads(line) if line.endswith(b"\n") else {}
        if "address" in said:
            return str(said["address"])
        if said.get("kind") == "import":
            raise ConfigurationError(f"the embedded model needs llama.cpp: {said['error']}", hint=_INSTALL)
        why = said.get("error")
        if why is None:
            ended = process.returncode is not None or process.output.at_eof()
            why = "its process ended" if ended else f"it was not ready within {self.spec.ready_timeout_s:g} s"
        raise ServerUnreachable(
            f"the embedded server for {self.name} did not start: {why}", hint=f"Its log: {self.log_path}"
        )

    async def stop(self) -> None:
        """End the child; requests in flight are dropped. Does nothing when it is not running."""
        crashed = self._process is not None and self._process.returncode is not None
        await self._end(keep_log=crashed)

    async def _end(self, *, keep_log: bool) -> None:
        process, self._process = self._process, None
        self.base_url = ""
        if process is not None:
            await process.kill()
        if self.log_path is not None and not keep_log:
            self.log_path.unlink(missing_ok=True)

    async def __aenter__(self) -> EmbeddedServer:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
