"""The user's httpx client: replaced by our own pool, or used as it is.

Users know httpx, but it is too slow for the hot path: the cost of its pool grows with the requests in flight.
So `adopt` reads a plain client's base URL, headers, TLS settings and timeout once and uses `Http11Pool`. A
client with custom behaviour (see `reason_to_keep`) is used as it is.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any
from weakref import WeakKeyDictionary

import httpx

from asyncsynth.client.connection import compressed, content_encoding, is_unpacked, unpacked
from asyncsynth.client.http11 import Http11Pool, redact
from asyncsynth.client.matching import ID_HEADER, RESENDS, History, Matching, Verdict
from asyncsynth.client.secret import SECRET_CHARS, PrivateHeaders, Redactor, Secret, secrets_of, shown_url
from asyncsynth.client.transport import (
    DEFAULT_TIMEOUTS,
    MAX_RESPONSE_BYTES,
    Exchange,
    Timeouts,
    TransportFailure,
    WireResponse,
)
from asyncsynth.errors import ConfigurationError

_HTTPX_DEFAULT = httpx.Timeout(5.0)  #: httpx's default, which fails on any queue
_NOT_COPIED = ("accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding")


def adopt(client: httpx.AsyncClient, base_url: str | None = None) -> Exchange:
    """An exchange for the client's base URL (or `base_url`), as fast as the client's settings allow.

    Closing the exchange leaves the client open. Raises ConfigurationError if neither names a base URL.
    """
    url = str(base_url or client.base_url).rstrip("/")
    if not url:
        raise ConfigurationError(
            "the httpx client has no base_url", hint='httpx.AsyncClient(base_url="http://host:8000/v1")'
        )
    if reason_to_keep(client, url):
        return HttpxExchange(client, url)
    request = client.build_request("POST", url)
    if request.url != httpx.URL(url):  # e.g. user information or default parameters
        return HttpxExchange(client, url)
    headers = PrivateHeaders((k, v) for k, v in request.headers.items() if k not in _NOT_COPIED)
    # No proxies of the environment: the client has none for this URL.
    return Http11Pool(url, headers, ssl_context=_ssl_context(client), environ={}, timeouts=_timeouts(client))


def reason_to_keep(client: httpx.AsyncClient, url: str) -> str:
    """Why the client must be used as it is, or "" for a plain one.

    This reads private attributes of httpx; one that is missing or has another type counts as a reason.
    """
    parsed = httpx.URL(url)
    try:
        pool = client._transport._pool  # type: ignore[attr-defined]
        checks = {
            "a subclass": type(client) is not httpx.AsyncClient,
            "event hooks": any(client.event_hooks.values()),
            "an auth flow": client.auth is not None or bool(parsed.userinfo),
            "cookies": len(client.cookies.jar) > 0,
            "default query parameters": len(client.params) > 0,
            "redirects to follow": client.follow_redirects,
            "a Host header": "host" in client.headers,
            "a proxy or a mount": client._transport_for_url(parsed) is not client._transport,
            "a transport of its own": type(client._transport) is not httpx.AsyncHTTPTransport
            or type(pool).__name__ != "AsyncConnectionPool",
            "HTTP/2": bool(pool._http2) or not pool._http1,
            "a socket of its own": bool(pool._uds or pool._local_address or pool._socket_options),
            "retries": bool(pool._retries),
            "a proxy": getattr(pool, "_proxy", None) is not None,
        }
    except AttributeError:
        return "a transport of its own"
    return next((name for name, found in checks.items() if found), "")


def _ssl_context(client: httpx.AsyncClient) -> ssl.SSLContext | None:
    """The client's own TLS settings (a private CA, a client certificate, verify=False)."""
    context = client._transport._pool._ssl_context  # type: ignore[attr-defined]
    return context if isinstance(context, ssl.SSLContext) else None


def _timeouts(client: httpx.AsyncClient) -> Timeouts:
    """httpx's read timeout spans the wait for the first byte, so it becomes the total as well."""
    chosen = client.timeout
    if chosen == _HTTPX_DEFAULT:
        return DEFAULT_TIMEOUTS
    never = 1e9
    return Timeouts(connect=chosen.connect or never, idle=chosen.read or never, total=chosen.read or never)


class _Connection:
    """What came on one of httpx's connections."""

    __slots__ = ("answers", "history")

    def __init__(self) -> None:
        self.answers: int = 0
        self.history: History = History()


class HttpxExchange:
    """`transport.Exchange` over a user's client, with its hooks, auth, proxies and transport in use.

    `base_url` is joined to paths here. Deadlines: the client's own, unless they are httpx's default of
    5 s, which a busy inference server exceeds. The total deadline always holds.

    Answers are matched with requests as in `Http11Pool` (`client.matching`), with one difference: httpx owns the
    connections, so an answer that repeats an earlier one of its connection is not held but asked for again.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        base_url: str,
        *,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        self.base_url: str = base_url.rstrip("/")
        self.timeouts: Timeouts = DEFAULT_TIMEOUTS if client.timeout == _HTTPX_DEFAULT else _timeouts(client)
        self.matching: Matching = Matching(shown_url(self.base_url), sends_ids=ID_HEADER not in client.headers)
        self._connections: WeakKeyDictionary[Any, _Connection] = WeakKeyDictionary()  #: by httpx's stream
        self._client = client
        self._max_response_bytes = max_response_bytes

    def __repr__(self) -> str:
        return f"HttpxExchange({shown_url(self.base_url)!r})"

    async def post(self, path: str, body: bytes, timeout: Timeouts = DEFAULT_TIMEOUTS) -> WireResponse:
        """POST a JSON body; see `transport.Exchange`."""
        refused: list[WireResponse] = []
        while True:
            began, token = time.monotonic(), self.matching.token()
            response, stream = await self._exchange("POST", self.base_url + path, body, timeout, token)
            verdict = self._judged(response, stream, token, time.monotonic() - began)
            if verdict is Verdict.ACCEPT:
                if refused and refused[-1].body != response.body:
                    self.matching.refused()  # what came before it was another request's
                return response
            if refused and refused[-1].body == response.body:  # the same again, on a new connection
                if verdict is Verdict.HOLD:
                    self.matching.repeats += 1
                    return response
                if len(refused) > 1:
                    self.matching.ids_are_no_proof()
                    return response
            if len(refused) == RESENDS:
                raise TransportFailure("crossed", f"{1 + RESENDS} answers belonged to other requests")
            refused.append(response)
            await stream.aclose()  # httpx finds it closed, and takes another

    def _judged(self, response: WireResponse, stream: Any, token: bytes, seconds: float) -> Verdict:
        """Whether this is the answer to the request. Without a stream there is no connection to be mixed up."""
        if stream is None or response.status >= 300:
            return Verdict.ACCEPT
        known = self._connections.get(stream)
        if known is None:
            known = self._connections[stream] = _Connection()
        known.answers += 1
        if token and token in response.body:
            self.matching.proven()
            return Verdict.ACCEPT
        return self.matching.judge(token, response, known.history, fresh=known.answers == 1, seconds=seconds)

    def report_to(self, notes: list[str]) -> None:
        """Add what there is to say of this server to `notes`, now and from now on."""
        self.matching.report_to(notes)

    async def get(self, path: str, timeout: Timeouts = DEFAULT_TIMEOUTS, *, at_origin: bool = False) -> WireResponse:
        """GET; see `transport.Exchange`."""
        url = str(httpx.URL(self.base_url).join(path)) if at_origin else self.base_url + path
        return (await self._exchange("GET", url, None, timeout))[0]

    async def aclose(self) -> None:
        """Does nothing: the client's owner closes it."""

    async def _exchange(
        self, method: str, url: str, body: bytes | None, timeout: Timeouts, token: bytes = b""
    ) -> tuple[WireResponse, Any]:
        """The answer and its connection: None where httpx names none, or where it carries several at once."""
        headers = {"accept-encoding": "identity"}
        if token:
            headers[ID_HEADER] = token.decode("ascii")
        if body is not None:
            headers["content-type"] = "application/json"
        limits = (
            httpx.Timeout(timeout.total, connect=timeout.connect, pool=None)
            if self._client.timeout == _HTTPX_DEFAULT
            else httpx.USE_CLIENT_DEFAULT
        )
        try:
            async with (
                asyncio.timeout(timeout.total),
                self._client.stream(method, url, content=body, headers=headers, timeout=limits) as answer,
            ):
                response = await self._read(answer, timeout)
                # The request as sent, including additions of an auth flow.
                if redactor := _redactor_of(answer.request):
                    redact(response, redactor)
                in_turn = answer.http_version.startswith("HTTP/1")
                return response, answer.extensions.get("network_stream") if in_turn else None
        except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as error:
            reason, words = "timeout", self._redacted(error)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            reason, words = "connect", self._redacted(error)
        except httpx.DecodingError as error:
            reason, words = "protocol", self._redacted(error)
        except httpx.TransportError as error:
            reason, words = "reset", self._redacted(error)
        # httpx quotes a header that it cannot send, so neither its message nor the error itself may be passed on
        # unchanged.
        raise TransportFailure(reason, f"{shown_url(url)}: {words}")

    def _redacted(self, error: Exception) -> str:
        sent = getattr(error, "_request", None)
        known = Redactor(secrets_of(self._client.headers))
        return (_redactor_of(sent) if sent is not None else known).text(known.text(str(error)))

    async def _read(self, answer: httpx.Response, timeout: Timeouts) -> WireResponse:
        encoding = content_encoding(answer.headers)
        if encoding and not is_unpacked(encoding):
            raise TransportFailure("protocol", compressed(encoding))
        if answer.is_stream_consumed:  # a transport of the user's has read and unpacked it
            encoding = ""
        parts: list[bytes] = []
        size = 0
        pieces = answer.aiter_raw() if encoding else answer.aiter_bytes()
        while True:
            try:
                async with asyncio.timeout(timeout.idle):
                    part = await anext(pieces, None)
            except (httpx.ReadError, httpx.RemoteProtocolError) as error:
                raise TransportFailure("truncated", f"{error} after {size} bytes of the body") from error
            if part is None:
                break
            size += len(part)
            if size > self._max_response_bytes:
                raise TransportFailure("too_large", f"an answer over {self._max_response_bytes} bytes")
            parts.append(part)
        whole = b"".join(parts)
        if encoding and whole:
            whole = unpacked(whole, encoding, self._max_response_bytes)
        # Not before: a failure shows its frames to some tools, and a server may repeat a key in its headers.
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return WireResponse(answer.status_code, headers, whole)


def _redactor_of(request: httpx.Request) -> Redactor:
    """A redactor for the keys in a request's headers, its query and its URL's user information."""
    secrets = secrets_of(request.headers) | secrets_of(dict(request.url.params))
    if len(request.url.password) >= SECRET_CHARS:
        secrets.add(Secret(request.url.password))
    return Redactor(secrets)
