"""The servers of a run: started if the run says so, connected to, and tested for what its steps need."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

from asyncsynth.client.server_pool import ServerPool
from asyncsynth.engine.run import Run, ServerSettings
from asyncsynth.servers.capabilities import Capabilities
from asyncsynth.servers.configs import ServerConfig
from asyncsynth.serving.binding import open_pool
from asyncsynth.serving.vllm.starting import started
from asyncsynth.serving.vllm.supervisor import Supervisor
from asyncsynth.storage import layout


class RunServers:
    """Servers that run. Made by `run_servers`."""

    def __init__(self, settings: ServerSettings, configs: Sequence[ServerConfig], supervisor: Supervisor | None):
        self._settings = settings
        self._configs = configs
        self._supervisor = supervisor  #: of those that were started here
        self.found: list[dict[str, Any]] = []  #: what the tests found, see `Capabilities`

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[ServerPool]:
        """Connects to the servers and tests them. The pool hears which of those that were started here are down.

        Raises what `open_pool` raises.
        """
        async with self._pool() as pool:
            if self._supervisor is not None:
                self._supervisor.watch(pool)
            yield pool

    async def test(self) -> None:
        """Tests the servers once, for processes that connect to them later. Raises what `open_pool` raises."""
        async with self._pool():
            pass

    def _pool(self) -> contextlib.AbstractAsyncContextManager[ServerPool]:
        settings = self._settings
        return open_pool(
            settings.llms,
            servers=self._configs,
            embedded=settings.embedded,
            policy=settings.retry,
            rng=random.Random(),  # noqa: S311 - jitter of retries, not a secret
            progress=settings.on_download,
            on_wait=settings.on_wait,
            concurrency=settings.concurrency,
            request_timeout=settings.request_timeout,
            model_change=settings.model_change,
            needs=settings.needs,
            on_found=self._note_found,
        )

    def _note_found(self, capabilities: Sequence[Capabilities]) -> None:
        self.found.extend(one.as_json() for one in capabilities)
        if self._settings.on_servers is not None:
            self._settings.on_servers(capabilities)


@contextlib.asynccontextmanager
async def run_servers(run: Run) -> AsyncIterator[RunServers]:
    """The servers of a run; those that it starts are stopped at the end. Their logs lie in the run's directory.

    Raises what the checks and the starts raise.
    """
    settings = run.servers
    if settings.start is None:
        yield RunServers(settings, settings.configs, None)
        return
    logs = run.directory / layout.SERVER_LOGS
    async with started(settings.configs, settings.llms, settings.start, logs=logs, embedded=settings.embedded) as own:
        yield RunServers(settings, *own)
