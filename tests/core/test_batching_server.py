"""The simulated batching server does what its text says."""

from __future__ import annotations

import random

import pytest

from asyncsynth.testing.batching_server import BatchingServer


def drain(server: BatchingServer) -> dict[int, float]:
    """When each request ended."""
    ended: dict[int, float] = {}
    while (at := server.next_event()) is not None:
        for id in server.advance(at):
            assert id not in ended
            ended[id] = at
    return ended


def test_one_request_takes_prefill_and_a_step_per_token() -> None:
    server = BatchingServer(4, step_s=0.02, request_s=0.001, prefill_s=0.0001)
    server.submit(1, prompt=100, output=10, now=5.0)
    assert drain(server)[1] == pytest.approx(5.0 + 0.01 + 10 * 0.021)


def test_a_batch_shares_steps_and_the_rest_waits() -> None:
    server = BatchingServer(2, step_s=0.02, request_s=0.01, prefill_s=0.0)
    for id in range(3):
        server.submit(id, prompt=1, output=10, now=0.0)
    load = server.load(0.0)
    assert (load.waiting, load.running, load.kv) == (1, 2, None)
    ended = drain(server)
    assert ended[0] == ended[1] == pytest.approx(0.4)
    assert ended[2] == pytest.approx(0.4 + 0.3)


def test_a_full_queue_refuses() -> None:
    server = BatchingServer(1, queue=1)
    assert [server.submit(id, 10, 10, 0.0) for id in range(3)] == [True, True, False]
    assert server.refused == 1


@pytest.mark.parametrize("seed", range(5))
def test_kv_preempts_and_every_request_ends_once(seed: int) -> None:
    rng = random.Random(seed)
    server = BatchingServer(64, kv_tokens=2_000)
    for id in range(200):
        server.submit(id, rng.randint(1, 100), rng.randint(1, 900), now=0.0)
    most = 0.0
    ended: set[int] = set()
    while (at := server.next_event()) is not None:
        before = len(ended)
        done = server.advance(at)
        ended.update(done)
        assert len(ended) == before + len(done), f"seed={seed}"
        kv = server.load(at).kv
        assert kv is not None
        most = max(most, kv)
    assert len(ended) == 200, f"seed={seed}"
    assert server.preemptions > 0
    assert most > 0.9
    with pytest.raises(ValueError, match="2010 KV tokens"):
        server.submit(1000, 10, 2_000, now=at or 1e6)


def test_stalls_and_speed() -> None:
    server = BatchingServer(1, step_s=0.1, request_s=0.0, prefill_s=0.0)
    server.submit(1, 1, 10, now=0.0)
    server.stall(3.0, now=0.5)
    server.change_speed(2.0, now=0.5)
    assert drain(server)[1] == pytest.approx(0.5 + 3.0 + 5 * 0.05)
