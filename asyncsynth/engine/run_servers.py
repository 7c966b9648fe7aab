"""The servers of a run: those that are given and, where the options say so, started for as long as it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from asyncsynth.client.llm import LLM
from asyncsynth.engine.options import RunOptions
from asyncsynth.records import Part
from asyncsynth.servers.configs import ServerConfig, parse_servers, require_keys, servers_from_environment
from asyncsynth.servers.problems import Problems
from asyncsynth.serving.vllm.starting import started
from asyncsynth.serving.vllm.supervisor import Supervisor
from asyncsynth.storage import layout


def shared(server: ServerConfig, share: Part) -> ServerConfig:
    """The server with this process's share of its limits, where any are set; each 1 at least."""
    return replace(
        server,
        limit=share.least_one(server.limit),
        max_concurrency=share.least_one(server.max_concurrency),
        slots=share.least_one(server.slots),
        requests_per_minute=share.least_one(server.requests_per_minute),
        tokens_per_minute=share.least_one(server.tokens_per_minute),
    )


def given_servers(options: RunOptions) -> list[ServerConfig]:
    """The servers that the options or the environment name. Raises ConfigurationError, InputError."""
    problems = Problems()
    servers = (
        parse_servers(options.servers, problems=problems)
        if options.servers
        else servers_from_environment(problems=problems)
    )
    require_keys(servers, problems=problems)
    return servers


@contextlib.asynccontextmanager
async def servers_of(
    llms: Sequence[LLM], options: RunOptions, directory: Path
) -> AsyncIterator[tuple[list[ServerConfig], Supervisor | None]]:
    """Where models are looked for, and who keeps those running that were started here; their logs lie in the run's
    `directory`. Raises what the files, the checks and the starts raise."""
    servers = given_servers(options)
    if options.share is not None:
        servers = [shared(server, options.share) for server in servers]
    if options.start is None:
        yield servers, None
        return
    async with started(
        servers, llms, options.start, logs=directory / layout.SERVER_LOGS, embedded=options.embedded_spec()
    ) as running:
        yield running
