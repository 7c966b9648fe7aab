"""No answer goes to another request's record, whatever a server or proxy sends twice."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from pathlib import Path

import httpx
import orjson
import pytest

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.client.adopt import HttpxExchange
from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.matching import HARMLESS_REPEATS, History, Matching, Verdict
from asyncsynth.client.transport import Exchange, TransportFailure, WireResponse
from tests.kit.copying_server import CopyingServer, listening
from tests.kit.loops import on_both_loops
from tests.kit.requests import CHAT, chat_body
from tests.matrix.plugin import Tried

#: Seconds until a copy comes: at once, within the next exchange, after several.
DELAYS: dict[str, Callable[[random.Random], float]] = {
    "at once": lambda rng: 0.0,
    "1 ms": lambda rng: 0.001,
    "5 ms": lambda rng: 0.005,
    "up to 40 ms": lambda rng: rng.random() * 0.04,
}


async def wrong_answers(server: CopyingServer, pool: Exchange, requests: int, concurrency: int) -> int:
    """How many of so many requests got another one's answer."""
    numbers = iter(range(requests))
    wrong = 0

    async def worker() -> None:
        nonlocal wrong
        for number in numbers:
            answer = await pool.post(CHAT, chat_body(f"q {number}"))
            text = orjson.loads(answer.body)["choices"][0]["message"]["content"]
            wrong += text != f"answer to q {number}"

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return wrong


@pytest.mark.slow
@pytest.mark.row(44)
@pytest.mark.parametrize("ids", ["body", "header", "unique", "none"])
@pytest.mark.parametrize("when", DELAYS)
def test_a_copy_is_never_another_requests_answer(ids: str, when: str, tried: Tried) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)

    async def scene() -> None:
        for concurrency, in_turn in ((1, False), (6, True), (24, False)):
            delay = lambda: DELAYS[when](rng) if rng.random() < 0.08 else None  # noqa: E731
            async with CopyingServer(ids, delay, rng=rng, in_turn=in_turn).serving() as server:
                pool = Http11Pool(server.base_url)
                assert await wrong_answers(server, pool, 100, concurrency) == 0
                tried(server.copies, "copies")
                sent_again = server.answered - 100
                assert sent_again <= server.copies
                if sent_again:
                    assert "sent again" in pool.matching.notes[0]
                await pool.aclose()

    asyncio.run(asyncio.wait_for(scene(), 30))


@pytest.mark.slow
@pytest.mark.row(44)
@pytest.mark.parametrize("ids", ["body", "header", "unique", "none"])
@pytest.mark.parametrize("when", DELAYS)
def test_a_copy_is_never_another_requests_answer_in_the_users_own_client(ids: str, when: str, tried: Tried) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)

    async def scene() -> None:
        delay = lambda: DELAYS[when](rng) if rng.random() < 0.08 else None  # noqa: E731
        async with (
            CopyingServer(ids, delay, rng=rng, in_turn=True).serving() as server,
            httpx.AsyncClient(event_hooks={"request": []}, base_url=server.base_url, trust_env=False) as client,
        ):
            exchange = HttpxExchange(client, server.base_url)
            assert await wrong_answers(server, exchange, 80, 6) == 0
            tried(server.copies, "copies")

    asyncio.run(asyncio.wait_for(scene(), 30))


@pytest.mark.row(44)
def test_rows_of_three_steps_are_right_and_the_run_says_what_it_met(tmp_path: Path) -> None:
    rng = random.Random(5)
    with Pipeline(name="three-steps") as pipeline:
        rows = LoadDataFromDicts(data=[{"instruction": f"q {number}"} for number in range(40)])
        one, two, three = (
            TextGeneration(
                llm=LLM(model="m"), input_mappings={"instruction": asked}, output_mappings={"generation": made}
            )
            for asked, made in (("instruction", "one"), ("one", "two"), ("two", "three"))
        )
        rows >> one >> two >> three

    async def scene() -> None:
        delay = lambda: 0.001 if rng.random() < 0.1 else None  # noqa: E731
        async with CopyingServer("header", delay, rng=rng).serving() as server:
            done = await pipeline.arun(servers=[server.base_url], output=tmp_path / "run", concurrency=4)
            made = list(done["default"]["train"])
            assert len(made) == 40
            assert all(row["three"] == "answer to answer to answer to " + row["instruction"] for row in made)
            assert any("meant for another request or for none" in note for note in done.report.notes)

    asyncio.run(asyncio.wait_for(scene(), 30))


def response(text: str = "", **headers: str) -> WireResponse:
    return WireResponse(200, {name.replace("_", "-"): value for name, value in headers.items()}, text.encode())


def judged(matching: Matching, token: bytes, answer: WireResponse, history: History, fresh: bool = False) -> Verdict:
    return matching.judge(token, answer, history, fresh=fresh, seconds=0.0)


@pytest.mark.row(44)
def test_ids_are_uuids_and_none_is_used_twice() -> None:
    matching = Matching("s")
    tokens = {matching.token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(uuid.UUID(token.decode()).version == 4 for token in tokens)
    assert not tokens & {Matching("s").token() for _ in range(1000)}


@pytest.mark.row(44)
def test_an_answer_with_another_attempts_id_or_without_the_usual_one_is_refused() -> None:
    matching, history = Matching("s"), History()
    first, second = matching.token(), matching.token()
    assert judged(matching, first, response(x_request_id=first.decode()), history, fresh=True) is Verdict.ACCEPT
    assert matching.returns_ids
    assert judged(matching, second, response(x_request_id=first.decode()), history) is Verdict.REFUSE
    assert judged(matching, second, response(f'{{"id":"chatcmpl-{first.decode()}"}}'), history) is Verdict.REFUSE
    assert judged(matching, second, response(first.decode()), History(), fresh=True) is Verdict.REFUSE
    assert judged(matching, second, response("no id at all"), history) is Verdict.REFUSE
    assert matching.returns_ids


@pytest.mark.row(44)
def test_without_ids_a_repeated_answer_is_held_until_the_server_is_known_to_repeat_itself() -> None:
    matching, history = Matching("s"), History()
    assert judged(matching, matching.token(), response("yes"), history, fresh=True) is Verdict.ACCEPT
    assert matching.returns_ids is False
    assert matching.token() == b""
    assert judged(matching, b"", response("no"), history) is Verdict.ACCEPT
    for _ in range(HARMLESS_REPEATS):
        assert judged(matching, b"", response("yes"), history) is Verdict.HOLD
        matching.repeats += 1
    assert judged(matching, b"", response("yes"), history) is Verdict.ACCEPT
    matching.refused()  # a real copy: repeats are looked at again
    assert judged(matching, b"", response("yes"), history) is Verdict.HOLD
    assert judged(matching, b"", response("yes"), History()) is Verdict.ACCEPT, "another connection's"


@pytest.mark.row(44)
def test_what_cannot_be_proven_afterwards_is_counted() -> None:
    matching, history = Matching("http://s"), History()
    for text in ("a", "b", "c"):
        judged(matching, b"", response(text), history)
    matching.surplus(200, b"c", history)
    assert "1 answer " in matching.notes[0]
    assert "may belong to other records" not in matching.notes[0]
    matching.surplus(408, b"you were idle", history)
    matching.surplus(200, b"never seen", history)
    assert "2 answers " in matching.notes[0]
    assert "3 carry no request id and may belong to other records" in matching.notes[0]
    assert len(matching.notes) == 1


@on_both_loops
async def test_a_cache_is_not_taken_for_a_mix_up() -> None:
    stored: list[bytes] = []
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            asked += 1
            stored.append(b'{"id":"chatcmpl-%b"}' % head.partition(b"x-request-id: ")[2][:36])
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(stored[0]), stored[0]))

    async with listening(serve) as base_url:
        pool = Http11Pool(base_url)
        answers = [(await pool.post(CHAT, b"{}")).body for _ in range(4)]
        assert set(answers) == {stored[0]}
        assert asked == 4 + 2, "two more requests show that it is a cache"
        await pool.aclose()


@on_both_loops
async def test_a_request_that_only_gets_others_answers_fails() -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(2)
        seen.append(head.partition(b"x-request-id: ")[2][:36])
        body = b'{"id":"%b"}' % (b"%b%012x" % (seen[-1][:24], 1000 + len(seen)))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async with listening(serve) as base_url:
        pool = Http11Pool(base_url)
        with pytest.raises(TransportFailure, match="3 answers belonged to other requests"):
            await pool.post(CHAT, b"{}")
        assert len(set(seen)) == 3, "each attempt has an id of its own"
        await pool.aclose()
