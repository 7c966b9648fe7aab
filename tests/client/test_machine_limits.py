"""Limits of this machine: they charge no server and no record, and the user is told."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncsynth.client.machine_limits import RESERVE, connections_each, machine_limit, ports_are_scarce
from asyncsynth.client.server_pool import Server, ServerPool
from asyncsynth.client.transport import TransportFailure, WireResponse
from asyncsynth.core.adaptive import AdaptiveLimit
from asyncsynth.core.limiter import FixedLimit
from asyncsynth.core.outcomes import Ok, Outcome, Transient
from asyncsynth.core.retry import MACHINE
from asyncsynth.testing import FaultServer
from asyncsynth.testing.virtual_time import run_virtually
from tests.kit.exchanges import FakeExchange, answer, ask, make
from tests.kit.simulation import Sim, SimServer
from tests.matrix.plugin import Tried

#: A process of its own: what it may open is bounded, and cannot be raised again.
CHILD = """
import asyncio, random, resource, sys
from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.messages import ChatRequest
from asyncsynth.client.server_pool import Server, ServerPool

async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
    url = sys.argv[3]
    pool = ServerPool([Server("s", url, frozenset({"m"}), Http11Pool(url), limit=400)])
    request = ChatRequest("m", [{"role": "user", "content": "hello"}], {"max_tokens": 8})
    answers = await asyncio.gather(*(pool.send(request) for _ in range(600)))
    seen = pool.snapshot()
    print(len(answers), seen.failed, dict(seen.retries), seen.replicas[0].limit, seen.replicas[0].state, pool.notes)
    await pool.aclose()

asyncio.run(main())
"""


def child(soft: int, hard: int) -> str:
    async def main() -> str:
        server = FaultServer(models=("m",), delay_s=0.1)
        await server.start()
        command = [sys.executable, "-c", CHILD, str(soft), str(hard), server.base_url]
        ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
        await server.stop()
        assert ran.returncode == 0, ran.stderr[-2000:]
        return ran.stdout

    return asyncio.run(main())


@pytest.mark.row(45)
def test_the_soft_limit_of_open_files_is_raised() -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4096:
        pytest.skip("this machine allows fewer open files")
    assert child(128, 4096).strip() == "600 0 {} 400 closed []"


@pytest.mark.row(45)
def test_a_hard_limit_of_open_files_bounds_the_requests_in_flight(tried: Tried) -> None:
    said = child(200, 200)
    assert said.startswith("600 0 "), said
    assert "'connect'" not in said, "no server is charged"
    assert "this process may open 200 files" in said
    tried(600, "requests with 200 files")


@pytest.mark.row(45)
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
def test_what_this_machine_lacks_charges_no_record_and_no_server(code: int) -> None:
    """More failures in a row than a record has attempts, of all requests: each waits, and is answered."""
    refused = TransportFailure("connect", "no room")
    refused.__cause__ = OSError(code, os.strerror(code))

    def reply(n: int, body: dict[str, Any]) -> WireResponse | Exception:
        return refused if n <= 60 else answer()

    async def main() -> None:
        pool = make(FakeExchange(reply), limit=4)
        done = [pool.send(ask()) for _ in range(4)]
        for one in done:
            assert (await one).text == "hi"
        seen = pool.snapshot()
        assert (seen.failed, seen.replicas[0].state) == (0, "closed")
        assert seen.retries[MACHINE] == 60
        assert len(pool.notes) == 1
        assert pool.notes[0].startswith("requests wait: this ")
        await pool.aclose()

    run_virtually(main())


@pytest.mark.row(45)
@pytest.mark.parametrize("seed", range(5))
def test_fewer_are_in_flight_where_this_machine_has_no_room(seed: int) -> None:
    """Room for 20 of 64: the limit falls to what fits, and everything is answered."""
    rng = random.Random(seed)

    def script(call: int, attempt: int, now: float) -> tuple[Outcome, float] | None:
        return (Transient(MACHINE, "no room"), rng.random() * 0.01) if server.busy > 20 else None

    server = SimServer("s", frozenset({"m"}), script=script)
    sim = Sim([server], seed, [limit := FixedLimit(64)])
    sim.keep_window(1000, 200)
    sim.run()
    assert all(isinstance(finish.outcome, Ok) for finish in sim.finished.values()), f"seed={seed}"
    assert 10 <= limit.limit <= 21, f"seed={seed}: {limit.explain()}"
    assert "no room" in limit.explain()


@pytest.mark.parametrize(
    ("servers", "wanted", "may_open", "opened", "each"),
    [
        (2, 100, 1024, 20, None),
        (2, 2000, 1024, 20, (1024 - 20 - RESERVE) // 2),
        (8, 8, 60, 50, 1),
        (0, 0, 1024, 20, None),
    ],
)
def test_what_each_server_may_have(servers: int, wanted: int, may_open: int, opened: int, each: int | None) -> None:
    assert connections_each(servers, wanted, may_open, opened) == each


@pytest.mark.parametrize(("used", "scarce"), [("inuse 4 orphan 0 tw 9", False), ("inuse 400 orphan 0 tw 14000", True)])
def test_no_free_port_is_told_from_an_address_that_this_machine_does_not_have(
    tmp_path: Path, used: str, scarce: bool
) -> None:
    (tmp_path / "sys/net/ipv4").mkdir(parents=True)
    (tmp_path / "net").mkdir()
    (tmp_path / "sys/net/ipv4/ip_local_port_range").write_text("32768\t60999\n")
    (tmp_path / "net/sockstat").write_text(f"sockets: used 300\nTCP: {used} alloc 5 mem 1\n")
    assert ports_are_scarce(tmp_path) is scarce
    assert not ports_are_scarce(tmp_path / "other")
    refused = TransportFailure("connect", "refused")
    refused.__cause__ = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    assert machine_limit(refused) == ""


def test_bounds_hold_for_every_limit() -> None:
    for limiter in (FixedLimit(64), AdaptiveLimit(initial=64), AdaptiveLimit(slots=256)):
        limiter.bound(10)
        assert (limiter.limit, limiter.maximum) == (10, 10)
        limiter.bound(0)
        assert limiter.limit == 1
    assert isinstance(ServerPool([Server("s", "http://s/v1", frozenset({"m"}), FakeExchange())]).capacity, int)
