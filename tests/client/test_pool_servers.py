"""ServerPool and its servers: their loads, their coming and going, rates, prefixes."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from asyncsynth.client.loads import ORCA_HEADER, RARE_POLL_S
from asyncsynth.client.messages import ChatRequest, CompletionRequest
from asyncsynth.client.replicas import estimated_tokens, prompt_head
from asyncsynth.client.server_pool import ServerPool
from asyncsynth.client.transport import DEFAULT_TIMEOUTS, Timeouts, TransportFailure, WireResponse
from asyncsynth.core.calls import Abort
from asyncsynth.core.outcomes import ServerLoad
from asyncsynth.core.rates import RateLimits
from asyncsynth.errors import ModelNotServed, RunStopped
from tests.kit.clocks import ManualClock
from tests.kit.exchanges import FakeExchange, answer, ask, pool_of, refusal, run, server
from tests.kit.loops import settle


class Exchange(FakeExchange):
    """With a /metrics of its own, where `metrics` is set, and a load header in answers, where `header` is."""

    def __init__(self) -> None:
        super().__init__(self.answered)
        self.metrics = b""
        self.header = ""
        self.looks = 0

    def answered(self, n: int, body: dict[str, Any]) -> WireResponse:
        response = answer()
        if self.header:
            response.headers[ORCA_HEADER] = self.header
        return response

    async def post(self, path: str, body: bytes, timeout: Timeouts = DEFAULT_TIMEOUTS) -> WireResponse:
        await asyncio.sleep(0)
        return await super().post(path, body, timeout)

    async def get(self, path: str, timeout: Timeouts = DEFAULT_TIMEOUTS, *, at_origin: bool = False) -> WireResponse:
        self.looks += 1
        return WireResponse(200 if self.metrics else 404, {}, self.metrics)


async def answering(pool: ServerPool, requests: int) -> set[str]:
    """The servers that answer `requests` requests at once."""
    return {completion.server for completion in await asyncio.gather(*[pool.send(ask()) for _ in range(requests)])}


def report(waiting: int) -> str:
    return "JSON " + orjson.dumps({"named_metrics": {"num_requests_waiting": waiting}}).decode()


def test_the_header_of_an_answer_is_read_at_most_every_50_ms() -> None:
    async def main() -> None:
        exchange, clock = Exchange(), ManualClock(100.0)
        pool = pool_of(server("s", exchange), clock=clock)
        seen = []
        for waiting in range(1, 5):
            exchange.header = report(waiting)
            await pool.send(ask())
            seen.append(pool.snapshot().replicas[0].load)
            clock.now += 0.03
        first, third = ServerLoad(1, None, None, 100.0), ServerLoad(3, None, None, pytest.approx(100.06))
        assert seen == [first, first, third, third]
        await pool.aclose()

    run(main())


def test_a_header_makes_the_metrics_rarer() -> None:
    async def main() -> None:
        exchange = Exchange()
        exchange.metrics = b"vllm:num_requests_waiting 2\nvllm:num_requests_running 5\nvllm:kv_cache_usage_perc 0.5\n"
        pool = pool_of(server("s", exchange))
        await pool.send(ask())
        await settle()
        load = pool.snapshot().replicas[0].load
        assert load is not None
        assert (load.waiting, load.running, load.kv) == (2, 5, 0.5)
        poller = pool._links[0].poller
        assert poller is not None
        before = poller.every_s
        exchange.header = report(1)
        await pool.send(ask())
        assert before < poller.every_s == RARE_POLL_S
        await pool.aclose()
        assert "asyncsynth load" not in {task.get_name() for task in asyncio.all_tasks()}

    run(main())


def test_a_server_without_metrics_is_asked_once_and_an_embedded_one_never() -> None:
    async def main() -> None:
        plain, embedded = Exchange(), Exchange()
        pool = pool_of(
            server("s", plain), server("e", embedded, models=frozenset({"e"}), dialect="llamacpp", serves_any="small")
        )
        for _ in range(3):
            await pool.send(ask())
            await settle()
        assert (plain.looks, embedded.looks) == (1, 0)
        assert [replica.load for replica in pool.snapshot().replicas] == [None, None]
        await pool.aclose()

    run(main())


def test_a_load_that_is_not_fresh_is_not_shown() -> None:
    async def main() -> None:
        exchange, clock = Exchange(), ManualClock(100.0)
        exchange.header = report(7)
        pool = pool_of(server("s", exchange), clock=clock)
        await pool.send(ask())
        assert pool.snapshot().replicas[0].load is not None
        clock.now += 6
        assert pool.snapshot().replicas[0].load is None
        await pool.aclose()

    run(main())


def test_a_server_that_joins_takes_what_waits_and_brings_its_models() -> None:
    async def main() -> None:
        first, second = Exchange(), Exchange()
        first.gate = asyncio.Semaphore(0)
        pool = pool_of(server("a", first, limit=2))
        tasks = [asyncio.create_task(pool.send(ask())) for _ in range(5)]
        await settle()
        assert (first.busy, pool.snapshot().waiting) == (2, 3)
        with pytest.raises(ModelNotServed):
            await pool.send(ask("other"))
        pool.add_server(server("b", second, models=frozenset({"m", "other"})))
        await settle()
        assert [task.result().server for task in tasks if task.done()] == ["b"] * 3
        assert (await pool.send(ask("other"))).server == "b"
        assert second.looks == 1
        first.gate.release()
        first.gate.release()
        await asyncio.gather(*tasks)
        with pytest.raises(ValueError, match="name"):
            pool.add_server(server("b", Exchange()))
        await pool.aclose()
        assert second.closed

    run(main())


def test_a_server_that_leaves_ends_what_it_has_and_gets_nothing_new() -> None:
    async def main() -> None:
        first, second = Exchange(), Exchange()
        first.gate = asyncio.Semaphore(0)
        pool = pool_of(server("a", first, limit=1), server("b", second, limit=1))
        second.gate = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(pool.send(ask())) for _ in range(4)]
        await settle()
        before = pool.capacity
        pool.remove_server("a")
        assert (before, pool.capacity) == (2, 1)
        first.gate.release()
        await settle()
        assert [task.result().server for task in tasks if task.done()] == ["a"]
        for _ in range(3):
            second.gate.release()
        await asyncio.gather(*tasks)
        assert (len(first.bodies), len(second.bodies)) == (1, 3)
        with pytest.raises(KeyError):
            pool.remove_server("a")
        await pool.aclose()

    run(main())


def test_a_server_known_to_be_down_is_left_alone_until_it_is_up() -> None:
    async def main() -> None:
        first, second = Exchange(), Exchange()
        pool = pool_of(server("a", first), server("b", second))
        pool.server_down("a", "restarting")
        assert await answering(pool, 4) == {"b"}
        down = pool.snapshot().replicas[0]
        assert (down.state, "restarting" in down.why) == ("down", True)
        pool.server_up("a")
        assert await answering(pool, 4) == {"a", "b"}
        await pool.aclose()

    run(main())


def test_a_server_that_stays_away_ends_the_run_only_where_it_is_the_last() -> None:
    async def main() -> None:
        first, second = Exchange(), Exchange()
        pool = pool_of(server("a", first), server("b", second))
        pool.server_lost("a", "crashed")
        assert await answering(pool, 4) == {"b"}
        assert pool.notes == ["a is not started again (crashed); the run continues without it"]
        second.gate = asyncio.Semaphore(0)
        sent = [asyncio.create_task(pool.send(ask())) for _ in range(8)]
        await settle()
        pool.server_lost("b", "out of memory; its log: b.log", "Free some.")
        for task in sent[4:]:
            with pytest.raises(RunStopped, match=r"b is not started again: out of memory; its log: b.log") as caught:
                await task
            assert caught.value.hint == "Free some."
        for task in sent:
            task.cancel()
        await asyncio.gather(*sent, return_exceptions=True)
        await pool.aclose()

    run(main())


@pytest.mark.parametrize("rates", [RateLimits(requests_per_minute=6), RateLimits(tokens_per_minute=600)])
def test_a_published_rate_holds_requests_back(rates: RateLimits) -> None:
    """Ten seconds' worth, here one request or 100 tokens, may come at once, and the one that goes beyond."""

    async def main() -> None:
        exchange = Exchange()
        exchange.gate = asyncio.Semaphore(0)
        pool = pool_of(server("s", exchange, rates=rates), clock=ManualClock(100.0))
        tasks = [asyncio.create_task(pool.send(ask(max_tokens=99))) for _ in range(4)]
        await settle()
        assert (exchange.busy, pool.snapshot().waiting) == (2, 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await pool.aclose()

    run(main())


class Hanging(Exchange):
    """Takes calls and never answers them; a health check of one token is answered as `alive` says."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Semaphore(0)
        self.alive: WireResponse | TransportFailure = TransportFailure("timeout", "silence")
        self.checks = 0

    async def post(self, path: str, body: bytes, timeout: Timeouts = DEFAULT_TIMEOUTS) -> WireResponse:
        if orjson.loads(body).get("max_tokens") != 1:
            return await super().post(path, body, timeout)
        self.checks += 1
        if isinstance(self.alive, TransportFailure):
            raise self.alive
        return self.alive


def test_calls_on_a_server_that_hangs_go_elsewhere_and_end_well() -> None:
    async def main() -> None:
        hanging, other, clock = Hanging(), Exchange(), ManualClock(100.0)
        pool = pool_of(server("a", hanging), server("b", other), clock=clock)
        tasks = [asyncio.create_task(pool.send(ask())) for _ in range(6)]
        await settle()
        hung = [task for task in tasks if not task.done()]
        assert (hanging.busy, len(hung)) == (3, 3)
        hung[0].cancel()
        for _ in range(8):
            clock.now += 31
            pool._tick()
            await settle()
        assert (hanging.checks > 0, hanging.busy, hanging.cancelled) == (True, 0, 3)
        assert [task.cancelled() for task in hung] == [True, False, False]
        assert [task.result().server for task in hung[1:]] == ["b", "b"]
        assert [task.cancelling() for task in hung[1:]] == [0, 0]
        assert pool.snapshot().given_up == {"hung": 2}
        [note] = pool.notes
        assert note.startswith("a: 2 requests given up: no answer for 31 s, nor to a health check"), note
        await pool.aclose()

    run(main())


def test_a_cancellation_that_meets_an_abort_is_kept() -> None:
    """Both in one turn of the loop: the task was cancelled by its owner, whatever the pool does with its call."""

    async def main() -> None:
        hanging, other, clock = Hanging(), Exchange(), ManualClock(100.0)
        pool = pool_of(server("a", hanging, limit=1), server("b", other), clock=clock)
        tasks = [asyncio.create_task(pool.send(ask())) for _ in range(2)]
        await settle()
        [hung] = [task for task in tasks if not task.done()]
        pool._abort(Abort(next(iter(pool._senders)), 0, "hung", "silence"))
        hung.cancel()
        await settle()
        assert hung.cancelled()
        assert pool._senders == {}
        assert pool.snapshot().replicas[0].in_flight == 0
        await pool.aclose()

    run(main())


def test_a_server_that_is_slow_but_answers_health_checks_keeps_its_calls() -> None:
    async def main() -> None:
        slow, clock = Hanging(), ManualClock(100.0)
        slow.alive = refusal(503)
        pool = pool_of(server("a", slow), clock=clock)
        task = asyncio.create_task(pool.send(ask()))
        await settle()
        for _ in range(4):
            clock.now += 31
            pool._tick()
            await settle()
        assert (slow.checks > 0, slow.busy, slow.cancelled) == (True, 1, 0)
        assert slow.gate is not None
        slow.gate.release()
        assert (await task).attempts == 1
        await pool.aclose()

    run(main())


def chat(*texts: str) -> ChatRequest:
    roles = ("system", "user", "assistant", "user")
    return ChatRequest("m", [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)])


def test_prompts_that_begin_alike_have_one_head() -> None:
    document = "lorem ipsum " * 500
    assert prompt_head(chat("be brief", document + "a?")) == prompt_head(chat("be brief", document + "b?")) != 0
    assert prompt_head(chat("be brief", document)) == prompt_head(chat("be brief", document, "answer", "and then?"))
    assert prompt_head(chat("be brief", document)) != prompt_head(chat("be long", document))
    assert prompt_head(CompletionRequest("m", document)) != 0
    assert prompt_head(chat("be brief", "short")) == 0
    picture: Any = [{"type": "image_url"}]
    assert prompt_head(chat("be brief", picture)) == 0
    request = chat("12345678", picture, "1234")
    request.params["max_tokens"] = 100
    assert estimated_tokens(request) == 103


def test_prompts_that_begin_alike_go_to_one_server() -> None:
    async def main() -> None:
        exchanges = [Exchange() for _ in range(3)]
        pool = pool_of(*[server(f"s{n}", exchange) for n, exchange in enumerate(exchanges)])
        homes = {
            document: {
                (await pool.send(chat("be brief", f"{document}" * 5000 + f"question {n}"))).server for n in range(6)
            }
            for document in range(12)
        }
        assert all(len(servers) == 1 for servers in homes.values())
        assert len(set.union(*homes.values())) > 1
        assert await answering(pool, 6) == {"s0", "s1", "s2"}
        await pool.aclose()

    run(main())
