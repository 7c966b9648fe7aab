"""What servers report of their own load: an ORCA header of an answer, or vLLM's Prometheus metrics.

asyncsynth reads `/metrics` once a second. vLLM adds the header to answers of requests that ask for it, but walks its
whole registry and writes a line to its log for each. So requests ask for it only if the user wants it (`orca: true` in
a fleet file). A header that comes unasked is read too.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import orjson

from asyncsynth.client.transport import Exchange, Timeouts, TransportFailure
from asyncsynth.core.outcomes import ServerLoad

ORCA_HEADER = "endpoint-load-metrics"  #: of an answer
ORCA_REQUEST = {"endpoint-load-metrics-format": "JSON"}  #: headers that ask vLLM for it

POLL_S = 1.0
RARE_POLL_S = 15.0  #: while headers of the answers report the load
LONGEST_PAUSE_S = 15.0  #: between attempts while a server does not answer

_TIMEOUTS = Timeouts(connect=2.0, idle=2.0, total=5.0)
#: A series and its value. The line break is a literal to search for: most of the text is passed over quickly.
_SERIES = re.compile(
    r"\nvllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|gpu_cache_usage_perc"
    r"|generation_tokens_total|prompt_tokens_total|iteration_tokens_total_count)"
    r"(?:\{[^\n]*\})?[ \t]+([^\s]+)"
)
_MOVES = ("generation_tokens_total", "prompt_tokens_total", "iteration_tokens_total_count")
_PLAIN = re.compile(r"(?:named_metrics\.)?([a-z_]+)\s*=\s*([^\s,]+)")


def parse_orca(value: str, now: float) -> ServerLoad | None:
    """The load in an `endpoint-load-metrics` header, JSON or TEXT form; None if it has no queue length.

    `now` is the time of arrival, in seconds, monotonic.
    """
    form, _, rest = value.strip().partition(" ")
    text = rest if form.upper() in ("JSON", "TEXT") else value
    if "{" in text:
        try:
            report = orjson.loads(text[text.index("{") :])
        except orjson.JSONDecodeError:
            return None
        inner = report.get("named_metrics", report) if isinstance(report, dict) else None
        named = inner if isinstance(inner, dict) else {}
    else:
        named = dict(_PLAIN.findall(text))
    return _load(
        _number(named.get("num_requests_waiting")),
        _number(named.get("num_requests_running")),
        _number(named.get("kv_cache_usage_perc", named.get("kv_cache_utilization"))),
        now,
    )


def parse_metrics(text: str, now: float) -> ServerLoad | None:
    """The load in Prometheus' text form as vLLM writes it; None if its series are missing.

    Queues are summed over the engines of the server; its cache is as full as the fullest. `now` is the time of
    arrival, in seconds, monotonic.
    """
    found: dict[str, list[float]] = {}
    for name, value in _SERIES.findall("\n" + text):
        if (number := _number(value)) is not None:
            found.setdefault(name, []).append(number)
    waiting, running = found.get("num_requests_waiting"), found.get("num_requests_running")
    kv = found.get("kv_cache_usage_perc") or found.get("gpu_cache_usage_perc")
    moves = [sum(found[name]) for name in _MOVES if name in found]
    load = _load(sum(waiting) if waiting else None, sum(running) if running else None, max(kv) if kv else None, now)
    return load if load is None or not moves else replace(load, progress=sum(moves))


def _load(waiting: float | None, running: float | None, kv: float | None, now: float) -> ServerLoad | None:
    if waiting is None:
        return None
    return ServerLoad(
        max(0, int(waiting)),
        None if running is None else max(0, int(running)),
        None if kv is None else min(1.0, max(0.0, kv)),
        now,
    )


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # raises for anything but a number
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


class LoadPoller:
    """Reads one server's `/metrics` while it runs: one task, one request a second.

    A server that answers without vLLM's series is never asked again. While a server does not answer, the pauses
    grow to 15 s. No failure here affects the requests.

    Args:
        exchange: of the server; `/metrics` is at its origin.
        report: called with each load, in the event loop.
        clock: seconds, monotonic. sleep: tests hand in a virtual one.
    """

    def __init__(
        self,
        exchange: Exchange,
        report: Callable[[ServerLoad], None],
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._exchange = exchange
        self._report = report
        self._clock = clock
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None
        self.every_s = POLL_S  #: pause between two polls

    def start(self) -> None:
        """Start, in the running event loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self.run(), name="asyncsynth load")

    async def stop(self) -> None:
        """Stop. Nothing is reported after this returns."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def run(self) -> None:
        """Poll until cancelled, or until the server turns out to have no such metrics."""
        silent = 0
        while True:
            try:
                answer = await self._exchange.get("/metrics", _TIMEOUTS, at_origin=True)
            except TransportFailure:
                answer = None
            except Exception:  # the user's client and its hooks may raise anything; polling must survive it
                return
            if answer is None or answer.status >= 500 or answer.status == 429:
                silent += 1
            else:
                silent = 0
                load = parse_metrics(answer.body.decode("utf-8", "replace"), self._clock())
                if load is None or answer.status != 200:
                    return
                self._report(load)
            await self._sleep(min(LONGEST_PAUSE_S, self.every_s * 2.0 ** min(silent, 8)))


def header_load(headers: Mapping[str, str], now: float) -> ServerLoad | None:
    """The load in an answer's headers, if there is one."""
    value = headers.get(ORCA_HEADER)
    return None if value is None else parse_orca(value, now)
