"""Our own HTTP/1.1 client pool for one origin: asyncio.Protocol, httptools (llhttp), one write per request.

General clients spend 5 to 100 times the CPU per request; this one does only what an inference
server needs. In return it has no cookies, no HTTP/2 and no proxies but HTTP ones: `adopt` decides when the user's own
client is used instead.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any
from urllib.parse import urljoin

from asyncsynth.client.connection import Connection
from asyncsynth.client.matching import ID_HEADER, MAX_RESTING, RESENDS, REST_S, Crossed, Matching
from asyncsynth.client.redirects import MAX_HOPS, next_hop
from asyncsynth.client.request_heads import BaseUrl, Head, RequestHeads
from asyncsynth.client.route import Route, environment_proxy
from asyncsynth.client.secret import PrivateHeaders, Redactor, Secret
from asyncsynth.client.transport import (
    DEFAULT_TIMEOUTS,
    MAX_RESPONSE_BYTES,
    Timeouts,
    TransportFailure,
    WireResponse,
)

KEEPALIVE_S = 4.0  #: vLLM closes idle connections after 5 s; ours must go first
SWEEP_S = 0.5  #: how coarse deadlines are
MAX_CONNECTING = 64  #: connections being opened at once: a thousand SYNs in one go overflow the server's backlog
STARVED_S = 0.05  #: an idle connection is closed after this time if a request on a new one has had no byte
_LEAST_RESTING = 32  #: connections that may rest, even if fewer are in use


def redact(response: WireResponse, redactor: Redactor) -> None:
    """Blanks any of the request's keys that the server repeats, also in an error's headers (`location`)."""
    refused = response.status >= 300
    response.body = redactor.body(response.body, plain_only=not refused)
    if refused:
        response.headers = {name: redactor.text(value) for name, value in response.headers.items()}


class Http11Pool:
    """Implements `transport.Exchange` for `base_url` ("http://host:port/v1").

    It opens one connection for each request in flight; the scheduler bounds these.
    `headers` and `query` are sent with every request, `api_key` as a bearer token, to this origin only. `secrets` are
    further strings that no answer may repeat. `environ` names proxies (None: the process's environment). `keepalive_s`
    and `sweep_s` are seconds. Raises ConfigurationError for a base URL or header that cannot be sent.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str] | None = None,
        *,
        api_key: Secret | None = None,
        query: Mapping[str, str] | None = None,
        secrets: Iterable[Secret] = (),
        ssl_context: ssl.SSLContext | None = None,
        environ: Mapping[str, str] | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        keepalive_s: float = KEEPALIVE_S,
        sweep_s: float = SWEEP_S,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        self.timeouts = timeouts
        self.max_response_bytes = max_response_bytes
        self.sweep_s = sweep_s
        #: Seconds of loop time, advanced by the sweeper, by at most two sweeps at a time: while the loop
        #: stalls (a long GC, a laptop's sleep) no deadline runs, because answers could not be read either.
        self.clock: float = 0.0
        self.opened: int = 0  #: connections opened so far
        self._keepalive_s = keepalive_s
        base = self._base = BaseUrl(base_url)
        self.base_url: str = base.text
        self.base_path: str = base.path
        self.origin: str = base.origin
        query = PrivateHeaders(query or {})
        proxy, note = (None, "") if base.unix_path else environment_proxy(base.scheme, base.host, base.port, environ)
        self._route = Route(
            base.origin, base.host, base.port, secure=base.scheme == "https", ssl_context=ssl_context, proxy=proxy,
            unix_path=base.unix_path,
        )  # fmt: skip
        self._heads = RequestHeads(base, headers or {}, query, api_key=api_key, secrets=secrets, proxy=proxy)
        self._redactor = self._heads.redactor
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._secured: dict[str, Http11Pool] = {}  #: by origin: where redirects lead from http to https
        #: Makes a pool for another origin, with the same headers and settings.
        self._remade = functools.partial(
            Http11Pool, headers=PrivateHeaders(headers or {}), api_key=api_key, query=query,
            secrets=list(secrets), ssl_context=ssl_context,
            environ=None if environ is None else PrivateHeaders(environ), timeouts=timeouts,
            keepalive_s=keepalive_s, sweep_s=sweep_s, max_response_bytes=max_response_bytes,
        )  # fmt: skip
        self._rests = True  #: connections rest between requests, where the server returns no ids
        self._sweeper: asyncio.TimerHandle | None = None
        self._starving: asyncio.TimerHandle | None = None
        self._swept_at = 0.0
        self._forget_all()
        self.matching: Matching = Matching(self.origin, sends_ids=ID_HEADER not in {k.lower() for k in headers or {}})
        if note:
            self.matching.notes.append(note)

    def __repr__(self) -> str:
        return f"Http11Pool({self.base_url!r})"

    # --- Exchange ------------------------------------------------------------------------------

    def post(self, path: str, body: bytes, timeout: Timeouts = DEFAULT_TIMEOUTS) -> Coroutine[Any, Any, WireResponse]:
        """POST a JSON body; see `transport.Exchange`."""
        return self.send(self._heads.of("POST", path, False), body, timeout)

    async def get(self, path: str, timeout: Timeouts = DEFAULT_TIMEOUTS, *, at_origin: bool = False) -> WireResponse:
        """GET; see `transport.Exchange`."""
        return await self.send(self._heads.of("GET", path, at_origin), b"", timeout)

    async def _follow(self, head: Head, body: bytes, response: WireResponse, timeout: Timeouts) -> WireResponse:
        """The answer at a redirect's target; the redirect itself if it is not followed."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout.total
        method, target = head.method_and_target()
        for _ in range(MAX_HOPS):
            hop = next_hop(method, urljoin(f"{self._base.scheme}://{self._base.authority}", target), response)
            if hop is None:
                return response
            pool = self if not hop.origin else self._elsewhere(hop.origin)
            method, target = hop.method, hop.target
            left = Timeouts(timeout.connect, timeout.idle, max(0.0, ends - loop.time()))
            sent = body if method == "POST" else b""
            response = await pool.send(pool._heads.for_target(method, target), sent, left, follow=False)
            if pool is not self:  # further redirects start from there
                return await pool._follow(pool._heads.for_target(method, target), sent, response, left)
        if response.status < 300 or response.status >= 400:
            return response
        raise TransportFailure("protocol", f"more than {MAX_HOPS} redirects in a row")

    def _elsewhere(self, origin: str) -> Http11Pool:
        """The https pool of the same host."""
        pool = self._secured.get(origin)
        if pool is None:
            pool = self._secured[origin] = self._remade(origin)
            pool.matching.notes = self.matching.notes
        return pool

    async def send(self, head: Head, body: bytes, timeout: Timeouts, *, follow: bool = True) -> WireResponse:
        """One exchange. `head` ends in "content-length: "; the number and the body follow.

        POST requests reuse connections; any other request gets its own.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._enter(loop)
        shared = head.startswith(b"POST ")
        connection = (self._take_idle() if shared else None) or await self._acquire(loop, timeout, reuse=shared)
        refused: list[WireResponse] = []
        while True:
            answer: asyncio.Future[WireResponse] = loop.create_future()
            connection.start(answer, timeout, head, body, self.matching.token() if shared else b"", last=not shared)
            try:
                response = await answer
                break
            except asyncio.CancelledError:
                if connection.answer is answer or (connection.held is not None and connection.held[0] is answer):
                    connection.abort()  # else the answer came, and the connection may serve another request by now
                elif answer.done() and not answer.cancelled():
                    answer.exception()  # read: a failure during a cancellation is not logged
                raise
            except Crossed as crossed:
                self.matching.refused()
                if len(refused) > 1 and refused[-1].body == crossed.response.body:
                    self.matching.ids_are_no_proof()
                    response = crossed.response
                    break
                if len(refused) == RESENDS:
                    raise TransportFailure("crossed", f"{1 + RESENDS} answers belonged to other requests") from None
                refused.append(crossed.response)
                connection = await self._acquire(loop, timeout, reuse=False)
            except TransportFailure as failure:
                if failure.reason == "reset" and not failure.free and self._idle:
                    self._rests = False  # the server may take no more connections than are in use
                raise
        if follow and 300 <= response.status < 400:
            response = await self._follow(head, body, response, timeout)
        if self._redactor:
            redact(response, self._redactor)
        return response

    async def aclose(self) -> None:
        """Close all connections; requests in flight fail with reason "reset"."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        if self._starving is not None:
            self._starving.cancel()
            self._starving = None
        for connection in list(self._open):
            connection.fail("reset", "the pool was closed")
        while self._waiting:
            ticket = self._waiting.popleft()
            if not ticket.done():
                ticket.set_result(None)
        self._idle.clear()
        for pool in self._secured.values():
            await pool.aclose()
        await asyncio.sleep(0)  # one turn of the loop, for the transports to close

    def report_to(self, notes: list[str]) -> None:
        """Add the notes about this server to `notes`, now and from now on."""
        self.matching.report_to(notes)

    # --- connections ---------------------------------------------------------------------------

    @property
    def idle_connections(self) -> int:
        """Connections waiting for a request."""
        return sum(not connection.dead for connection in self._idle)

    def _forget_all(self) -> None:
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []  # the last in is the first out; the oldest are at the front
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._connecting = 0
        self._sweeper = None
        self._starving = None
        self._untried = 0  #: connections without an answer yet

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """A new event loop: connections of the last one ended with it."""
        self._forget_all()
        self._loop = loop

    def _take_idle(self) -> Connection | None:
        idle = self._idle
        if not self.matching.at_once:
            return self._take_rested()
        while idle:
            connection = idle.pop()
            if not connection.dead and not connection.transport.is_closing():
                return connection
        return None

    def _take_rested(self) -> Connection | None:
        """The connection that has been idle longest, if it has rested; see `matching`."""
        idle, loop = self._idle, self._loop
        assert loop is not None
        while idle:
            connection = idle[0]
            usable = not connection.dead and not connection.transport.is_closing()
            if usable and self._rests and loop.time() - connection.idle_since < REST_S:
                busy = len(self._open) - len(idle)
                if len(idle) < min(MAX_RESTING, max(_LEAST_RESTING, busy)):
                    return None
            del idle[0]
            if usable:
                return connection
        return None

    async def _acquire(self, loop: asyncio.AbstractEventLoop, timeout: Timeouts, *, reuse: bool = True) -> Connection:
        """An idle connection (if `reuse`), or a new one; connections are opened `MAX_CONNECTING` at a time."""
        while True:
            if self._closed:
                raise TransportFailure("reset", "the pool was closed")
            connection = self._take_idle() if reuse else None
            if connection is not None:
                return connection
            if self._connecting < MAX_CONNECTING:
                return await self._connect(loop, timeout)
            ticket: asyncio.Future[Connection | None] = loop.create_future()
            self._waiting.append(ticket)
            try:
                connection = await ticket
            except asyncio.CancelledError:
                if ticket.done() and not ticket.cancelled() and not ticket.exception():
                    self._pass_on(ticket.result())
                raise
            if connection is not None and not connection.dead:
                if reuse or not connection.served:
                    return connection
                self._idle.append(connection)

    def _pass_on(self, connection: Connection | None) -> None:
        """Give a free connection, or (None) the turn to open one, to the longest waiting request."""
        while self._waiting:
            ticket = self._waiting.popleft()
            if not ticket.done():
                ticket.set_result(connection)
                return
        if connection is not None and not connection.dead:
            self._idle.append(connection)

    def released(self, connection: Connection) -> None:
        """See `connection.Owner`."""
        connection.idle_since = self._loop.time()  # type: ignore[union-attr]  # a connection has a loop
        if connection.untried:
            self._tried(connection)
        if self._waiting and (self.matching.at_once or not self._rests):
            self._pass_on(connection)
            return
        self._idle.append(connection)
        if self._untried and self._starving is None:
            self._starving = self._loop.call_later(STARVED_S, self._feed)  # type: ignore[union-attr]

    def _tried(self, connection: Connection) -> None:
        connection.untried = False
        self._untried -= 1

    def hold(self, connection: Connection, seconds: float) -> None:
        """See `connection.Owner`."""
        assert self._loop is not None
        self._loop.call_later(seconds, connection.believe)

    def _feed(self) -> None:
        """Close connections that are idle while a request on a new one has had no byte.

        A server with a thread for each connection accepts the new one only when another ends.
        """
        self._starving = None
        loop = self._loop
        if loop is None or self._closed or not self._idle or not any(c.unheard for c in self._open):
            return
        oldest = loop.time() - STARVED_S
        kept = [c for c in self._idle if not c.dead and c.idle_since > oldest]
        for connection in self._idle:
            if connection.idle_since <= oldest and not connection.dead:
                connection.close()
        self._idle = kept
        if kept:
            self._starving = loop.call_later(STARVED_S, self._feed)

    def lost(self, connection: Connection, *, unanswered: bool) -> None:
        """See `connection.Owner`."""
        self._open.discard(connection)
        if connection.untried:
            self._tried(connection)
        if unanswered:
            # Its idle neighbours are as old or older: better a few new connections than one lost race each.
            idle, self._idle = self._idle, []
            for neighbour in idle:
                neighbour.abort()

    async def _connect(self, loop: asyncio.AbstractEventLoop, timeout: Timeouts) -> Connection:
        self._connecting += 1
        try:
            async with asyncio.timeout(timeout.connect):
                connection = await self._open_connection(loop, timeout.connect)
        except TimeoutError:
            failure = TransportFailure("connect", f"no connection to {self.origin} in {timeout.connect:g} s")
            for ticket in self._waiting:  # each of them would wait for the same time without success
                if not ticket.done():
                    ticket.set_exception(TransportFailure(failure.reason, failure.message))
            self._waiting.clear()
            raise failure from None
        except OSError as error:
            raise TransportFailure("connect", self._route.explain(error)) from error
        finally:
            self._connecting -= 1
            self._pass_on(None)
        if self._closed:
            connection.abort()
            raise TransportFailure("reset", "the pool was closed")
        self.opened += 1
        connection.untried = True
        self._untried += 1
        if not connection.dead:  # else `start` will say so
            self._open.add(connection)
        if self._sweeper is None:
            self._swept_at = loop.time()
            self._sweeper = loop.call_later(self.sweep_s, self._sweep)
        return connection

    async def _open_connection(self, loop: asyncio.AbstractEventLoop, seconds: float) -> Connection:
        return await self._route.open(loop, lambda: Connection(self), seconds)

    def _sweep(self) -> None:
        """Keep all deadlines of all connections, twice a second: a timer per request would cost 1 us each."""
        loop = self._loop
        assert loop is not None
        now = loop.time()
        self.clock += min(now - self._swept_at, 2 * self.sweep_s)
        self._swept_at = now
        for connection in list(self._open):
            connection.check(self.clock)
        oldest = now - self._keepalive_s
        kept = [c for c in self._idle if not c.dead and c.idle_since > oldest]
        for connection in self._idle:
            if connection.idle_since <= oldest:
                connection.close()
        self._idle = kept
        self._sweeper = loop.call_later(self.sweep_s, self._sweep) if self._open else None
