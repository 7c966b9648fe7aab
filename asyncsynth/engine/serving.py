"""The servers of a run: those that are given and, where the options say so, started for as long as it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from asyncsynth.client.llm import LLM
from asyncsynth.engine.options import RunOptions
from asyncsynth.servers.configs import ServerConfig, parse_servers, require_keys, servers_from_environment
from asyncsynth.servers.vllm.starting import started
from asyncsynth.servers.vllm.supervisor import Supervisor


@contextlib.asynccontextmanager
async def servers_of(
    llms: Sequence[LLM], options: RunOptions, directory: Path
) -> AsyncIterator[tuple[list[ServerConfig], Supervisor | None]]:
    """Where models are looked for, and who keeps those running that were started here; their logs lie in the run's
    `directory`. Raises what the files, the checks and the starts raise."""
    servers = parse_servers(options.servers) if options.servers else servers_from_environment()
    require_keys(servers)
    if options.start is None:
        yield servers, None
        return
    async with started(
        servers, llms, options.start, logs=directory / "servers", embedded=options.embedded_spec()
    ) as running:
        yield running
