"""The way to a server: addresses, TLS, a proxy of the environment, or a Unix socket."""

from __future__ import annotations

import asyncio
import base64
import errno
import functools
import ipaddress
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from asyncsynth.client.secret import Secret, shown_url
from asyncsynth.client.transport import TransportFailure
from asyncsynth.errors import ConfigurationError

ADDRESS_S = 60.0  #: how long a resolved address is kept
_LONGEST_REPLY = 64 * 1024  #: of a proxy's answer to CONNECT

P = TypeVar("P", bound=asyncio.Protocol)


@functools.cache
def shared_ssl_context() -> ssl.SSLContext:
    """The verifying context of all pools: making one costs 15 ms, and only https needs it."""
    return ssl.create_default_context()


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. `secure`: it is reached by TLS itself. `authorization` is the value of Proxy-Authorization."""

    host: str
    port: int
    secure: bool = False
    authorization: Secret | None = None

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{_bracketed(self.host)}:{self.port}"


def environment_proxy(
    scheme: str, host: str, port: int, environ: Mapping[str, str] | None = None
) -> tuple[Proxy | None, str]:
    """The proxy for a server, by HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; and a note if one is not used.

    The lower-case names win. Loopback addresses are never proxied. Raises ConfigurationError for a value that is
    not a proxy's URL.
    """
    variables = os.environ if environ is None else environ
    name, value = "", ""
    for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY"):
        if name == "HTTP_PROXY" and "REQUEST_METHOD" in variables:
            continue  # in a CGI script, a client's header `Proxy` sets it
        if value := variables.get(name, "").strip():
            break
    if not value or _is_loopback(host):
        return None, ""
    if _is_excluded(host, port, variables.get("no_proxy", "") or variables.get("NO_PROXY", "")):
        return None, ""
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        number = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        parts, number = urlsplit(""), 0
    if parts.scheme.startswith("socks"):
        said = f"{name} names a SOCKS proxy, which asyncsynth does not support: {host} is reached without it"
        return None, f"{said}. An http:// proxy, or LLM(http_client=...), works"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"{name} is not the URL of a proxy: {shown_url(value)!r}", hint="It looks like http://proxy.example:3128"
        )
    login = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        login = Secret("Basic " + base64.b64encode(pair.encode()).decode())
    return Proxy(parts.hostname, number, parts.scheme == "https", login), ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_excluded(host: str, port: int, no_proxy: str) -> bool:
    """Entries of NO_PROXY: `*`, host names (and their subdomains), addresses, networks; each with or without a port."""
    host = host.lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for entry in no_proxy.lower().replace(",", " ").split():
        name = entry.partition("://")[2] or entry
        if name == "*":
            return True
        bare, colon, number = name.rpartition(":")
        if colon and number.isdigit() and (bare.endswith("]") or ":" not in bare):
            if int(number) != port:
                continue
            name = bare
        name = name.strip("[]").removeprefix("*").removeprefix(".")
        if address is None:
            if name and (host == name or host.endswith(f".{name}")):
                return True
            continue
        try:
            if address in ipaddress.ip_network(name, strict=False):
                return True
        except ValueError:
            continue
    return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Tunnel(asyncio.Protocol):
    """Reads a proxy's answer to CONNECT, up to its empty line."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self.head.done() and (b"\r\n\r\n" in self._received or len(self._received) > _LONGEST_REPLY):
            self.head.set_result(self._received)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.head.done():
            self.head.set_result(self._received)


class Route:
    """Opens connections to one origin. Exactly one of `host` and `unix_path` is used.

    `secure`: TLS, by `ssl_context` or the shared one.
    """

    def __init__(
        self,
        origin: str,
        host: str,
        port: int,
        *,
        secure: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        proxy: Proxy | None = None,
        unix_path: str = "",
    ) -> None:
        self.origin = origin
        self.host = host
        self.port = port
        self.proxy = proxy
        self._secure = secure
        self.ssl_context = ssl_context
        self._unix_path = unix_path
        self.addresses: list[str] = []  #: addresses of the proxy, if there is one; the one that answered comes first
        self._resolved_at = 0.0

    async def open(self, loop: asyncio.AbstractEventLoop, make: Callable[[], P], seconds: float) -> P:
        """A connected protocol, within `seconds`. Raises OSError (TimeoutError is one) or TransportFailure."""
        if self._unix_path:
            _, protocol = await loop.create_unix_connection(make, self._unix_path)
            return protocol
        context = (self.ssl_context or shared_ssl_context()) if self._secure else None
        name = self.host if self._secure else None
        if self.proxy is None:
            return await self._dial(loop, make, seconds, self.host, self.port, context, name)
        outer = shared_ssl_context() if self.proxy.secure else None
        outer_name = self.proxy.host if self.proxy.secure else None
        if context is None:
            return await self._dial(loop, make, seconds, self.proxy.host, self.proxy.port, outer, outer_name)
        tunnel = await self._dial(loop, _Tunnel, seconds, self.proxy.host, self.proxy.port, outer, outer_name)
        return await self._through(loop, tunnel, make, context)

    async def _through(
        self, loop: asyncio.AbstractEventLoop, tunnel: _Tunnel, make: Callable[[], P], context: ssl.SSLContext
    ) -> P:
        """TLS to the server through the proxy."""
        proxy = self.proxy
        assert proxy is not None
        target = f"{_bracketed(self.host)}:{self.port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if proxy.authorization is not None:
            lines.append(f"Proxy-Authorization: {proxy.authorization.reveal()}")
        tunnel.transport.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        del lines
        try:
            head = await tunnel.head
            status = head.split(b" ", 2)[1:2]
            if not head.startswith(b"HTTP/1.") or not status or not status[0].startswith(b"2"):
                shown = status[0].decode("ascii", "replace")[:3] if status else "no HTTP answer"
                advice = ": put user:password into the proxy's URL" if shown == "407" else ""
                raise TransportFailure("connect", f"the proxy {proxy} does not connect to {target} ({shown}){advice}")
            protocol = make()
            transport = await loop.start_tls(tunnel.transport, protocol, context, server_hostname=self.host)
        except BaseException:
            tunnel.transport.abort()
            raise
        if transport is None:
            raise TransportFailure("connect", f"the proxy {proxy} closed the connection to {target}")
        protocol.connection_made(transport)
        return protocol

    async def _dial(
        self,
        loop: asyncio.AbstractEventLoop,
        make: Callable[[], P],
        seconds: float,
        host: str,
        port: int,
        context: ssl.SSLContext | None,
        name: str | None,
    ) -> P:
        """Connect to the first address that answers and remember it. Resolving each time costs more than the
        connection itself (35 us for `localhost`)."""
        now = loop.time()
        if not self.addresses or now - self._resolved_at > ADDRESS_S:
            self.addresses = await _resolve(loop, host, port)
            self._resolved_at = now
        addresses = list(self.addresses)
        for position, address in enumerate(addresses):
            try:
                async with asyncio.timeout(seconds / (len(addresses) - position)):
                    _, protocol = await loop.create_connection(make, address, port, ssl=context, server_hostname=name)
            except OSError:  # TimeoutError is one
                self.addresses = []
                if position == len(addresses) - 1:
                    raise
                seconds *= 1 - 1 / (len(addresses) - position)
            else:
                self.addresses = [address, *(other for other in addresses if other != address)]
                return protocol
        raise OSError(f"no address for {host}")

    def explain(self, error: OSError) -> str:
        """What a failure to connect means, and what to do."""
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return "too many open files: raise `ulimit -n` or lower the concurrency"
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"{self.origin}: its TLS certificate is refused: {error.verify_message}. For a private authority "
                "set ca_file in a fleet file, or SSL_CERT_FILE, to its certificate; the host name must be one that the "
                "certificate names"
            )
        if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            return f"{self.origin} does not speak TLS: does its URL begin with http://?"
        via = f" (through the proxy {self.proxy})" if self.proxy is not None else ""
        return f"{self.origin}{via}: {error}"


async def _resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[str]:
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    found = await loop.getaddrinfo(host, port, type=1)  # SOCK_STREAM
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if host == "localhost":  # most servers listen on IPv4 only
        addresses.sort(key=lambda address: ":" in address)
    return addresses
