"""Trying the models of one server: each is sent a request of the run's own, then what the steps need is looked at.

A run, `asyncsynth check`, `asyncsynth bench` and servers that are being started all do it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from asyncsynth.client.codec import Dialect
from asyncsynth.client.concurrency import all_or_error
from asyncsynth.client.messages import ModelRequest
from asyncsynth.client.needs import Feature, Need
from asyncsynth.client.transport import Exchange
from asyncsynth.errors import AsyncsynthError, ModelNotServed, ServerError
from asyncsynth.servers.capabilities import Capabilities, survey
from asyncsynth.servers.capability_probes import Prober
from asyncsynth.servers.configs import ServerConfig
from asyncsynth.servers.model_lists import Listing, not_served
from asyncsynth.servers.readiness import FirstContact, ReadyPolicy
from asyncsynth.servers.sample_requests import plain_sample, shape


@dataclass(slots=True)
class Trial:
    """The result: the models that answered, what they can do, and what came in place of an answer."""

    answered: set[str] = field(default_factory=set)
    found: list[Capabilities] = field(default_factory=list)
    errors: dict[str, AsyncsynthError] = field(default_factory=dict)  #: by model

    def name_what_is_served(self, listing: Listing, *, searched: str) -> None:
        """Errors of models that the server neither lists nor has say what it lists, and what to do."""
        for model, error in self.errors.items():
            if isinstance(error, ModelNotServed) and listing.names is not None:
                self.errors[model] = not_served([model], listing.names, searched=searched, tried=[error.message])

    def require_all(self) -> None:
        """Raises the first error, in the order of the models' names."""
        for model in sorted(self.errors):
            raise self.errors[model]


def contact_with(
    config: ServerConfig,
    exchange: Exchange,
    *,
    environ: Mapping[str, str] | None = None,
    policy: ReadyPolicy | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> FirstContact:
    """The questions to a configured server, whose errors name the variable of its key."""
    key_env = "" if config.api_key is not None else config.key_variable(environ)
    has_key = config.key(environ) is not None
    return FirstContact(exchange, key_env=key_env, has_key=has_key, policy=policy, on_wait=on_wait)


async def try_models(
    contact: FirstContact,
    samples: Mapping[str, ModelRequest],
    needs: Sequence[Need] | None,
    *,
    server: str,
    dialect: Dialect = "openai",
    let_think: bool = False,
) -> Trial:
    """Sends each model its sample, and tries what is needed of those that answer. Raises nothing that a server does.

    Args:
        contact: with the server, which is ready.
        samples: by model: a small request of the kind that the run sends (`servers.sample_requests`).
        needs: what to try beyond that. None tries nothing.
        server: its name in reports.
        let_think: as for `survey`.
    """
    trial = Trial()

    async def one(model: str) -> None:
        try:
            if not await contact.canary(samples[model]) and not _is_tried_later(model, needs):
                await _refuse(contact, samples[model], dialect)
            trial.answered.add(model)
        except AsyncsynthError as error:
            trial.errors[model] = error

    await all_or_error([one(model) for model in sorted(samples)])
    if needs is not None and trial.answered:
        trial.found = await survey(
            contact.exchange,
            trial.answered,
            needs,
            server=server,
            dialect=dialect,
            answered=contact.answered,
            thinking=contact.thinking,
            let_think=let_think,
        )
    return trial


async def guess_models(
    contact: FirstContact, samples: Mapping[str, ModelRequest], needs: Sequence[Need] | None, *, server: str
) -> Trial:
    """As `try_models`, for models that neither the server's list nor the user names for it: aliases, deployments,
    adapters, or models of another server.

    An answer counts only if the server refuses a name that is made up: one that answers to any name has what it lists.
    Where it lists nothing, there is nothing that contradicts the user.
    """
    trial = await try_models(contact, samples, None, server=server)
    listed = contact.listing.names
    if trial.answered and listed and await contact.takes_any_name(samples[min(trial.answered)]):
        shown = ", ".join(sorted(listed)[:5])
        said = f"{server} answers to any name, so that only its list counts: {shown}"
        trial.errors.update({model: ModelNotServed(said) for model in trial.answered})
        trial.answered.clear()
    if trial.answered and needs is not None:
        kept = {model: samples[model] for model in trial.answered}
        sure = await try_models(contact, kept, needs, server=server)
        return Trial(sure.answered, sure.found, {**trial.errors, **sure.errors})
    return trial


def _is_tried_later(model: str, needs: Sequence[Need] | None) -> bool:
    """Whether the survey finds out what the server refuses in requests to this model, and tells it with all else."""
    kinds = {need.feature for need in needs or () if need.model == model}
    return bool(kinds & {Feature.CHAT, Feature.COMPLETIONS})


async def _refuse(contact: FirstContact, sample: ModelRequest, dialect: Dialect) -> None:
    """Raises ServerError with what the server refuses in this request.

    Nothing is raised where no change to a chat helps and the model completes raw prompts: a base model without a chat
    template is fine for a function that sends no chats.
    """
    finding = await Prober(contact.exchange, dialect).accepts(sample)
    completes = shape(plain_sample(sample.model, chat=False)) in contact.answered
    if finding.state == "no" and (finding.todo or not completes):
        raise ServerError(
            f"{sample.model} at {contact.exchange.base_url} refuses a sample request: {finding.said}",
            hint=f"{finding.todo}." if finding.todo else "If the server is yours, its own log says more.",
        )
