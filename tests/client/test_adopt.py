"""Which httpx clients are taken over, and that the others keep all their behaviour."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator

import httpx
import orjson
import pytest

from asyncsynth.client.adopt import HttpxExchange, adopt, reason_to_keep
from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.transport import DEFAULT_TIMEOUTS, Timeouts, TransportFailure
from asyncsynth.errors import ConfigurationError
from asyncsynth.testing import Fault, FaultServer
from tests.kit.loops import on_both_loops
from tests.kit.requests import CHAT, QUICK, chat_body

URL = "http://127.0.0.1:9/v1"


@pytest.fixture(autouse=True)
def _no_proxy_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class _Signing(httpx.Auth):
    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["x-signed"] = "yes"
        yield request


class _Transport(httpx.AsyncHTTPTransport):
    """A transport of the user's own."""


class _Subclass(httpx.AsyncClient):
    pass


async def _hook(request: httpx.Request) -> None:
    request.headers["x-hook"] = "yes"


@on_both_loops
async def test_a_plain_client_is_adopted_and_its_headers_reach_the_server() -> None:
    async with FaultServer(keep_requests=True, api_key="k") as server:
        headers = {"Authorization": "Bearer k", "X-Team": "blue"}
        async with httpx.AsyncClient(base_url=server.base_url, headers=headers) as client:
            exchange = adopt(client)
            assert isinstance(exchange, Http11Pool)
            assert exchange.base_url == server.base_url
            assert (await exchange.post(CHAT, chat_body())).status == 200
            assert (await exchange.get("/health", at_origin=True)).status == 200
            await exchange.aclose()
            assert not client.is_closed
        assert server.log is not None
        seen = server.log[0].headers
        assert (seen["x-team"], seen["content-type"]) == ("blue", "application/json")
        assert seen["user-agent"].startswith("python-httpx/"), "the client's own user agent"


def test_a_chosen_timeout_is_kept_and_the_default_is_not() -> None:
    plain = adopt(httpx.AsyncClient(base_url=URL))
    assert plain.timeouts == DEFAULT_TIMEOUTS
    chosen = adopt(httpx.AsyncClient(base_url=URL, timeout=httpx.Timeout(30, connect=2)))
    assert chosen.timeouts == Timeouts(connect=2, idle=30, total=30)
    assert adopt(httpx.AsyncClient(base_url=URL, timeout=None)).timeouts.total > 1e8


def test_the_clients_tls_settings_are_kept() -> None:
    client = httpx.AsyncClient(base_url="https://127.0.0.1:9/v1", verify=False)
    exchange = adopt(client)
    assert isinstance(exchange, Http11Pool)
    assert exchange._route.ssl_context is client._transport._pool._ssl_context  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: _Subclass(), "a subclass"),
        (lambda: httpx.AsyncClient(event_hooks={"request": [_hook]}), "event hooks"),
        (lambda: httpx.AsyncClient(auth=("user", "pass")), "an auth flow"),
        (lambda: httpx.AsyncClient(cookies={"a": "b"}), "cookies"),
        (lambda: httpx.AsyncClient(params={"a": "b"}), "default query parameters"),
        (lambda: httpx.AsyncClient(follow_redirects=True), "redirects to follow"),
        (lambda: httpx.AsyncClient(headers={"Host": "other"}), "a Host header"),
        (lambda: httpx.AsyncClient(proxy="http://127.0.0.1:8"), "a proxy or a mount"),
        (
            lambda: httpx.AsyncClient(mounts={"http://": httpx.AsyncHTTPTransport()}),
            "a proxy or a mount",
        ),
        (lambda: httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=2)), "retries"),
        (lambda: httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds="/x")), "a socket of its own"),
        (
            lambda: httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(proxy="http://127.0.0.1:8")),
            "a transport of its own",
        ),
        (lambda: httpx.AsyncClient(transport=_Transport()), "a transport of its own"),
    ],
)
def test_a_client_with_behaviour_is_kept(make: Callable[[], httpx.AsyncClient], reason: str) -> None:
    client = make()
    assert reason_to_keep(client, URL) == reason
    assert isinstance(adopt(client, URL), HttpxExchange)


def test_a_proxy_from_the_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:8")
    monkeypatch.setenv("NO_PROXY", "10.0.0.1")
    assert reason_to_keep(httpx.AsyncClient(), URL) == "a proxy or a mount"
    assert reason_to_keep(httpx.AsyncClient(), "http://10.0.0.1/v1") == ""
    assert reason_to_keep(httpx.AsyncClient(trust_env=False), URL) == ""


def test_user_information_in_the_url_stays_with_httpx() -> None:
    assert isinstance(adopt(httpx.AsyncClient(base_url="http://u:p@127.0.0.1:9/v1")), HttpxExchange)


def test_no_base_url() -> None:
    with pytest.raises(ConfigurationError, match="base_url"):
        adopt(httpx.AsyncClient())


@on_both_loops
async def test_hooks_and_auth_are_at_work() -> None:
    async with FaultServer(keep_requests=True) as server:
        async with httpx.AsyncClient(event_hooks={"request": [_hook]}, auth=_Signing()) as client:
            exchange = adopt(client, server.base_url)
            answer = await exchange.post(CHAT, chat_body())
            assert answer.status == 200
            assert answer.headers["content-type"] == "application/json"
            assert orjson.loads(answer.body)["choices"]
            assert (await exchange.get("/models")).status == 200
            assert (await exchange.get("/health", at_origin=True)).status == 200
        assert server.log is not None
        seen = server.log[0].headers
        assert (seen["x-hook"], seen["x-signed"]) == ("yes", "yes")


def test_a_mock_transport_is_used_unchanged() -> None:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url} {request.content!r}")
        return httpx.Response(207, json={"a": 1}, headers={"X-A": "b"})

    async def scene() -> None:
        exchange = adopt(httpx.AsyncClient(base_url=URL, transport=httpx.MockTransport(handler)))
        answer = await exchange.post(CHAT, b"{}")
        assert (answer.status, answer.body, answer.headers["x-a"]) == (207, b'{"a":1}', "b")
        await exchange.get("/health", at_origin=True)
        assert asked == [f"POST {URL}{CHAT} b'{{}}'", "GET http://127.0.0.1:9/health b''"]
        await exchange.aclose()

    asyncio.run(scene())


@on_both_loops
async def test_failures_of_a_kept_client_are_typed() -> None:
    for fault, reason in (
        (Fault("reset"), "reset"),
        (Fault("truncate"), "truncated"),
        (Fault("hang"), "timeout"),
        (Fault("hang_mid"), "timeout"),
        (Fault("gzip_bomb", size=1 << 20), "protocol"),
        (Fault("huge_chunked", size=1 << 40), "too_large"),
        (Fault("not_http"), "reset"),
    ):
        async with (
            FaultServer(script=lambda info, fault=fault: fault) as server,
            httpx.AsyncClient(auth=_Signing()) as client,
        ):
            exchange = HttpxExchange(client, server.base_url, max_response_bytes=1 << 20)
            with pytest.raises(TransportFailure) as caught:
                await exchange.post(CHAT, chat_body(), QUICK if reason == "timeout" else DEFAULT_TIMEOUTS)
            assert caught.value.reason == reason, fault
    async with httpx.AsyncClient(auth=_Signing()) as client:
        with pytest.raises(TransportFailure, match="connect"):
            await adopt(client, URL).post(CHAT, b"{}")


def test_a_hook_that_raises_is_not_swallowed() -> None:
    async def broken(request: httpx.Request) -> None:
        raise ZeroDivisionError

    async def scene() -> None:
        async with httpx.AsyncClient(event_hooks={"request": [broken]}) as client:
            with pytest.raises(ZeroDivisionError):
                await adopt(client, URL).post(CHAT, b"{}")

    asyncio.run(scene())
