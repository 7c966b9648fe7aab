"""A run, resolved: what the pipeline, the user and the environment say, decided once.

`Pipeline.resolved` makes a `Run`. Everything after it (stages, shards, worker processes, the run directory, the runner)
takes a `Run`, and decides nothing of this again. A stage of a run and a shard of it are `Run`s, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asyncsynth.client.llm import LLM
from asyncsynth.client.needs import Need
from asyncsynth.core.retry import RetryPolicy
from asyncsynth.engine.options import RunOptions
from asyncsynth.pipeline import Graph, Plan
from asyncsynth.records import Part
from asyncsynth.servers.capabilities import Capabilities
from asyncsynth.servers.configs import ServerConfig, parse_servers, require_keys, servers_from_environment
from asyncsynth.servers.problems import Problems
from asyncsynth.serving.embedded import EmbeddedSpec
from asyncsynth.serving.placement import answering_models
from asyncsynth.serving.vllm.starting import StartOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """Which servers a run uses, and how it reaches them.

    Args:
        llms: every LLM of the pipeline.
        needs: what its steps need of the servers; None if this was tested before, once for all shards.
        configs: the servers that the user or the environment names.
        start: starts those that do not run; None starts none.
        embedded: the embedded model that answers for all others.
        concurrency: requests in flight on each server, fixed; None adapts.
        request_timeout, model_change: as in `RunOptions`.
        retry: waits, stops and budgets.
        on_download, on_servers, on_wait: as in `RunOptions`.
    """

    llms: Sequence[LLM]
    needs: Sequence[Need] | None
    configs: Sequence[ServerConfig]
    start: StartOptions | None
    embedded: EmbeddedSpec | None
    concurrency: int | None
    request_timeout: float | None
    model_change: str
    retry: RetryPolicy
    on_download: Callable[[int, int], None] | None
    on_servers: Callable[[Sequence[Capabilities]], None] | None
    on_wait: Callable[[str], None] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run, a stage of it, or a shard of it.

    Args:
        name: the pipeline's.
        plan: the compiled pipeline.
        directory: where this run, stage or shard lies.
        servers: which servers answer.
        answers: which answers are kept: None those of steps with user code, True all, False none; a path takes all.
        shard: the part of the records that this process does; None does all.
        share: the part of each limit that this process may use; None uses all.
        options: what the user said, for a process that resolves it again.

    The other fields are those of `RunOptions`.
    """

    name: str
    plan: Plan
    directory: Path
    servers: ServerSettings
    seed: int
    limit: int | None
    retry_failed: bool
    update: bool
    use_cache: bool
    answers: bool | Path | None
    max_failures: int | str | None
    window: int | None
    window_bytes: int
    shard: Part | None
    share: Part | None
    options: RunOptions


def run_of(graph: Graph, plan: Plan, directory: Path, options: RunOptions) -> Run:
    """The run of a graph. Reads server files and the environment; opens no directory and sends nothing.

    Raises ConfigurationError, InputError for servers that cannot be used.
    """
    return Run(
        name=graph.name,
        plan=plan,
        directory=directory,
        servers=ServerSettings(
            llms=graph.llms(),
            needs=graph.needs() if options.shard is None else None,
            configs=_configs(options),
            start=options.start,
            embedded=embedded_of(options),
            concurrency=options.concurrency,
            request_timeout=options.request_timeout,
            model_change=options.model_change,
            retry=options.retry or RetryPolicy(),
            on_download=options.on_download,
            on_servers=options.on_servers,
            on_wait=options.on_wait,
        ),
        seed=options.seed,
        limit=options.limit,
        retry_failed=options.retry_failed,
        update=options.update,
        use_cache=options.use_cache,
        answers=_answers(options.answers),
        max_failures=options.max_failures,
        window=options.window,
        window_bytes=options.window_bytes,
        shard=options.shard,
        share=options.share,
        options=options,
    )


def compiled(graph: Graph, options: RunOptions) -> Plan:
    """The plan of a graph, with the models that answer under these options. Raises PipelineError."""
    return graph.plan(run_seed=options.seed, answering=answering_models(graph.llms(), embedded_of(options)))


def default_directory(name: str) -> Path:
    """Where a run lies if the user names no place: in ``ASYNCSYNTH_RUNS``, by `name`."""
    return Path(os.environ.get("ASYNCSYNTH_RUNS", "asyncsynth-runs")) / name


def embedded_of(options: RunOptions) -> EmbeddedSpec | None:
    """The embedded model that must answer, if the options ask for one."""
    if options.embedded is False:
        return None
    return EmbeddedSpec() if options.embedded is True else EmbeddedSpec(model=options.embedded)


def _answers(said: bool | str | Path | None) -> bool | Path | None:
    """`RunOptions.answers` without its words."""
    if isinstance(said, str):
        words = {"own": None, "run": True, "none": False}
        return words[said] if said in words else Path(said)
    return said


def _configs(options: RunOptions) -> list[ServerConfig]:
    """The servers that the options or, if they name none, the environment names; this process's share of them."""
    problems = Problems()
    configs = (
        parse_servers(options.servers, problems=problems)
        if options.servers
        else servers_from_environment(problems=problems)
    )
    require_keys(configs, problems=problems)
    return configs if options.share is None else [shared(config, options.share) for config in configs]


def shared(server: ServerConfig, share: Part) -> ServerConfig:
    """The server with this process's share of its limits, where it has any; each is at least 1."""
    return replace(
        server,
        limit=share.least_one(server.limit),
        max_concurrency=share.least_one(server.max_concurrency),
        slots=share.least_one(server.slots),
        requests_per_minute=share.least_one(server.requests_per_minute),
        tokens_per_minute=share.least_one(server.tokens_per_minute),
    )
