"""ServerPool over an in-memory exchange: asyncio behaviour only, the decisions are tested in tests/core."""

from __future__ import annotations

import asyncio
import random
import weakref
from typing import Any

import pytest
import tenacity

from asyncsynth.client.messages import CompletionRequest
from asyncsynth.client.server_pool import Server, ServerPool
from asyncsynth.client.transport import DEFAULT_TIMEOUTS, NEVER_S, Timeouts, TransportFailure, WireResponse
from asyncsynth.core.retry import RetryPolicy
from asyncsynth.errors import ModelNotServed, RequestFailed, ServerRefused, Withdrawn
from asyncsynth.testing.virtual_time import run_virtually
from tests.kit.exchanges import FAST, FakeExchange, answer, ask, make, refusal, run
from tests.kit.loops import settle


def test_an_answer_tells_where_it_came_from() -> None:
    async def main() -> None:
        pool = make(FakeExchange())
        completion = await pool.send(ask())
        assert completion.text == "hi"
        assert (completion.server, completion.model, completion.attempts) == ("s", "m", 1)
        assert completion.latency_s >= 0
        snapshot = pool.snapshot()
        assert (snapshot.ok, snapshot.prompt_tokens, snapshot.completion_tokens) == (1, 3, 2)
        assert snapshot.answered_by == {"m": 1}
        assert snapshot.latency.count == 1
        assert snapshot.replicas[0].in_flight == 0

    run(main())


def test_never_more_in_flight_than_the_limit_and_everybody_is_served() -> None:
    async def main() -> None:
        exchange = FakeExchange()
        exchange.gate = asyncio.Semaphore(0)
        pool = make(exchange)
        tasks = [asyncio.create_task(pool.send(ask())) for _ in range(50)]
        await settle()
        assert exchange.busy == 4
        assert pool.snapshot().waiting == 46
        for _ in range(50):
            exchange.gate.release()
        await asyncio.gather(*tasks)
        assert exchange.most == 4
        assert pool.snapshot().ok == 50

    run(main())


def test_priority_decides_who_goes_next() -> None:
    async def main() -> None:
        exchange = FakeExchange()
        exchange.gate = asyncio.Semaphore(0)
        pool = make(exchange, limit=1)
        tasks = [asyncio.create_task(pool.send(ask(user=f"p{p}"), priority=p)) for p in (0, 9, 5, 7)]
        await settle()
        for _ in tasks:
            exchange.gate.release()
        await asyncio.gather(*tasks)
        assert [body["user"] for body in exchange.bodies] == ["p0", "p5", "p7", "p9"]

    run(main())


def test_retries_until_it_works_and_counts_them() -> None:
    script = {1: TransportFailure("reset", "died"), 2: refusal(500), 3: refusal(503)}

    async def main() -> None:
        pool = make(FakeExchange(lambda n, body: script.get(n, answer())))
        completion = await pool.send(ask())
        assert completion.attempts == 4
        snapshot = pool.snapshot()
        assert snapshot.retries == {"reset": 1, "server_error": 1, "overloaded": 1}
        assert snapshot.overloads == 1

    run(main())


def test_an_attempt_that_nothing_follows_is_no_retry() -> None:
    async def main() -> None:
        pool = make(FakeExchange(lambda n, body: refusal(400)))
        with pytest.raises(RequestFailed):
            await pool.send(ask())
        assert pool.snapshot().retries == {}
        assert pool.snapshot().failed == 1

    run(main())


def test_a_record_fault_is_told_with_its_reason() -> None:
    async def main() -> None:
        pool = make(FakeExchange(lambda n, body: refusal(400, "bad thing")))
        with pytest.raises(RequestFailed, match="bad thing") as caught:
            await pool.send(ask())
        assert (caught.value.reason, caught.value.attempts) == ("bad_request", 1)
        assert pool.snapshot().failed == 1
        assert pool.halted is None

    run(main())


def test_what_cannot_be_encoded_gives_the_slot_back() -> None:
    async def main() -> None:
        pool = make(FakeExchange(), limit=1)
        with pytest.raises(RequestFailed):
            await pool.send(ask(user="\ud800"))
        assert (await pool.send(ask())).text == "hi"

    run(main())


def test_a_server_that_refuses_all_halts_the_pool_for_all() -> None:
    async def main() -> None:
        exchange = FakeExchange(lambda n, body: refusal(401, "wrong key"))
        pool = make(exchange, limit=2)
        results = await asyncio.gather(*(pool.send(ask()) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(result, ServerRefused) for result in results)
        assert "wrong key" in str(results[0])
        assert len(exchange.bodies) <= 20 + 1  # no call is sent twice, and one canary is
        assert isinstance(pool.halted, ServerRefused)
        with pytest.raises(ServerRefused):
            await pool.send(ask())
        assert pool.snapshot().failed == 0

    run(main())


@pytest.mark.row(41)
@pytest.mark.parametrize("raw", [False, True])
def test_a_flagged_prompt_fails_alone_and_its_canary_is_of_its_kind(raw: bool) -> None:
    def reply(n: int, body: dict[str, Any]) -> WireResponse:
        if "flagged" in str(body):
            return refusal(403, "your input was flagged")
        if raw:
            return WireResponse(200, {}, b'{"choices":[{"text":"hi","finish_reason":"stop"}]}')
        return answer()

    async def main() -> None:
        exchange = FakeExchange(reply)
        pool = make(exchange)
        limit = {"max_completion_tokens": 9}
        flagged: Any = CompletionRequest("m", "flagged", limit) if raw else ask(user="flagged", **limit)
        good: Any = CompletionRequest("m", "good", limit) if raw else ask(**limit)
        with pytest.raises(RequestFailed, match=r"your input was flagged.*answers other requests") as caught:
            await pool.send(flagged)
        assert (caught.value.reason, caught.value.attempts) == ("refused", 1)
        prompt = {"prompt": "Hi"} if raw else {"messages": [{"role": "user", "content": "Hi"}]}
        assert exchange.bodies[1:] == [{"model": "m", **prompt, "max_completion_tokens": 1}]
        assert (await pool.send(good)).text == "hi"
        snapshot = pool.snapshot()
        assert (snapshot.ok, snapshot.failed, snapshot.retries) == (1, 1, {})
        assert pool.halted is None
        await pool.aclose()

    run(main())


@pytest.mark.row(41)
def test_another_attempt_after_a_refusal_is_a_retry() -> None:
    async def main() -> None:
        pool = make(FakeExchange(lambda n, body: refusal(404) if n == 1 else answer()))
        assert (await pool.send(ask())).attempts == 2
        assert pool.snapshot().retries == {"model_not_found": 1}
        await pool.aclose()

    run(main())


@pytest.mark.parametrize("turns", [0, 1, 2, 5])
def test_cancelling_gives_slots_back(turns: int) -> None:
    """Whether a call is cancelled before it starts, in flight, or between its wake-up and its run."""

    async def main() -> None:
        exchange = FakeExchange()
        exchange.gate = asyncio.Semaphore(0)
        pool = make(exchange, limit=2)
        tasks = [asyncio.create_task(pool.send(ask())) for _ in range(10)]
        await settle()
        exchange.gate.release()
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks[:8]:
            task.cancel()
        await settle()
        for _ in range(10):
            exchange.gate.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not any(isinstance(result, Exception) for result in results)
        assert all(not isinstance(result, BaseException) for result in results[8:])
        assert exchange.most <= 2
        snapshot = pool.snapshot()
        assert snapshot.replicas[0].in_flight == 0
        assert snapshot.waiting == 0
        assert not pool._waiters
        assert not pool._scheduler._calls

    run(main())


def test_a_fault_of_our_own_gives_the_slot_back() -> None:
    async def main() -> None:
        exchange = FakeExchange(lambda n, body: ZeroDivisionError("a bug") if n == 1 else answer())
        pool = make(exchange, limit=1)
        with pytest.raises(ZeroDivisionError):
            await pool.send(ask())
        assert (await pool.send(ask())).text == "hi"

    run(main())


def test_retries_sleep_on_the_loop_and_are_woken() -> None:
    async def main() -> None:
        policy = RetryPolicy(wait=tenacity.wait_fixed(0.02))
        pool = make(FakeExchange(lambda n, body: refusal(500) if n < 3 else answer()), policy=policy)
        assert (await pool.send(ask())).attempts == 3
        assert not pool._waiters

    run(main())


@pytest.mark.row(11)
def test_each_of_several_sleeping_retries_is_woken() -> None:
    """The tick that wakes the first one has to set the timer for the next."""

    def reply(n: int, _: dict[str, Any]) -> WireResponse:
        return WireResponse(500, {"retry-after": str(n)}, b"{}") if n <= 2 else answer()

    async def main() -> None:
        pool = make(FakeExchange(reply))
        done = await asyncio.gather(*(pool.send(ask()) for _ in range(2)))
        assert [completion.attempts for completion in done] == [2, 2]
        assert 2 <= asyncio.get_running_loop().time() < 3

    run_virtually(asyncio.wait_for(main(), 60))


def test_a_call_that_sleeps_keeps_neither_its_body_nor_the_answer_in_memory() -> None:
    class Big(WireResponse):
        """Unlike its base, it can be referred to weakly."""

    refused: list[weakref.ref[WireResponse]] = []

    def reply(n: int, _: dict[str, Any]) -> WireResponse:
        if refused:
            return answer()
        response = Big(500, {"retry-after": "5"}, b"{}")
        refused.append(weakref.ref(response))
        return response

    async def main() -> None:
        pool = make(FakeExchange(reply))
        sending = asyncio.create_task(pool.send(ask()))
        await settle()
        assert pool._waiters
        assert refused[0]() is None
        frame = sending.get_coro().cr_frame  # type: ignore[union-attr]
        assert frame is not None
        assert not [name for name, value in frame.f_locals.items() if isinstance(value, bytes)]
        assert (await sending).attempts == 2

    run_virtually(asyncio.wait_for(main(), 60))


@pytest.mark.row(17)
@pytest.mark.parametrize(
    ("of_server", "of_client", "expected"),
    [
        (None, DEFAULT_TIMEOUTS, Timeouts(DEFAULT_TIMEOUTS.connect, NEVER_S, NEVER_S)),
        (90.0, DEFAULT_TIMEOUTS, Timeouts(DEFAULT_TIMEOUTS.connect, 90.0, 90.0)),
        (None, Timeouts(3.0, 20.0, 20.0), Timeouts(3.0, 20.0, 20.0)),
        (90.0, Timeouts(3.0, 20.0, 20.0), Timeouts(3.0, 90.0, 90.0)),
    ],
)
def test_only_the_user_sets_a_deadline(of_server: float | None, of_client: Timeouts, expected: Timeouts) -> None:
    """Neither the number of tokens nor silence inside an answer ends a request."""

    async def main() -> None:
        exchange = FakeExchange()
        exchange.timeouts = of_client
        pool = make(exchange, request_timeout=of_server)
        for params in ({"max_tokens": 10}, {"max_tokens": 4000}, {}):
            await pool.send(ask(**params))
        assert exchange.seen == [expected] * 3

    run(main())


def test_requests_that_a_deadline_ends_are_counted_and_noted_in_one_line() -> None:
    late = TransportFailure("timeout", "no whole answer in 5 s")

    async def main() -> None:
        exchange = FakeExchange(lambda n, body: late if n < 3 else answer())
        pool = make(exchange, request_timeout=5.0)
        assert (await pool.send(ask())).attempts == 3
        assert pool.snapshot().given_up == {"request_timeout": 2}
        assert pool.notes == [
            "s: 2 requests given up: no whole answer within request_timeout 5 s; the server may still have generated "
            "these answers"
        ]
        await pool.aclose()

    run_virtually(main())


def test_models_find_their_servers() -> None:
    async def main() -> None:
        a, b, c = FakeExchange(), FakeExchange(), FakeExchange()
        servers = [
            Server("a", a.base_url, frozenset({"x"}), a),
            Server("b", b.base_url, frozenset({"y"}), b),
            Server("c", c.base_url, frozenset(), c, serves_any="Tiny (embedded)"),
        ]
        pool = ServerPool(servers, policy=FAST, rng=random.Random(0))
        assert (await pool.send(ask("x"))).server == "a"
        assert (await pool.send(ask("y"))).server == "b"
        other = await pool.send(ask("z"))
        assert (other.server, other.model) == ("c", "Tiny (embedded)")
        strict = ServerPool(servers[:2], policy=FAST, rng=random.Random(0))
        with pytest.raises(ModelNotServed, match="'z'"):
            await strict.send(ask("z"))

    run(main())


def test_closing_ends_what_waits() -> None:
    async def main() -> None:
        exchange = FakeExchange()
        exchange.gate = asyncio.Semaphore(0)
        pool = make(exchange, limit=1)
        tasks = [asyncio.create_task(pool.send(ask())) for _ in range(3)]
        await settle()
        await pool.aclose()
        exchange.gate.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 2
        assert exchange.closed
        with pytest.raises(RuntimeError):
            await pool.send(ask())

    run(main())


def test_no_tenacity_object_on_the_way_of_success(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a tenacity object was made")

    monkeypatch.setattr(tenacity, "RetryCallState", forbidden)

    async def main() -> None:
        pool = make(FakeExchange(), limit=2)
        await asyncio.gather(*(pool.send(ask()) for _ in range(20)))

    run(main())


@pytest.mark.row(28)
def test_withdrawing_lets_what_is_at_the_servers_end_and_sends_nothing_more() -> None:
    async def main() -> None:
        exchange = FakeExchange(lambda n, body: refusal(500) if n == 1 else answer())
        exchange.gate = asyncio.Semaphore(0)
        pool = make(exchange, limit=2, policy=RetryPolicy(wait=tenacity.wait_fixed(50)))
        calls = [asyncio.create_task(pool.send(ask())) for n in range(6)]
        await settle()
        assert exchange.busy == 2
        exchange.gate.release()
        await settle()  # the first sleeps now, the third has its slot
        assert len(exchange.bodies) == 3
        pool.withdraw()
        pool.withdraw()  # a second time changes nothing
        with pytest.raises(Withdrawn):
            await pool.send(ask())
        await asyncio.wait([calls[0], *calls[3:]])
        assert [type(call.exception()) for call in (calls[0], *calls[3:])] == [Withdrawn] * 4
        assert not calls[1].done()
        exchange.gate.release()
        exchange.gate.release()
        assert (await calls[1]).text == (await calls[2]).text == "hi"
        assert len(exchange.bodies) == 3
        assert pool.snapshot().waiting == 0
        await pool.aclose()

    run_virtually(main())


@pytest.mark.row(28)
def test_an_attempt_that_fails_after_the_withdrawal_is_not_repeated() -> None:
    async def main() -> None:
        exchange = FakeExchange(lambda n, body: refusal(503))
        exchange.gate = asyncio.Semaphore(0)
        pool = make(exchange)
        call = asyncio.create_task(pool.send(ask()))
        await settle()
        assert exchange.busy == 1
        pool.withdraw()
        exchange.gate.release()
        with pytest.raises(Withdrawn):
            await call
        assert len(exchange.bodies) == 1
        await pool.aclose()

    run_virtually(main())
