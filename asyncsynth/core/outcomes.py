"""What one exchange with a server came to. The codec makes outcomes; the scheduler decides by them.

The table (status or event -> outcome) stands in `asyncsynth.client.codec`; what is done about each, in
`asyncsynth.core.retry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What a server says about its own load, whichever way it said it (ORCA header, Prometheus metrics).

    Args:
        waiting: requests in the server's own queue.
        running: requests that it works on, or None where the report does not say.
        kv: share of its KV cache in use, 0 to 1, or None where the report does not say.
        at: when it was received, in seconds, monotonic.
        progress: a counter that grows whenever the server does something (tokens, engine steps), or None where the
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
    """429, 503, 529: the server is full. Never charged to the record; shrinks that server's concurrency."""

    status: int
    message: str = ""
    retry_after: float | None = None  #: seconds, as the server asked; uncapped here


@dataclass(frozen=True, slots=True)
class Transient:
    """It may work next time. `free` retries are not charged (a reused connection that died unanswered)."""

    reason: str  #: connect | reset | timeout | server_error | truncated | bad_json | bad_utf8 | empty_content
    message: str = ""
    status: int | None = None
    retry_after: float | None = None
    free: bool = False
    max_attempts: int | None = None  #: a lower cap than the policy's, for answers that repeat (bad JSON: 3)
    paid: bool = False  #: the server generated an answer, which is of no use; `tokens` and `prompt_tokens` as in `Ok`
    tokens: int = 0
    prompt_tokens: int = 0
    raw: str | None = None  #: what the model did say, where it is worth keeping


@dataclass(frozen=True, slots=True)
class Permanent:
    """It will not work next time. `scope` says whose fault: this record's, or every record's (`server`)."""

    #: context_length | bad_request | auth | model_not_found | too_large | content_filter | refusal | reasoning_cut
    #: | tool_calls | poison
    reason: str
    message: str = ""
    status: int | None = None
    scope: str = "record"  #: "record" | "server"
    paid: bool = False  #: the server generated an answer, which is of no use; `tokens` and `prompt_tokens` as in `Ok`
    tokens: int = 0
    prompt_tokens: int = 0
    raw: str | None = None  #: what the model did say, where it is worth keeping


Outcome = Ok | Overloaded | Transient | Permanent
