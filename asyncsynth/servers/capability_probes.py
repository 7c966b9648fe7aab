"""Small requests that show what a server really does, and how their answers are read.

Servers accept fields that they do not know, or know and do not follow: only an answer tells. Each probe is made
so that a server which ignores it cannot give the right answer by chance.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

from asyncsynth.client.codec import Dialect, decode, encode
from asyncsynth.client.messages import ChatRequest, CompletionRequest, Message, ModelRequest
from asyncsynth.client.reasoning import separate, where_it_thinks
from asyncsynth.client.transport import Exchange, Timeouts, TransportFailure
from asyncsynth.core.outcomes import Permanent, Transient
from asyncsynth.errors import RequestFailed

#: "yes" it works; "limited" it works with less than was asked; "no" it does not; "unknown" it could not be told.
State = Literal["yes", "limited", "no", "unknown"]

PROBE_TIMEOUT_S = 60.0  #: a busy server may let a probe wait; longer is "unknown"
ORCA_HEADER = "endpoint-load-metrics"  #: in vLLM's answers, where it was asked for load reports

#: Fields of OpenAI's own API, which every server knows; others may be refused.
STANDARD_FIELDS = frozenset(
    {"temperature", "top_p", "max_tokens", "stop", "presence_penalty", "frequency_penalty", "seed"}
)
#: Fields that have a probe of their own.
_PROBED_APART = frozenset({"n", "logprobs", "top_logprobs", "response_format", "max_completion_tokens"})

_CODE = "zq-17"  # no model says this unless it has to
_SCHEMA = {
    "type": "object",
    "properties": {"probe": {"type": "string", "enum": [_CODE]}},
    "required": ["probe"],
    "additionalProperties": False,
}
_WHOLE = orjson.dumps({"probe": _CODE}).decode()
_SCHEMA_TOKENS = 64
_POEM: list[Message] = [{"role": "user", "content": "Write a short poem about the sea."}]
_PREFIX, _REST = "zq-", "17"
_SHOWN = 80
_THINKING_TOKENS = 512  #: thoughts about a small sum mostly end before


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one probe; `said` is the evidence, in words."""

    state: State
    said: str = ""


@dataclass(slots=True)
class Prober:
    """Asks one server. `seen` collects what its answers' headers tell beside."""

    exchange: Exchange
    dialect: Dialect = "openai"
    repeats_prefill: bool = False  #: it gives a prefilled answer back with its beginning (llama.cpp)
    seen: set[str] = field(default_factory=set)
    thinking: dict[str, str] = field(default_factory=dict)  #: by model: where an answer held a thought, if one did
    #: Models to which the run sends the user's own fields, which may turn thinking off: of these, only answers to
    #: requests with such fields tell.
    with_fields: frozenset[str] = frozenset()

    async def think(self, model: str, fields: Mapping[str, Any]) -> None:
        """A small sum, with the fields that the run will send and room to think; `thinking` has what it shows."""
        sent = {name: value for name, value in fields.items() if name not in _PROBED_APART}
        messages: list[Message] = [{"role": "user", "content": "How much is 2 + 3? Answer with the number alone."}]
        await self._ask(ChatRequest(model, messages, {**sent, "max_tokens": _THINKING_TOKENS}))

    async def chat(self, model: str, fields: Mapping[str, Any]) -> Finding:
        """A one-token chat with the fields that the run will send."""
        return await self._with_fields(ChatRequest(model, [{"role": "user", "content": "Hi"}]), fields)

    async def completions(self, model: str, fields: Mapping[str, Any]) -> Finding:
        """A one-token raw completion with the fields that the run will send."""
        return await self._with_fields(CompletionRequest(model, "Once upon a time"), fields)

    async def _with_fields(self, request: ModelRequest, fields: Mapping[str, Any]) -> Finding:
        sent = {name: value for name, value in fields.items() if name not in _PROBED_APART} | {"max_tokens": 1}
        first = await self._ask(replace(request, params=sent))
        extra = sorted(set(sent) - STANDARD_FIELDS)
        if isinstance(first, list):
            told = f"takes {', '.join(extra)}; whether it follows them cannot be seen" if extra else ""
            return Finding("yes", told)
        if first.state != "no" or not extra:
            return first
        plain = {name: value for name, value in sent.items() if name in STANDARD_FIELDS}
        second = await self._ask(replace(request, params=plain))
        if isinstance(second, list):
            return Finding("no", f"refuses one of the fields {', '.join(extra)}: {first.said}")
        return first

    async def stop(self, model: str) -> Finding:
        """A raw completion that must end at the first blank."""
        params = {"max_tokens": 24, "temperature": 0.0, "stop": [" ", "\n"]}
        return _either(await self._ask(CompletionRequest(model, "The names of the months are", params)), read_stop)

    async def schema(self, model: str) -> Finding:
        """A request for a poem, held to a schema that no poem fits."""
        params = {"max_tokens": _SCHEMA_TOKENS, "temperature": 0.0}
        return _either(await self._ask(ChatRequest(model, _POEM, params, _SCHEMA)), read_schema)

    async def logprobs(self, model: str, top: int) -> Finding:
        """Two tokens with the probabilities of their `top` alternatives."""
        params = {"max_tokens": 2, "temperature": 0.0, "logprobs": True, "top_logprobs": top}
        answer = await self._ask(ChatRequest(model, _POEM, params))
        return _either(answer, lambda choices: read_logprobs(choices, top))

    async def choices(self, model: str, count: int) -> Finding:
        """`count` choices of one token."""
        answer = await self._ask(ChatRequest(model, _POEM, {"max_tokens": 1, "n": count}))
        if isinstance(answer, Finding):
            return answer
        if len(answer) >= count:
            return Finding("yes")
        return Finding("no", f"n={count} brought {len(answer)} choice(s)")

    async def prefill(self, model: str) -> Finding:
        """An answer that is begun with the first half of a code word."""
        messages: list[Message] = [
            {"role": "user", "content": f"The code is {_CODE}. Say the code and nothing else."},
            {"role": "assistant", "content": _PREFIX},
        ]
        answer = await self._ask(ChatRequest(model, messages, {"max_tokens": 8, "temperature": 0.0}))
        found = _either(answer, lambda choices: read_prefill(choices, repeats=self.repeats_prefill))
        if found.state == "yes" and self.repeats_prefill and self.dialect != "llamacpp":
            return Finding("limited", "the answer comes back with its beginning")
        return found

    async def _ask(self, request: ModelRequest) -> list[dict[str, Any]] | Finding:
        """The answer's choices, or what came in their place."""
        timeouts = Timeouts(connect=5.0, idle=PROBE_TIMEOUT_S, total=PROBE_TIMEOUT_S)
        try:
            path, body = encode(request, dialect=self.dialect)
            answer = await self.exchange.post(path, body, timeouts)
        except RequestFailed as refused:  # by the dialect, before sending
            return Finding("no", refused.message)
        except TransportFailure as failure:
            return Finding("unknown", f"{failure.reason}: {failure.message}"[:300])
        if ORCA_HEADER in answer.headers:
            self.seen.add(ORCA_HEADER)
        if answer.status == 200:
            choices = _choices_in(answer.body)
            is_as_sent = request.model not in self.with_fields or own_fields(request.params)
            if is_as_sent and isinstance(choices, list) and (where := where_it_thinks(choices[0])):
                self.thinking[request.model] = where
            return choices
        outcome = decode(request, answer.status, answer.headers, answer.body, time.time(), dialect=self.dialect)
        message = outcome.message if isinstance(outcome, Permanent | Transient) else "it is busy"
        # What may pass (a full queue, a fault of the moment) proves nothing.
        state: State = "no" if isinstance(outcome, Permanent) else "unknown"
        return Finding(state, f"HTTP {answer.status}: {' '.join(message.split())}"[:300])


def own_fields(params: Mapping[str, Any]) -> set[str]:
    """The fields of a request that are not OpenAI's own, such as ``chat_template_kwargs``."""
    return set(params) - STANDARD_FIELDS - _PROBED_APART


def _either(answer: list[dict[str, Any]] | Finding, read: Any) -> Finding:
    if isinstance(answer, Finding):
        return answer
    try:
        if _still_thinks(answer[0]):
            return Finding("unknown", "the model spent the probe's tokens on thinking")
        found: Finding = read(answer)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return Finding("unknown", f"not a completion ({type(error).__name__}: {error})")
    return found


def _choices_in(body: bytes) -> list[dict[str, Any]] | Finding:
    try:
        choices = orjson.loads(body)["choices"]
        if choices and all(isinstance(choice, dict) for choice in choices):
            return list(choices)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        pass
    return Finding("unknown", f"not a completion: {body[:_SHOWN].decode('utf-8', 'replace')!r}")


def _text(choice: Mapping[str, Any]) -> str:
    text = choice["message"].get("content") if "message" in choice else choice["text"]
    return separate(text).answer if isinstance(text, str) else ""


def _still_thinks(choice: Mapping[str, Any]) -> bool:
    """Whether the answer ends within the model's thought, so that it shows nothing."""
    return choice.get("finish_reason") == "length" and not _text(choice) and where_it_thinks(choice) != ""


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")


def read_schema(choices: list[dict[str, Any]]) -> Finding:
    """Whether the answer is the one JSON object that the schema allows, or was on its way to it."""
    text, finish = _text(choices[0]), choices[0].get("finish_reason")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        packed = "".join(text.split())
        if finish == "length" and packed and _WHOLE.startswith(packed):
            said = f"constrained, but filled with blanks: {_SCHEMA_TOKENS} tokens were not enough"
            return Finding("limited", f"{said} (vLLM: structured-outputs-config disable_any_whitespace)")
        if not packed:
            return Finding("unknown", f"the answer is blank (finish_reason {finish})")
        return Finding("no", f"response_format is ignored: the answer was {_shown(text)}")
    if value == {"probe": _CODE}:
        return Finding("yes")
    return Finding("no", f"response_format gives JSON, but not of the schema: {_shown(text)}")


def read_logprobs(choices: list[dict[str, Any]], top: int) -> Finding:
    """How many alternatives come with each token."""
    logprobs = choices[0].get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not tokens:
        return Finding("no", "the answer has no logprobs")
    least = min(len(token.get("top_logprobs") or []) for token in tokens)
    if least >= top:
        return Finding("yes", f"{least} a token")
    if least == 0:
        return Finding("no", "logprobs come without top_logprobs")
    return Finding("limited", f"{least} of {top} top_logprobs a token")


def read_stop(choices: list[dict[str, Any]]) -> Finding:
    """Whether the text ended where it was told to."""
    text, finish = _text(choices[0]), choices[0].get("finish_reason")
    if " " in text or "\n" in text:
        return Finding("no", f"stop is ignored: the text was {_shown(text)}")
    if finish == "stop":
        return Finding("yes")
    return Finding("unknown", f"no stop text came (finish_reason {finish}, text {_shown(text)})")


def read_prefill(choices: list[dict[str, Any]], *, repeats: bool) -> Finding:
    """Whether the answer goes on from the prefix, or begins anew."""
    text = _text(choices[0]).lstrip()
    if text.startswith(_PREFIX):
        if repeats:
            return Finding("yes", "comes back with its beginning")
        return Finding("no", f"the answer begins anew: {_shown(text)}")
    if text.startswith(_REST):
        return Finding("yes")
    return Finding("unknown", f"cannot be told from the answer {_shown(text)}")
