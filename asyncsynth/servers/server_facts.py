"""What a server says of itself: its software, its context, its defaults, and where it reports its load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from asyncsynth.client.concurrency import all_or_error
from asyncsynth.client.transport import Exchange, Timeouts, TransportFailure, WireResponse

_GET = Timeouts(connect=5.0, idle=10.0, total=10.0)
#: Where servers say how many tokens a sequence may have: vLLM and SGLang; OpenRouter; Groq.
_CONTEXT_KEYS = ("max_model_len", "context_length", "context_window")
#: Sampling fields that are not OpenAI's, so that requests do not hold them unless the user says so, and that
#: vLLM takes from the model's generation_config.json; with llama.cpp's name for each.
FILLED = {"min_p": "min_p", "repetition_penalty": "repeat_penalty", "top_k": "top_k"}
_LONGEST = 60  #: characters of a version
LLAMACPP = "llama.cpp"
_OWNERS = {"vllm": "vLLM", "llamacpp": LLAMACPP, "sglang": "SGLang"}


@dataclass(slots=True)
class ServerFacts:
    """What a server says of itself. `context`, of a model, is in tokens; None if it does not say."""

    software: str = ""
    contexts: dict[str, int] = field(default_factory=dict)  #: by model
    any_context: int | None = None  #: of whatever model is asked
    defaults: dict[str, Any] = field(default_factory=dict)
    load: tuple[str, ...] = ()

    def context(self, model: str) -> int | None:
        """Tokens that a sequence of `model` may have."""
        return self.contexts.get(model, self.any_context)


async def read_facts(exchange: Exchange) -> ServerFacts:
    """From /v1/models, /version (vLLM), /props (llama.cpp), /metrics and the Server header."""
    listed, version, props, metrics = await all_or_error(
        [
            _get(exchange, "/models"),
            _get(exchange, "/version", at_origin=True),
            _get(exchange, "/props", at_origin=True),
            _get(exchange, "/metrics", at_origin=True),
        ]
    )
    facts = ServerFacts()
    if metrics is not None and (b"vllm:num_requests_running" in metrics.body or b"llamacpp:" in metrics.body):
        facts.load = ("/metrics",)
    owner = ""
    entries = _json(listed).get("data")
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict):
            continue
        owner = owner or _OWNERS.get(str(entry.get("owned_by")), "")
        sizes = [entry[key] for key in _CONTEXT_KEYS if _is_size(entry.get(key))]
        if sizes:
            facts.contexts[str(entry.get("id"))] = sizes[0]
    header = listed.headers.get("server", "")[:_LONGEST] if listed is not None else ""
    number = _json(version).get("version")
    number = number[:_LONGEST] if isinstance(number, str) else None
    said = _json(props)
    settings = said.get("default_generation_settings")
    if isinstance(settings, dict) and _is_size(settings.get("n_ctx")):
        # llama.cpp: its list of models has the context the model was trained with as well; this is a slot's.
        facts.any_context = settings["n_ctx"]
        params = settings.get("params")
        params = params if isinstance(params, dict) else settings
        facts.defaults = {name: _rounded(params[theirs]) for name, theirs in FILLED.items() if theirs in params}
        build = str(said.get("build_info", ""))[:_LONGEST]
        facts.software = LLAMACPP if build.startswith("b0-") else f"{LLAMACPP} {build}".strip()  # b0: not known
    elif number is not None:
        facts.software = f"{owner or 'vLLM'} {number}" if owner or facts.load else number
    else:
        facts.software = owner or header
    return facts


async def _get(exchange: Exchange, path: str, *, at_origin: bool = False) -> WireResponse | None:
    """The answer, if there is a good one."""
    try:
        answer = await exchange.get(path, _GET, at_origin=at_origin)
    except TransportFailure:
        return None
    return answer if answer.status == 200 else None


def _json(answer: WireResponse | None) -> Mapping[str, Any]:
    try:
        found = orjson.loads(answer.body) if answer is not None else {}
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value  # its floats are single precision
