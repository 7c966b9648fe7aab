"""The HTTP/1.1 pool against real sockets: reuse, every way to die, deadlines, caps, cancellation, secrets."""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
from collections.abc import Callable

import orjson
import pytest

from asyncsynth.client.connection import Connection
from asyncsynth.client.http11 import KEEPALIVE_S, MAX_CONNECTING, SWEEP_S, Http11Pool
from asyncsynth.client.secret import Secret
from asyncsynth.client.transport import Timeouts, TransportFailure, WireResponse
from asyncsynth.testing import Fault, FaultServer, RequestInfo
from tests.kit.copying_server import listening
from tests.kit.loops import RUNNERS, on_both_loops, until
from tests.kit.requests import CHAT, QUICK, chat_body
from tests.matrix.plugin import Tried


async def failure_of(fault: Fault, timeout: Timeouts = Timeouts(), cap: int = 1 << 20) -> TransportFailure:
    """What one request meets on a fresh connection; a second, unspoiled one must then be answered."""
    async with FaultServer(script=lambda info: fault if info.index == 0 else None) as server:
        pool = Http11Pool(server.base_url, sweep_s=0.01, max_response_bytes=cap)
        with pytest.raises(TransportFailure) as caught:
            await pool.post(CHAT, chat_body(), timeout)
        again = await pool.post(CHAT, chat_body())
        assert again.status == 200
        assert pool.opened == 2, "a failed connection must not be used again"
        await pool.aclose()
        await until(lambda: not server.open)
        return caught.value


@on_both_loops
async def test_one_connection_serves_many() -> None:
    async with FaultServer() as server:
        pool = Http11Pool(server.base_url)
        for number in range(20):
            answer = await pool.post(CHAT, chat_body(str(number)))
            assert answer.status == 200
            assert answer.headers["content-type"] == "application/json"
        assert (server.connections, pool.opened, pool.idle_connections) == (1, 1, 1)
        await pool.aclose()


@on_both_loops
async def test_answers_go_to_their_own_requests() -> None:
    async with FaultServer(script=lambda i: Fault(delay_s=i.index % 7 / 1000), keep_requests=True) as server:
        pool = Http11Pool(server.base_url)

        async def ask(number: int) -> tuple[bytes, bytes]:
            body = chat_body(str(number))
            return body, (await pool.post(CHAT, body)).body

        for body, answer in await asyncio.gather(*(ask(n) for n in range(300))):
            assert server.complete("/v1" + CHAT, body).endswith(answer)
        assert pool.opened <= 300
        await pool.aclose()


@on_both_loops
async def test_a_thousand_at_once_connect_a_few_at_a_time() -> None:
    highest = 0

    async with FaultServer(delay_s=0.005) as server:
        pool = Http11Pool(server.base_url)

        async def ask() -> None:
            nonlocal highest
            highest = max(highest, pool._connecting)
            assert (await pool.post(CHAT, chat_body())).status == 200

        await asyncio.gather(*(ask() for _ in range(1000)))
        assert highest <= MAX_CONNECTING
        assert server.answered == 1000
        assert not pool._waiting
        await pool.aclose()


@pytest.mark.row(18)
@pytest.mark.parametrize("loop", RUNNERS)
def test_the_keep_alive_race_surfaces_never(loop: str, tried: Tried) -> None:
    """The server closes each connection 0 to 2 ms after an answer: the next request meets the closing socket."""

    def closing(info: object) -> Fault:
        index = info.index  # type: ignore[attr-defined]
        return Fault("close_after", interval_s=index % 40 / 20_000)

    async def scene() -> None:
        free = surfaced = 0
        async with FaultServer(script=closing) as server:
            pool = Http11Pool(server.base_url)
            for number in range(1500):
                body = chat_body(str(number % 10))
                try:
                    answer = await pool.post(CHAT, body)
                except TransportFailure as failure:
                    if not failure.free:
                        raise
                    free += 1
                    answer = await pool.post(CHAT, body)  # the one free resend, by hand
                surfaced += answer.status != 200
            assert surfaced == 0
            assert free > 0, "the race was not provoked"
            tried(1500, "requests")
            tried(free, "races met")
            await pool.aclose()
            await until(lambda: not server.open)

    RUNNERS[loop](asyncio.wait_for(scene(), 30))


@on_both_loops
async def test_a_reused_connection_that_dies_unanswered_is_free_and_takes_its_neighbours_along() -> None:
    script = lambda info: Fault("reset") if info.index == 8 else Fault(delay_s=0.005)  # noqa: E731
    async with FaultServer(script=script) as server:
        pool = Http11Pool(server.base_url)
        await asyncio.gather(*(pool.post(CHAT, chat_body()) for _ in range(8)))
        with pytest.raises(TransportFailure) as caught:
            await pool.post(CHAT, chat_body())
        assert (caught.value.reason, caught.value.free) == ("reset", True)
        assert pool.idle_connections == 0
        await until(lambda: not server.open)
        await pool.aclose()


def test_each_way_to_die() -> None:
    async def scene() -> None:
        for fault, reason in (
            (Fault("reset"), "reset"),
            (Fault("truncate"), "truncated"),
            (Fault("truncate", at=0), "truncated"),
            (Fault("reset_mid"), "truncated"),
            (Fault("not_http"), "protocol"),
            (Fault("gzip_bomb", size=1 << 20), "protocol"),
        ):
            failure = await failure_of(fault)
            assert (failure.reason, failure.free) == (reason, False), fault

    asyncio.run(scene())


@on_both_loops
async def test_silence_after_headers_or_blanks_is_the_server_at_work() -> None:
    """Only silence inside the body, or inside the headers, ends an answer before its total deadline."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"
    for first, then, reason in (
        (head, b"\n\n  {}", ""),
        (head + b"\n\n", b"  {}", ""),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", head + b"\n\n  {}", ""),
        (head[:20], head[20:] + b"\n\n  {}", "timeout"),
        (head + b"\n\n  {", b"}", "timeout"),
    ):

        async def serve(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes = first, then: bytes = then
        ) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(first)
            await asyncio.sleep(0.25)
            writer.write(then)

        async with listening(serve) as url:
            pool = Http11Pool(url, sweep_s=0.01)
            try:
                found = (await pool.post(CHAT, b"", Timeouts(idle=0.05, total=5.0))).body.strip().decode()
            except TransportFailure as failure:
                found = failure.reason
            assert found == (reason or "{}"), first
            await pool.aclose()


@on_both_loops
async def test_deadlines_hold_by_the_sweeper() -> None:
    for fault, wording in (
        (Fault("hang"), "no whole answer in 0.1 s"),
        (Fault("hang_mid"), "no byte for 0.05 s"),
        (Fault("slow_body", at=1, interval_s=0.01), "no whole answer in 0.1 s"),
    ):
        started = asyncio.get_running_loop().time()
        failure = await failure_of(fault, QUICK)
        assert failure.reason == "timeout"
        assert wording in failure.message
        assert asyncio.get_running_loop().time() - started > QUICK.idle, "never early"


def test_a_stalled_loop_causes_no_timeout() -> None:
    """An hour passes between two sweeps: deadlines advance by two sweeps only."""
    now = 0.0

    async def scene() -> None:
        nonlocal now
        async with FaultServer(script=lambda info: Fault("hang")) as server:
            pool = Http11Pool(server.base_url, sweep_s=0.5)
            task = asyncio.create_task(pool.post(CHAT, chat_body(), Timeouts(total=5)))
            await until(lambda: server.in_flight == 1)
            pool._swept_at -= 3600.0
            pool._sweep()
            assert pool.clock <= 1.0
            assert not task.done()
            for _ in range(20):
                pool._swept_at -= 1.0
                pool._sweep()
            with pytest.raises(TransportFailure, match="timeout"):
                await task
            await pool.aclose()

    asyncio.run(scene())


@on_both_loops
async def test_oversize_answers_are_refused_early() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind in ("huge", "huge_chunked"):
        failure = await failure_of(Fault(kind, size=10_000_000_000))
        assert failure.reason == "too_large"
        assert ("10000000000 bytes announced" in failure.message) == (kind == "huge")
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 32 << 20


@on_both_loops
async def test_other_framings_are_read() -> None:
    for kind in ("chunked", "no_length"):
        async with FaultServer(script=lambda info, kind=kind: Fault(kind)) as server:
            pool = Http11Pool(server.base_url)
            for _ in range(2):
                answer = await pool.post(CHAT, chat_body())
                assert orjson.loads(answer.body)["choices"]
            assert pool.opened == (1 if kind == "chunked" else 2)
            await pool.aclose()


@on_both_loops
async def test_cancellation_closes_the_connection_and_no_other() -> None:
    hang_on_x = lambda info: Fault("hang") if b'"x"' in info.body else None  # noqa: E731
    async with FaultServer(script=hang_on_x) as server:
        pool = Http11Pool(server.base_url)
        task = asyncio.create_task(pool.post(CHAT, chat_body("x")))
        await until(lambda: server.in_flight == 1)
        assert (await pool.post(CHAT, chat_body())).status == 200
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.aborted == 1)
        assert (await pool.post(CHAT, chat_body())).status == 200
        assert pool.opened == 2
        await pool.aclose()


@on_both_loops
async def test_cancellations_at_any_moment_leave_a_working_pool() -> None:
    """Cancelled while waiting for a turn to connect, connecting, writing, reading, or just answered."""
    async with FaultServer(delay_s=0.001) as server:
        pool = Http11Pool(server.base_url)
        for turns in range(40):
            tasks = [asyncio.create_task(pool.post(CHAT, chat_body())) for _ in range(100)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            for outcome in done[1::2]:
                assert not isinstance(outcome, BaseException), outcome
        assert pool._connecting == 0
        assert not pool._waiting
        await pool.aclose()
        await until(lambda: not server.open)


class _Meddling(Http11Pool):
    """Does something at the very moment a connection becomes free."""

    meddle: Callable[[], object] | None = None

    def released(self, connection: Connection) -> None:
        super().released(connection)
        meddle, self.meddle = self.meddle, None
        if meddle is not None:
            meddle()


@on_both_loops
async def test_a_request_cancelled_as_its_answer_comes_does_not_hurt_the_next_on_its_connection() -> None:
    async with FaultServer() as server:
        pool = _Meddling(server.base_url)
        tasks: list[asyncio.Task[WireResponse]] = []

        def next_one_and_cancel() -> None:
            tasks.append(asyncio.create_task(pool.post(CHAT, chat_body("second"))))
            tasks[0].cancel()

        pool.meddle = next_one_and_cancel
        tasks.append(asyncio.create_task(pool.post(CHAT, chat_body("first"))))
        await until(lambda: len(tasks) == 2)
        assert (await tasks[1]).status == 200
        assert tasks[0].cancelled()
        assert pool.opened == 1
        await pool.aclose()


@on_both_loops
async def test_a_waiter_cancelled_as_it_gets_a_connection_hands_it_back() -> None:
    async with FaultServer(delay_s=0.005) as server:
        pool = _Meddling(server.base_url)
        await pool.post(CHAT, chat_body())
        first = asyncio.create_task(pool.post(CHAT, chat_body()))
        await until(lambda: server.in_flight == 1)
        pool._connecting = MAX_CONNECTING  # no other request may connect
        waiter = asyncio.create_task(pool.post(CHAT, chat_body()))
        await until(lambda: len(pool._waiting) == 1)
        pool.meddle = waiter.cancel
        await asyncio.wait([first, waiter])
        assert waiter.cancelled()
        assert pool.idle_connections == 1
        assert (await pool.post(CHAT, chat_body())).status == 200
        await pool.aclose()


@pytest.mark.row(18)
def test_idle_connections_are_given_up_before_vllm_closes_them() -> None:
    """vLLM's patience is 5 s (uvicorn's default); the sweeper may be a sweep late."""
    assert KEEPALIVE_S + SWEEP_S < 5.0


@pytest.mark.row(18)
@on_both_loops
async def test_idle_connections_expire_before_the_servers_patience() -> None:
    async with FaultServer() as server:
        pool = Http11Pool(server.base_url, sweep_s=0.01, keepalive_s=0.02)
        await pool.post(CHAT, chat_body())
        await until(lambda: pool.idle_connections == 0)
        await until(lambda: not server.open)
        assert (await pool.post(CHAT, chat_body())).status == 200
        await pool.aclose()


@on_both_loops
async def test_refused_and_unknown_hosts_are_connect_failures() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pool = Http11Pool(f"http://127.0.0.1:{port}/v1")
    outcomes = await asyncio.gather(*(pool.post(CHAT, b"{}") for _ in range(200)), return_exceptions=True)
    assert {getattr(outcome, "reason", outcome) for outcome in outcomes} == {"connect"}
    with pytest.raises(TransportFailure, match="connect"):
        await Http11Pool("http://no-such-host.invalid/v1").post(CHAT, b"{}")
    await pool.aclose()


@on_both_loops
async def test_localhost_is_resolved_once_and_a_returned_server_is_found() -> None:
    async with FaultServer(script=lambda info: Fault("no_length")) as server:
        pool = Http11Pool(f"http://localhost:{server.port}/v1")
        for _ in range(3):
            assert (await pool.post(CHAT, chat_body())).status == 200
        assert pool._route.addresses[0] == "127.0.0.1"
        await server.stop()
        with pytest.raises(TransportFailure):
            await pool.post(CHAT, chat_body())
        await server.start()
        assert (await pool.post(CHAT, chat_body())).status == 200
        await pool.aclose()


@on_both_loops
async def test_closing_fails_what_is_in_flight() -> None:
    async with FaultServer(script=lambda info: Fault("hang")) as server:
        pool = Http11Pool(server.base_url)
        tasks = [asyncio.create_task(pool.post(CHAT, chat_body())) for _ in range(3)]
        await until(lambda: server.in_flight == 3)
        await pool.aclose()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, TransportFailure)
            assert not outcome.free
        with pytest.raises(TransportFailure):
            await pool.post(CHAT, chat_body())


def test_a_pool_outlives_its_loop() -> None:
    """Notebooks and `pipeline.run()` twice: each asyncio.run is another loop."""
    pool: Http11Pool | None = None

    async def scene() -> None:
        nonlocal pool
        async with FaultServer() as server:
            pool = pool or Http11Pool(server.base_url)
            server_port = pool._base.port
            if server.port != server_port:
                await server.stop()
                server.port = server_port
                await server.start()
            assert (await pool.post(CHAT, chat_body())).status == 200
            assert pool._loop is asyncio.get_running_loop()

    asyncio.run(scene())
    asyncio.run(scene())


async def echoed(key: str) -> bytes:
    """What a server that repeats the request's key in its error leaves us to see."""

    def script(info: RequestInfo) -> Fault:
        return Fault("status", status=400, message=f"you sent {info.headers['authorization']}")

    async with FaultServer(script=script) as server:
        pool = Http11Pool(server.base_url, api_key=Secret(key))
        try:
            return (await pool.post("/chat/completions", b'{"model":"test-model","messages":[]}')).body
        finally:
            await pool.aclose()


def test_a_key_that_the_server_repeats_is_taken_out() -> None:
    body = asyncio.run(echoed("sk-canary-0123"))
    assert b"canary" not in body
    assert b"you sent Bearer ***" in body
    assert b"you sent Bearer EMPTY" in asyncio.run(echoed("EMPTY"))  # a word, no secret
