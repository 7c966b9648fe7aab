"""What each server can do of what a run needs, tried before anything is paid; and refusal of what cannot work.

`survey` asks one server: which software it is, how much context it has, and by one small request for each
feature that a step needs (`servers.capability_probes`) whether it really does it. Nothing is kept between runs: a
server may be another one tomorrow. A probe that a busy server does not answer leaves the feature "unknown",
which is reported and not refused.
"""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncsynth.client.codec import Dialect
from asyncsynth.client.concurrency import all_or_error
from asyncsynth.client.messages import ChatRequest, ModelRequest
from asyncsynth.client.needs import Feature, Need
from asyncsynth.client.transport import Exchange
from asyncsynth.errors import ServerError
from asyncsynth.servers.capability_probes import ORCA_HEADER, Finding, Prober
from asyncsynth.servers.sample_requests import own_fields, plain_sample, samples_of, shape, small
from asyncsynth.servers.server_facts import FILLED, LLAMACPP, ServerFacts, read_facts

_KINDS = (Feature.CHAT, Feature.COMPLETIONS)
_NO_LESS = 2**31  #: no smaller limit of tokens than the run's own

_WHAT = {
    Feature.CHAT: "chat completions (/chat/completions)",
    Feature.COMPLETIONS: "raw completions (/completions)",
    Feature.STOP: "raw completions that end at stop texts",
    Feature.SCHEMA: "answers held to a JSON schema (response_format)",
    Feature.LOGPROBS: "token probabilities (logprobs, top_logprobs)",
    Feature.CHOICES: "several choices an answer (n)",
    Feature.PREFILL: "answers that continue an assistant message (continue_final_message)",
    Feature.CONTEXT: "room for max_tokens in the context",
}
_TO_DO = {
    Feature.CHAT: "Serve the model with a chat template, or leave out the fields that the server does not know.",
    Feature.COMPLETIONS: "Use a server that has raw completions (vLLM, llama.cpp), or a task that only chats.",
    Feature.SCHEMA: "Use a server that enforces response_format, or let the step work without it (show_schema=True).",
    Feature.LOGPROBS: "Use a server that returns logprobs (vLLM: --max-logprobs), or turn off what reads them.",
    Feature.CHOICES: "Use num_generations=... in place of n.",
    Feature.CONTEXT: "Lower the LLM's max_tokens, or serve the model with a longer context (vLLM: --max-model-len).",
}


@dataclass(slots=True, kw_only=True)
class Capabilities:
    """What is known about one model on one server.

    `findings` holds the features that were tried. `context` is in tokens, None if the server does not say.
    `unset` are the sampling fields that no request sets; `defaults` what the server then takes, where it says.
    `load` names the ways in which it reports its load. `thinks`: where its answers held a thought, "text" or "field";
    '' if none was seen.
    """

    server: str
    base_url: str
    model: str
    software: str = ""
    context: int | None = None
    findings: dict[Feature, Finding] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    load: tuple[str, ...] = ()
    thinks: str = ""

    def line(self) -> str:
        """All of it in one line."""
        parts = [f"context {self.context:,} tokens" if self.context is not None else "context unknown"]
        for feature, finding in self.findings.items():
            if feature is Feature.CONTEXT and finding.state in ("yes", "unknown"):
                continue  # said already
            parts.append(f"{feature} {finding.state}" + (f" ({finding.said})" if finding.state != "yes" else ""))
        if self.unset:
            parts.append(f"unset: {self.unset_text()}")
        if self.thinks:
            parts.append(self.thinks_text())
        if self.load:
            parts.append(f"load from {' and '.join(self.load)}")
        return f"{self.model} at {self.server} ({self.software or 'software unknown'}): {'; '.join(parts)}"

    def unset_text(self) -> str:
        """The sampling fields that are left to the server, with their values or where they come from."""
        if self.defaults:
            return ", ".join(f"{name} (server: {self.defaults.get(name, '?')})" for name in self.unset)
        names = ", ".join(self.unset)
        if self.software.startswith("vLLM"):
            return f"{names} (the model's generation_config.json may fill them; --generation-config vllm does not)"
        return f"{names} (left to the server)"

    def thinks_text(self) -> str:
        """Where the model thinks, what becomes of it, and what to do."""
        where = "in the text of its answers" if self.thinks == "text" else "in a field of its own"
        return (
            f"thinks before it answers, {where}: reasoning is kept apart from the answer. Leave room for it in "
            "max_tokens, or turn it off "
            "(Qwen3 on vLLM: extra_body={'chat_template_kwargs': {'enable_thinking': False}})"
        )

    def as_json(self) -> dict[str, Any]:
        """For reports."""
        return {
            "server": self.server,
            "base_url": self.base_url,
            "model": self.model,
            "software": self.software,
            "context": self.context,
            "features": {
                str(feature): {"state": found.state, "said": found.said} for feature, found in self.findings.items()
            },
            "unset": list(self.unset),
            "defaults": dict(self.defaults),
            "load": list(self.load),
            "thinks": self.thinks,
        }


async def survey(
    exchange: Exchange,
    models: Iterable[str],
    needs: Sequence[Need],
    *,
    server: str,
    dialect: Dialect = "openai",
    chats: frozenset[str] = frozenset(),
    answered: Collection[str] = (),
    thinking: Mapping[str, str] | None = None,
    let_think: bool = False,
) -> list[Capabilities]:
    """What one server can do of `needs`, for each of `models`. Never raises for what the server does.

    Args:
        models: those it is to answer; needs of others are not tried.
        server: its name in reports.
        chats: models that are known to answer chats with OpenAI's own fields.
        answered: shapes of sample requests that were answered just now, which need not be sent again.
        thinking: by model, where such an answer held a thought.
        let_think: ask models of which this is not known something that lets them think: a request more.
    """
    facts = await read_facts(exchange)
    prober = Prober(exchange, dialect, repeats_prefill=facts.software.startswith(LLAMACPP))
    chats_with = [need for need in needs if need.feature is Feature.CHAT and own_fields(need.fields)]
    prober.with_fields = frozenset(need.model for need in chats_with)
    prober.thinking.update(thinking or {})
    asked = [
        _Asked(model, [n for n in needs if n.model == model], model in chats, answered) for model in sorted(models)
    ]
    if let_think:
        unknown = [a for a in asked if a.model not in prober.thinking and a.is_known(a.sample(chat=True))]
        await all_or_error([prober.think(one.sample(chat=True)) for one in unknown])
    return await all_or_error([_survey_model(prober, facts, server, one) for one in asked])


@dataclass(frozen=True, slots=True)
class _Asked:
    """What to find out about one model."""

    model: str
    needs: list[Need]
    chats: bool
    answered: Collection[str]

    def amounts(self) -> dict[Feature, int]:
        found: dict[Feature, int] = {}
        for need in self.needs:
            found[need.feature] = max(need.amount, found.get(need.feature, 0))
        return found

    def samples(self, feature: Feature) -> list[ModelRequest]:
        """The distinct requests of this kind that the run will send, made small."""
        return samples_of(self.needs, self.model, feature) or [plain_sample(self.model, chat=feature is Feature.CHAT)]

    def sample(self, *, chat: bool) -> ModelRequest:
        return self.samples(Feature.CHAT if chat else Feature.COMPLETIONS)[0]

    def is_known(self, sample: ModelRequest) -> bool:
        if shape(sample) in self.answered:
            return True
        return self.chats and isinstance(sample, ChatRequest) and not own_fields(sample.params)

    def wholes(self, feature: Feature) -> dict[str, ModelRequest]:
        """By shape: a request with the limit of tokens that the run sends."""
        samples = [s for need in self.needs if need.feature is feature for s in need.samples]
        return {shape(small(s)): small(s, tokens=_NO_LESS) for s in samples}


async def _survey_model(prober: Prober, facts: ServerFacts, server: str, asked: _Asked) -> Capabilities:
    amounts = asked.amounts()
    wanted: list[Feature] = [feature for feature in Feature if feature in amounts and feature is not Feature.CONTEXT]
    findings: dict[Feature, Finding] = {}
    kinds = [feature for feature in wanted if feature in _KINDS]  # first: the others then send what the server takes
    for group in (kinds, [feature for feature in wanted if feature not in _KINDS]):
        probes = [_probe(prober, feature, amounts[feature], asked) for feature in group]
        findings.update(zip(group, await all_or_error(probes), strict=True))
    context = facts.context(asked.model)
    if Feature.CONTEXT in amounts:
        findings[Feature.CONTEXT] = _worst(_fits(need, context, facts.software) for need in asked.needs)
    requests = [need.fields for need in asked.needs if need.fields]
    return Capabilities(
        server=server,
        base_url=prober.exchange.base_url,
        model=asked.model,
        software=facts.software,
        context=context,
        findings=findings,
        unset=tuple(name for name in FILLED if any(name not in fields for fields in requests)),
        defaults=facts.defaults,
        load=(*facts.load, *(["ORCA headers"] if ORCA_HEADER in prober.seen else [])),
        thinks=prober.thinking.get(asked.model, ""),
    )


def _probe(prober: Prober, feature: Feature, amount: int, asked: _Asked) -> Coroutine[Any, Any, Finding]:
    if feature in _KINDS:
        return _accepts(prober, feature, asked)
    sample = prober.takes(asked.sample(chat=feature is not Feature.STOP))
    match feature:
        case Feature.STOP:
            return prober.stop(sample)
        case Feature.SCHEMA:
            return prober.schema(sample)
        case Feature.LOGPROBS:
            return prober.logprobs(sample, amount)
        case Feature.CHOICES:
            return prober.choices(sample, amount)
        case Feature.PREFILL:
            return prober.prefill(sample)
    raise AssertionError(feature)


async def _accepts(prober: Prober, feature: Feature, asked: _Asked) -> Finding:
    """Whether the server takes all the requests of this kind that the run will send."""
    wholes = asked.wholes(feature)
    tried = [prober.accepts(s, wholes.get(shape(s))) for s in asked.samples(feature) if not asked.is_known(s)]
    return _worst([Finding("yes"), *await all_or_error(tried)])


# --- the context ---------------------------------------------------------------------------------


def _fits(need: Need, context: int | None, software: str) -> Finding:
    if need.feature is not Feature.CONTEXT:
        return Finding("yes")
    if context is None:
        return Finding("unknown", "the server does not say how long its context is")
    if need.amount >= context:
        said = f"max_tokens {need.amount:,} of step {need.step!r} leaves no room for a prompt in {context:,} tokens"
        if software.startswith(LLAMACPP):  # takes the request, and ends the answer where the context does
            return Finding("limited", f"{said}; answers end there")
        return Finding("no", said)
    if need.amount + need.prompt_tokens > context:
        said = f"max_tokens {need.amount:,} of step {need.step!r} leaves {context - need.amount:,} tokens for prompts"
        return Finding("limited", f"{said}, and some {need.prompt_tokens:,} may be needed")
    return Finding("yes")


def _worst(findings: Iterable[Finding]) -> Finding:
    """The one with the worst state; of those, the one that says something."""
    return max(findings, key=lambda found: (("yes", "unknown", "limited", "no").index(found.state), found.said != ""))


# --- what follows --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """A need that a server does not meet, or not in full."""

    need: Need
    capabilities: Capabilities
    finding: Finding

    @property
    def is_fatal(self) -> bool:
        """Whether the step cannot work there."""
        return self.need.required and self.finding.state == "no"

    def text(self) -> str:
        """Server, step, what was asked, what was seen and what to do."""
        at = self.capabilities
        lines = [
            f"step {self.need.step!r} needs of {at.model} at {at.server} ({at.base_url}): {_WHAT[self.need.feature]}",
            f"  seen: {self.finding.said or self.finding.state}",
        ]
        if (todo := self.finding.todo or _TO_DO.get(self.need.feature)) and self.finding.state != "unknown":
            lines.append(f"  {todo}")
        return "\n".join(lines)


def lacks(found: Iterable[Capabilities], needs: Sequence[Need]) -> list[Lack]:
    """The needs that are not met in full, each on each server that is to meet it."""
    missing = []
    for capabilities in found:
        for need in needs:
            finding = capabilities.findings.get(need.feature)
            if need.feature is Feature.CONTEXT:  # each step has its own measure
                finding = _fits(need, capabilities.context, capabilities.software)
            if need.model == capabilities.model and finding is not None and finding.state != "yes":
                missing.append(Lack(need=need, capabilities=capabilities, finding=finding))
    return missing


def require(found: Iterable[Capabilities], needs: Sequence[Need]) -> None:
    """Raises ServerError, with all that is lacking, where a step cannot work on a server that is to serve it."""
    fatal = [lack for lack in lacks(found, needs) if lack.is_fatal]
    if fatal:
        raise ServerError(
            "this cannot work, and no record was sent:\n" + "\n".join(lack.text() for lack in fatal),
            hint="`asyncsynth check PIPELINE.py --servers ...` tries it without a run. Change what is named above, or "
            "leave out the servers that cannot do it.",
        )
