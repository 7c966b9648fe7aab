"""Is a server there, does it take our key, does it serve the model, and does it really answer?

Asked once per server before a run sends anything, so that a wrong port or key is one clear error in the first
seconds and not a thousand failed records.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import orjson

from asyncsynth.client.codec import Dialect, decode, encode, outcome_of, read_again
from asyncsynth.client.messages import ChatRequest, CompletionRequest, ModelRequest
from asyncsynth.client.reasoning import where_it_thinks
from asyncsynth.client.transport import Exchange, Timeouts, TransportFailure, WireResponse
from asyncsynth.core.outcomes import Ok, Outcome, Overloaded, Permanent, Transient
from asyncsynth.errors import ModelNotServed, ServerError, ServerRefused, ServerUnreachable

_PROBE = Timeouts(connect=5.0, idle=10.0, total=10.0)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0
_CANARY_ATTEMPTS = 3
#: What may become of one token: the model did answer.
_ANSWERED = frozenset({"empty_content", "reasoning_cut", "refusal", "tool_calls"})


@dataclass(frozen=True, kw_only=True)
class ReadyPolicy:
    """How long to wait for a server, in seconds.

    Args:
        connect_s: for a first sign of life. Short: a wrong port is the usual reason.
        load_s: for a server that is up and says that it is still loading (503).
        canary_s: for the answer to the one-token request; a server with a queue may need a while.
        grace_s: for servers that a run can do without, once those that it needs are ready.
        retry_s: between two attempts to reach such a server while the run goes on.
    """

    connect_s: float = 15.0
    load_s: float = 900.0
    canary_s: float = 120.0
    grace_s: float = 2.0
    retry_s: float = 5.0


class Probe:
    """Questions to one server.

    Args:
        exchange: where to send them.
        key_env: the variable its key comes from, for the message when the key is refused.
        has_key: whether a key is sent.
        clock, sleep: seconds; tests hand in virtual ones.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        key_env: str = "",
        has_key: bool = False,
        dialect: Dialect = "openai",
        policy: ReadyPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._exchange = exchange
        self._where = exchange.base_url
        self._key_env = key_env
        self._has_key = has_key
        self._dialect: Dialect = dialect
        self._policy = policy or ReadyPolicy()
        self._clock = clock
        self._sleep = sleep
        self.thinking: dict[str, str] = {}  #: by model: where its answer to `canary` held a thought, if it did

    async def wait_ready(self) -> None:
        """Return once /health says so, or once the server turns out to have no /health.

        Raises:
            ServerUnreachable: no answer within `connect_s`, or still loading after `load_s`.
        """
        started = self._clock()
        pause = _FIRST_WAIT_S
        while True:
            try:
                answer = await self._exchange.get("/health", _PROBE, at_origin=True)
                if answer.status not in (500, 502, 503, 504):
                    return
                said, allowed = f"it still answers {answer.status}", self._policy.load_s
            except TransportFailure as failure:
                said, allowed = f"{failure.reason}: {failure.message}", self._policy.connect_s
            left = started + allowed - self._clock()
            if left <= 0:
                raise ServerUnreachable(
                    f"no server is ready at {self._where} after {allowed:g} s ({said})",
                    hint="Check that it runs, and its host and port.",
                )
            await self._sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_WAIT_S)

    async def models(self) -> tuple[str, ...] | None:
        """The names it serves, from /v1/models; None where a server keeps no such list.

        Raises:
            ServerRefused: the key is wrong or missing.
            ServerUnreachable, ServerError: no answer, or one that is not this list.
        """
        try:
            answer = await self._exchange.get("/models", _PROBE)
        except TransportFailure as failure:
            raise ServerUnreachable(f"{self._where}/models: {failure.reason}: {failure.message}") from failure
        if answer.status in (401, 403):
            raise self._key_refused(answer.status)
        if answer.status in (404, 405, 501):
            return None
        names = _model_names(answer)
        if names is None:
            raise ServerError(
                f"{self._where}/models answered {answer.status} without a list of models",
                hint="Is this an OpenAI-compatible server, and does its base URL end in /v1?",
            )
        return names

    async def canary(self, model: str) -> bool:
        """One token from `model`: what a run sends will be answered. True when it answered as a chat.

        A busy server passes, and so does a model whose one token is a thought. A model without a chat template
        passes when it completes raw prompts.

        Raises:
            ServerRefused, ModelNotServed, ServerUnreachable, ServerError: it would not have been.
        """
        chat = ChatRequest(model, [{"role": "user", "content": "Hi"}], {"max_tokens": 1, "temperature": 0.0})
        outcome = await self._ask(chat)
        chats = _lives(outcome) and not isinstance(outcome, Overloaded)
        if isinstance(outcome, Permanent) and outcome.reason in ("bad_request", "model_not_found"):
            raw = CompletionRequest(model, "Hi", {"max_tokens": 1, "temperature": 0.0})
            second = await self._ask(raw)
            outcome = second if _lives(second) else outcome
        if _lives(outcome):
            return chats
        assert isinstance(outcome, Transient | Permanent)
        if outcome.reason == "auth" or (outcome.reason == "refused" and not self._has_key):
            raise self._key_refused(outcome.status)
        said = f"{model} at {self._where} did not answer a one-token request: {outcome.reason}"
        said += f" (HTTP {outcome.status})" if outcome.status else ""
        said += f": {outcome.message}" if outcome.message else ""
        if outcome.reason == "model_not_found":
            raise ModelNotServed(said)
        if outcome.reason in ("connect", "reset", "timeout"):
            raise ServerUnreachable(said)
        raise ServerError(said, hint="The server's own log says more.")

    async def _ask(self, request: ModelRequest) -> Outcome:
        path, body = encode(request, dialect=self._dialect)
        total = self._policy.canary_s
        timeouts = Timeouts(connect=_PROBE.connect, idle=total, total=total)
        outcome: Outcome = Transient("connect")
        for attempt in range(_CANARY_ATTEMPTS):
            if attempt:
                await self._sleep(2.0 ** (attempt - 1))
            try:
                answer = await self._exchange.post(path, body, timeouts)
                outcome = decode(
                    request, answer.status, answer.headers, answer.body, time.time(), dialect=self._dialect
                )
            except TransportFailure as failure:
                outcome = outcome_of(failure)
            # After a timeout the patience is used up; anything else transient may pass in a second.
            if not isinstance(outcome, Transient) or outcome.reason in ("timeout", "empty_content"):
                if _lives(outcome) and not isinstance(outcome, Overloaded) and (where := _thought_in(answer.body)):
                    self.thinking[request.model] = where
                break
        return outcome

    def _key_refused(self, status: int | None) -> ServerRefused:
        if not self._has_key:
            todo = f"It wants a key: export {self._key_env}=..." if self._key_env else "It wants a key."
        else:
            todo = f"Check the key in {self._key_env}." if self._key_env else "Check the key."
        state = "refused the API key" if self._has_key else "wants an API key, and none was sent"
        return ServerRefused(f"{self._where} {state} (HTTP {status})", hint=todo)


def not_served(models: Iterable[str], served: Iterable[str], *, searched: str, how: str = "asked") -> ModelNotServed:
    """The error for models that no server offers, with what there is and the ways out.

    Args:
        searched: the servers, or the files, and `how` they were.
    """
    names = sorted(set(served))
    missing = sorted(set(models))
    lines = [f"no server serves the model{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}"]
    if searched:
        lines.append(f"  {how}: {searched}")
    if names:
        lines.append(f"  served: {', '.join(names)}")
    ways = [
        f"Did you mean {near!r}{f' for {model!r}' if len(missing) > 1 else ''}?"
        for model in missing
        if (near := _nearest(model, names))
    ]
    them = "them" if len(missing) > 1 else "it"
    ways.append(f"Start {them} and pass --servers URL|FILE|DIR, set ASYNCSYNTH_SERVERS, or give LLM(base_url=...).")
    ways.append("To try the pipeline now: --embedded answers with a small model on this CPU.")
    return ModelNotServed("\n".join(lines), hint="\n  ".join(ways))


def _nearest(model: str, names: Sequence[str]) -> str | None:
    """The served name that was probably meant."""
    near = get_close_matches(model, names, n=1, cutoff=0.6)
    if not near:  # the same model under another owner, or without one
        short = model.rpartition("/")[2].lower()
        near = [name for name in names if name.rpartition("/")[2].lower() == short]
    return near[0] if near else None


def _lives(outcome: Outcome) -> bool:
    """Whether this is the answer of a server that works. One token may be blank, or a thought; a full queue is no
    fault."""
    return isinstance(outcome, Ok | Overloaded) or (outcome.paid and outcome.reason in _ANSWERED)


def _thought_in(body: bytes) -> str:
    """Where an answer that the codec has read holds a thought."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:  # NaN and the like
        answer = read_again(body)[0]
    return next((where for choice in answer.get("choices") or [] if (where := where_it_thinks(choice))), "")


def _model_names(answer: WireResponse) -> tuple[str, ...] | None:
    try:
        return tuple(str(entry["id"]) for entry in orjson.loads(answer.body)["data"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
