"""The result of one exchange with a server. The codec makes outcomes; the scheduler decides by them.

`asyncsynth.client.codec` has the table (status or event -> outcome), `asyncsynth.core.retry` has the consequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What a server reports about its own load, in an ORCA header or in Prometheus metrics.

    Args:
        waiting: requests in the server's own queue.
        running: requests that it works on, or None if the report does not say.
        kv: share of its KV cache in use, 0 to 1, or None if the report does not say.
        at: when it was received, in seconds, monotonic.
        progress: a counter that grows whenever the server does something (tokens, engine steps), or None if the
            report has none.
    """

    waiting: int
    running: int | None
    kv: float | None
    at: float
    progress: float | None = None


@dataclass(slots=True)  # not frozen: one is made for every answer, and a frozen one takes three times as long
class Ok:
    """A completion came back. `value` is a `client.messages.Completion`; `tokens` its completion tokens.

    `prompt_tokens` counts, with them, towards a published rate of tokens.
    """

    value: Any
    tokens: int = 0
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Overloaded:
    """429, 498, 503, 529: the server is full. Never charged to the record; shrinks that server's concurrency."""

    status: int
    message: str = ""
    retry_after: float | None = None  #: seconds, as the server asked; uncapped here
    quota: bool = False  #: the server speaks of a quota, and says when to ask again
    paid: bool = False  #: the error ended an answer that had begun; `tokens` and `prompt_tokens` as in `Ok`
    tokens: int = 0
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Transient:
    """The request may work next time. `free` retries are not charged (a reused connection that died unanswered)."""

    reason: str  #: connect | reset | timeout | server_error | truncated | bad_json | bad_utf8 | empty_content
    message: str = ""
    status: int | None = None
    retry_after: float | None = None
    free: bool = False
    max_attempts: int | None = None  #: a lower cap than the policy's, for answers that repeat (bad JSON: 3)
    paid: bool = False  #: the server generated a useless answer; `tokens` and `prompt_tokens` as in `Ok`
    tokens: int = 0
    prompt_tokens: int = 0
    raw: str | None = None  #: the model's text, if it is worth keeping


@dataclass(frozen=True, slots=True)
class Permanent:
    """The request would fail again. `scope`: "record" if the fault is this record's; "server" if it may be the
    server's, so that every record would meet it (`core.refusals` finds out)."""

    #: context_length | bad_request | auth | refused | model_not_found | redirect | quota | too_large | content_filter
    #: | refusal | reasoning_cut | tool_calls | poison
    reason: str
    message: str = ""
    status: int | None = None
    scope: str = "record"  #: "record" | "server"
    paid: bool = False  #: the server generated a useless answer; `tokens` and `prompt_tokens` as in `Ok`
    tokens: int = 0
    prompt_tokens: int = 0
    raw: str | None = None  #: the model's text, if it is worth keeping


Outcome = Ok | Overloaded | Transient | Permanent


def span(seconds: float) -> str:
    """A wait in words: "41 s", "12 min", "7 h 30 min", "3 days"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{hours // 24} days"
