"""What a server says about its own load, whichever way it said it (ORCA header, Prometheus metrics)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """One report.

    Args:
        waiting: requests in the server's own queue.
        running: requests that it works on, or None where the report does not say.
        kv: share of its KV cache in use, 0 to 1, or None where the report does not say.
        at: when it was received, in seconds, monotonic.
    """

    waiting: int
    running: int | None
    kv: float | None
    at: float
