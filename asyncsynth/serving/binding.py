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

import httpx

from asyncsynth.client.concurrency import all_or_error
from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.llm import LLM
from asyncsynth.client.needs import Need
from asyncsynth.client.server_pool import Server, ServerPool
from asyncsynth.client.transport import Exchange
from asyncsynth.core.adaptive import AdaptiveLimit
from asyncsynth.core.limiter import FixedLimit, Limiter
from asyncsynth.core.rates import RateLimits
from asyncsynth.core.retry import RetryPolicy, Rng
from asyncsynth.errors import ConfigurationError, ServerError, ServerUnreachable
from asyncsynth.servers.access import check_values
from asyncsynth.servers.capabilities import Capabilities, require, survey
from asyncsynth.servers.configs import ServerConfig, parse_url, servers_from_environment
from asyncsynth.servers.exchange import exchange_for
from asyncsynth.servers.readiness import Probe, ReadyPolicy, not_served
from asyncsynth.serving.embedded import EmbeddedServer, EmbeddedSpec
from asyncsynth.serving.joining import Connected, cancelled, connect_all, joining
from asyncsynth.serving.keeping import keep, kept
from asyncsynth.serving.weights import Progress


@dataclass
class Target:
    """One server of a plan, before anyone has spoken to it."""

    config: ServerConfig
    own: set[str] = field(default_factory=set)  #: models whose LLM names this server
    client: httpx.AsyncClient | None = None  #: the user's own, for those

    def name(self, others: Sequence[Target]) -> str:
        """How reports call it: two paths on one host would share theirs, so they go by their URLs."""
        shared = sum(other.config.name == self.config.name for other in others) > 1
        return self.config.base_url if shared else self.config.name


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


def require_named(models: set[str], given: Sequence[ServerConfig]) -> None:
    """A model that no file names is told before anyone waits for a server, or starts one. A server whose models are
    not written down has to be asked, and then nothing is told here.

    Raises:
        ModelNotServed: with the models that there are.
    """
    if not given or any(server.models is None for server in given):
        return
    named = frozenset[str]().union(*(server.models or () for server in given))
    if missing := models - named:
        origins = ", ".join(sorted({server.origin for server in given}))
        raise not_served(missing, named, searched=origins, how="read")


def _base_url(llm: LLM) -> str:
    """The server that an LLM names itself, or ''."""
    url = llm.base_url or (str(llm.http_client.base_url) if llm.http_client is not None else "")
    if not url and (llm.headers or llm.query):
        raise ConfigurationError(
            f"LLM({llm.model!r}) has headers or query without a base_url",
            hint="Give base_url, or write headers and query into the server's entry of a fleet file.",
        )
    if llm.http_client is not None and (llm.headers or llm.query):
        raise ConfigurationError(
            f"LLM({llm.model!r}) has an http_client as well as headers or query",
            hint="Give headers and query (params) to the client.",
        )
    if not url:
        return ""
    if llm.is_embedded:
        raise ConfigurationError(f"LLM.embedded({llm.model!r}) cannot have a base_url or http_client")
    return parse_url(url, where=f"base_url of LLM({llm.model!r})")


def _add_own(plan: Plan, llm: LLM, url: str) -> None:
    origin = f"base_url of LLM({llm.model!r})"
    check_values("headers", llm.headers, f"LLM({llm.model!r})")
    check_values("query", llm.query, f"LLM({llm.model!r})")
    target = plan.targets.get(url)
    if target is None:
        config = ServerConfig(
            base_url=url,
            models=frozenset(),
            api_key_env=llm.api_key_env,
            origin=origin,
            headers=llm.headers,
            query=llm.query,
        )  # no models for others: this server was named for this model
        target = plan.targets[url] = Target(config, client=llm.http_client)
    elif not target.own:  # also among the servers given: one connection pool, one limit
        target.client = llm.http_client
        if os.environ.get(llm.api_key_env, "").strip():
            target.config = replace(target.config, api_key_env=llm.api_key_env)
        if llm.headers or llm.query:
            target.config = replace(target.config, headers=llm.headers, query=llm.query)
    elif (llm.headers, llm.query) != (target.config.headers, target.config.query):
        raise ConfigurationError(
            f"two LLMs name the server {url} with different headers or query", hint="Use the same for both."
        )
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
    concurrency: int | None = None,
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
        concurrency: fixed requests in flight on each server, in place of limits that adapt and of those that the
            configurations name; embedded servers keep their own.

    A server among those given that does not answer is waited for only while a model needs it; else the pool begins
    without it, says so in its `notes`, and takes it in when it answers.

    Raises:
        ConfigurationError, ServerError and its kinds: something that the run would meet on every record.
    """
    given = servers_from_environment(environ) if servers is None else list(servers)
    plan = make_plan(llms, servers=given, embedded=embedded)
    require_named(plan.shared, given)
    patience = ready or ReadyPolicy()
    async with contextlib.AsyncExitStack() as stack:
        found: list[Capabilities] = []
        started = await all_or_error(
            [_start_child(stack, spec, models, progress, needs, found) for spec, models in plan.embedded.items()]
        )
        local = [server for server, _ in started]
        wanted = [t for t in plan.targets.values() if t.own or (plan.shared and t.config.models != frozenset())]
        exchanges = {t.config.base_url: _exchange(stack, t, environ) for t in wanted}
        begun = False

        async def connect(target: Target) -> Connected:
            exchange = exchanges[target.config.base_url]
            server = Server(
                name=target.name(wanted),
                base_url=target.config.base_url,
                models=frozenset(),
                exchange=exchange,
                limiter=_limiter(target.config, concurrency),
                rates=_rates(target.config),
            )
            connected = await _connect(target, server, _probe(target, exchange, patience, environ), plan.shared, needs)
            if begun:  # all others have what is needed: only this one is left out where it has not
                require(connected.found, needs or ())
            return connected

        def enough(connected: Mapping[int, Connected]) -> bool:
            answered = frozenset[str]().union(*(c.server.models for c in connected.values() if c.server is not None))
            own = all(place in connected for place, target in enumerate(wanted) if target.own)
            return own and plan.shared <= answered

        by_place, late = await connect_all(wanted, connect, enough, grace_s=patience.grace_s)
        stack.push_async_callback(cancelled, late)
        remote = [by_place[place] for place in sorted(by_place)]
        used = [*local, *(one.server for one in remote if one.server is not None)]
        _require_all(plan.shared, used, remote, wanted)
        found += [one for connected in remote for one in connected.found]
        if on_found is not None and found:
            on_found(found)
        require(found, needs or ())
        begun = True
        pool = ServerPool(used, policy=policy or RetryPolicy(), rng=rng or random.Random())  # noqa: S311
        stack.push_async_callback(pool.aclose)
        for exchange in exchanges.values():
            if isinstance(exchange, Http11Pool):
                exchange.report_to(pool.notes)
        await stack.enter_async_context(kept(*(keep(child, pool, note=pool.notes.append) for _, child in started)))
        names = {target.config.base_url: target.name(wanted) for target in wanted}
        join = joining(pool, late, connect, lambda target: names[target.config.base_url], retry_s=patience.retry_s)
        await stack.enter_async_context(join)
        yield pool


async def _start_child(
    stack: contextlib.AsyncExitStack,
    spec: EmbeddedSpec,
    models: set[str],
    progress: Progress | None,
    needs: Sequence[Need] | None,
    found: list[Capabilities],
) -> tuple[Server, EmbeddedServer]:
    child = EmbeddedServer(spec, progress=progress)
    stack.push_async_callback(child.stop)
    await child.start()
    exchange = Http11Pool(child.base_url)
    stack.push_async_callback(exchange.aclose)
    if needs is not None:
        found += await survey(
            exchange, models, needs, server=spec.display_name, dialect="llamacpp", chats=frozenset(models)
        )
    server = Server(
        name=spec.display_name,
        base_url=child.base_url,
        models=frozenset(models),
        exchange=exchange,
        limit=spec.slots + spec.slots // 4,  # a few in llama.cpp's own queue, so that no slot waits for us
        dialect="llamacpp",
        serves_any=spec.display_name,
    )
    return server, child


def _exchange(stack: contextlib.AsyncExitStack, target: Target, environ: Mapping[str, str] | None) -> Exchange:
    exchange = exchange_for(target.config, client=target.client, environ=environ)
    stack.push_async_callback(exchange.aclose)
    return exchange


def _probe(target: Target, exchange: Exchange, ready: ReadyPolicy, environ: Mapping[str, str] | None) -> Probe:
    config = target.config
    key_env = "" if config.api_key is not None else config.key_variable(environ)
    return Probe(exchange, key_env=key_env, has_key=config.key(environ) is not None, policy=ready)


def _limiter(config: ServerConfig, concurrency: int | None) -> Limiter:
    """Fixed where the user said a number, the command line before the file; else one that adapts."""
    fixed = concurrency or config.limit
    if fixed is not None:
        return FixedLimit(fixed)
    if config.max_concurrency is not None:
        return AdaptiveLimit(maximum=config.max_concurrency, slots=config.slots)
    return AdaptiveLimit(slots=config.slots)


def _rates(config: ServerConfig) -> RateLimits | None:
    if config.requests_per_minute is None and config.tokens_per_minute is None:
        return None
    return RateLimits(config.requests_per_minute, config.tokens_per_minute)


async def _connect(
    target: Target, server: Server, probe: Probe, shared: set[str], needs: Sequence[Need] | None
) -> Connected:
    """`server` with the models that it is asked for, or None when it has none of them; all that it serves; and what
    came of trying the needs."""
    config = target.config
    try:
        await probe.wait_ready()
    except ServerUnreachable as error:
        if config.launch is not None:  # not only an address: what is to run there is known
            error.hint = f"Start it: `asyncsynth serve {config.origin.partition(':')[0]}`, or run with --start."
        raise
    listed = await probe.models()
    served = frozenset(listed) if listed is not None else config.models
    if served is None:
        raise ServerError(
            f"{config.base_url} does not list its models ({config.origin})",
            hint="Name them in a fleet file: servers: [{url: ..., models: [...]}]",
        )
    if missing := target.own - served if listed is not None else ():
        raise not_served(missing, served, searched=config.base_url)
    offered = served if config.models is None else served & config.models
    needed = target.own | (shared & offered)
    if not needed:
        return Connected(None, served)
    answered = await all_or_error([probe.canary(model) for model in sorted(needed)])
    found: Sequence[Capabilities] = ()
    if needs is not None:
        chats = frozenset(model for model, as_chat in zip(sorted(needed), answered, strict=True) if as_chat)
        thinking = probe.thinking
        found = await survey(server.exchange, needed, needs, server=server.name, chats=chats, thinking=thinking)
    return Connected(replace(server, models=frozenset(needed)), served, found)


def _require_all(
    shared: set[str],
    used: list[Server],
    remote: list[Connected],
    asked: list[Target],
) -> None:
    answered = frozenset[str]().union(*(server.models for server in used))
    if missing := shared - answered:
        served = [name for one in remote for name in one.served]
        raise not_served(missing, served, searched=", ".join(t.config.base_url for t in asked))
