"""Models -> servers: where each model of a pipeline is answered, decided before any server is asked. Pure.

A model is answered in one place: its own `LLM(base_url=...)`, an embedded server, or any of the servers given
(then by all that serve it, as replicas). A model is never answered by another one unless the user said so
(`embedded`), and then every answer carries the name of the model that gave it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import httpx

from asyncsynth.client.llm import LLM
from asyncsynth.errors import ConfigurationError
from asyncsynth.servers.access import check_values
from asyncsynth.servers.configs import ServerConfig, parse_url
from asyncsynth.servers.model_lists import Listing, not_served
from asyncsynth.serving.embedded import EmbeddedSpec


@dataclass
class Target:
    """One server of a plan, before it is contacted."""

    config: ServerConfig
    own: set[str] = field(default_factory=set)  #: models whose LLM names this server
    client: httpx.AsyncClient | None = None  #: the user's own, for those

    def name(self, others: Sequence[Target]) -> str:
        """How reports call it: two paths on one host would share theirs, so they go by their URLs."""
        shared = sum(other.config.name == self.config.name for other in others) > 1
        return self.config.base_url if shared else self.config.name


@dataclass
class Plan:
    """Where each model is answered."""

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
    """Refuses a model that no file names before any server is waited for or started. If a server's models are not
    written down, it has to be asked, and nothing is refused here.

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


def offers(config: ServerConfig, listing: Listing, model: str) -> bool:
    """Whether a server that is given for all models has this one: by the user's word, else by its list."""
    return model in config.models if config.models is not None else listing.has(model)
