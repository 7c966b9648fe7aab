"""Readiness: waiting with a virtual clock, and one clear error for each thing that is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from asyncsynth.client.transport import DEFAULT_TIMEOUTS, Timeouts, TransportFailure, WireResponse
from asyncsynth.errors import ModelNotServed, ServerError, ServerRefused, ServerUnreachable
from asyncsynth.servers.readiness import Probe, ReadyPolicy, not_served
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
        assert orjson.loads(body)["max_tokens"] == 1
        return self._answer(path)

    async def aclose(self) -> None:
        pass


def probe(exchange: ScriptedExchange, time: ManualClock, **settings: Any) -> Probe:
    return Probe(exchange, clock=time.clock, sleep=time.sleep, **settings)


def wait(health: Callable[[], Answer], time: ManualClock) -> None:
    policy = ReadyPolicy(connect_s=10, load_s=100)
    asyncio.run(probe(ScriptedExchange(health=health), time, policy=policy).wait_ready())


@pytest.mark.parametrize("status", [200, 404, 401])
def test_ready_at_once(status: int) -> None:
    wait(lambda: reply(status), time := ManualClock())
    assert time.now == 0


def test_waits_for_a_server_that_starts_and_loads() -> None:
    time = ManualClock()
    wait(lambda: REFUSED if time.now < 8 else reply(503) if time.now < 90 else reply(200), time)
    assert 90 <= time.now < 93


def test_nobody_listens() -> None:
    time = ManualClock()
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:9/v1 after 10 s \(connect: connection refused"):
        wait(lambda: REFUSED, time)
    assert time.now == pytest.approx(10)


def test_loads_for_ever() -> None:
    time = ManualClock()
    with pytest.raises(ServerUnreachable, match=r"after 100 s .*503"):
        wait(lambda: reply(503), time)
    assert time.now == pytest.approx(100)


def models(answer: Answer, **settings: Any) -> tuple[str, ...] | None:
    return asyncio.run(probe(ScriptedExchange(models=lambda: answer), ManualClock(), **settings).models())


def test_list_of_models() -> None:
    assert models(reply(200, {"data": [{"id": "a"}, {"id": "b"}]})) == ("a", "b")
    assert models(reply(404)) is None


@pytest.mark.parametrize(
    ("has_key", "expected"),
    [(True, "Check the key in MY_KEY"), (False, r"none was sent(.|\n)*export MY_KEY")],
)
def test_key_refused(has_key: bool, expected: str) -> None:
    with pytest.raises(ServerRefused, match=expected):
        models(reply(401, {"error": "Unauthorized"}), has_key=has_key, key_env="MY_KEY")


@pytest.mark.parametrize("answer", [reply(200, {"hello": 1}), reply(200, [1]), WireResponse(200, {}, b"<html>")])
def test_another_kind_of_server(answer: WireResponse) -> None:
    with pytest.raises(ServerError, match="without a list of models"):
        models(answer)


def canary(**paths: Answer) -> tuple[list[str], float]:
    exchange = ScriptedExchange(**{path: (lambda answer=answer: answer) for path, answer in paths.items()})
    asyncio.run(probe(exchange, time := ManualClock(), has_key=True, key_env="K").canary("m"))
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
        (reply(400), ServerError, "bad_request"),
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
    asked = probe(exchange, ManualClock())
    assert asyncio.run(asked.canary("m"))
    assert asked.thinking == ({"m": where} if where else {})
    assert exchange.asked == ["/chat/completions"]
