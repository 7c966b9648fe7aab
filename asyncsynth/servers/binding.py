"""Models -> servers: who answers for each model of a pipeline, decided before anything is sent.

A model is answered in one place: its own `LLM(base_url=...)`, an embedded server, or any of the servers given
(then by all that serve it, as replicas). A model is never answered by another one unless the user said so
(`embedded`), and then every answer carries the name of the model that gave it.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from asyncsynth.client.adopt import adopt
from asyncsynth.client.concurrency import all_or_error
from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.llm import LLM
from asyncsynth.client.needs import Need
from asyncsynth.client.pool import Server, ServerPool
from asyncsynth.client.transport import Exchange
from asyncsynth.core.retry import RetryPolicy, Rng
from asyncsynth.errors import ConfigurationError, ServerError
from asyncsynth.servers.capabilities import Capabilities, require, survey
from asyncsynth.servers.configs import ServerConfig, parse_url, servers_from_environment
from asyncsynth.servers.embedded import EmbeddedServer, EmbeddedSpec
from asyncsynth.servers.ready import Probe, ReadyPolicy, not_served
from asyncsynth.servers.weights import Progress


@dataclass
class Target:
    """One server of a plan, before anyone has spoken to it."""

    config: ServerConfig
    own: set[str] = field(default_factory=set)  #: models whose LLM names this server
    client: httpx.AsyncClient | None = None  #: the user's own, for those


@dataclass
class Plan:
    """Where each model is to be answered."""

    embedded: dict[EmbeddedSpec, set[str]] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)  #: by base URL
    shared: set[str] = field(default_factory=set)  #: models for whichever target serves them


def answering_models(llms: Sequence[LLM], embedded: EmbeddedSpec | None = None) -> dict[str, str]:
    """Model as the pipeline names it -> name of the model that will answer. Asks no server.

    Raises:
        ConfigurationError: one model in two places, or an embedded model that is not known.
    """
    plan = make_plan(llms, embedded=embedded)
    answering = {llm.model: llm.model for llm in llms}
    for spec, models in plan.embedded.items():
        answering.update(dict.fromkeys(models, spec.display_name))
    return answering


def make_plan(
    llms: Sequence[LLM], *, servers: Sequence[ServerConfig] = (), embedded: EmbeddedSpec | None = None
) -> Plan:
    """Decide, without asking any server, where each model is answered.

    Raises:
        ConfigurationError: one model in two places, one server in two ways, an unknown embedded model.
    """
    plan = Plan(targets={server.base_url: Target(server) for server in servers})
    children: dict[str, EmbeddedSpec] = {}
    if embedded is not None:
        children[embedded.display_name] = embedded
    places: dict[str, str] = {}
    for llm in llms:
        spec: EmbeddedSpec | None = None
        url = _base_url(llm)
        if llm.is_embedded:
            spec = replace(embedded or EmbeddedSpec(), model=llm.model)
            spec = children.setdefault(spec.display_name, spec)  # a model runs once, whatever it is called
            place = spec.display_name
        elif url:
            place = url
        elif embedded is not None:
            spec, place = embedded, embedded.display_name
        else:
            place = "the servers given"
        if (first := places.setdefault(llm.model, place)) != place:
            raise ConfigurationError(
                f"the model {llm.model!r} is bound to two places: {first} and {place}",
                hint="Give each LLM of it the same base_url, or none; --servers takes several servers.",
            )
        if spec is not None:
            plan.embedded.setdefault(spec, set()).add(llm.model)
        elif url:
            _add_own(plan, llm, url)
        else:
            plan.shared.add(llm.model)
    return plan


def _base_url(llm: LLM) -> str:
    """The server that an LLM names itself, or ''."""
    url = llm.base_url or (str(llm.http_client.base_url) if llm.http_client is not None else "")
    if not url:
        return ""
    if llm.is_embedded:
        raise ConfigurationError(f"LLM.embedded({llm.model!r}) cannot have a base_url or http_client")
    return parse_url(url, where=f"base_url of LLM({llm.model!r})")


def _add_own(plan: Plan, llm: LLM, url: str) -> None:
    origin = f"base_url of LLM({llm.model!r})"
    target = plan.targets.get(url)
    if target is None:
        config = ServerConfig(
            base_url=url, models=frozenset(), api_key_env=llm.api_key_env, origin=origin
        )  # no models for others: this server was named for this model
        target = plan.targets[url] = Target(config, client=llm.http_client)
    elif not target.own:  # also among the servers given: one connection pool, one limit
        target.client = llm.http_client
        if os.environ.get(llm.api_key_env, "").strip():
            target.config = replace(target.config, api_key_env=llm.api_key_env)
    elif target.client is not llm.http_client or target.config.api_key_env != llm.api_key_env:
        raise ConfigurationError(
            f"two LLMs name the server {url} with different clients or keys",
            hint="Use the same http_client and api_key_env for both.",
        )
    target.own.add(llm.model)


@contextlib.asynccontextmanager
async def open_pool(
    llms: Sequence[LLM],
    *,
    servers: Sequence[ServerConfig] | None = None,
    embedded: EmbeddedSpec | None = None,
    policy: RetryPolicy | None = None,
    rng: Rng | None = None,
    ready: ReadyPolicy | None = None,
    environ: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    needs: Sequence[Need] | None = None,
    on_found: Callable[[Sequence[Capabilities]], None] | None = None,
) -> AsyncIterator[ServerPool]:
    """A pool that answers for every model in `llms`; embedded servers run for as long as it is open.

    Args:
        llms: every LLM of the pipeline.
        servers: where models without a `base_url` are looked for; None reads ASYNCSYNTH_SERVERS.
        embedded: answer all models without a `base_url` by this embedded model instead.
        policy, rng: of the retries.
        ready: how long to wait for servers.
        progress: called while weights are being fetched.
        needs: what the pipeline's steps need of the servers; tried on each, and refused where it cannot work.
            None tries nothing.
        on_found: called once with what was found, before anything is refused.

    Raises:
        ConfigurationError, ServerError and its kinds: something that the run would meet on every record.
    """
    given = servers_from_environment(environ) if servers is None else list(servers)
    plan = make_plan(llms, servers=given, embedded=embedded)
    async with contextlib.AsyncExitStack() as stack:
        found: list[Capabilities] = []
        tried = None if needs is None else _Tried(needs, found)
        children = [_start_child(stack, spec, models, progress, tried) for spec, models in plan.embedded.items()]
        local = await all_or_error(children)
        wanted = [t for t in plan.targets.values() if t.own or (plan.shared and t.config.models != frozenset())]
        remote = await all_or_error([_connect(stack, t, plan.shared, ready, environ, tried) for t in wanted])
        used = [*local, *(server for server, _ in remote if server is not None)]
        _require_all(plan.shared, used, remote, wanted)
        if on_found is not None and found:
            on_found(found)
        require(found, needs or ())
        pool = ServerPool(_distinct_names(used), policy=policy or RetryPolicy(), rng=rng or random.Random())  # noqa: S311
        stack.push_async_callback(pool.aclose)
        yield pool


@dataclass(slots=True)
class _Tried:
    """What is to be tried on each server, and what came of it."""

    needs: Sequence[Need]
    found: list[Capabilities]


async def _start_child(
    stack: contextlib.AsyncExitStack,
    spec: EmbeddedSpec,
    models: set[str],
    progress: Progress | None,
    tried: _Tried | None,
) -> Server:
    child = EmbeddedServer(spec, progress=progress)
    stack.push_async_callback(child.stop)
    await child.start()
    exchange = Http11Pool(child.base_url)
    stack.push_async_callback(exchange.aclose)
    if tried is not None:
        tried.found += await survey(
            exchange, models, tried.needs, server=spec.display_name, dialect="llamacpp", chats=frozenset(models)
        )
    return Server(
        name=spec.display_name,
        base_url=child.base_url,
        models=frozenset(models),
        exchange=exchange,
        limit=spec.slots + spec.slots // 4,  # a few in llama.cpp's own queue, so that no slot waits for us
        dialect="llamacpp",
        serves_any=spec.display_name,
    )


async def _connect(
    stack: contextlib.AsyncExitStack,
    target: Target,
    shared: set[str],
    ready: ReadyPolicy | None,
    environ: Mapping[str, str] | None,
    tried: _Tried | None,
) -> tuple[Server | None, frozenset[str]]:
    """The server, or None when it has none of the models; and all that it serves."""
    config = target.config
    key = config.key(environ)
    if target.client is not None:
        exchange: Exchange = adopt(target.client, config.base_url)
    else:
        exchange = Http11Pool(config.base_url, api_key=key)
    stack.push_async_callback(exchange.aclose)
    key_env = "" if config.api_key is not None else config.key_variable(environ)
    probe = Probe(exchange, key_env=key_env, has_key=key is not None, policy=ready)
    await probe.wait_ready()
    listed = await probe.models()
    served = frozenset(listed) if listed is not None else config.models
    if served is None:
        raise ServerError(
            f"{config.base_url} does not list its models ({config.origin})",
            hint="Name them in a fleet file: servers: [{url: ..., models: [...]}]",
        )
    if missing := target.own - served if listed is not None else ():
        raise not_served(min(missing), served, searched=config.base_url)
    offered = served if config.models is None else served & config.models
    needed = target.own | (shared & offered)
    if not needed:
        return None, served
    answered = await all_or_error([probe.canary(model) for model in sorted(needed)])
    if tried is not None:
        chats = frozenset(model for model, as_chat in zip(sorted(needed), answered, strict=True) if as_chat)
        tried.found += await survey(exchange, needed, tried.needs, server=config.name, chats=chats)
    extra: dict[str, Any] = {} if config.limit is None else {"limit": config.limit}
    server = Server(name=config.name, base_url=config.base_url, models=frozenset(needed), exchange=exchange, **extra)
    return server, served


def _require_all(
    shared: set[str],
    used: list[Server],
    remote: list[tuple[Server | None, frozenset[str]]],
    asked: list[Target],
) -> None:
    answered = frozenset[str]().union(*(server.models for server in used))
    if missing := shared - answered:
        served = [name for _, names in remote for name in names]
        raise not_served(min(missing), served, searched=", ".join(t.config.base_url for t in asked))


def _distinct_names(servers: list[Server]) -> list[Server]:
    """Names tell replicas apart in reports; two paths on one host would share theirs."""
    names = [server.name for server in servers]
    return [replace(s, name=s.base_url) if names.count(s.name) > 1 else s for s in servers]
