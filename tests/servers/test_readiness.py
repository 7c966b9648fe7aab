"""Readiness: waiting with a virtual clock, and one clear error for each thing that is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from asyncsynth.client.transport import DEFAULT_TIMEOUTS, Timeouts, TransportFailure, WireResponse
from asyncsynth.errors import ModelNotServed, ServerError, ServerRefused, ServerUnreachable
from asyncsynth.servers.model_lists import Listing, not_served
from asyncsynth.servers.readiness import FirstContact, ReadyPolicy
from asyncsynth.servers.sample_requests import SMALL_TOKENS, plain_sample
from tests.kit.clocks import ManualClock

Answer = WireResponse | TransportFailure
CHAT = {
    "choices": [{"message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}],
    "model": "m",
}
RAW = {"choices": [{"text": "x", "finish_reason": "length"}], "model": "m"}
REFUSED = TransportFailure("connect", "connection refused")


def reply(status: int, body: Any = None) -> WireResponse:
    return WireResponse(status, {}, orjson.dumps({"error": {"message": "no"}} if body is None else body))


class ScriptedExchange:
    """Answers each path from a function; counts."""

    base_url = "http://127.0.0.1:9/v1"
    timeouts = DEFAULT_TIMEOUTS

    def __init__(self, **paths: Callable[[], Answer]) -> None:
        self.paths = paths
        self.asked: list[str] = []

    def _answer(self, path: str) -> WireResponse:
        self.asked.append(path)
        answer = self.paths[path.strip("/").replace("/", "_")]()
        if isinstance(answer, TransportFailure):
            raise answer
        return answer

    async def get(self, path: str, timeout: Timeouts = DEFAULT_TIMEOUTS, *, at_origin: bool = False) -> WireResponse:
        assert at_origin == (path == "/health")
        return self._answer(path)

    async def post(self, path: str, body: bytes, timeout: Timeouts = DEFAULT_TIMEOUTS) -> WireResponse:
        assert orjson.loads(body)["max_tokens"] == SMALL_TOKENS
        return self._answer(path)

    async def aclose(self) -> None:
        pass


LIST = {"data": [{"id": "m"}]}


def contact(exchange: ScriptedExchange, time: ManualClock, **settings: Any) -> FirstContact:
    return FirstContact(exchange, clock=time.clock, sleep=time.sleep, **settings)


def wait(time: ManualClock, said: list[str] | None = None, **paths: Callable[[], Answer]) -> Listing:
    policy = ReadyPolicy(connect_s=10, load_s=100)
    told = [] if said is None else said
    asked = contact(ScriptedExchange(**paths), time, policy=policy, on_wait=told.append)
    return asyncio.run(asked.wait_ready(plain_sample("m")))


def test_a_list_is_all_it_takes() -> None:
    assert wait(time := ManualClock(), models=lambda: reply(200, LIST)).names == {"m"}
    assert time.now == 0


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_a_list_is_ready(status: int) -> None:
    assert wait(ManualClock(), models=lambda: reply(status)) == Listing(None, status=status)


def test_waits_for_a_server_that_starts_and_loads() -> None:
    time = ManualClock()

    def now(good: Answer) -> Answer:
        return REFUSED if time.now < 8 else reply(503) if time.now < 90 else good

    said: list[str] = []
    found = wait(
        time,
        said,
        models=lambda: now(reply(200, LIST)),
        health=lambda: now(reply(200)),
        chat_completions=lambda: now(reply(200, CHAT)),
    )
    assert found.names == {"m"}
    assert 90 <= time.now < 93
    assert said == ["waiting for http://127.0.0.1:9/v1, up to 10 s: connect: connection refused"]


def test_nobody_listens() -> None:
    time = ManualClock()
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:9/v1 after 10 s \(connect: connection refused"):
        wait(time, models=lambda: REFUSED)
    assert time.now == pytest.approx(10)


def test_loads_for_ever() -> None:
    time, busy = ManualClock(), lambda: reply(503)
    with pytest.raises(ServerUnreachable, match=r"after 100 s .*503"):
        wait(time, models=busy, health=busy, chat_completions=busy)
    assert time.now == pytest.approx(100)


@pytest.mark.parametrize(
    ("health", "chat"),
    [
        (lambda: reply(200), lambda: reply(503)),  # its list is broken, and its queue is full
        (lambda: reply(503), lambda: reply(200, CHAT)),  # a gateway that knows no /health
        (lambda: TransportFailure("timeout", "silent"), lambda: reply(200, CHAT)),  # LiteLLM's asks every model
        (lambda: reply(404), lambda: reply(400)),  # it answers, if not this request
    ],
)
def test_a_list_that_fails_is_a_note_where_the_server_works(
    health: Callable[[], Answer], chat: Callable[[], Answer]
) -> None:
    found = wait(time := ManualClock(), models=lambda: reply(500), health=health, chat_completions=chat)
    assert (found.names, found.status, time.now) == (None, 500, 0)
    assert found.problem.startswith("/models answered 500")


@pytest.mark.parametrize("failure", ["timeout", "protocol", "too_large", "truncated"])
def test_a_list_that_cannot_be_read_is_a_note(failure: str) -> None:
    found = wait(ManualClock(), models=lambda: TransportFailure(failure, "no"))
    assert found == Listing(None, f"/models: {failure}: no")


@pytest.mark.parametrize(
    "answer",
    [reply(200, {"hello": 1}), reply(200, [1]), WireResponse(200, {}, b"<html>"), reply(403), reply(307)],
)
def test_what_is_no_list_is_a_note(answer: WireResponse) -> None:
    found = wait(ManualClock(), models=lambda: answer)
    assert found.names is None
    assert found.problem.startswith(f"/models answered {answer.status} (")


def test_a_sample_request_that_waits_is_told() -> None:
    said: list[str] = []

    async def scenario() -> None:
        class Slow(ScriptedExchange):
            async def post(self, path: str, body: bytes, timeout: Timeouts = DEFAULT_TIMEOUTS) -> WireResponse:
                await told.wait()
                return reply(200, CHAT)

        def tell(line: str) -> None:
            said.append(line)
            told.set()

        told = asyncio.Event()
        policy = ReadyPolicy(tell_s=0)
        await FirstContact(Slow(), policy=policy, on_wait=tell).canary(plain_sample("m"))

    asyncio.run(scenario())
    assert said == ["waiting for http://127.0.0.1:9/v1: m has not answered a sample request yet"]


def canary(**paths: Answer) -> tuple[list[str], float]:
    exchange = ScriptedExchange(**{path: (lambda answer=answer: answer) for path, answer in paths.items()})
    asked = contact(exchange, time := ManualClock(), has_key=True, key_env="K")
    asyncio.run(asked.canary(plain_sample("m")))
    return exchange.asked, time.now


def test_canary_lives() -> None:
    assert canary(chat_completions=reply(200, CHAT)) == (["/chat/completions"], 0)


def test_a_busy_server_lives() -> None:
    assert canary(chat_completions=reply(503)) == (["/chat/completions"], 0)


def test_a_blank_first_token_lives() -> None:
    blank = {"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}
    assert canary(chat_completions=reply(200, blank))[1] == 0


def test_a_base_model_without_chat_template_lives() -> None:
    asked, _ = canary(chat_completions=reply(400), completions=reply(200, RAW))
    assert asked == ["/chat/completions", "/completions"]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (reply(401), ServerRefused, "Check the key in K"),
        (reply(404), ModelNotServed, "m at http://127.0.0.1:9/v1 did not answer"),
        (reply(500), ServerError, r"server_error \(HTTP 500\)"),
        (WireResponse(200, {}, b"{"), ServerError, "bad_json"),
        (REFUSED, ServerUnreachable, "connect"),
        (TransportFailure("timeout", "silent"), ServerUnreachable, "timeout: silent"),
    ],
)
def test_canary_dies(answer: Answer, error: type[ServerError], message: str) -> None:
    with pytest.raises(error, match=message):
        canary(chat_completions=answer, completions=answer)


def test_model_not_served_shows_the_ways_out() -> None:
    served = ["Qwen/Qwen2.5-1.5B-Instruct", "other"]
    text = str(not_served(["Qwen/Qwen2.5-1.5B-Instrukt"], served, searched="http://a/v1"))
    assert "Did you mean 'Qwen/Qwen2.5-1.5B-Instruct'?" in text
    assert "served: Qwen/Qwen2.5-1.5B-Instruct, other" in text
    assert "http://a/v1" in text
    assert "--embedded" in text
    assert "'smollm2'" in str(not_served(["HuggingFaceTB/SmolLM2"], ["smollm2"], searched=""))
    assert "served:" not in str(not_served(["m"], [], searched=""))


def test_all_models_that_are_not_served_are_named_at_once() -> None:
    text = str(not_served({"smollm", "judge"}, ["smollm2", "other"], searched="http://a/v1"))
    assert text.startswith("no server serves the models 'judge', 'smollm'\n")
    assert "Did you mean 'smollm2' for 'smollm'?" in text
    assert text.count("Start them") == 1


@pytest.mark.parametrize(
    ("has_key", "expected"),
    [(True, "Check the key in MY_KEY"), (False, r"none was sent(.|\n)*export MY_KEY")],
)
def test_key_refused(has_key: bool, expected: str) -> None:
    exchange = ScriptedExchange(chat_completions=lambda: reply(401, {"error": "Unauthorized"}))
    asked = contact(exchange, ManualClock(), has_key=has_key, key_env="MY_KEY")
    with pytest.raises(ServerRefused, match=expected):
        asyncio.run(asked.canary(plain_sample("m")))


def test_a_refused_sample_is_no_dead_server() -> None:
    exchange = ScriptedExchange(chat_completions=lambda: reply(400), completions=lambda: reply(400))
    assert not asyncio.run(contact(exchange, ManualClock()).canary(plain_sample("m")))


@pytest.mark.row(32)
@pytest.mark.parametrize(
    ("message", "where"),
    [
        ({"role": "assistant", "content": "<think>"}, "text"),
        ({"role": "assistant", "content": None, "reasoning_content": "Okay"}, "field"),
        ({"role": "assistant", "reasoning": "Okay"}, "field"),  # mlx-lm leaves the content out
        ({"role": "assistant"}, ""),
        ({"role": "assistant", "content": None}, ""),
        ({"role": "assistant", "content": "Okay"}, ""),
    ],
)
def test_a_model_whose_one_token_is_a_thought_lives(message: dict[str, Any], where: str) -> None:
    body = {"choices": [{"message": message, "finish_reason": "length"}], "usage": {"completion_tokens": 1}}
    exchange = ScriptedExchange(chat_completions=lambda: reply(200, body))
    asked = contact(exchange, ManualClock())
    assert asyncio.run(asked.canary(plain_sample("m")))
    assert asked.thinking == ({"m": where} if where else {})
    assert exchange.asked == ["/chat/completions"]
