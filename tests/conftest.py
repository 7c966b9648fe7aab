"""What tests of several rooms share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asyncsynth.testing import FaultServer
from tests import quick
from tests.kit.files import ROOT
from tests.matrix import plugin
from tests.matrix.plugin import tried
from tests.quick import only_quick_things

__all__ = ["fault_server", "only_quick_things", "tried"]


def pytest_addoption(parser: pytest.Parser) -> None:
    plugin.pytest_addoption(parser)
    quick.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    plugin.pytest_configure(config)
    quick.configure(config)


@pytest.fixture(autouse=True, scope="session")
def _no_run_in_the_checkout() -> Iterator[None]:
    """Tests give their runs a folder of their own; the default place, `asyncsynth-runs`, would be this checkout."""
    place = ROOT / "asyncsynth-runs"
    before = set(place.iterdir()) if place.exists() else set()
    yield
    after = set(place.iterdir()) if place.exists() else set()
    assert after <= before, f"a test ran without an output: {sorted(after - before)}"


@pytest.fixture
def fault_server() -> Iterator[Callable[..., FaultServer]]:
    """Starts fault servers in a thread with its own loop, for tests that run the program as a process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    started: list[FaultServer] = []

    def start(**options: Any) -> FaultServer:
        server = FaultServer(**options)
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        started.append(server)
        return server

    yield start

    async def stop() -> None:
        for server in started:
            await server.stop()
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
