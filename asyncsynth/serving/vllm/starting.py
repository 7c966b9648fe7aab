"""Servers for one run: those that its models need and that do not answer are started, and stopped at its end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from asyncsynth.client.concurrency import all_or_error
from asyncsynth.client.llm import LLM
from asyncsynth.errors import ConfigurationError
from asyncsynth.servers.configs import ServerConfig
from asyncsynth.servers.launch_settings import place_on_gpus
from asyncsynth.serving.embedded import EmbeddedSpec
from asyncsynth.serving.keeping import HangPolicy, Keeping
from asyncsynth.serving.placement import make_plan, require_named
from asyncsynth.serving.restarts import RestartPolicy
from asyncsynth.serving.vllm.checks import already_served, check_servers, require_sound
from asyncsynth.serving.vllm.flags import Finding
from asyncsynth.serving.vllm.launch import READY_S, find_vllm
from asyncsynth.serving.vllm.supervisor import ServerEvent, Supervisor
from asyncsynth.storage.layout import refuse_own_places


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """How a run starts servers.

    Args:
        vllm_command: the executable with its arguments; '' takes ASYNCSYNTH_VLLM or `vllm`.
        gpus: placements, as ``FILE=0,1``; they win over those of the files.
        logs: the folder for the servers' logs.
        ready_s: for a server to become ready.
        on_event: gets what happens to the servers.
        on_warning: gets what the checks found that is no error.
        loading: entered with the supervisor while the servers load, to show how that goes.
        restart, hang: when a server that crashed is started again, and when one that lives counts as hung.
    """

    vllm_command: str = ""
    gpus: Sequence[str] = ()
    logs: Path | None = None
    ready_s: float = READY_S
    on_event: Callable[[ServerEvent], None] | None = None
    on_warning: Callable[[Finding], None] | None = None
    loading: Callable[[Supervisor], AbstractContextManager[None]] = lambda supervisor: contextlib.nullcontext()
    restart: RestartPolicy | None = None
    hang: HangPolicy | None = None


def placed(servers: Sequence[ServerConfig], gpus: Sequence[str]) -> list[ServerConfig]:
    """The servers with the GPUs of the `--gpus` options. Raises ConfigurationError."""
    launches = {server.base_url: server.launch for server in servers if server.launch is not None}
    given = place_on_gpus(launches, gpus, {server.base_url: server.name for server in servers})
    return [replace(server, launch=given.get(server.base_url)) for server in servers]


@contextlib.asynccontextmanager
async def started(
    servers: Sequence[ServerConfig],
    llms: Sequence[LLM],
    options: StartOptions,
    *,
    logs: Path,
    embedded: EmbeddedSpec | None = None,
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[tuple[list[ServerConfig], Supervisor | None]]:
    """The servers that the models need, all of them running, and who watches those that were started here.

    Args:
        logs: the folder for logs where the options name none.

    Raises:
        ConfigurationError, ServerError: a bad file, a model that no server has, a server that does not start.
    """
    if options.logs is not None:
        refuse_own_places(options.logs)
    given = placed(servers, options.gpus)
    plan = make_plan(llms, servers=given, embedded=embedded)
    own = {target.config.base_url for target in plan.targets.values() if target.own}
    needed = [
        server
        for server in given
        if server.base_url in own or (plan.shared and (server.models is None or server.models & plan.shared))
    ]
    if not given:
        raise ConfigurationError(
            "no servers are given that could be started", hint="Name their files: --servers server_configs/"
        )
    require_named(plan.shared, given)
    startable = [server for server in needed if server.launch is not None]
    runs = await all_or_error([already_served(server, environ) for server in startable])
    missing = [server for server, answers in zip(startable, runs, strict=True) if not answers]
    if not missing:
        yield needed, None
        return
    vllm = find_vllm(options.vllm_command, environ)
    for warning in require_sound(check_servers(missing, vllm=vllm, environ=environ)):
        if options.on_warning is not None:
            options.on_warning(warning)
    supervisor = Supervisor(
        missing,
        vllm,
        options.logs or logs,
        keeping=Keeping(restart=options.restart or RestartPolicy(), hang=options.hang or HangPolicy()),
        ready_s=options.ready_s,
        on_event=options.on_event,
        environ=environ,
    )
    async with contextlib.AsyncExitStack() as stack:
        with options.loading(supervisor):
            await stack.enter_async_context(supervisor)
        yield needed, supervisor
