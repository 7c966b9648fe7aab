"""What servers say of their load: headers, metrics, and when they are asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from asyncsynth.client.loads import RARE_POLL_S, LoadPoller, parse_metrics, parse_orca
from asyncsynth.client.transport import DEFAULT_TIMEOUTS, Timeouts, TransportFailure, WireResponse
from asyncsynth.core.outcomes import ServerLoad

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen2.5-1.5B-Instruct"} 100.0
vllm:num_requests_running{engine="1",model_name="Qwen/Qwen2.5-1.5B-Instruct"} 28.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a } b"} 3.0
vllm:num_requests_waiting{engine="1",model_name="a } b"} 4.0 1700000000
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 900.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 7.5e-01
vllm:e2e_request_latency_seconds_bucket{le="0.3"} 5.0
"""


def test_metrics_of_several_engines_are_one_load() -> None:
    assert parse_metrics(METRICS, 9.0) == ServerLoad(7, 128, 0.75, 9.0)


@pytest.mark.parametrize(
    ("text", "load"),
    [
        ("vllm:num_requests_waiting 2\nvllm:gpu_cache_usage_perc 0.5\n", ServerLoad(2, None, 0.5, 1.0)),
        ("vllm:num_requests_waiting 2.0\r\nvllm:num_requests_running 1\r\n", ServerLoad(2, 1, None, 1.0)),
        ("vllm:num_requests_waiting 2\nvllm:kv_cache_usage_perc 1.0000001", ServerLoad(2, None, 1.0, 1.0)),
        ("vllm:num_requests_waiting NaN\n", None),
        ("vllm:num_requests_running 2\n", None),
        ("# HELP vllm:num_requests_waiting 5\n", None),
        ("other:num_requests_waiting 5\nllamacpp:requests_processing 1\n", None),
        ("", None),
        ("<html>no metrics here</html>", None),
    ],
)
def test_metrics_in_other_forms(text: str, load: ServerLoad | None) -> None:
    assert parse_metrics(text, 1.0) == load


@pytest.mark.parametrize(
    ("value", "load"),
    [
        (
            'JSON {"named_metrics": {"kv_cache_usage_perc": 0.4, "num_requests_waiting": 3.0}}',
            ServerLoad(3, None, 0.4, 1.0),
        ),
        ('{"named_metrics": {"num_requests_waiting": 1, "num_requests_running": 8}}', ServerLoad(1, 8, None, 1.0)),
        ('json {"num_requests_waiting": "2"}', ServerLoad(2, None, None, 1.0)),
        (
            "TEXT named_metrics.kv_cache_usage_perc=0.9, named_metrics.num_requests_waiting=5.0",
            ServerLoad(5, None, 0.9, 1.0),
        ),
        ("num_requests_waiting=-1,kv_cache_usage_perc=nan", ServerLoad(0, None, None, 1.0)),
        ('JSON {"named_metrics": {"kv_cache_usage_perc": 0.4}}', None),
        ('JSON {"named_metrics": [1]}', None),
        ('JSON {"named_metrics"', None),
        ("JSON [1, 2]", None),
        ("BIN CgkxLjA=", None),
        ("", None),
    ],
)
def test_headers(value: str, load: ServerLoad | None) -> None:
    assert parse_orca(value, 1.0) == load


class Metrics:
    """An exchange with a script of answers to GET; after them the test is over."""

    base_url = "http://fake/v1"
    timeouts = DEFAULT_TIMEOUTS

    def __init__(self, *answers: WireResponse | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, bool]] = []

    async def get(self, path: str, timeout: Timeouts = DEFAULT_TIMEOUTS, *, at_origin: bool = False) -> WireResponse:
        self.asked.append((path, at_origin))
        if not self.answers:
            raise asyncio.CancelledError
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def post(self, path: str, body: bytes, timeout: Timeouts = DEFAULT_TIMEOUTS) -> WireResponse:
        raise AssertionError("loads are asked for, not sent")

    async def aclose(self) -> None:
        """Nothing to close."""


def poll(exchange: Metrics, change: Callable[[LoadPoller], None] | None = None) -> tuple[list[ServerLoad], list[float]]:
    """Run a poller to its end in virtual time: what it reported, how long it paused."""
    loads: list[ServerLoad] = []
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if change is not None:
            change(poller)

    poller = LoadPoller(exchange, loads.append, clock=lambda: 5.0, sleep=sleep)

    async def main() -> None:
        poller.start()
        [task] = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait([task])
        await poller.stop()

    asyncio.run(main())
    return loads, pauses


GOOD = WireResponse(200, {}, METRICS.encode())


def test_a_vllm_server_is_asked_every_second_at_its_origin() -> None:
    exchange = Metrics(GOOD, GOOD, GOOD)
    loads, pauses = poll(exchange)
    assert loads == [ServerLoad(7, 128, 0.75, 5.0)] * 3
    assert pauses == [1.0] * 3
    assert set(exchange.asked) == {("/metrics", True)}


@pytest.mark.parametrize(
    "answer",
    [
        WireResponse(404, {}, b"{}"),
        WireResponse(200, {}, b"llamacpp:requests_processing 1\n"),
        WireResponse(401, {}, METRICS.encode()),
        ValueError("a hook of the user's"),
    ],
)
def test_another_server_is_asked_once(answer: WireResponse | Exception) -> None:
    exchange = Metrics(answer, GOOD)
    assert poll(exchange) == ([], [])
    assert len(exchange.asked) == 1


def test_a_silent_server_is_asked_less_and_less_and_again_when_it_answers() -> None:
    gone = TransportFailure("connect", "refused")
    exchange = Metrics(GOOD, *[gone] * 4, WireResponse(503), GOOD)
    loads, pauses = poll(exchange)
    assert len(loads) == 2
    assert pauses == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 1.0]


def test_pauses_can_be_made_longer_while_it_runs() -> None:
    def rarer(poller: LoadPoller) -> None:
        poller.every_s = RARE_POLL_S

    assert poll(Metrics(GOOD, GOOD), rarer)[1] == [1.0, RARE_POLL_S]
