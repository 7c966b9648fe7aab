"""A server that answers as another model in the middle of a run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncsynth.client.server_pool import ServerPool
from asyncsynth.client.transport import WireResponse
from asyncsynth.errors import RunStopped
from asyncsynth.testing.virtual_time import run_virtually
from tests.kit.exchanges import FakeExchange, answer, ask, make, pool_of, server
from tests.matrix.plugin import Tried


def changing(after: int, before: str = "m", later: str = "other") -> FakeExchange:
    def reply(n: int, body: dict[str, Any]) -> WireResponse:
        return answer(model=before if n <= after else later)

    return FakeExchange(reply)


async def all_answers(pool: ServerPool, number: int) -> list[tuple[str, str]]:
    completions = await asyncio.gather(*(pool.send(ask()) for _ in range(number)))
    return [(one.server, one.model) for one in completions]


@pytest.mark.row(46)
@pytest.mark.parametrize("name", ["m", "m-2024-08-06"], ids=["by name", "by alias"])
def test_the_run_continues_with_the_other_servers_and_no_such_answer_is_kept(name: str, tried: Tried) -> None:
    async def main() -> None:
        swapped = changing(5, name)
        pool = pool_of(server("a", swapped), server("b", FakeExchange(lambda n, body: answer(model=name))))
        answered = await all_answers(pool, 200)
        assert {model for _, model in answered} == {name}
        assert len(swapped.bodies) < 20, "nothing more is sent there"
        [note] = pool.notes
        assert note == (
            "a answers as another model, and gets no more requests: "
            f"its answers for 'm' name the model 'other', and named '{name}' before"
        )
        assert pool.snapshot().wasted == pool.snapshot().retries["other_model"] > 0
        await pool.aclose()

    run_virtually(main())
    tried(200, "answers beside a server that changed")


@pytest.mark.row(46)
def test_a_run_that_needs_the_server_stops_at_once() -> None:
    async def main() -> None:
        pool = make(changing(3))
        await all_answers(pool, 3)
        with pytest.raises(RunStopped, match="answers as another model: its answers for 'm' name") as stopped:
            await pool.send(ask())
        assert "--model-change note" in stopped.value.hint
        assert pool.snapshot().ok == 3
        await pool.aclose()

    run_virtually(main())


@pytest.mark.row(46)
def test_the_user_may_take_what_the_server_answers() -> None:
    async def main() -> None:
        pool = make(changing(3))
        pool._accepts_other = True
        answered = await all_answers(pool, 8)
        assert sorted(model for _, model in answered) == ["m"] * 3 + ["other"] * 5
        assert pool.notes == ["s: its answers for 'm' name the model 'other', and named 'm' before"]
        await pool.aclose()

    run_virtually(main())


def test_a_server_that_leaves_the_name_out_now_and_then_has_not_changed() -> None:
    async def main() -> None:
        exchange = FakeExchange(lambda n, body: answer(model="m-2024-08-06" if n % 2 else "m"))
        pool = make(exchange)
        assert len(await all_answers(pool, 20)) == 20
        assert pool.notes == []
        await pool.aclose()

    run_virtually(main())
