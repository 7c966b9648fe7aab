"""The requests of a run, made small to try them, and what to change in one that is refused. Pure.

A canary of our own making proves little: servers refuse a seed, a system role, `max_tokens` or a temperature. What is
tried are the sample requests of the pipeline's steps (`Need.samples`): their fields, their roles, their system prompt,
and the field that holds their limit of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import orjson

from asyncsynth.client.llm import LLM, without_system
from asyncsynth.client.messages import ChatRequest, CompletionRequest, Message, ModelRequest
from asyncsynth.client.needs import SAMPLE_SEED, Feature, Need

#: Tokens that a small request may generate. Not 1: some APIs refuse less than 16.
SMALL_TOKENS = 16
LIMITS = ("max_tokens", "max_completion_tokens")
#: Fields of OpenAI's own API, which every server knows; others may be refused.
STANDARD_FIELDS = frozenset({"temperature", "top_p", *LIMITS, "stop", "presence_penalty", "frequency_penalty", "seed"})
#: Fields that have a probe of their own (`servers.capability_probes`).
PROBED_APART = frozenset({"n", "logprobs", "top_logprobs", "response_format"})
_SYSTEM_CHARS = 2000  #: of a system prompt
_TEXTS = {"user": "Hi", "assistant": "Hello!"}


def plain_sample(model: str, *, chat: bool = True) -> ModelRequest:
    """A request of no step, with a limit and nothing else."""
    params = {"max_tokens": SMALL_TOKENS}
    if chat:
        return ChatRequest(model, [{"role": "user", "content": _TEXTS["user"]}], params)
    return CompletionRequest(model, "Once upon a time", params)


def small(request: ModelRequest, tokens: int = SMALL_TOKENS) -> ModelRequest:
    """`request` with short texts, at most `tokens` tokens to generate, and without what has a probe of its own."""
    params = {name: value for name, value in request.params.items() if name not in PROBED_APART}
    for name in LIMITS:
        if isinstance(limit := params.get(name), int):
            params[name] = min(limit, tokens)
    if isinstance(request, CompletionRequest):
        return replace(request, prompt="Once upon a time", params=params)
    messages = [_short(message) for message in request.messages]
    if messages and messages[-1]["role"] == "assistant":  # a prefill has a probe of its own
        del messages[-1]
    if not any(message["role"] == "user" for message in messages):
        messages.append({"role": "user", "content": _TEXTS["user"]})
    return replace(request, messages=messages, params=params, schema=None)


def _short(message: Message) -> Message:
    content = message.get("content")
    role = message["role"]
    text = content[:_SYSTEM_CHARS] if role not in _TEXTS and isinstance(content, str) else _TEXTS.get(role, "")
    return {"role": role, "content": text or _TEXTS["user"]}


def shape(request: ModelRequest) -> str:
    """What tells two small requests apart, for a server that takes one and refuses the other."""
    messages: list[Any] = [m["role"] for m in request.messages] if isinstance(request, ChatRequest) else []
    fields = orjson.dumps(request.params, default=repr, option=orjson.OPT_SORT_KEYS).decode()
    return f"{type(request).__name__} {request.model} {messages} {fields}"


def distinct(requests: Iterable[ModelRequest]) -> list[ModelRequest]:
    """The requests made small, each shape once."""
    return list({shape(made): made for made in map(small, requests)}.values())


def samples_of(needs: Iterable[Need], model: str, feature: Feature) -> list[ModelRequest]:
    """The small requests of one kind that the steps send to a model."""
    return distinct(s for need in needs if need.model == model and need.feature is feature for s in need.samples)


def first_samples(llms: Sequence[LLM], needs: Sequence[Need]) -> dict[str, ModelRequest]:
    """By model: the small request that shows that it answers at all: a chat, if any step chats."""
    found: dict[str, ModelRequest] = {}
    for llm in llms:
        chats = samples_of(needs, llm.model, Feature.CHAT)
        raw = samples_of(needs, llm.model, Feature.COMPLETIONS)
        asked = {need.feature for need in needs if need.model == llm.model}
        if not chats and not raw:  # a function's requests are not known before it runs
            if Feature.COMPLETIONS in asked and Feature.CHAT not in asked:
                raw = [small(llm.complete("", seed=SAMPLE_SEED))]
            else:
                chats = [small(llm.chat([], seed=SAMPLE_SEED))]
        found.setdefault(llm.model, (chats or raw)[0])
    return found


def probe_fields(sample: ModelRequest, tokens: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a probe: those of the sample, with `tokens` as their limit, and the probe's own."""
    params = {name: value for name, value in sample.params.items() if name != "stop"}
    names = [name for name in LIMITS if name in params] or ["max_tokens"]
    limits = {name: params[name] if params.get(name, 0) is None else tokens for name in names}
    return {**params, **limits, **fields}


def own_fields(params: Mapping[str, Any]) -> set[str]:
    """The fields of a request that are not OpenAI's own, such as ``chat_template_kwargs``."""
    return set(params) - STANDARD_FIELDS - PROBED_APART


# --- what to change in a refused request -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Remedy:
    """One change to a request that a server may take instead.

    Args:
        refused: the part of the request that it changes, in words.
        setting: what the user writes for it.
        named: whether an error message is about this part.
    """

    refused: str
    setting: str
    named: re.Pattern[str]
    change: Callable[[ModelRequest], ModelRequest]


def remedies(request: ModelRequest) -> Iterator[Remedy]:
    """All single changes that the settings of `LLM` allow, the least costly first."""
    params = request.params
    order = {name: place for place, name in enumerate(("seed", "top_p", *LIMITS, "temperature"))}
    for name in sorted(params, key=lambda name: (order.get(name, len(order)), name)):
        named = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])")
        if name in LIMITS:
            other = LIMITS[1 - LIMITS.index(name)]
            if isinstance(request, ChatRequest) and other not in params:
                yield Remedy(f"`{name}`", f'LLM(max_tokens_field="{other}")', named, partial(_renamed, name, other))
            yield Remedy(f"`{name}`", "LLM(max_tokens=None)", named, partial(_with_no_limit))
        elif name in STANDARD_FIELDS:
            yield Remedy(f"`{name}`", f"LLM({name}=None)", named, partial(_without, name))
        else:
            how = f"take {name} out of extra_body, or turn off what sends it"
            yield Remedy(f"`{name}`", how, named, partial(_without, name))
    if isinstance(request, ChatRequest) and any(m["role"] in ("system", "developer") for m in request.messages):
        about = re.compile(r"\b(system|developer)\b", re.IGNORECASE)
        yield Remedy("the system role", 'LLM(system_role="user")', about, _folded)


def _without(name: str, request: ModelRequest) -> ModelRequest:
    return replace(request, params={key: value for key, value in request.params.items() if key != name})


def _with_no_limit(request: ModelRequest) -> ModelRequest:
    kept = {name: value for name, value in request.params.items() if name not in LIMITS}
    return replace(request, params={**kept, "max_tokens": None})


def _renamed(name: str, other: str, request: ModelRequest) -> ModelRequest:
    params = {other if key == name else key: value for key, value in request.params.items()}
    return replace(request, params=params)


def _folded(request: ModelRequest) -> ModelRequest:
    assert isinstance(request, ChatRequest)
    renamed: list[Any] = [{**m, "role": "system"} if m["role"] == "developer" else m for m in request.messages]
    return replace(request, messages=without_system(renamed, "user"))
