"""A run's own servers are kept running: restarts, their reports, and when a live one counts as hung."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.messages import ChatRequest
from asyncsynth.client.server_pool import Server, ServerPool
from asyncsynth.errors import RunStopped, ServerUnreachable
from asyncsynth.serving.embedded import EmbeddedServer, EmbeddedSpec, why_it_ended
from asyncsynth.serving.keeping import End, HangPolicy, Keeping, keep, kept, until_it_hangs
from asyncsynth.serving.restarts import RestartPolicy
from tests.kit.clocks import ManualClock
from tests.kit.files import ROOT

STAND_IN = [sys.executable, str(ROOT / "tests/kit/embedded_stand_in.py")]


class Told:
    """A watcher that records its calls."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def server_down(self, name: str, why: str) -> None:
        self.said.append(f"down: {why}")

    def server_up(self, name: str) -> None:
        self.said.append("up")

    def server_lost(self, name: str, why: str, advice: str = "") -> None:
        self.said.append(f"lost: {why} | {advice}")


class Dying:
    """A child that ends as soon as it runs; `starts` holds the result of each restart."""

    name = "child"

    def __init__(self, starts: Sequence[Exception | None]) -> None:
        self.starts = list(starts)
        self.ends = 0
        self.cleared = 0

    async def start(self) -> None:
        if (error := self.starts.pop(0)) is not None:
            raise error

    async def ended(self) -> End:
        self.ends += 1
        return End(f"end {self.ends}", "Free some memory.")

    async def clear(self) -> None:
        self.cleared += 1


# --- virtual time ------------------------------------------------------------------------------


def test_restarts_pause_longer_each_time_and_come_to_an_end() -> None:
    time, told, notes = ManualClock(), Told(), []
    failed = ServerUnreachable("no address", hint="Look.")
    child = Dying([None, failed, OSError("no memory"), None])
    policy = RestartPolicy(crashes=4)
    asyncio.run(
        keep(
            child,
            told,
            how=Keeping(restart=policy, clock=time.clock, sleep=time.sleep, rng=random.Random(1)),
            on_crash=lambda end, pause: notes.append(end.why),
        )
    )
    assert told.said == [
        "down: end 1",
        "up",
        "down: end 2",
        "up",
        "down: end 3",
        "lost: crashed more than 4 times within 900 s; the last time: end 3 | Free some memory.",
    ]
    for slept, most in zip(time.slept, [0.5, 1, 2, 4], strict=True):
        assert most / 2 <= slept <= most
    assert notes == ["end 1", "end 2", "no address", "it could not be started: no memory"]
    assert child.cleared == 3  # once after each end, before it is started again


def hang_of(answers: Sequence[str], *, takes_s: float = 0.0) -> tuple[str, float]:
    """What is said of a server that answers so, the last answer for ever, and after how many seconds."""
    time, left = ManualClock(), list(answers)

    async def healthy() -> str:
        time.now += takes_s
        return left.pop(0) if len(left) > 1 else left[0]

    why = asyncio.run(until_it_hangs(healthy, HangPolicy(), clock=time.clock, sleep=time.sleep))
    return why, time.now


def test_a_server_hangs_when_it_says_nothing_good_for_a_minute() -> None:
    why, after = hang_of(["", "", "timeout: no answer"])
    assert why == "its process lives, but /health gave no good answer for 60 s (timeout: no answer)"
    assert after == 3 * 5 + 60
    assert hang_of(["timeout"], takes_s=10.0)[1] <= 80


def test_one_good_answer_within_a_minute_is_enough() -> None:
    silence = ["timeout"] * 12  # 55 s from the first to the last
    assert hang_of([*silence, "", *silence, "", "timeout"])[1] == 26 * 5 + 5 + 60


def test_a_pause_of_our_own_is_no_hang() -> None:
    """The whole machine slept while a question was on its way: the next answer is good, and nothing is said."""
    time, answered = ManualClock(), 0

    async def healthy() -> str:
        nonlocal answered
        answered += 1
        if answered == 1:
            time.now += 3600
        elif answered > 2:
            raise LookupError
        return "timeout" if answered == 1 else ""

    with pytest.raises(LookupError):
        asyncio.run(until_it_hangs(healthy, HangPolicy(), clock=time.clock, sleep=time.sleep))


@pytest.mark.parametrize(
    ("log", "code", "cause"),
    [
        ("loading\nstd::bad_alloc\nbye", 1, "memory does not suffice"),
        ("loading", -signal.SIGKILL, "killed"),
        ("x.cpp:1: GGML_ASSERT(n > 0) failed", -signal.SIGABRT, "SIGABRT"),
    ],
)
def test_the_end_of_llama_cpp_is_explained(log: str, code: int, cause: str) -> None:
    found = why_it_ended(log, code)
    assert cause in found.cause
    assert found.advice
    assert found.line in log.splitlines() or code == -signal.SIGKILL


# --- a process in llama.cpp's place ------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_text("GGUF slow")
    return path


def pids(model: Path) -> list[int]:
    return [int(line) for line in model.with_suffix(".pids").read_text().split()]


def send_while_it_dies(model: Path, *, words: str, crashes: int) -> tuple[list[str | BaseException], ServerPool]:
    """200 requests to a child that is killed after some of them, and told to start with `words` the next time."""

    async def scenario() -> tuple[list[str | BaseException], ServerPool]:
        async with EmbeddedServer(EmbeddedSpec(model=str(model)), command=STAND_IN) as child:
            exchange = Http11Pool(child.base_url)
            address = child.base_url
            pool = ServerPool(
                [Server(child.name, address, frozenset({"m"}), exchange, limit=8, serves_any=child.name)],
                rng=random.Random(1),
            )
            restart = RestartPolicy(first_s=0.02, crashes=crashes)

            async def ask(n: int) -> str:
                answer = await pool.send(ChatRequest("m", [{"role": "user", "content": f"{n}"}], {}))
                if n == 20:
                    model.write_text(f"GGUF {words}")
                    assert child.pid is not None
                    os.kill(child.pid, signal.SIGKILL)
                return answer.model

            async with kept(
                keep(
                    child,
                    pool,
                    how=Keeping(restart=restart),
                    on_crash=lambda end, pause: pool.notes.append(f"{end.why}; again in {pause:.2f} s"),
                )
            ):
                sent = await asyncio.gather(*[ask(n) for n in range(200)], return_exceptions=True)
            assert child.base_url in ("", address)
            await pool.aclose()
            if child.log_path is not None:
                child.log_path.unlink()
            return sent, pool

    return asyncio.run(scenario())


def test_a_killed_child_comes_back_on_its_port_and_no_request_is_lost(model: Path) -> None:
    sent, pool = send_while_it_dies(model, words="slow", crashes=5)
    assert sent == ["model (embedded)"] * 200
    assert len(pids(model)) == 2
    [note] = pool.notes
    assert "was killed (SIGKILL)" in note
    assert "again in 0.0" in note
    assert pool.snapshot().failed == 0


def test_a_child_that_cannot_come_back_ends_the_run_with_the_cause(model: Path) -> None:
    sent, pool = send_while_it_dies(model, words="memory", crashes=2)
    assert pool.halted is not None
    assert len(pids(model)) == 3
    stopped = [error for error in sent if isinstance(error, RunStopped)]
    assert len(stopped) + sent.count("model (embedded)") == 200
    message, hint = stopped[0].message, stopped[0].hint
    assert "crashed more than 2 times" in message
    assert "the machine's memory does not suffice: ggml_aligned_malloc: insufficient memory" in message
    assert "fewer slots" in (hint or "")


@pytest.mark.slow
def test_the_log_of_a_first_start_that_fails_is_kept_and_a_good_one_leaves_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model.parent / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    async def good() -> None:
        async with EmbeddedServer(EmbeddedSpec(model=str(model)), command=STAND_IN):
            assert list(folder.iterdir()) == []  # not even while it runs: kill -9 of this process leaves nothing

    asyncio.run(good())
    assert list(folder.iterdir()) == []
    for words, cause in (("memory", "memory does not suffice"), ("fails", "no such model")):
        model.write_text(f"GGUF {words}")
        server = EmbeddedServer(EmbeddedSpec(model=str(model)), command=STAND_IN)
        with pytest.raises(ServerUnreachable, match=cause) as caught:
            asyncio.run(server.start())
        assert server.log_path is not None
        assert server.log_path.parent == folder
        assert str(server.log_path) in str(caught.value)
