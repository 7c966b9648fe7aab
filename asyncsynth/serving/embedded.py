"""EmbeddedServer: a small model on this machine's CPU, in a child process with an OpenAI-compatible API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from asyncsynth.client.llm import EMBEDDED_DEFAULT
from asyncsynth.errors import ConfigurationError, ServerUnreachable
from asyncsynth.serving.guarded import PIPE, GuardedProcess
from asyncsynth.serving.keeping import End
from asyncsynth.serving.process_ends import Diagnosis, by_exit_code, clean
from asyncsynth.serving.weights import Progress, cache_dir, display_name, ensure_weights

_CHILD = Path(__file__).with_name("embedded_child.py")
_INSTALL = "Install the extra that holds llama.cpp: pip install 'asyncsynth[local]'"
_TAIL_BYTES = 256 << 10  #: of a log that is kept
_MEMORY = re.compile(
    r"insufficient memory|(failed|unable) to allocate|bad_alloc|[Cc]annot allocate memory|out of memory"
)
_FAULT = re.compile(r"GGML_ASSERT|terminate called|\b(error|exception)\b", re.IGNORECASE)


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

    Use as ``async with EmbeddedServer(spec) as server: server.base_url``, or call `start` and `stop`. After its
    process has `ended`, `start` starts it again, on the same port.

    Its log has no name while it runs, so that nothing is left behind, whatever ends this process; when the child
    fails, the end of the log is kept at `log_path`.
    """

    def __init__(
        self,
        spec: EmbeddedSpec | None = None,
        *,
        cache: Path | None = None,
        progress: Progress | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        self.spec: EmbeddedSpec = spec or EmbeddedSpec()
        self.name: str = self.spec.display_name
        self.base_url: str = ""  #: ``http://127.0.0.1:PORT/v1`` once started
        self.log_path: Path | None = None  #: the ends of llama.cpp's logs, once something went wrong
        self._cache = cache or cache_dir()
        self._progress = progress
        # -P: this folder stays off the child's import path
        self._command = list(command or [sys.executable, "-P", str(_CHILD)])  #: gets the settings as last argument
        self._process: GuardedProcess | None = None
        self._model: Path | None = None
        self._port = 0
        self._log: int | None = None  #: file descriptor

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Fetch the weights if need be, start the child, and return once it answers. Does nothing while it runs.

        Raises:
            ConfigurationError: no weights, or the ``local`` extra is not installed.
            ServerUnreachable: the child ended or was not ready in time; the message names its log.
        """
        if self._process is not None:
            return
        if self._model is None:
            self._model = await anyio.to_thread.run_sync(
                lambda: ensure_weights(self.spec.model, cache=self._cache, progress=self._progress)
            )
        try:
            await self._spawn(self._model)
            address = await self._await_ready()
        except BaseException:
            await self._end()
            raise
        self._port = int(address.rpartition(":")[2])
        self.base_url = f"{address}/v1"

    async def _spawn(self, model: Path) -> None:
        spec = self.spec
        settings = {
            "model": str(model),
            "alias": self.name,
            "slots": spec.slots,
            "context": spec.context,
            "threads": spec.threads,
            "port": self._port,
        }
        self._log, path = tempfile.mkstemp(prefix="asyncsynth-embedded-", suffix=".log")
        os.unlink(path)
        self._process = await GuardedProcess.start(
            [*self._command, json.dumps(settings)], stdout=PIPE, stderr=self._log
        )

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
        why, advice = said.get("error"), ""
        if why is None:
            if process.output.at_eof() or process.returncode is not None:
                end = self._diagnosed(await process.wait())
                why, advice = end.why, end.advice
            else:
                why = f"it was not ready within {self.spec.ready_timeout_s:g} s"
        self._keep_log()
        hint = f"{advice}\n  Its log: {self.log_path}".strip()
        raise ServerUnreachable(f"the embedded server for {self.name} did not start: {why}", hint=hint)

    async def ended(self) -> End:
        """Returns once the running child is gone; `start` may then start it again."""
        assert self._process is not None
        end = self._diagnosed(await self._process.wait())
        self._keep_log()
        await self._end()
        return End(f"{end.why}; the end of its log: {self.log_path}", end.advice)

    async def clear(self) -> None:
        """Nothing is left of a child that has `ended`."""

    def _diagnosed(self, code: int) -> End:
        found = why_it_ended(self._log_tail(), code)
        return End(f"{found.cause}: {found.line}" if found.line else found.cause, found.advice)

    async def stop(self) -> None:
        """End the child; requests in flight are dropped. Does nothing when it is not running."""
        if self._process is not None and self._process.returncode is not None:
            self._keep_log()
        await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        self.base_url = ""
        if process is not None:
            await process.kill()
        log, self._log = self._log, None
        if log is not None:
            os.close(log)

    # --- its log -------------------------------------------------------------------------------

    def _log_tail(self) -> str:
        if self._log is None:
            return ""
        size = os.fstat(self._log).st_size
        return os.pread(self._log, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode("utf-8", "replace")

    def _keep_log(self) -> None:
        """Give the end of the log a name; one file for all ends of this server."""
        with contextlib.suppress(OSError):  # a full disk is no reason to hide what happened
            if self.log_path is None:
                descriptor, path = tempfile.mkstemp(prefix="asyncsynth-embedded-", suffix=".log")
                os.close(descriptor)
                self.log_path = Path(path)
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(self._log_tail())

    async def __aenter__(self) -> EmbeddedServer:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()


def why_it_ended(log: str, exit_code: int) -> Diagnosis:
    """The likely cause of llama.cpp's end. `exit_code`: negative for a signal."""
    lines = [line.strip() for line in clean(log).splitlines()]
    for line in reversed(lines):
        if _MEMORY.search(line):
            advice = "Give it fewer slots, less context or a smaller model, or free some memory."
            return Diagnosis("out_of_memory", "the machine's memory does not suffice", advice, line)
    found = by_exit_code(exit_code)
    said = next((line for line in reversed(lines) if _FAULT.search(line)), "")
    return found if found.kind == "killed" else Diagnosis(found.kind, found.cause, found.advice, said)
