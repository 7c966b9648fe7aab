"""Opens the pool of a run: starts embedded servers, connects to the others, and finds out which models each has."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from asyncsynth.client.adopt import HttpxExchange
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
from asyncsynth.errors import ModelNotServed, ServerRefused, ServerUnreachable
from asyncsynth.servers.capabilities import Capabilities, require, survey
from asyncsynth.servers.configs import ServerConfig, servers_from_environment
from asyncsynth.servers.exchange import exchange_for
from asyncsynth.servers.model_lists import not_served
from asyncsynth.servers.readiness import FirstContact, ReadyPolicy
from asyncsynth.servers.sample_requests import first_samples
from asyncsynth.servers.trial import Trial, contact_with, guess_models, try_models
from asyncsynth.serving.embedded import EmbeddedServer, EmbeddedSpec
from asyncsynth.serving.joining import Connected, Latecomer, cancelled, connect_all, joining
from asyncsynth.serving.keeping import End, keep, kept
from asyncsynth.serving.placement import Plan, Target, make_plan, offers, require_named
from asyncsynth.serving.weights import Progress


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
    on_wait: Callable[[str], None] | None = None,
    concurrency: int | None = None,
    request_timeout: float | None = None,
    model_change: str = "stop",
) -> AsyncIterator[ServerPool]:
    """A pool that answers for every model in `llms`; embedded servers run while it is open.

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
        on_wait: gets a line when a server keeps the start waiting for more than some seconds.
        concurrency: fixed requests in flight on each server, in place of limits that adapt and of those that the
            configurations name; embedded servers keep their own.
        request_timeout: seconds for each whole answer, in place of what the configurations name; None if neither
            sets one: then a request is given up only when its server shows no progress.
        model_change: see `ServerPool`.

    A server among those given that does not answer is waited for only while a model needs it; else the pool begins
    without it, says so in its `notes`, and takes it in when it answers.

    Raises:
        ConfigurationError, ServerError and its kinds: something that the run would meet on every record.
    """
    given = servers_from_environment(environ) if servers is None else list(servers)
    plan = make_plan(llms, servers=given, embedded=embedded)
    require_named(plan.shared, given)
    binder = _Binder(plan, llms, needs, ready or ReadyPolicy(), environ, concurrency, request_timeout, on_wait)
    async with contextlib.AsyncExitStack() as stack:
        found: list[Capabilities] = []
        started = await all_or_error(
            [_start_child(stack, spec, models, progress, needs, found) for spec, models in plan.embedded.items()]
        )
        binder.open_exchanges(stack)
        remote, late = await binder.connect_all()
        stack.push_async_callback(cancelled, late)
        local = [replace(server, request_timeout=request_timeout) for server, _ in started]
        used = [*local, *(one.server for one in remote if one.server is not None)]
        found += [one for connected in remote for one in connected.found]
        if on_found is not None and found:
            on_found(found)
        require(found, needs or ())
        binder.is_running = True
        pool = ServerPool(used, policy=policy or RetryPolicy(), rng=rng or random.Random(), model_change=model_change)  # noqa: S311
        stack.push_async_callback(pool.aclose)
        binder.report_to(pool.notes)
        await stack.enter_async_context(kept(*(_keep(child, pool) for _, child in started)))
        join = joining(pool, late, binder.connect, binder.name, retry_s=binder.patience.retry_s)
        await stack.enter_async_context(join)
        yield pool


def _keep(child: EmbeddedServer, pool: ServerPool) -> Coroutine[Any, Any, None]:
    def note(end: End, pause: float) -> None:
        pool.notes.append(f"{child.name} ended ({end.why}) and is started again")

    return keep(child, pool, on_crash=note)


class _Binder:
    """Connects to the servers of a plan and decides which models each answers for.

    The user's word comes first: models that a fleet file or an LLM names for a server are asked for, whatever it
    lists. Other models go to the servers that list them. One that no server lists is asked for with a real request: a
    name may be an alias or a deployment.
    """

    def __init__(
        self,
        plan: Plan,
        llms: Sequence[LLM],
        needs: Sequence[Need] | None,
        patience: ReadyPolicy,
        environ: Mapping[str, str] | None,
        concurrency: int | None,
        request_timeout: float | None,
        on_wait: Callable[[str], None] | None,
    ) -> None:
        self.patience = patience
        #: The run has what it needs. A server that joins now is left out where it lacks something.
        self.is_running = False
        self._plan = plan
        self._needs = needs
        self._environ = environ
        self._concurrency = concurrency
        self._request_timeout = request_timeout
        self._on_wait = on_wait
        self._samples = first_samples(llms, needs or ())
        self._wanted = [t for t in plan.targets.values() if t.own or (plan.shared and t.config.models != frozenset())]
        self._exchanges: dict[str, Exchange] = {}
        self._contacts: dict[str, FirstContact] = {}
        self._unlisted: set[str] = set()  #: models that servers answer for without listing them
        self.notes: list[str] = []  #: the pool's, once there is one

    def open_exchanges(self, stack: contextlib.AsyncExitStack) -> None:
        """Opens the connections of each server, which `stack` closes."""
        for target in self._wanted:
            exchange = exchange_for(target.config, client=target.client, environ=self._environ)
            stack.push_async_callback(exchange.aclose)
            self._exchanges[target.config.base_url] = exchange

    def report_to(self, notes: list[str]) -> None:
        """From now on, this list gets the notes on servers and their connections."""
        notes.extend(self.notes)
        self.notes = notes
        for exchange in self._exchanges.values():
            if isinstance(exchange, Http11Pool | HttpxExchange):
                exchange.report_to(notes)

    def name(self, target: Target) -> str:
        """How reports call this server."""
        return target.name(self._wanted)

    async def connect_all(self) -> tuple[list[Connected], list[Latecomer[Target]]]:
        """The servers that answer, in the order given, and those that do not yet. Raises what keeps a run from it."""
        by_place, late = await connect_all(self._wanted, self.connect, self._is_enough, grace_s=self.patience.grace_s)
        missing = self._plan.shared - _models(by_place.values())
        if missing:
            await self._ask_unlisted(missing, by_place)
        return [by_place[place] for place in sorted(by_place)], late

    def _is_enough(self, connected: Mapping[int, Connected]) -> bool:
        own = all(place in connected for place, target in enumerate(self._wanted) if target.own)
        return own and self._plan.shared <= _models(connected.values())

    async def connect(self, target: Target) -> Connected:
        """One server, with the models that it answers for and what it can do."""
        config, url = target.config, target.config.base_url
        contact = contact_with(
            config, self._exchanges[url], environ=self._environ, policy=self.patience, on_wait=self._on_wait
        )
        self._contacts[url] = contact
        models = target.own or (self._plan.shared & (config.models or self._plan.shared)) or self._plan.shared
        try:
            listing = await contact.wait_ready(self._samples[min(models)])
        except ServerUnreachable as error:
            if config.launch is not None:  # not only an address: what is to run there is known
                error.hint = f"Start it: `asyncsynth serve {config.origin.partition(':')[0]}`, or run with --start."
            raise
        sure = target.own | {model for model in self._plan.shared if offers(config, listing, model)}
        trial = await self._try(target, contact, sure)
        trial.name_what_is_served(listing, searched=url)
        trial.require_all()
        connected = self._connected(target, contact, trial)
        guesses = self._plan.shared if listing.names is None else self._unlisted
        if config.models is None and (guesses := guesses - sure):
            connected = await self._guess(target, connected, guesses)
        if listing.problem and connected.server is not None:
            self.notes.append(f"{self.name(target)} has no usable list of models ({listing.problem}), but answers")
        if self.is_running:  # all others have what is needed: only this one is left out where it has not
            require(connected.found, self._needs or ())
        return connected

    async def _ask_unlisted(self, missing: set[str], by_place: dict[int, Connected]) -> None:
        """Asks the servers for models that none of them lists. Raises ModelNotServed where none answers."""
        asked = [place for place in by_place if self._wanted[place].config.models is None and self._lists(place)]
        made = [self._guess(self._wanted[place], by_place[place], missing) for place in asked]
        by_place.update(zip(asked, await all_or_error(made), strict=True))
        if unserved := missing - _models(by_place.values()):
            served = [name for one in by_place.values() for name in one.served]
            refusals = [error for place in sorted(by_place) for _, error in sorted(by_place[place].refusals.items())]
            if len(by_place) == 1 and refusals and not any(isinstance(e, ModelNotServed) for e in refusals):
                raise refusals[0]  # the only server, and it does not say that it lacks the model
            tried = [error.message for error in refusals]
            searched = ", ".join(target.config.base_url for target in self._wanted)
            raise not_served(unserved, served, searched=searched, tried=tried)

    def _lists(self, place: int) -> bool:
        """Whether a server has a list of models. One that has none was asked for all of them at once."""
        contact = self._contacts.get(self._wanted[place].config.base_url)
        return contact is None or contact.listing.names is not None

    async def _guess(self, target: Target, connected: Connected, models: set[str]) -> Connected:
        """`connected` with those of `models`, which it does not list, that it answers for."""
        contact = self._contacts[target.config.base_url]
        samples = {model: self._samples[model] for model in models}
        trial = await guess_models(contact, samples, self._needs, server=self.name(target))
        for error in trial.errors.values():
            if isinstance(error, ServerRefused | ServerUnreachable):
                raise error
        if trial.answered and (listed := contact.listing.names) is not None:
            names, shown = ", ".join(sorted(trial.answered)), ", ".join(sorted(listed)[:5]) or "nothing"
            self.notes.append(f"{self.name(target)} does not list {names} (it lists {shown}), but answers for it")
            self._unlisted |= trial.answered
        made = self._connected(target, contact, trial)
        server = made.server or connected.server
        models_of = _models([connected, made])
        return Connected(
            None if server is None else replace(server, models=models_of),
            connected.served | made.served,
            [*connected.found, *made.found],
            trial.errors,
        )

    async def _try(self, target: Target, contact: FirstContact, models: set[str]) -> Trial:
        samples = {model: self._samples[model] for model in models}
        return await try_models(contact, samples, self._needs, server=self.name(target))

    def _connected(self, target: Target, contact: FirstContact, trial: Trial) -> Connected:
        served = (contact.listing.names or frozenset()) | trial.answered
        if not trial.answered:
            return Connected(None, served)
        server = Server(
            name=self.name(target),
            base_url=target.config.base_url,
            models=frozenset(trial.answered),
            exchange=contact.exchange,
            limiter=_limiter(target.config, self._concurrency),
            rates=_rates(target.config),
            request_timeout=self._request_timeout or target.config.request_timeout,
        )
        return Connected(server, served, trial.found)


def _models(connected: Iterable[Connected]) -> frozenset[str]:
    return frozenset[str]().union(*(one.server.models for one in connected if one.server is not None))


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
