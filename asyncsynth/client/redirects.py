"""Where a redirect leads, and whether to follow it there.

A redirect within the server's origin is followed, and one from http to https on the same host. Any other is left to the
caller, because the API key must not leave its origin.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from asyncsynth.client.transport import WireResponse

MAX_HOPS = 20  #: as httpx; Modal sends a waiting client to its result every 150 s
_FOLLOWED = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Hop:
    """The next request: its method, its path and query, and its base URL if the scheme or port changes."""

    method: str
    target: str
    origin: str = ""


def next_hop(method: str, url: str, response: WireResponse) -> Hop | None:
    """The request that a redirect asks for; None if the answer is no redirect, or one that is not followed.

    307 and 308 keep the method and the body, 303 becomes a GET. A POST that meets 301 or 302 becomes a GET, as in
    browsers and httpx; it stays a POST if only the scheme or a slash at the end of the path changes, because such a
    redirect moves the endpoint and holds no result.
    """
    if response.status not in _FOLLOWED:
        return None
    location = response.headers.get("location", "").strip()
    if not location or not location.isascii() or any(c <= " " for c in location):
        return None
    try:
        here, there = urlsplit(url), urlsplit(urljoin(url, location))
        ports = (here.port or _port(here.scheme), there.port or _port(there.scheme))
    except ValueError:
        return None
    if there.scheme not in ("http", "https") or there.username is not None or here.hostname != there.hostname:
        return None
    same = here.scheme == there.scheme and ports[0] == ports[1]
    if not same and (here.scheme, there.scheme) != ("http", "https"):
        return None
    moved = here.path.rstrip("/") == there.path.rstrip("/")
    if response.status == 303 or (response.status in (301, 302) and not moved):
        method = "GET"
    target = (there.path or "/") + (f"?{there.query}" if there.query else "")
    return Hop(method, target, "" if same else f"{there.scheme}://{there.netloc}")


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
