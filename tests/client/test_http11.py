"""The HTTP/1.1 pool against real sockets: reuse, every way to die, deadlines, caps, cancellation, secrets."""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
import traceback

import orjson
import pytest

from asyncsynth.client.connection import Connection
from asyncsynth.client.http11 import MAX_CONNECTING, Head, Http11Pool
from asyncsynth.client.secret import Secret
from asyncsynth.client.transport import Timeouts, TransportFailure
from asyncsynth.errors import ConfigurationError
from asyncsynth.testing import Fault, FaultServer
from tests.client.kit import CHAT, QUICK, chat_body, on_both_loops, until


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


@on_both_loops
async def test_the_keep_alive_race_surfaces_never() -> None:
    """The server closes each connection 0 to 2 ms after an answer: the next request meets the closing socket."""

    def closing(info: object) -> Fault:
        index = info.index  # type: ignore[attr-defined]
        return Fault("close_after", interval_s=index % 40 / 20_000)

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
        print(f"{free} free resends")
        await pool.aclose()
        await until(lambda: not server.open)


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
        assert pool._addresses[0] == "127.0.0.1"
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
            server_port = pool._port
            if server.port != server_port:
                await server.stop()
                server.port = server_port
                await server.start()
            assert (await pool.post(CHAT, chat_body())).status == 200

    asyncio.run(scene())
    asyncio.run(scene())


@on_both_loops
async def test_paths_keys_and_headers_reach_the_server() -> None:
    async with FaultServer(api_key="canary-key-1", keep_requests=True) as server:
        pool = Http11Pool(server.base_url, {"X-Team": "a", "Connection": "close"}, api_key=Secret("canary-key-1"))
        assert (await pool.post(CHAT, chat_body())).status == 200
        assert (await pool.get("/health", at_origin=True)).status == 200
        models = orjson.loads((await pool.get("/models")).body)
        assert models["data"][0]["id"] == "test-model"
        assert server.log is not None
        headers = server.log[0].headers
        assert headers["x-team"] == "a"
        assert headers["accept-encoding"] == "identity"
        assert headers["host"] == f"127.0.0.1:{server.port}"
        assert pool.opened == 1
        wrong = Http11Pool(server.base_url, api_key=Secret("canary-key-2"))
        assert (await wrong.post(CHAT, chat_body())).status == 401
        await wrong.aclose()
        await pool.aclose()


@on_both_loops
async def test_keys_print_nowhere() -> None:
    pool = Http11Pool("http://127.0.0.1:9/v1", api_key=Secret("canary-key-3"))
    printed = repr(pool) + str(vars(pool)) + repr(Secret("canary-key-3"))
    try:
        await pool.post(CHAT, b"{}")
    except TransportFailure as failure:
        lines = traceback.TracebackException.from_exception(failure, capture_locals=True).format()
        printed += "".join(lines)
    assert "connect" in printed
    assert "canary-key-3" not in printed
    await pool.aclose()


@pytest.mark.parametrize(
    "url", ["", "ftp://x/v1", "http:///v1", "http://x:y/v1", "http://u:canary@x/v1", "http://x/v1?a=b", "x:80"]
)
def test_bad_base_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Http11Pool(url)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("a", "b\r\nc: d"), ("a\n", "b"), ("", "b"), ("a", "\u2028")])
def test_headers_cannot_smuggle(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError):
        Http11Pool("http://x/v1", {name: value})


def test_paths_cannot_smuggle() -> None:
    async def scene() -> None:
        pool = Http11Pool("http://127.0.0.1:9/v1")
        for path in ("models", "/a b", "/a\r\nx: y", "/\u00e9"):
            with pytest.raises(ConfigurationError):
                await pool.get(path)

    asyncio.run(scene())


class _Raw(asyncio.Protocol):
    """A server that answers each request with fixed bytes."""

    reply = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.reply)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "protocol"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000, "protocol"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "protocol"),
    ],
)
def test_odd_answers(reply: bytes, expected: bytes | str) -> None:
    async def scene() -> None:
        kind = type("Kind", (_Raw,), {"reply": reply})
        server = await asyncio.get_running_loop().create_server(kind, "127.0.0.1", 0)
        pool = Http11Pool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", sweep_s=0.01)
        for _ in range(3):
            try:
                got: bytes | str = (await pool.post(CHAT, b"{}", Timeouts(total=1))).body
            except TransportFailure as failure:
                got = failure.reason
            assert got == expected
        await pool.aclose()
        server.close()
        await server.wait_closed()

    asyncio.run(scene())


def test_a_request_is_one_write() -> None:
    """Header and body in two sends cost 44 ms where Nagle's algorithm meets delayed acknowledgements."""

    class Recorder:
        writes: list[bytes] = []  # noqa: RUF012

        def write(self, data: bytes) -> None:
            self.writes.append(data)

    async def scene() -> None:
        connection = Connection(Http11Pool("http://x/v1"))
        connection.transport = Recorder()  # type: ignore[assignment]
        connection.start(asyncio.get_running_loop().create_future(), Timeouts(), b"head and body")
        assert Recorder.writes == [b"head and body"]

    asyncio.run(scene())


@on_both_loops
async def test_nagle_is_off() -> None:
    async with FaultServer() as server:
        pool = Http11Pool(server.base_url)
        await pool.post(CHAT, chat_body())
        sock = pool._idle[0].transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await pool.aclose()


def test_a_head_does_not_print() -> None:
    assert "key" not in f"{Head(b'key')!r} {Head(b'key')}"
