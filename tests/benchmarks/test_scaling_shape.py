"""Doubling the records, the requests in flight or the steps must not quadruple anything.

Counted, not timed: calls of functions (Python's and C's) while the whole engine runs against a fake transport in
virtual time, which is the same each time. What is linear doubles; what is quadratic quadruples. Work inside one call of
C (`sorted`, `list.remove`, a copy) is not seen by this; benchmarks/scaling.py is for that.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.testing.virtual_time import run_virtually

pytestmark = pytest.mark.slow

MODEL = "model-a"
URL = "http://server.test/v1"


class Echo(httpx.AsyncBaseTransport):
    """Answers after a second, whatever is asked."""

    def __init__(self) -> None:
        self.requests = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": MODEL}]})
        if not request.url.path.endswith("/chat/completions"):
            return httpx.Response(404)
        self.requests += 1
        await asyncio.sleep(1.0)
        choice = {"index": 0, "message": {"role": "assistant", "content": "an answer"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 10}
        return httpx.Response(200, json={"model": MODEL, "choices": [choice], "usage": usage})


def calls_of(main: Callable[[], object]) -> int:
    """How many functions are called meanwhile, C's included."""
    count = 0

    def profile(frame: object, kind: str, argument: object) -> None:
        nonlocal count
        count += kind in ("call", "c_call")

    gc.collect()
    gc.disable()  # what it would call hangs on what was there before
    sys.setprofile(profile)
    try:
        main()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def work(folder: Path, *, records: int, concurrency: int, steps: int = 1) -> int:
    """Calls that a run makes."""

    def rows() -> Iterator[dict[str, Any]]:
        return ({"instruction": f"number {n}"} for n in range(records))

    async def run() -> None:
        transport = Echo()
        async with httpx.AsyncClient(transport=transport) as client:
            with Pipeline(name="shape") as pipeline:
                last: Any = LoadDataFromDicts(data=rows)
                column = "instruction"
                for number in range(steps):
                    task = TextGeneration(
                        llm=LLM(model=MODEL, base_url=URL, http_client=client),
                        input_mappings={"instruction": column},
                        output_mappings={"generation": f"generation_{number}", "model_name": f"model_{number}"},
                    )
                    last >> task
                    last, column = task, f"generation_{number}"
            result = await pipeline.arun(output=folder / "run", concurrency=concurrency)
        assert result.report.counts.ok == records
        assert transport.requests >= records * steps

    return calls_of(lambda: run_virtually(run()))


@pytest.fixture(autouse=True, scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Imports and caches do not count."""
    work(tmp_path_factory.mktemp("warm"), records=5, concurrency=2, steps=2)


def test_doubling_the_records(tmp_path: Path) -> None:
    small = work(tmp_path / "small", records=200, concurrency=32)
    large = work(tmp_path / "large", records=400, concurrency=32)
    assert large < 2.5 * small


def test_quadrupling_what_is_in_flight_costs_a_record_no_more(tmp_path: Path) -> None:
    few = work(tmp_path / "few", records=400, concurrency=32)
    many = work(tmp_path / "many", records=400, concurrency=128)
    assert many < 1.5 * few


def test_doubling_the_steps(tmp_path: Path) -> None:
    short = work(tmp_path / "short", records=60, concurrency=16, steps=4)
    long = work(tmp_path / "long", records=60, concurrency=16, steps=8)
    assert long < 2.6 * short


def test_what_is_quadratic_would_be_seen() -> None:
    """The count itself can fail: a scan of all for each does quadruple."""

    def scans(size: int) -> None:
        for n in range(size):
            for other in range(size):
                divmod(n, other + 1)

    assert calls_of(lambda: scans(80)) > 3.9 * calls_of(lambda: scans(40))
