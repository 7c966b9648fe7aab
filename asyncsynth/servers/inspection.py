"""Looking at servers without running anything: `asyncsynth check`. What is wrong with one hides no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from asyncsynth.client.concurrency import all_or_error
from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import ModelRequest
from asyncsynth.client.needs import Feature, Need, needs_of
from asyncsynth.client.transport import Exchange
from asyncsynth.errors import AsyncsynthError
from asyncsynth.servers.capabilities import Capabilities, survey
from asyncsynth.servers.configs import ServerConfig
from asyncsynth.servers.exchange import exchange_for
from asyncsynth.servers.readiness import Probe, ReadyPolicy

_PATIENCE = ReadyPolicy(connect_s=5.0, load_s=5.0, canary_s=60.0)
_TOP_LOGPROBS = 5

#: The models to look at, of those that a server lists; and what is needed of each.
Choice = Callable[[frozenset[str]], frozenset[str]]


@dataclass(slots=True, kw_only=True)
class Inspection:
    """One server: what it lists, what could be found out about each model, and what went wrong."""

    config: ServerConfig
    listed: frozenset[str] = frozenset()
    found: list[Capabilities] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def all_needs(model: str) -> tuple[Need, ...]:
    """Everything that any task might need of a model, but for a length of context; nothing of it required."""
    llm = LLM(model=model)
    requests: list[ModelRequest] = [
        llm.chat([{"role": "assistant", "content": ""}], schema={}, logprobs=True, top_logprobs=_TOP_LOGPROBS, n=2),
        llm.complete("", stop=["\n"], skip_special_tokens=False),
    ]
    made = needs_of(requests, step="", optional=frozenset(Feature))
    return tuple(need for need in made if need.feature is not Feature.CONTEXT)


async def inspect(
    config: ServerConfig,
    choose: Choice,
    needs: Callable[[str], Sequence[Need]],
    *,
    client: httpx.AsyncClient | None = None,
    environ: Mapping[str, str] | None = None,
    ready: ReadyPolicy = _PATIENCE,
) -> Inspection:
    """Asks one server. Errors of the server are in the result, not raised.

    Args:
        choose: which of the listed models to look at.
        needs: what to try on a model.
        client: the user's own, for its URL.
    """
    inspection = Inspection(config=config)
    key = config.key(environ)
    exchange = exchange_for(config, client=client, environ=environ)
    key_env = "" if config.api_key is not None else config.key_variable(environ)
    probe = Probe(exchange, key_env=key_env, has_key=key is not None, policy=ready)
    try:
        await probe.wait_ready()
        listed = await probe.models()
        inspection.listed = frozenset(listed if listed is not None else config.models or ())
        chosen = sorted(choose(inspection.listed))
        await all_or_error([_one_model(inspection, exchange, probe, model, needs(model)) for model in chosen])
    except AsyncsynthError as error:
        inspection.errors.append(str(error))
    finally:
        await exchange.aclose()
    inspection.found.sort(key=lambda found: found.model)
    return inspection


async def _one_model(
    inspection: Inspection, exchange: Exchange, probe: Probe, model: str, needs: Sequence[Need]
) -> None:
    try:
        chats = await probe.canary(model)
    except AsyncsynthError as error:
        inspection.errors.append(str(error))
        return
    inspection.found += await survey(
        exchange,
        [model],
        needs,
        server=inspection.config.name,
        chats=frozenset([model]) if chats else frozenset(),
        thinking=probe.thinking,
        let_think=bool(needs),
    )
