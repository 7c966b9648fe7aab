"""Row 11: each fault of the table, on a fresh connection and on one that was idle, in the headers and in the body.

Real sockets, the real pool: the class of the failure, how often it was tried, and that the next request is served.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import orjson
import pytest
import tenacity

from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.messages import ChatRequest, Completion
from asyncsynth.client.server_pool import Server, ServerPool
from asyncsynth.client.transport import Timeouts, WireResponse
from asyncsynth.core.retry import RetryPolicy
from asyncsynth.errors import RequestFailed, ServerRefused
from asyncsynth.testing import Fault, FaultServer, RequestInfo
from tests.matrix.plugin import Tried

CONTEXT = orjson.dumps({"error": {"message": "This model's maximum context length is 5 tokens.", "code": 400}})
EMPTY_ERROR = orjson.dumps({"error": {"message": "the engine died"}})
DEADLINES = Timeouts(connect=5.0, idle=0.15, total=0.15)

#: Struck once: fault -> (what the retries are counted as, attempts until it is answered). "" is no retry at all.
ONCE: dict[str, tuple[Fault, str, int]] = {
    **{f"status {n}": (Fault("status", status=n), "server_error", 2) for n in (408, 409, 425, 500, 502, 504)},
    **{f"status {n}": (Fault("status", status=n), "overloaded", 2) for n in (429, 503, 529)},
    "429 with seconds": (Fault("status", status=429, retry_after="0.01"), "overloaded", 2),
    "429 with ms": (Fault("status", status=429, headers={"retry-after-ms": "10"}), "overloaded", 2),
    "429 with a date": (
        Fault("status", status=429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
        "overloaded",
        2,
    ),
    "reset": (Fault("reset"), "reset", 2),
    "cut in the headers": (Fault("truncate", in_headers=True, at=30), "reset", 2),
    "cut in the body": (Fault("truncate", at=30), "truncated", 2),
    "reset in the headers": (Fault("reset_mid", in_headers=True, at=30), "reset", 2),
    "reset in the body": (Fault("reset_mid", at=30), "truncated", 2),
    "silence": (Fault("hang"), "timeout", 2),
    "silence in the headers": (Fault("hang_mid", in_headers=True, at=30), "timeout", 2),
    "silence in the body": (Fault("hang_mid", at=30), "timeout", 2),
    "slow headers": (Fault("slow_body", in_headers=True, at=1, interval_s=0.02), "timeout", 2),
    "slow body": (Fault("slow_body", at=1, interval_s=0.02), "timeout", 2),
    "no HTTP": (Fault("not_http"), "protocol", 2),
    "bad JSON": (Fault("bad_json"), "bad_json", 2),
    "deep JSON": (Fault("deep"), "bad_json", 2),
    "bad UTF-8": (Fault("bad_utf8"), "bad_utf8", 2),
    "null content": (Fault("null_content"), "empty_content", 2),
    "empty content": (Fault("empty_content"), "empty_content", 2),
    "an error with status 200": (Fault("status", status=200, body=EMPTY_ERROR), "server_error", 2),
    "lone surrogate": (Fault("surrogate"), "", 1),
    "chunked": (Fault("chunked", at=7), "", 1),
    "end by closing": (Fault("no_length"), "", 1),
    "closed after the answer": (Fault("close_after", interval_s=0.0), "", 1),
}

#: Struck always: fault -> (reason of the failure, attempts)
ALWAYS: dict[str, tuple[Fault, str, int]] = {
    "400": (Fault("status", status=400), "bad_request", 1),
    "422": (Fault("status", status=422), "bad_request", 1),
    "413": (Fault("status", status=413), "too_large", 1),
    "context too long": (Fault("status", status=400, body=CONTEXT), "context_length", 1),
    "10 GB": (Fault("huge", size=10_000_000_000), "too_large", 1),
    "10 GB in chunks": (Fault("huge_chunked", size=10_000_000_000), "too_large", 1),
    "bad JSON": (Fault("bad_json"), "bad_json", 3),
    "bad UTF-8": (Fault("bad_utf8"), "bad_utf8", 3),
    "null content": (Fault("null_content"), "empty_content", 3),
    "empty content": (Fault("empty_content"), "empty_content", 3),
    "cut in the body": (Fault("truncate", at=30), "truncated", 3),
    "no HTTP": (Fault("not_http"), "protocol", 3),
    "gzip bomb": (Fault("gzip_bomb"), "protocol", 3),
    "500": (Fault("status", status=500), "server_error", 8),
    "reset": (Fault("reset"), "reset", 8),
}

#: Faults that hit always and are no record's fault: the run stops, and no record fails.
REFUSALS = {name: Fault("status", status=int(name)) for name in ("401", "402", "403", "404", "405")}
REFUSALS["redirect"] = Fault("redirect", message="http://127.0.0.1:1/v1")


class Struck:
    """Strikes the requests that say so, `times` times; answers the others at once."""

    def __init__(self, fault: Fault, times: int) -> None:
        self.fault = fault
        self.left = times
        self.asked = 0

    def __call__(self, info: RequestInfo) -> Fault | None:
        if b"strike" not in info.body:
            return None
        self.asked += 1
        self.left -= 1
        return self.fault if self.left >= 0 else None


class Hasty(Http11Pool):
    """Deadlines of a fraction of a second, where the pool would wait as long as the answer may take."""

    async def post(self, path: str, body: bytes, timeout: Timeouts = DEADLINES) -> WireResponse:
        return await super().post(path, body, DEADLINES)


def ask(words: str) -> ChatRequest:
    return ChatRequest("test-model", [{"role": "user", "content": words}], {"max_tokens": 256})


async def strike(fault: Fault, times: int, *, idle: bool) -> tuple[Completion | Exception, ServerPool, int]:
    """One request met by the fault while others are answered; the outcome, the pool, and how often it was sent."""
    script = Struck(fault, times)
    async with FaultServer(script=script) as server:
        exchange = Hasty(server.base_url, sweep_s=0.01, max_response_bytes=1 << 20)
        one = Server("s", server.base_url, frozenset({"test-model"}), exchange, limit=4)
        # Retries at once: when, is what the simulations test; how many and why, is what this does.
        policy = replace(RetryPolicy(), wait=tenacity.wait_none())
        pool = ServerPool([one], policy=policy, rng=random.Random(11))
        if idle:
            await pool.send(ask("warm up"))
        outcome: Completion | Exception
        task = asyncio.create_task(pool.send(ask("strike")))
        # Neighbours that are answered bear witness that the server is not at fault.
        while not task.done():
            await asyncio.wait([task, asyncio.create_task(pool.send(ask("a neighbour")))], timeout=0.01)
        try:
            outcome = task.result()
        except (RequestFailed, ServerRefused) as error:
            outcome = error
        if not isinstance(outcome, ServerRefused):
            assert (await pool.send(ask("the next"))).text
        for _ in range(3):
            await asyncio.sleep(0)
        await pool.aclose()
        return outcome, pool, script.asked


def place(idle: bool) -> str:
    return "idle connection" if idle else "fresh connection"


@pytest.mark.row(11)
@pytest.mark.parametrize("idle", [False, True], ids=place)
@pytest.mark.parametrize("name", ONCE)
def test_a_fault_that_passes_costs_what_the_table_says(name: str, idle: bool, tried: Tried) -> None:
    fault, reason, attempts = ONCE[name]
    outcome, pool, asked = asyncio.run(asyncio.wait_for(strike(fault, 1, idle=idle), 30))
    assert isinstance(outcome, Completion), outcome
    assert outcome.text
    assert asked == outcome.attempts == attempts
    counted = {word: n for word, n in pool.snapshot().retries.items() if word != "timeout" or reason == "timeout"}
    assert counted.get(reason, 0) == attempts - 1, counted
    tried(1, "faults that pass")


@pytest.mark.row(11)
@pytest.mark.parametrize("idle", [False, True], ids=place)
@pytest.mark.parametrize("name", ALWAYS)
def test_a_fault_that_stays_ends_as_the_table_says(name: str, idle: bool, tried: Tried) -> None:
    fault, reason, attempts = ALWAYS[name]
    outcome, _, asked = asyncio.run(asyncio.wait_for(strike(fault, 10**9, idle=idle), 30))
    assert isinstance(outcome, RequestFailed), outcome
    assert outcome.reason == reason
    # One resend is free where a connection that was used before dies without a byte: the server may not have seen it.
    free = name == "reset"
    assert outcome.attempts == asked
    assert attempts <= asked <= attempts + free
    tried(1, "faults that stay")


@pytest.mark.row(11)
@pytest.mark.parametrize("idle", [False, True], ids=place)
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_of_everything_ends_the_run_not_the_record(name: str, idle: bool, tried: Tried) -> None:
    async def main() -> None:
        async with FaultServer(script=lambda info: REFUSALS[name] if b"warm" not in info.body else None) as server:
            exchange = Http11Pool(server.base_url, sweep_s=0.01)
            one = Server("s", server.base_url, frozenset({"test-model"}), exchange, limit=4)
            pool = ServerPool([one], policy=replace(RetryPolicy(), wait=tenacity.wait_none()), rng=random.Random(11))
            if idle:
                await pool.send(ask("warm up"))
            with pytest.raises(ServerRefused, match="'test-model'"):
                await pool.send(ask("strike"))
            # Each attempt is followed by a canary, which is refused as well.
            assert server.requests == 3 + 3 + idle
            assert pool.snapshot().failed == 0
            await pool.aclose()

    asyncio.run(asyncio.wait_for(main(), 30))
    tried(1, "refusals")
