"""Redirects: which are followed, how, and what goes along."""

from __future__ import annotations

import asyncio

import pytest

from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.redirects import MAX_HOPS, Hop, next_hop
from asyncsynth.client.secret import Secret
from asyncsynth.client.transport import TransportFailure, WireResponse
from tests.kit.copying_server import listening
from tests.kit.loops import on_both_loops
from tests.kit.requests import CHAT

HERE = "http://gpu:8000/v1/chat/completions"


@pytest.mark.parametrize(
    ("method", "status", "location", "expected"),
    [
        ("POST", 307, "/other", Hop("POST", "/other")),
        ("POST", 308, "http://gpu:8000/other?a=b", Hop("POST", "/other?a=b")),
        ("POST", 303, "/result/7", Hop("GET", "/result/7")),
        ("POST", 302, "/result/7", Hop("GET", "/result/7")),
        ("POST", 301, "/result/7", Hop("GET", "/result/7")),
        ("POST", 301, "/v1/chat/completions/", Hop("POST", "/v1/chat/completions/")),
        ("GET", 301, "/v1/models/", Hop("GET", "/v1/models/")),
        ("POST", 307, "https://gpu/v1/chat/completions", Hop("POST", "/v1/chat/completions", "https://gpu")),
        ("POST", 301, "https://gpu:8443/v1/chat/completions", Hop("POST", "/v1/chat/completions", "https://gpu:8443")),
        ("POST", 307, "relative", Hop("POST", "/v1/chat/relative")),
        ("POST", 307, "//elsewhere/x", None),
        ("POST", 307, "http://gpu:8001/x", None),
        ("POST", 307, "http://user@gpu:8000/x", None),
        ("POST", 307, "ftp://gpu:8000/x", None),
        ("POST", 307, "/a b", None),
        ("POST", 307, "/a\r\nx: y", None),
        ("POST", 307, "http://[", None),
        ("POST", 307, "", None),
        ("POST", 304, "/other", None),
        ("POST", 200, "/other", None),
    ],
)
def test_where_a_redirect_leads(method: str, status: int, location: str, expected: Hop | None) -> None:
    assert next_hop(method, HERE, WireResponse(status, {"location": location})) == expected


def test_https_is_never_left() -> None:
    back = WireResponse(307, {"location": "http://gpu/x"})
    assert next_hop("POST", "https://gpu/v1", back) is None
    assert next_hop("POST", "https://gpu/v1", WireResponse(307, {"location": "https://gpu:443/x"})) == Hop("POST", "/x")


class _Redirecting:
    """Answers by path: `replies` maps a request line's beginning to status and Location."""

    def __init__(self, replies: dict[str, tuple[int, str]]) -> None:
        self.replies = replies
        self.requests: list[tuple[str, bytes, bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r")[0]))
            asked = head.split(b" HTTP")[0].decode()
            self.requests.append((asked, body, head))
            status, location = self.replies.get(asked, (200, ""))
            content = b"" if location else asked.encode()
            writer.write(
                b"HTTP/1.1 %d X\r\nlocation: %b\r\ncontent-length: %d\r\n\r\n%b"
                % (status, location.encode(), len(content), content)
            )


@on_both_loops
async def test_a_result_that_takes_long_is_fetched_where_the_server_says() -> None:
    """Modal answers 303 after 150 s, and the result's URL answers 303 again until there is a result."""
    path = "/v1" + CHAT
    modal = {f"POST {path}": (303, "/result/1"), "GET /result/1": (303, "/result/2?x=1")}
    server = _Redirecting(modal)
    async with listening(server.serve) as url:
        pool = Http11Pool(url, api_key=Secret("canary-key-1"))
        assert (await pool.post(CHAT, b"{}")).body == b"GET /result/2?x=1"
        assert [(asked, body) for asked, body, _ in server.requests] == [
            (f"POST {path}", b"{}"), ("GET /result/1", b""), ("GET /result/2?x=1", b""),
        ]  # fmt: skip
        assert all(b"Bearer canary-key-1" in head for _, _, head in server.requests)
        await pool.aclose()


@on_both_loops
async def test_a_moved_endpoint_gets_the_whole_request_and_a_circle_ends() -> None:
    server = _Redirecting({"POST /v1/a": (307, "/v1/b"), "GET /v1/a": (301, "/v1/a/"), "POST /v1/o": (308, "/v1/o")})
    async with listening(server.serve) as url:
        pool = Http11Pool(url)
        assert (await pool.post("/a", b"{}")).body == b"POST /v1/b"
        assert server.requests[-1][1] == b"{}"
        assert (await pool.get("/a")).body == b"GET /v1/a/"
        before = len(server.requests)
        with pytest.raises(TransportFailure, match="more than 20 redirects in a row"):
            await pool.post("/o", b"{}")
        assert len(server.requests) - before == 1 + MAX_HOPS
        await pool.aclose()


@on_both_loops
async def test_a_key_does_not_leave_its_origin_not_even_in_what_is_shown() -> None:
    async with listening(_Redirecting({}).serve) as other:
        server = _Redirecting({"POST /v1/a": (307, f"{other}/x?key=canary-key-7")})
        async with listening(server.serve) as url:
            pool = Http11Pool(url, api_key=Secret("canary-key-7"))
            answer = await pool.post("/a", b"{}")
            assert answer.status == 307
            assert answer.headers["location"] == f"{other}/x?key=***"
            await pool.aclose()
