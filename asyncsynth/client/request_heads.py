"""What every request to one base URL begins with: the parsed URL, and request heads that print no key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote, urlencode, urlsplit

from asyncsynth.client.route import Proxy
from asyncsynth.client.secret import PrivateHeaders, Redactor, Secret, secrets_of, shown_url
from asyncsynth.errors import ConfigurationError

UNIX_SCHEME = "http+unix"  #: of base URLs whose host is the quoted path of a Unix socket
_SCHEMES = ("http", "https", UNIX_SCHEME)
_OURS = frozenset({"content-length", "transfer-encoding", "connection", "accept-encoding"})


class Head(bytes):
    """A request head. It may hold a key, so it does not print."""

    def __repr__(self) -> str:
        return "<request head>"

    __str__ = __repr__

    def method_and_target(self) -> tuple[str, str]:
        """The first two words of the request line."""
        method, target, _ = self.split(b" ", 2)
        return method.decode("ascii"), target.decode("ascii")


class BaseUrl:
    """A base URL, such as "http://host:port/v1", taken apart. Raises ConfigurationError for what is none.

    Attributes:
        unix_path: the path of its Unix socket, or ''.
        authority: host and port as they stand in the URL.
        origin: scheme and authority, or "unix:" and the socket's path.
    """

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        if parts.username is not None or parts.password is not None:
            raise ConfigurationError(
                "a base URL must not hold a user name or password",
                hint="name an environment variable: api_key_env",
            )
        if parts.scheme not in _SCHEMES or not parts.hostname or parts.query or parts.fragment:
            raise ConfigurationError(
                f"{shown_url(base_url)!r} is no base URL", hint="it looks like http://127.0.0.1:8000/v1"
            )
        self.unix_path: str = unquote(parts.netloc) if parts.scheme == UNIX_SCHEME else ""
        self.scheme: str = "https" if parts.scheme == "https" else "http"
        try:
            self.host: str = "localhost" if self.unix_path else parts.hostname.encode("idna").decode()
            port = None if self.unix_path else parts.port
        except ValueError as error:  # UnicodeError is one
            raise ConfigurationError(f"{shown_url(base_url)!r} is no base URL: {error}") from error
        self.port: int = port or (443 if self.scheme == "https" else 80)
        self.text: str = base_url.rstrip("/")
        self.path: str = parts.path.rstrip("/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.authority: str = host if port is None else f"{host}:{port}"
        self.origin: str = f"unix:{self.unix_path}" if self.unix_path else f"{self.scheme}://{self.authority}"


class RequestHeads:
    """The heads of requests to a base URL, made once each. `headers` and `query` go into all of them.

    Raises ConfigurationError for a header that cannot be sent. `redactor` blanks the keys in what the server returns.
    """

    def __init__(
        self,
        base: BaseUrl,
        headers: Mapping[str, str],
        query: PrivateHeaders,
        *,
        api_key: Secret | None,
        secrets: Iterable[Secret],
        proxy: Proxy | None,
    ) -> None:
        self._base = base
        self._query = query
        self._made: dict[tuple[str, str, bool], Head] = {}
        self._fields = self._header_fields(headers, api_key, secrets, proxy)

    def _header_fields(
        self, headers: Mapping[str, str], api_key: Secret | None, secrets: Iterable[Secret], proxy: Proxy | None
    ) -> Head:
        """All header lines but the first and the last, checked; no attribute prints them."""
        # No local variable here holds a key in the open: tools print the locals of a traceback's frames.
        fields = PrivateHeaders(host=self._base.authority, accept="application/json")
        fields |= {"user-agent": "asyncsynth", "content-type": "application/json"}
        if api_key:
            fields["authorization"] = f"Bearer {api_key.reveal()}"
        fields |= {k.lower(): v for k, v in headers.items() if k.lower() not in _OURS}
        fields["accept-encoding"] = "identity"  # no bombs, and loopback needs no compression
        self._absolute = proxy is not None and self._base.scheme == "http"  # the proxy itself reads the request
        if self._absolute and proxy is not None and proxy.authorization is not None:
            fields["proxy-authorization"] = proxy.authorization.reveal()
        for name in fields:
            if not name or not name.isascii() or any(c <= " " or c in ':"' for c in name):
                raise ConfigurationError(f"{name!r} is no header name")
            if any(c in "\r\n\0" for c in fields[name]) or not fields[name].isascii():
                raise ConfigurationError(f"the value of header {name!r} holds line breaks or non-ASCII characters")
        self.redactor: Redactor = Redactor({*secrets_of(fields), *secrets_of(self._query), *secrets})
        return Head("".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode("ascii"))

    def of(self, method: str, path: str, at_origin: bool) -> Head:
        """The head of a request for a path below the base URL, or below its origin. It ends in "content-length: "."""
        key = (method, path, at_origin)
        head = self._made.get(key)
        if head is None:
            target = path if at_origin else self._base.path + path
            if not path.startswith("/") or not target.isascii() or any(c <= " " for c in target):
                raise ConfigurationError(f"{path!r} is no path; it begins with / and holds no spaces")
            if self._query:
                target += f"{'&' if '?' in target else '?'}{urlencode(self._query, quote_via=quote)}"
            if len(self._made) > 64:
                self._made.clear()
            head = self._made[key] = self.for_target(method, target)
        return head

    def for_target(self, method: str, target: str) -> Head:
        """`target` is a path with its query, ready to be sent."""
        if self._absolute:
            target = self._base.origin + target
        return Head(f"{method} {target} HTTP/1.1\r\n".encode() + self._fields + b"content-length: ")
