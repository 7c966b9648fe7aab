"""Looking at servers without running anything: `asyncsynth check`. What is wrong with one hides no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import ModelRequest
from asyncsynth.client.needs import SAMPLE_SEED, Feature, Need, needs_of
from asyncsynth.client.transport import DEFAULT_TIMEOUTS, Exchange, Timeouts, WireResponse
from asyncsynth.errors import AsyncsynthError
from asyncsynth.servers.capabilities import Capabilities
from asyncsynth.servers.configs import ServerConfig
from asyncsynth.servers.exchange import exchange_for
from asyncsynth.servers.model_lists import Listing
from asyncsynth.servers.readiness import ReadyPolicy
from asyncsynth.servers.sample_requests import first_samples, small
from asyncsynth.servers.trial import contact_with, guess_models, try_models

_PATIENCE = ReadyPolicy(connect_s=5.0, load_s=5.0, canary_s=60.0)
_TOP_LOGPROBS = 5
MOST_MODELS = 5  #: models of a server that are tried without being named
AT_ONCE = 8  #: requests in flight at a server that is looked at

#: The models to look at, given what the server lists.
Choice = Callable[[Listing], frozenset[str]]


@dataclass(slots=True, kw_only=True)
class Inspection:
    """One server: what it lists, what could be found out about each model, and what went wrong."""

    config: ServerConfig
    listing: Listing = field(default_factory=lambda: Listing(None))
    chosen: frozenset[str] = frozenset()  #: the models that were tried
    found: list[Capabilities] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def listed(self) -> frozenset[str]:
        """The names on its list; where it has none that can be used, those that the user gave it."""
        return self.listing.names if self.listing.names is not None else self.config.models or frozenset()


def all_needs(model: str) -> tuple[Need, ...]:
    """Everything that any task might need of a model, but for a length of context; nothing of it required."""
    llm = LLM(model=model, temperature=0.0)
    requests: list[ModelRequest] = [
        llm.chat(
            [{"role": "assistant", "content": ""}],
            schema={},
            logprobs=True,
            top_logprobs=_TOP_LOGPROBS,
            n=2,
            seed=SAMPLE_SEED,
        ),
        llm.complete("", stop=["\n"], skip_special_tokens=False, seed=SAMPLE_SEED),
    ]
    made = needs_of(requests, step="", optional=frozenset(Feature))
    return tuple(need for need in made if need.feature is not Feature.CONTEXT)


def most_requests(needs: Sequence[Need], models: int) -> int:
    """The requests that generate something, at most, where nothing is refused: a sample each, one that lets the model
    think, and one for each need."""
    kinds = {(need.model, need.feature) for need in needs if need.feature is not Feature.CONTEXT}
    samples = sum(max(0, len(need.samples) - 1) for need in needs)
    return 2 * models + len(kinds) + samples


async def inspect(
    config: ServerConfig,
    choose: Choice,
    needs: Callable[[str], Sequence[Need]],
    *,
    guess: Choice | None = None,
    llms: Sequence[LLM] = (),
    llm_of: Callable[[str], LLM] = lambda model: LLM(model=model),
    hint: str | None = None,
    client: httpx.AsyncClient | None = None,
    environ: Mapping[str, str] | None = None,
    ready: ReadyPolicy = _PATIENCE,
    on_plan: Callable[[frozenset[str], int], None] = lambda models, requests: None,
    on_wait: Callable[[str], None] | None = None,
) -> Inspection:
    """Asks one server. Errors of the server are in the result, not raised.

    Args:
        choose: which models to look at.
        needs: what to try on a model.
        guess: models that the server may have without listing them; what it answers in place is a note.
        llms: how a pipeline asks its models, for those of which `needs` tells no request.
        llm_of: how other models are asked.
        hint: a model to ask for where the server has no usable list and it is not known whether it is ready.
        client: the user's own, for its URL.
        on_plan: gets the models and the most requests that follow, before they are sent.
        on_wait: gets a line when the server keeps this waiting.
    """
    inspection = Inspection(config=config)
    exchange = _Bounded(exchange_for(config, client=client, environ=environ))
    contact = contact_with(config, exchange, environ=environ, policy=ready, on_wait=on_wait)
    try:
        named = hint or (min(config.models) if config.models else None)
        asked = None if named is None else _samples([named], needs, llms, llm_of)[named]
        inspection.listing = await contact.wait_ready(asked)
        if inspection.listing.problem:
            inspection.notes.append(f"no usable list of models: {inspection.listing.problem}")
        chosen = inspection.chosen = choose(inspection.listing)
        if not chosen and inspection.listing.status in (401, 403):
            raise contact.key_refused(inspection.listing.status)
        wanted = [need for model in sorted(chosen) for need in needs(model)]
        if chosen:
            on_plan(chosen, most_requests(wanted, len(chosen)))
        samples = _samples(sorted(chosen), needs, llms, llm_of)
        trial = await try_models(contact, samples, wanted, server=config.name, let_think=bool(wanted))
        trial.name_what_is_served(inspection.listing, searched=config.base_url)
        inspection.errors += [str(error) for _, error in sorted(trial.errors.items())]
        guessed = frozenset() if guess is None else guess(inspection.listing) - chosen
        if guessed:
            wanted = [need for model in sorted(guessed) for need in needs(model)]
            on_plan(guessed, most_requests(wanted, len(guessed)))
            guesses = await guess_models(
                contact, _samples(sorted(guessed), needs, llms, llm_of), wanted, server=config.name
            )
            trial.found += guesses.found
            inspection.notes += [error.message for _, error in sorted(guesses.errors.items())]
        inspection.found = sorted(trial.found, key=lambda found: found.model)
    except AsyncsynthError as error:
        inspection.errors.append(str(error))
    finally:
        await exchange.aclose()
    return inspection


def _samples(
    models: Sequence[str],
    needs: Callable[[str], Sequence[Need]],
    llms: Sequence[LLM],
    llm_of: Callable[[str], LLM],
) -> dict[str, ModelRequest]:
    known = {llm.model for llm in llms}
    asked = [*llms, *(llm_of(model) for model in models if model not in known)]
    wanted = [need for model in models for need in needs(model)]
    made = first_samples([llm for llm in asked if llm.model in models], wanted)
    return {model: small(made[model]) for model in models}


class _Bounded:
    """An exchange with at most `AT_ONCE` requests in flight."""

    def __init__(self, exchange: Exchange) -> None:
        self.base_url: str = exchange.base_url
        self.timeouts: Timeouts = exchange.timeouts
        self._exchange = exchange
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def post(self, path: str, body: bytes, timeout: Timeouts = DEFAULT_TIMEOUTS) -> WireResponse:
        async with self._slots:
            return await self._exchange.post(path, body, timeout)

    async def get(self, path: str, timeout: Timeouts = DEFAULT_TIMEOUTS, *, at_origin: bool = False) -> WireResponse:
        async with self._slots:
            return await self._exchange.get(path, timeout, at_origin=at_origin)

    async def aclose(self) -> None:
        await self._exchange.aclose()
