"""One HTTP exchange: the interface between the pool, which decides, and the sockets.

Two implementations: `http11.Http11Pool` (our own, fast) and `adopt.HttpxExchange` (the user's httpx client,
unchanged). Neither retries or interprets the body: the scheduler decides on retries, the codec reads the body.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

MAX_RESPONSE_BYTES = 16 * 1024 * 1024  #: a larger answer is refused, whatever its headers announce


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines of one exchange, in seconds. Kept by a coarse sweeper: never early, up to two sweeps late.

    `idle` counts from one response byte to the next, inside the headers and once the body has begun with more than
    blanks: some servers send headers or blanks at once and then generate. `total` bounds the wait for the first byte,
    because a server with a queue says nothing until it is done. `NEVER_S` for either: no such deadline.
    """

    connect: float = 10.0
    idle: float = 60.0
    total: float = 600.0


DEFAULT_TIMEOUTS = Timeouts()
NEVER_S = 1e9  #: as a deadline: none


@dataclass(slots=True)
class WireResponse:
    """What came back: status, headers (lower-case names, repeats joined by ", ") and the whole body."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class TransportFailure(Exception):
    """No complete answer came.

    `reason` is one of
      connect    no connection: refused, DNS, TLS, out of descriptors
      reset      the connection died before the headers were complete
      timeout    one of the deadlines of `Timeouts`
      truncated  the connection died inside the body
      too_large  the body is over the cap
      protocol   what came is not HTTP/1.1, or is compressed though identity was asked for

    `free` is True when a *reused* connection died before any response byte: most likely the server closed it
    while idle and never saw the request, so one resend is free. Only one, because a poison request looks the same.
    """

    def __init__(self, reason: str, message: str, *, free: bool = False) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.free = free


class Exchange(Protocol):
    """One server's origin. `path` begins with "/" and is joined to the base URL's path ("/v1"), as in httpx.

    `at_origin=True` leaves the base URL's path out (`/health` is at the root).
    Raises TransportFailure. Cancelling a call closes its connection, which makes vLLM abort the generation.
    """

    base_url: str
    timeouts: Timeouts  #: the owner's settings; pass them on unless a request needs others

    async def post(self, path: str, body: bytes, timeout: Timeouts = DEFAULT_TIMEOUTS) -> WireResponse:
        """Send `body` as JSON and return the whole answer, whatever its status."""
        ...

    async def get(self, path: str, timeout: Timeouts = DEFAULT_TIMEOUTS, *, at_origin: bool = False) -> WireResponse:
        """As `post`, without a body."""
        ...

    async def aclose(self) -> None:
        """Close all connections; requests in flight fail with reason "reset"."""
        ...
