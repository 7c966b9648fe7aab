"""The first contact with a server: is it there, does it take our key, which models has it, and does it really answer?

Made once per server before a run sends records, so that a wrong port or key is one clear error in the first seconds and
not a thousand failed records.

Who says which models a server has: the user first (`models:` of a fleet file, `LLM(base_url=...)`), then its list
(/v1/models), and where that cannot be used or lacks a name, a real request. So a list that fails is a note, no error:
hosted APIs answer it with 403 for restricted keys, in other shapes, or without aliases and deployments. /health is not
part of the API. It is asked only when the list fails, to tell a server that loads from one that has no usable list.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson

from asyncsynth.client.codec import Dialect, decode, encode, outcome_of, read_again
from asyncsynth.client.messages import ChatRequest, ModelRequest
from asyncsynth.client.no_answer import printable
from asyncsynth.client.reasoning import where_it_thinks
from asyncsynth.client.transport import Exchange, Timeouts, TransportFailure, WireResponse
from asyncsynth.core.outcomes import Ok, Outcome, Overloaded, Permanent, Transient
from asyncsynth.errors import ModelNotServed, ServerError, ServerRefused, ServerUnreachable
from asyncsynth.servers.model_lists import Listing, next_page, read_page
from asyncsynth.servers.sample_requests import plain_sample, shape

_LIST = Timeouts(connect=5.0, idle=10.0, total=10.0)
_HEALTH = Timeouts(connect=5.0, idle=5.0, total=5.0)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0
_SAMPLE_ATTEMPTS = 6
_FIRST_SAMPLE_WAIT_S = 0.1  #: before the second; doubled from then on
_MOST_PAGES = 50  #: of a list of models
_NO_LIST = (404, 405, 501)  #: a server that keeps none
_MAY_LOAD = (429, 500, 502, 503, 504)
_SAID = 200  #: characters of a server's words
#: What to do about a refusal, by reason.
_TODO = {
    "quota": "Wait until the quota is back, raise it, or add credit.",
    "redirect": "Set the server's base URL to the address that it names.",
}
#: What may become of a few tokens: the model did answer.
_ANSWERED = frozenset({"empty_content", "reasoning_cut", "refusal", "tool_calls"})


@dataclass(frozen=True, kw_only=True)
class ReadyPolicy:
    """How long to wait for a server, in seconds.

    Args:
        connect_s: for a first sign of life. Short: a wrong port is the usual reason.
        load_s: for a server that is up and says that it is still loading (503).
        canary_s: for the answer to a sample request; a server with a queue may need a while.
        grace_s: for servers that a run can do without, once those that it needs are ready.
        retry_s: between two attempts to reach such a server while the run continues.
        tell_s: after this long, a line says what is being waited for.
    """

    connect_s: float = 15.0
    load_s: float = 900.0
    canary_s: float = 120.0
    grace_s: float = 2.0
    retry_s: float = 5.0
    tell_s: float = 5.0


class FirstContact:
    """Questions to one server.

    Args:
        exchange: where to send them.
        key_env: the variable its key comes from, for the message when the key is refused.
        has_key: whether a key is sent.
        on_wait: gets a line when something takes longer than the policy's `tell_s`; once.
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
        on_wait: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.exchange: Exchange = exchange
        self.policy: ReadyPolicy = policy or ReadyPolicy()
        self.thinking: dict[str, str] = {}  #: by model: where its answer to `canary` held a thought, if it did
        self.answered: set[str] = set()  #: shapes of the sample requests that it answered
        self.listing: Listing = Listing(None)
        self._where = exchange.base_url
        self._key_env = key_env
        self._has_key = has_key
        self._dialect: Dialect = dialect
        self._on_wait = on_wait
        self._clock = clock
        self._sleep = sleep

    # --- is it there, and what does it list -----------------------------------------------------

    async def wait_ready(self, sample: ModelRequest | None = None) -> Listing:
        """Returns what /v1/models says once the server answers that, or a real request.

        Args:
            sample: a request that it should answer, sent only where the list and /health both fail.

        Raises:
            ServerUnreachable: no answer within `connect_s`, or still loading after `load_s`.
        """
        started = self._clock()
        pause = _FIRST_WAIT_S
        while True:
            found = await self._look(sample)
            if isinstance(found, Listing):
                self.listing = found
                return found
            left = started + found.allowed_s - self._clock()
            if left <= 0:
                raise ServerUnreachable(
                    f"no server is ready at {self._where} after {found.allowed_s:g} s ({found.said})",
                    hint="Check that it runs, and its host and port." + found.advice,
                )
            if self._clock() - started >= self.policy.tell_s:
                self._tell(f"waiting for {self._where}, up to {found.allowed_s:g} s: {found.said}")
            await self._sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_WAIT_S)

    def _tell(self, line: str) -> None:
        if self._on_wait is not None:
            self._on_wait(line)
            self._on_wait = None

    async def _look(self, sample: ModelRequest | None) -> Listing | _NotReady:
        """One round of questions: the list; if that fails, /health; if that is no help, a real request."""
        policy = self.policy
        try:
            answer = await self.exchange.get("/models", _LIST)
        except TransportFailure as failure:
            said = f"{failure.reason}: {failure.message}"
            if failure.reason == "connect":
                return _NotReady(said, policy.connect_s)
            listing = Listing(None, f"/models: {said}")
            if failure.reason != "reset":  # it is there, and what it sent was no list
                return listing
            advice = " If it speaks TLS, its URL begins with https://." if self._where.startswith("http://") else ""
            not_ready = _NotReady(said, policy.connect_s, advice)
        else:
            names = read_page(answer)
            if names is not None:
                return await self._whole_list(answer, names)
            if answer.status in _NO_LIST:
                return Listing(None, status=answer.status)
            listing = Listing(None, f"/models answered {_words(answer)}", answer.status)
            if answer.status not in _MAY_LOAD:
                return listing
            not_ready = _NotReady(f"it still answers {answer.status}", policy.load_s)
        health = await self._health()
        if health is not None and health < 400:
            return listing
        if sample is not None:
            outcome = await self._exchange_once(sample)
            if not isinstance(outcome, Overloaded) and (not isinstance(outcome, Transient) or _lives(outcome)):
                return listing
        elif health is not None and health < 500:  # it has no /health, and there is nothing else to ask
            return listing
        return not_ready

    async def _health(self) -> int | None:
        try:
            return (await self.exchange.get("/health", _HEALTH, at_origin=True)).status
        except TransportFailure:
            return None

    async def _whole_list(self, answer: WireResponse, first: list[str]) -> Listing:
        """All pages of a list that comes in several."""
        names, problem = dict.fromkeys(first), ""
        for _ in range(_MOST_PAGES):
            path = next_page(answer)
            if path is None:
                break
            try:
                answer = await self.exchange.get(path, _LIST)
            except TransportFailure as failure:
                problem = f"a further page of /models: {failure.reason}: {failure.message}"
                break
            more = read_page(answer)
            if more is None or not more or set(more) <= names.keys():
                problem = "" if more is not None else f"a further page of /models answered {_words(answer)}"
                break
            names.update(dict.fromkeys(more))
        return Listing(frozenset(names), problem, answer.status)

    # --- does it answer ---------------------------------------------------------------------------

    async def canary(self, sample: ModelRequest) -> bool:
        """Sends a request of the kind that the run sends. True if it was answered, False if the server answers but
        refuses this request as such (`capability_probes.Prober.accepts` finds out why).

        A busy server passes, and so does a model that spends the few tokens on a thought: what counts is that there is
        an answer, not its text. A model without a chat template passes (False) when it completes raw prompts.

        Raises:
            ServerRefused, ModelNotServed, ServerUnreachable, ServerError: no request would be answered.
        """
        outcome = await self._ask(sample)
        if isinstance(outcome, Ok | Overloaded) or _lives(outcome):
            if not isinstance(outcome, Overloaded):
                self.answered.add(shape(sample))
            return True
        is_refused = isinstance(outcome, Permanent) and outcome.reason not in ("auth", "quota", "redirect")
        is_refused = is_refused and outcome.status not in (401, 403)
        if is_refused and isinstance(sample, ChatRequest):
            raw = plain_sample(sample.model, chat=False)
            if _lives(await self._ask(raw)):
                self.answered.add(shape(raw))
                return False
        if is_refused and outcome.reason != "model_not_found":
            return False
        raise self._no_answer(sample.model, outcome)

    async def takes_any_name(self, sample: ModelRequest) -> bool:
        """Whether a request for a model that does not exist is answered too, so that an answer proves nothing about the
        model that was asked for (llama.cpp's server)."""
        made_up = f"asyncsynth-no-such-model-{time.time_ns():x}"
        return _lives(await self._ask(plain_sample(made_up, chat=isinstance(sample, ChatRequest))))

    async def _ask(self, request: ModelRequest) -> Outcome:
        loop = asyncio.get_running_loop()
        line = f"waiting for {self._where}: {request.model} has not answered a sample request yet"
        tell = loop.call_later(self.policy.tell_s, self._tell, line)
        try:
            outcome: Outcome = Transient("connect")
            for attempt in range(_SAMPLE_ATTEMPTS):
                if attempt:
                    await self._sleep(_FIRST_SAMPLE_WAIT_S * 2.0 ** (attempt - 1))
                outcome = await self._exchange_once(request)
                if _is_unreadable(outcome) and attempt:
                    break  # it is not HTTP that this client reads, and will not be
                # After a timeout the patience is used up; anything else transient may pass in a second.
                if not isinstance(outcome, Transient) or outcome.reason in ("timeout", "empty_content"):
                    break
            return outcome
        finally:
            tell.cancel()

    async def _exchange_once(self, request: ModelRequest) -> Outcome:
        path, body = encode(request, dialect=self._dialect)
        total = self.policy.canary_s
        try:
            answer = await self.exchange.post(path, body, Timeouts(connect=_LIST.connect, idle=total, total=total))
        except TransportFailure as failure:
            return outcome_of(failure)
        outcome = decode(request, answer.status, answer.headers, answer.body, time.time(), dialect=self._dialect)
        if _lives(outcome) and not isinstance(outcome, Overloaded) and (where := _thought_in(answer.body)):
            self.thinking[request.model] = where
        return outcome

    def _no_answer(self, model: str, outcome: Transient | Permanent) -> ServerError:
        has_list = self.listing.names is not None
        if outcome.status == 401 or (outcome.reason in ("auth", "refused") and not has_list):
            return self.key_refused(outcome.status, outcome.message)
        said = f"{model} at {self._where} did not answer a sample request: {outcome.reason}"
        said += f" (HTTP {outcome.status})" if outcome.status else ""
        said += f": {outcome.message}" if outcome.message else ""
        if outcome.reason == "model_not_found":
            return ModelNotServed(said)
        if outcome.reason == "auth" or outcome.status == 403:
            if self._has_key:
                todo = "with this key: may the key use this model?"
            else:
                wanted = f": export {self._key_env}=..." if self._key_env else ""
                todo = f"without a key, not this request. Does it want one{wanted}, and may the key use this model?"
            return ServerRefused(said, hint=f"It answers its list of models {todo}")
        if _is_unreadable(outcome):
            return ServerUnreachable(said, hint="Is this an HTTP/1.1 server? A proxy before it may damage its answers.")
        if outcome.reason in ("connect", "reset", "timeout", "truncated"):
            return ServerUnreachable(said)
        if outcome.reason in _TODO:
            return ServerError(said, hint=_TODO[outcome.reason])
        return ServerError(said, hint="If the server is yours, its own log says more.")

    def key_refused(self, status: int | None, words: str = "") -> ServerRefused:
        """The error for a key that is wrong or missing."""
        if not self._has_key:
            todo = f"It wants a key: export {self._key_env}=..." if self._key_env else "It wants a key."
        else:
            todo = f"Check the key in {self._key_env}." if self._key_env else "Check the key."
        state = "refused the API key" if self._has_key else "wants an API key, and none was sent"
        said = f": {words[:_SAID]}" if words else ""
        return ServerRefused(f"{self._where} {state} (HTTP {status}){said}", hint=todo)


def _is_unreadable(outcome: Outcome) -> bool:
    """Whether what came is not HTTP/1.1: waiting does not help."""
    return isinstance(outcome, Transient) and outcome.reason == "protocol"


@dataclass(frozen=True, slots=True)
class _NotReady:
    said: str
    allowed_s: float
    advice: str = ""


def _lives(outcome: Outcome) -> bool:
    """Whether this is the answer of a server that works. A few tokens may be blank, or a thought; a full queue is no
    fault."""
    return isinstance(outcome, Ok | Overloaded) or (outcome.paid and outcome.reason in _ANSWERED)


def _thought_in(body: bytes) -> str:
    """Where an answer that the codec has read holds a thought."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:  # NaN and the like
        answer = read_again(body)[0]
    choices = answer.get("choices") if isinstance(answer, dict) else None
    return next((where for choice in choices or [] if (where := where_it_thinks(choice))), "")


def _words(answer: WireResponse) -> str:
    """Status and the beginning of the body, in one line."""
    where = answer.headers.get("location", "") if 300 <= answer.status < 400 else ""
    text = f"to {where}" if where else " ".join(answer.body[: 4 * _SAID].decode("utf-8", "replace").split())[:_SAID]
    return f"{answer.status}" + (f" ({printable(text)})" if text else "")
