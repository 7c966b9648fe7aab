"""Several vLLM servers, from start to stop: each ready before use, restarted when it crashes, none left behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from asyncsynth.errors import AsyncsynthError, ServerUnreachable
from asyncsynth.servers.configs import ServerConfig
from asyncsynth.serving.keeping import End, Keeping, Watcher, keep, until_it_hangs
from asyncsynth.serving.vllm.checks import shared_gpus
from asyncsynth.serving.vllm.launch import READY_S, VLLMCommand, VLLMServer


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """What happened to a server.

    `kind`: starting, ready, crashed (will be started again after `seconds`), gave_up, stopping, stopped, failed
    (did not become ready at first). `seconds`: how long it took to be ready, or until the restart.
    """

    kind: str
    server: str
    message: str = ""
    seconds: float | None = None
    pid: int | None = None
    log: str = ""

    def as_json(self) -> dict[str, Any]:
        """Without what does not apply."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


class Supervisor:
    """Keeps servers running. Use as ``async with Supervisor(...) as supervisor``: inside, all are ready.

    Args:
        servers: each with a `launch`.
        logs: the folder for their logs.
        keeping: when one is started again, and when one that lives counts as hung.
        ready_s: for a server to become ready.
        on_event: told what happens; must not raise.

    Raises (on entering):
        ServerUnreachable: one did not become ready; the others are stopped.
    """

    def __init__(
        self,
        servers: Sequence[ServerConfig],
        vllm: VLLMCommand,
        logs: Path,
        *,
        keeping: Keeping | None = None,
        ready_s: float = READY_S,
        on_event: Callable[[ServerEvent], None] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.servers: list[VLLMServer] = [VLLMServer(s, vllm, logs, ready_s=ready_s, environ=environ) for s in servers]
        self.gave_up: list[str] = []  #: names of those that crashed too often
        self._keeping = keeping or Keeping()
        self._lost: dict[str, End] = {}  #: of those in `gave_up`
        self._tell = on_event or (lambda event: None)
        self._watchers: list[Watcher] = []
        self._lives: list[asyncio.Task[None]] = []
        self._gpus = {s.name: shared_gpus(s, is_cpu=vllm.is_cpu) for s in servers}
        self._loading = {gpu: asyncio.Lock() for gpus in self._gpus.values() for gpu in gpus}

    # --- from outside --------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        firsts = [loop.create_future() for _ in self.servers]
        for server, first in zip(self.servers, firsts, strict=True):
            self._lives.append(asyncio.create_task(self._begin(server, first), name=f"server {server.name}"))
        try:
            for done in asyncio.as_completed(firsts):
                await done
        except BaseException:
            for first in firsts:
                first.cancel()
                if first.done() and not first.cancelled():
                    first.exception()  # seen
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` from now on when a server goes down or comes back; and now, which are down."""
        self._watchers.append(watcher)
        for server in self.servers:
            with contextlib.suppress(KeyError):
                if (lost := self._lost.get(server.name)) is not None:
                    watcher.server_lost(server.name, lost.why, lost.advice)
                elif server.state != "ready":
                    watcher.server_down(server.name, "it is being started again")

    async def wait(self) -> None:
        """Returns when no server is kept running any more: all have crashed too often."""
        await asyncio.wait(self._lives)
        for life in self._lives:
            if not life.cancelled():
                life.result()  # a fault of our own

    async def stop(self) -> None:
        """Drain and end all servers, side by side. Cancelled, it kills them."""
        for life in self._lives:
            life.cancel()
        try:
            await asyncio.gather(*self._lives, return_exceptions=True)
            await asyncio.gather(*(self._stop_one(server) for server in self.servers))
        except BaseException:
            self.kill_soon()
            raise

    def kill_soon(self) -> None:
        """Kill all servers without waiting for anything: a second signal, the last resort."""
        for server in self.servers:
            server.kill_soon()

    # --- one server ----------------------------------------------------------------------------

    async def _stop_one(self, server: VLLMServer) -> None:
        if server.process is None or server.process.returncode is not None:
            return
        self._tell(ServerEvent("stopping", server.name))
        await server.stop()
        self._tell(ServerEvent("stopped", server.name))

    async def _begin(self, server: VLLMServer, first: asyncio.Future[None]) -> None:
        """`_life`, so that code that awaits `first` also gets an error of our own."""
        try:
            await self._life(server, first)
        except Exception as error:
            if first.done():
                raise
            first.set_exception(error)

    async def _life(self, server: VLLMServer, first: asyncio.Future[None]) -> None:
        """Starts it, and keeps it running until cancelled, or until it has crashed too often."""
        try:
            await self._bring_up(server)
        except AsyncsynthError as error:  # a first start that fails would fail again
            self._tell(ServerEvent("failed", server.name, error.message, log=str(server.log_path)))
            first.set_exception(error)
            return
        first.set_result(None)

        def crashed(end: End, pause: float) -> None:
            self._tell(ServerEvent("crashed", server.name, end.why, seconds=pause, log=str(server.log_path)))

        child = _Child(server, self._bring_up, self._until_it_ends)
        await keep(child, _Passing(self, server), how=self._keeping, on_crash=crashed)

    async def _bring_up(self, server: VLLMServer) -> None:
        async with contextlib.AsyncExitStack() as stack:
            # vLLM measures the free memory of its GPU while it loads: two at once would count each other's. In
            # the order of names, so that no two servers wait for each other.
            for gpu in sorted(self._gpus[server.name]):
                await stack.enter_async_context(self._loading[gpu])
            self._tell(ServerEvent("starting", server.name, log=str(server.log_path)))
            began = self._keeping.clock()
            await server.start()
        pid = server.process.pid if server.process is not None else None
        self._tell(ServerEvent("ready", server.name, seconds=self._keeping.clock() - began, pid=pid))

    async def _until_it_ends(self, server: VLLMServer) -> End:
        """Why it ended, or that it hangs."""
        process, hang = server.process, self._keeping.hang
        assert process is not None
        ended = asyncio.ensure_future(process.wait())
        hangs = asyncio.ensure_future(until_it_hangs(lambda: server.healthy(hang.answer_s), hang))
        try:
            await asyncio.wait([ended, hangs], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, hangs):
                task.cancel()
            await asyncio.gather(ended, hangs, return_exceptions=True)
        server.set_state("down")
        if process.returncode is None:
            return End(hangs.result(), "Its log may say what it was doing.")
        found = server.diagnosis(process.returncode)
        return End(f"{found.cause}: {found.line}" if found.line else found.cause, found.advice)

    def pass_on(self, call: Callable[[Watcher], None]) -> None:
        """Tell all watchers."""
        for watcher in self._watchers:
            with contextlib.suppress(KeyError):  # a pool that does not use this server
                call(watcher)

    def give_up(self, server: VLLMServer, why: str, advice: str) -> None:
        """It will not be started again."""
        server.set_state("gave up")
        self.gave_up.append(server.name)
        lost = self._lost[server.name] = End(f"{why}; its log: {server.log_path}", advice)
        self._tell(ServerEvent("gave_up", server.name, why, log=str(server.log_path)))
        self.pass_on(lambda watcher: watcher.server_lost(server.name, lost.why, lost.advice))


class _Child:
    """A vLLM server as `keep` sees it."""

    def __init__(
        self,
        server: VLLMServer,
        bring_up: Callable[[VLLMServer], Awaitable[None]],
        until_it_ends: Callable[[VLLMServer], Awaitable[End]],
    ) -> None:
        self.name: str = server.name
        self._server = server
        self._bring_up = bring_up
        self._until_it_ends = until_it_ends

    async def start(self) -> None:
        try:
            await self._bring_up(self._server)
        except AsyncsynthError as error:
            # What follows the first line is the end of the log; that is named.
            raise ServerUnreachable(error.message.partition("\n")[0], hint=error.hint.partition("\n")[0]) from error
        except OSError:
            self._server.set_state("down")
            raise

    async def ended(self) -> End:
        return await self._until_it_ends(self._server)

    async def clear(self) -> None:
        """Kills a server that hangs."""
        process = self._server.process
        if process is not None and process.returncode is None:
            await process.kill()


class _Passing:
    """Passes on to all watchers of a supervisor what happens to one server."""

    def __init__(self, supervisor: Supervisor, server: VLLMServer) -> None:
        self._supervisor = supervisor
        self._server = server

    def server_down(self, name: str, why: str) -> None:
        self._supervisor.pass_on(lambda watcher: watcher.server_down(name, why))

    def server_up(self, name: str) -> None:
        self._supervisor.pass_on(lambda watcher: watcher.server_up(name))

    def server_lost(self, name: str, why: str, advice: str = "") -> None:
        self._supervisor.give_up(self._server, why, advice)
