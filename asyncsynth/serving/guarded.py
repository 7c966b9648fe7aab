"""GuardedProcess: a server process that ends with this one, however this one ends (see `guardian.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from asyncsynth.errors import ServerError

_GUARDIAN = Path(__file__).with_name("guardian.py")
_START_S = 20.0  #: for Python to start and the command to be executed
_KILL_S = 10.0  #: for killed processes to be gone; a GPU driver may hold one longer


class GuardedProcess:
    """One command under its guardian. `start` it, `wait` for its end, `terminate` or `kill` it."""

    def __init__(self) -> None:
        self.pid = 0  #: of the command itself; its process group has the same number
        self._guardian: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ended: asyncio.Task[int] | None = None

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> GuardedProcess:
        """Execute `command` in a session and process group of its own.

        Args:
            environ: all of its environment; None takes this process's.
            stdout, stderr: as in `asyncio.create_subprocess_exec`.

        Raises:
            ServerError: it could not be executed.
        """
        self = cls()
        ours, theirs = socket.socketpair()
        try:
            self._guardian = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # this folder stays off the guardian's import path
                "-S",  # it needs the standard library only: half the time to start
                str(_GUARDIAN),
                str(os.getpid()),
                *command,
                stdin=theirs.fileno(),
                stdout=stdout,
                stderr=stderr,
                env=None if environ is None else dict(environ),
                # Ctrl-C goes to the terminal's whole group; the server has to outlive it while work drains.
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        try:
            async with asyncio.timeout(_START_S):
                said = json.loads(await self._reader.readline() or b"{}")
        except BaseException:
            await self.kill()
            raise
        if "pid" not in said:
            await self.kill()
            raise ServerError(f"{command[0]} could not be started: {said.get('error', 'its guardian ended')}")
        self.pid = said["pid"]
        self._ended = asyncio.create_task(self._await_end(), name=f"guardian of {self.pid}")
        return self

    @property
    def output(self) -> asyncio.StreamReader | None:
        """The command's standard output, where `stdout` is a pipe."""
        return None if self._guardian is None else self._guardian.stdout

    @property
    def returncode(self) -> int | None:
        """The command's exit code (negative: the signal), or None while it runs."""
        ended = self._ended
        return ended.result() if ended is not None and ended.done() and not ended.cancelled() else None

    async def wait(self) -> int:
        """The command's exit code, once it and all that it started are gone."""
        assert self._ended is not None
        return await asyncio.shield(self._ended)

    async def _await_end(self) -> int:
        assert self._reader is not None
        assert self._guardian is not None
        line = b""
        with contextlib.suppress(ConnectionError):
            line = await self._reader.readline()
        code = -signal.SIGKILL
        if line.endswith(b"\n"):
            code = int(json.loads(line)["ended"])
        elif self._writer is not None and not self._writer.is_closing():
            # Someone killed the guardian. Its server got a signal too on Linux; its children may be there still.
            self._kill_group()
        self._hang_up()
        await self._guardian.wait()
        return code

    def terminate(self) -> None:
        """SIGTERM to the command, and to nothing else of its group: it is to tell its children itself."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(b"t")

    def kill_soon(self) -> None:
        """Have everything killed, without waiting: also for a moment in which nothing can be awaited."""
        self._hang_up()

    async def kill(self) -> None:
        """Kill the command and all that it started; returns when they are gone."""
        self._hang_up()
        guardian = self._guardian
        if guardian is None:
            return
        try:
            async with asyncio.timeout(_KILL_S):
                await guardian.wait()
        except TimeoutError:
            self._kill_group()
            with contextlib.suppress(ProcessLookupError):
                guardian.kill()
            await guardian.wait()
        if self._ended is not None:
            await self._ended

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()

    def _kill_group(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


#: For `GuardedProcess.start`.
PIPE = subprocess.PIPE
