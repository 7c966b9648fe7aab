"""Limits in a run: the window that follows them, reports, and servers that come and go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asyncsynth.client.replicas import PoolSnapshot
from asyncsynth.client.server_pool import ServerPool
from asyncsynth.core.outcomes import ServerLoad
from asyncsynth.core.replica_state import ReplicaSnapshot
from asyncsynth.core.stats import Histogram
from asyncsynth.engine import server_lines as lines_file
from asyncsynth.engine.following_window import MOST_RECORDS, FollowingWindow
from asyncsynth.engine.runner import Runner
from asyncsynth.engine.server_lines import keep_lines, kept_lines, server_lines
from asyncsynth.engine.status import RunStatus
from asyncsynth.errors import ConfigurationError
from asyncsynth.testing.faults import Fault, RequestInfo
from tests.kit.loops import run_async, until
from tests.kit.pipelines import rows, server, single

# --- the window --------------------------------------------------------------------------------


class Capacity(ServerPool):
    """A pool of which only the capacity is looked at."""

    def __init__(self, capacity: int) -> None:
        self.now = capacity

    @property
    def capacity(self) -> int:
        return self.now


def take_all(window: FollowingWindow) -> int:
    taken = 0
    while window.try_take():
        taken += 1
    return taken


def test_the_window_follows_the_servers_limits() -> None:
    pool, clock = Capacity(16), [0.0]
    window = FollowingWindow(None, 1 << 30, pool, lambda: clock[0])
    assert take_all(window) == 2 * 16 + 256
    pool.now = 500
    assert take_all(window) == 0  # it has just looked
    clock[0] = 0.2
    assert take_all(window) == 2 * (500 - 16)
    pool.now = 100
    clock[0] = 0.4
    assert not window.try_take()
    assert window.records == 456


def test_the_window_is_bounded_whatever_the_servers_take() -> None:
    window = FollowingWindow(None, 1 << 30, Capacity(100_000), lambda: 0.0)
    assert take_all(window) == MOST_RECORDS


def test_a_window_that_the_user_set_stays() -> None:
    pool, clock = Capacity(16), [0.0]
    window = FollowingWindow(10, 1 << 30, pool, lambda: clock[0])
    pool.now, clock[0] = 4000, 9.0
    assert take_all(window) == 10


def replica(in_flight: int, limit: int, state: str = "closed", load: ServerLoad | None = None) -> ReplicaSnapshot:
    return ReplicaSnapshot("s", in_flight, limit, 0, state, "growing", load)


def snapshot(*replicas: ReplicaSnapshot, waiting: int = 0) -> PoolSnapshot:
    return PoolSnapshot(list(replicas), waiting, 0, 0, {}, 0, 0, 0, {}, Histogram())


def test_the_window_is_named_where_it_binds_and_only_there() -> None:
    window = FollowingWindow(3, 1 << 20, Capacity(16), lambda: 0.0)
    idle = snapshot(replica(3, 16))
    assert window.why(idle) == ""
    take_all(window)
    assert window.why(idle) == "all 3 records of the window are in flight (--window)"
    assert window.why(snapshot(replica(16, 16))) == ""
    assert window.why(snapshot(replica(3, 16), waiting=1)) == ""
    assert window.why(snapshot(replica(0, 16, "open"))) == ""
    window.release(0)
    window.charge(1 << 20)
    assert "1 MiB of records" in window.why(idle)
    [line] = server_lines(idle, window.why(idle))
    assert line["why"].startswith("growing; not reached: 1 MiB")


def test_lines_tell_what_a_server_says_of_itself() -> None:
    load = ServerLoad(waiting=4, running=128, kv=0.5, at=0.0)
    [known, silent] = server_lines(snapshot(replica(16, 16, load=load), replica(1, 16, "open")), "the window")
    assert (known["server_waiting"], known["server_running"], known["server_kv"]) == (4, 128, 0.5)
    assert (silent["server_waiting"], silent["why"]) == (None, "growing")
    assert known["why"] == "growing"


def test_lines_are_kept_and_what_is_no_line_is_ignored(tmp_path: Path) -> None:
    assert kept_lines(tmp_path) == []
    lines = server_lines(snapshot(replica(1, 16)), "")
    keep_lines(tmp_path, lines)
    assert kept_lines(tmp_path) == lines
    for spoiled in (b"{", b'{"a": 1}', b"[1]", b""):
        (tmp_path / lines_file.FILE).write_bytes(spoiled)
        assert kept_lines(tmp_path) == []
    keep_lines(tmp_path / "gone", lines)  # a directory that is not there costs the run nothing


@pytest.mark.parametrize("concurrency", [0, -1])
def test_concurrency_is_at_least_one(concurrency: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"concurrency is {concurrency}"):
        run_async(single(rows(1)).arun(concurrency=concurrency, output=tmp_path / "run"))


# --- runs over real sockets --------------------------------------------------------------------


def test_a_fixed_concurrency_is_kept_and_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(delay_s=0.002) as fake:
            result = await single(rows(60)).arun(servers=[fake.base_url], output=tmp_path / "run", concurrency=3)
            assert result.report.counts.ok == 60
            assert fake.highest_in_flight == 3
        [line] = result.report.limits
        assert (line["limit"], line["why"]) == (3, "fixed at 3")
        assert RunStatus.read(tmp_path / "run").servers == [line]
        assert result.report.as_json()["limits"] == [line]

    run_async(main())


def test_a_limit_that_adapts_grows_and_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(delay_s=0.005) as fake:
            result = await single(rows(1500)).arun(servers=[fake.base_url], output=tmp_path / "run")
            assert fake.highest_in_flight > 16
        [line] = result.report.limits
        assert line["limit"] >= fake.highest_in_flight > 0
        assert line["why"]
        assert "fixed" not in line["why"]

    run_async(main())


def busy(info: RequestInfo) -> Fault | None:
    """Every fifth request is refused at its first sight, with 429 and 503 in turn."""
    if info.index % 5 or info.seen > 1:
        return None
    return Fault("status", status=503 if info.index % 2 else 429, retry_after="0")


def test_servers_are_lost_return_and_join_while_a_run_goes_on(tmp_path: Path) -> None:
    """Three replicas: one refuses now and then, one is killed and started again, one is absent at the start."""

    async def main() -> None:
        late = await server().start()
        await late.stop()
        async with server(script=busy) as first, server() as second:
            fleet = tmp_path / "fleet.yaml"
            fleet.write_text("servers:\n" + "".join(f"  - url: {s.base_url}\n" for s in (first, second, late)))
            first.delay_s = second.delay_s = late.delay_s = 0.05  # until all has happened that is to happen
            runners: list[Runner] = []
            pipeline = single(rows(3000))
            run = asyncio.create_task(
                pipeline.arun(servers=[str(fleet)], output=tmp_path / "run", concurrency=8, on_runner=runners.append)
            )
            await until(lambda: bool(runners) and runners[0].counts.ok >= 50)
            assert [line["in_flight"] <= 8 for line in runners[0].progress().servers] == [True, True]
            await second.stop()
            before = second.answered
            async with late:
                await until(lambda: late.answered > 20)
                await second.start()
                await until(lambda: second.answered > before + 10)
                first.delay_s = second.delay_s = late.delay_s = 0.0
                result = await run
        report = result.report
        assert (report.counts.ok, report.counts.failed) == (3000, 0)
        assert len(result["default"]["train"]) == 3000
        assert report.retries["overloaded"] > 0
        assert [f"127.0.0.1:{late.port}" in note for note in report.notes] == [True, True]
        assert {line["name"] for line in report.limits} == {f"127.0.0.1:{s.port}" for s in (first, second, late)}

    run_async(main())


def test_rows_with_one_long_prefix_go_to_one_server(tmp_path: Path) -> None:
    documents = [f"Document {number}. " + f"fact {number} " * 800 for number in range(8)]
    data = [{"instruction": f"{document} Question {n}?"} for n in range(6) for document in documents]

    async def main() -> None:
        async with server(keep_requests=True) as first, server(keep_requests=True) as second:
            result = await single(data).arun(
                servers=[first.base_url, second.base_url], output=tmp_path / "run", concurrency=256
            )
        assert result.report.counts.ok == len(data)
        homes: dict[int, set[int]] = {}
        for fake in (first, second):
            for info in fake.log or ():
                for number in range(8):
                    if f"Document {number}." in info.body.decode():
                        homes.setdefault(number, set()).add(fake.port)
        assert [len(homes[number]) for number in range(8)] == [1] * 8

    run_async(main())
