"""The pool's servers: the configuration of each, its reported load, and its statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from zlib import crc32

from asyncsynth.client.codec import DEFAULT_MAX_TOKENS, Dialect, decode, encode, outcome_of
from asyncsynth.client.loads import RARE_POLL_S, LoadPoller, header_load
from asyncsynth.client.messages import ChatRequest, CompletionRequest, ModelRequest
from asyncsynth.client.transport import DEFAULT_TIMEOUTS, NEVER_S, Exchange, Timeouts, TransportFailure, WireResponse
from asyncsynth.core.limiter import FixedLimit, Limiter
from asyncsynth.core.outcomes import Outcome, ServerLoad
from asyncsynth.core.rates import RateLimits
from asyncsynth.core.replica_state import LOAD_FRESH_S, ReplicaSnapshot, ReplicaSpec
from asyncsynth.core.stats import Histogram, Tally

ANY_MODEL = "*"  #: the scheduler's name for a model that no server offers by name
HEADER_EVERY_S = 0.05  #: an answer's load header is read at most this often, per server
#: Prompt heads are compared by this many characters, and only if they share at least this many: a server reads a
#: shorter head as fast as it finds it in its cache.
_HEAD_CHARS, _LEAST_HEAD = 4096, 1024


@dataclass(slots=True)
class Server:
    """One place where models are served.

    `limit` bounds its requests in flight. `serves_any` is the display name of the model that answers whatever
    model is asked for (the embedded server); None for servers that answer for `models` only.
    """

    name: str
    base_url: str
    models: frozenset[str]
    exchange: Exchange
    limit: int = 64
    dialect: Dialect = "openai"
    serves_any: str | None = None
    limiter: Limiter | None = None  #: in place of FixedLimit(limit)
    rates: RateLimits | None = None  #: requests and tokens a minute that it allows
    request_timeout: float | None = None  #: seconds for each whole answer; None: no limit while the server progresses

    def spec(self) -> ReplicaSpec:
        """The server as the scheduler knows it."""
        models = self.models if self.serves_any is None else self.models | {ANY_MODEL}
        return ReplicaSpec(self.name, models, self.limiter or FixedLimit(self.limit), self.rates)


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """The pool now, and its totals since it was made."""

    replicas: list[ReplicaSnapshot]
    waiting: int  #: requests waiting for a slot anywhere
    ok: int  #: requests answered
    failed: int  #: requests given up, each a record's failure
    retries: dict[str, int]  #: attempts that were followed by another, by reason; 429/503/529 as "overloaded"
    overloads: int
    prompt_tokens: int
    completion_tokens: int
    answered_by: dict[str, int]  #: model that answered, as its server names it -> requests
    latency: Histogram  #: seconds, of attempts that answered
    wasted: int = 0  #: answers that were generated and paid for, but are useless; their tokens are in the sums
    #: requests that were given up without an answer, by cause: "request_timeout" (the user's deadline), "hung", "lost"
    given_up: dict[str, int] = field(default_factory=dict)
    waits: str = ""  #: why requests wait for anything other than a slot; '' if none does

    @property
    def paid(self) -> int:
        """Answers that servers generated, useful or not."""
        return self.ok + self.wasted


@dataclass(slots=True)
class Totals:
    """What a pool counts."""

    ok: int = 0
    failed: int = 0
    wasted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: Tally = field(default_factory=Tally)
    given_up: Tally = field(default_factory=Tally)
    answered_by: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)


class Link:
    """A server of a pool, with what it said of its load. `report` is called with each new load."""

    __slots__ = (
        "answers_as",
        "load",
        "names",
        "poller",
        "read_at",
        "refused",
        "report",
        "server",
        "timeouts",
        "unusable",
    )

    def __init__(self, server: Server, report: Callable[[str, ServerLoad], None]) -> None:
        self.server: Server = server
        self.report: Callable[[str, ServerLoad], None] = report
        self.load: ServerLoad | None = None
        self.refused: ModelRequest | None = None  #: the last request whose refusal may concern all requests
        self.read_at: float = float("-inf")  #: when a header is read again
        self.poller: LoadPoller | None = None
        self.answers_as: dict[str, str] = {}  #: model that is asked for -> how the server names itself in answers
        self.names: dict[str, set[str]] = {}  #: model that is asked for -> all names in its answers, where they differ
        self.unusable: bool = False  #: it answers under another model's name
        self.timeouts: Timeouts = request_timeouts(server)

    def start(self, clock: Callable[[], float]) -> None:
        """Start polling the server's load, if it may report one."""
        if self.poller is None and self.server.serves_any is None:
            self.poller = LoadPoller(self.server.exchange, self._told, clock=clock)
            self.poller.start()

    async def stop(self) -> None:
        """Stop polling."""
        if self.poller is not None:
            await self.poller.stop()

    def hear(self, headers: Mapping[str, str], now: float) -> None:
        """Read the load in an answer's headers."""
        self.read_at = now + HEADER_EVERY_S
        load = header_load(headers, now)
        if load is not None:
            if self.poller is not None:
                self.poller.every_s = RARE_POLL_S
            self._told(load)

    def with_load(self, replica: ReplicaSnapshot, now: float | None) -> ReplicaSnapshot:
        """The same with the server's load, if that is fresh."""
        load = self.load
        if load is None or now is None or now - load.at > LOAD_FRESH_S:
            return replica
        return replace(replica, load=load)

    def _told(self, load: ServerLoad) -> None:
        self.load = load
        self.report(self.server.name, load)


def request_timeouts(server: Server) -> Timeouts:
    """Deadlines of the server's requests: only those that the user set.

    How long an answer takes depends on the server's queue. `core.silence` finds out whether a silent server hangs.
    """
    own = server.exchange.timeouts
    if server.request_timeout is not None:
        return Timeouts(own.connect, server.request_timeout, server.request_timeout)
    if own != DEFAULT_TIMEOUTS:  # of an HTTP client of the user's
        return own
    return Timeouts(own.connect, NEVER_S, NEVER_S)


async def answers(server: Server, timeout_s: float) -> bool:
    """True if the server answers a request for one token within this many seconds; an overload response counts."""
    try:
        answer = await _post_within(server, _one_token(min(server.models)), timeout_s)
    except TransportFailure:
        return False
    return answer.status < 500 or answer.status in (503, 529)


async def canary_outcome(link: Link, timeout_s: float, now_wall: float) -> Outcome:
    """The outcome of a harmless request of one token, of the kind and for the model of the one last refused."""
    server, refused = link.server, link.refused
    request = _one_token(min(server.models)) if refused is None else _one_token(refused.model, like=refused)
    try:
        answer = await _post_within(server, request, timeout_s)
    except TransportFailure as failure:
        return outcome_of(failure)
    return decode(request, answer.status, answer.headers, answer.body, now_wall, dialect=server.dialect)


def _one_token(model: str, *, like: ModelRequest | None = None) -> ModelRequest:
    """A request for one token; a chat, or of the kind of `like` and with its name for the limit."""
    # Some models accept only one of these names.
    limit = "max_completion_tokens" if like is not None and like.params.get("max_completion_tokens") else "max_tokens"
    if isinstance(like, CompletionRequest):
        return CompletionRequest(model, "Hi", {limit: 1})
    return ChatRequest(model, [{"role": "user", "content": "Hi"}], {limit: 1})


async def _post_within(server: Server, request: ModelRequest, timeout_s: float) -> WireResponse:
    path, body = encode(request, dialect=server.dialect)
    return await server.exchange.post(path, body, Timeouts(min(10.0, timeout_s), timeout_s, timeout_s))


def prompt_head(request: ModelRequest) -> int:
    """A number that requests with the same prompt head share, in every process; 0 if the head is too short to matter.

    The first two messages of a conversation count, so that its later turns go where the first went.
    """
    if isinstance(request, ChatRequest):
        messages = request.messages
        size = len(messages[0].get("content") or "") if messages else 0
        if len(messages) > 1:
            size += len(messages[1].get("content") or "")
        if size < _LEAST_HEAD:  # the usual case, and cheap to check
            return 0
    texts = _texts(request, 2)
    if sum(map(len, texts)) < _LEAST_HEAD:
        return 0
    head = 0
    for text in texts:  # not hash(), which differs between processes: they must agree on a server
        head = crc32(text[:_HEAD_CHARS].encode("utf-8", "surrogatepass"), head)
    return head or 1


def estimated_tokens(request: ModelRequest) -> int:
    """Estimated tokens of the request: one for each four characters of the prompt, plus all that it may generate."""
    params = request.params
    most: int = params.get("max_tokens") or params.get("max_completion_tokens") or DEFAULT_MAX_TOKENS
    return sum(map(len, _texts(request, None))) // 4 + most


def _texts(request: ModelRequest, messages: int | None) -> list[str]:
    """The prompt's texts, of at most this many messages. Only text counts."""
    if not isinstance(request, ChatRequest):
        return [request.prompt]
    contents = [message.get("content") for message in request.messages[:messages]]
    return [content for content in contents if isinstance(content, str)]
