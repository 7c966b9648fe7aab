"""Small requests that show what a server really does, and how their answers are read.

Servers accept fields that they do not know, or know and do not follow: only an answer shows it. Each probe is made
so that a server which ignores it cannot give the right answer by chance.
"""

from __future__ import annotations

import re
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
from asyncsynth.servers.sample_requests import Remedy, own_fields, probe_fields, remedies, shape

#: "yes" it works; "limited" it works with less than was asked; "no" it does not; "unknown" the probe shows nothing.
State = Literal["yes", "limited", "no", "unknown"]

PROBE_TIMEOUT_S = 60.0  #: a busy server may let a probe wait; longer is "unknown"
ORCA_HEADER = "endpoint-load-metrics"  #: in vLLM's answers, where it was asked for load reports

_MOST_TRIES = 12  #: changed requests to find out which field a server refuses
_ABOUT_LIMIT = re.compile(r"token|limit|length|minimum|at least", re.IGNORECASE)

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
_FEW_TOKENS = 16  #: some APIs refuse less
_THINKING_TOKENS = 512  #: thoughts about a small sum mostly end before


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one probe.

    Args:
        said: the evidence, in words.
        todo: what the user can do about it, where the probe found that out.
        status: of the answer that refused it; 0 where none did.
    """

    state: State
    said: str = ""
    todo: str = field(default="", compare=False)
    status: int = field(default=0, compare=False)


@dataclass(slots=True)
class Prober:
    """Asks one server. `seen` collects what the headers of its answers show.

    Its methods take a small request of the kind that the run sends (`servers.sample_requests`) and add to its fields
    what they try, so that a probe is not refused for a field that the run leaves out.
    """

    exchange: Exchange
    dialect: Dialect = "openai"
    repeats_prefill: bool = False  #: its prefilled answers include their beginning (llama.cpp)
    seen: set[str] = field(default_factory=set)
    thinking: dict[str, str] = field(default_factory=dict)  #: by model: where an answer held a thought, if one did
    #: Models to which the run sends the user's own fields, which may turn thinking off: of these, only answers to
    #: requests with such fields tell.
    with_fields: frozenset[str] = frozenset()

    changed: dict[str, ModelRequest] = field(default_factory=dict)  #: by shape: what it takes in a refused one's place

    def takes(self, sample: ModelRequest) -> ModelRequest:
        """The sample, or what the server takes in its place."""
        return self.changed.get(shape(sample), sample)

    async def think(self, sample: ModelRequest) -> None:
        """A small sum, with room to think; `thinking` has what it shows."""
        messages: list[Message] = [{"role": "user", "content": "How much is 2 + 3? Answer with the number alone."}]
        await self._ask(ChatRequest(sample.model, messages, probe_fields(sample, _THINKING_TOKENS, {})))

    async def accepts(self, sample: ModelRequest, whole: ModelRequest | None = None) -> Finding:
        """Whether the server takes the request as it is; if not, which part it refuses and what to set.

        Args:
            whole: the same request with its own limit of tokens, for a server that refuses a small one.
        """
        answer = await self._ask(sample)
        extra = ", ".join(sorted(own_fields(sample.params)))
        taken = Finding("yes", f"takes {extra}; whether it follows them cannot be seen" if extra else "")
        if isinstance(answer, list):
            return taken
        if answer.state != "no" or answer.status not in (400, 422):
            return answer
        may_be_short = whole is not None and whole.params != sample.params and _ABOUT_LIMIT.search(answer.said)
        if whole is not None and may_be_short and isinstance(await self._ask(whole), list):
            return taken
        applied, changed = await self._remedies(sample, answer)
        if not applied:
            return answer
        self.changed[shape(sample)] = changed
        refused = " and ".join(dict.fromkeys(remedy.refused for remedy in applied))
        todo = "; ".join(remedy.setting for remedy in applied)
        return replace(answer, said=f"refuses {refused}: {answer.said}", todo=f"It answers with: {todo}")

    async def _remedies(self, request: ModelRequest, refusal: Finding) -> tuple[list[Remedy], ModelRequest]:
        """Changes with which the server answers, and the changed request; none if a dozen requests found none.

        Those that the server's words name come first. One that leads to other words is kept: a server names one field
        at a time.
        """
        applied: list[Remedy] = []
        left = _MOST_TRIES
        while True:
            words = refusal.said
            ordered = sorted(remedies(request), key=lambda remedy: remedy.named.search(words) is None)
            for remedy in ordered[:left]:
                left -= 1
                changed = remedy.change(request)
                answer = await self._ask(changed)
                if isinstance(answer, list):
                    return [*applied, remedy], changed
                is_named = remedy.named.search(words) is not None
                if answer.state == "no" and is_named and remedy.named.search(answer.said) is None:
                    applied, request, refusal = [*applied, remedy], changed, answer
                    break
            else:
                return [], request

    async def stop(self, sample: ModelRequest) -> Finding:
        """A raw completion that must end at the first blank."""
        params = probe_fields(sample, 24, {"stop": [" ", "\n"]})
        return _either(
            await self._ask(CompletionRequest(sample.model, "The names of the months are", params)), read_stop
        )

    async def schema(self, sample: ModelRequest) -> Finding:
        """A request for a poem, held to a schema that no poem fits."""
        params = probe_fields(sample, _SCHEMA_TOKENS, {})
        return _either(await self._ask(ChatRequest(sample.model, _POEM, params, _SCHEMA)), read_schema)

    async def logprobs(self, sample: ModelRequest, top: int) -> Finding:
        """A few tokens with the probabilities of their `top` alternatives."""
        params = probe_fields(sample, _FEW_TOKENS, {"logprobs": True, "top_logprobs": top})
        answer = await self._ask(ChatRequest(sample.model, _POEM, params))
        return _either(answer, lambda choices: read_logprobs(choices, top))

    async def choices(self, sample: ModelRequest, count: int) -> Finding:
        """`count` choices of a few tokens."""
        answer = await self._ask(ChatRequest(sample.model, _POEM, probe_fields(sample, _FEW_TOKENS, {"n": count})))
        if isinstance(answer, Finding):
            return answer
        if len(answer) >= count:
            return Finding("yes")
        return Finding("no", f"n={count} brought {len(answer)} choice(s)")

    async def prefill(self, sample: ModelRequest) -> Finding:
        """An answer that is begun with the first half of a code word."""
        messages: list[Message] = [
            {"role": "user", "content": f"The code is {_CODE}. Say the code and nothing else."},
            {"role": "assistant", "content": _PREFIX},
        ]
        answer = await self._ask(ChatRequest(sample.model, messages, probe_fields(sample, _FEW_TOKENS, {})))
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
        return Finding(state, f"HTTP {answer.status}: {' '.join(message.split())}"[:300], status=answer.status)


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
    """Whether the text ended at the stop text."""
    text, finish = _text(choices[0]), choices[0].get("finish_reason")
    if " " in text or "\n" in text:
        return Finding("no", f"stop is ignored: the text was {_shown(text)}")
    if finish == "stop":
        return Finding("yes")
    return Finding("unknown", f"no stop text came (finish_reason {finish}, text {_shown(text)})")


def read_prefill(choices: list[dict[str, Any]], *, repeats: bool) -> Finding:
    """Whether the answer continues the prefix, or starts over."""
    text = _text(choices[0]).lstrip()
    if text.startswith(_PREFIX):
        if repeats:
            return Finding("yes", "comes back with its beginning")
        return Finding("no", f"the answer starts over: {_shown(text)}")
    if text.startswith(_REST):
        return Finding("yes")
    return Finding("unknown", f"not clear from the answer {_shown(text)}")
