"""What requests need of a server beyond an answer, so that it can be tested before a run pays for anything.

A step declares this by sample requests (`tasks.base.Task.sample_requests`); `servers.capabilities` tests it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from asyncsynth.client.codec import DEFAULT_MAX_TOKENS
from asyncsynth.client.messages import ChatRequest, ModelRequest

#: Characters per token in English, roughly; low, so that a prompt's length is overestimated rather than underestimated.
CHARS_PER_TOKEN = 4
#: In a sample request, takes the place of the seed that each request of a run has: the largest one there is.
SAMPLE_SEED = 2**31 - 1
#: Tokens assumed for a row's own text, if nothing is known of the rows.
ROW_TOKENS = 256


class Feature(StrEnum):
    """An ability that some servers have and others lack."""

    CHAT = "chat"  #: /v1/chat/completions, with the request's own fields
    COMPLETIONS = "completions"  #: /v1/completions, likewise
    STOP = "stop"  #: raw completions end at `stop` texts
    SCHEMA = "schema"  #: `response_format` with a JSON schema constrains the answer
    LOGPROBS = "logprobs"  #: token probabilities; the amount is `top_logprobs`
    CHOICES = "n"  #: several choices in an answer; the amount is `n`
    PREFILL = "prefill"  #: the server continues an assistant message at the end
    CONTEXT = "context"  #: the amount is `max_tokens`; the prompt is extra


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One thing that a step needs of the servers of one model.

    Args:
        step, model: the step that needs it, of the servers of this model.
        feature, amount: what, and how much of it (see `Feature`).
        required: whether the step cannot work without it. Otherwise the run notes the lack and continues.
        prompt_tokens: for `Feature.CONTEXT`: the prompt's size, estimated, with an allowance for the row.
        fields: for `Feature.CHAT` and `Feature.COMPLETIONS`: the request fields that are sent.
        samples: for these two: the sample requests themselves.
    """

    step: str
    model: str
    feature: Feature
    amount: int = 1
    required: bool = True
    prompt_tokens: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)
    samples: tuple[ModelRequest, ...] = field(default=(), compare=False, repr=False)


def features_of(request: ModelRequest) -> dict[Feature, int]:
    """The features that a request needs, with amounts."""
    params = request.params
    limit = params.get("max_tokens") or params.get("max_completion_tokens") or DEFAULT_MAX_TOKENS
    found = {Feature.CONTEXT: int(limit)}
    if (params.get("n") or 1) > 1:
        found[Feature.CHOICES] = int(params["n"])
    if not isinstance(request, ChatRequest):
        found[Feature.COMPLETIONS] = 1
        if params.get("stop"):
            found[Feature.STOP] = 1
        return found
    found[Feature.CHAT] = 1
    if request.schema is not None or (params.get("response_format") or {}).get("type") == "json_schema":
        found[Feature.SCHEMA] = 1
    if params.get("logprobs"):
        found[Feature.LOGPROBS] = max(1, int(params.get("top_logprobs") or 0))
    if request.messages and request.messages[-1]["role"] == "assistant":
        found[Feature.PREFILL] = 1
    return found


def needs_of(
    requests: Iterable[ModelRequest], *, step: str, optional: frozenset[Feature] = frozenset()
) -> tuple[Need, ...]:
    """The needs behind sample requests: one for each model and feature, with the largest amount."""
    found: dict[tuple[str, Feature], Need] = {}
    for request in requests:
        for feature, amount in features_of(request).items():
            before = found.get((request.model, feature))
            fields: dict[str, Any] = dict(before.fields) if before is not None else {}
            samples = before.samples if before is not None else ()
            if feature in (Feature.CHAT, Feature.COMPLETIONS):
                fields.update(request.params)
                samples = (*samples, request)
            prompt = _prompt_tokens(request) if feature is Feature.CONTEXT else 0
            found[request.model, feature] = Need(
                step=step,
                model=request.model,
                feature=feature,
                amount=max(amount, before.amount if before is not None else 0),
                required=feature not in optional,
                prompt_tokens=max(prompt, before.prompt_tokens if before is not None else 0),
                fields=fields,
                samples=samples,
            )
    return tuple(found.values())


def _prompt_tokens(request: ModelRequest) -> int:
    if isinstance(request, ChatRequest):
        chars = sum(len(message.get("content") or "") for message in request.messages)
    else:
        chars = len(request.prompt)
    return ROW_TOKENS + chars // CHARS_PER_TOKEN
