"""Row 14: a record that kills its server, by a server process that really dies of it and is started again."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from tests.kit.loops import run_async
from tests.kit.served import MODEL, Served
from tests.matrix.plugin import FULL, Tried

RECORDS = 10_000 if FULL else 400
RESTART_S = 2.0


@pytest.mark.row(14)
def test_exactly_the_record_that_kills_its_server_is_quarantined(tmp_path: Path, tried: Tried) -> None:
    crashes = 0
    poison = RECORDS // 3

    async def supervise(server: Served) -> None:
        """As a supervisor does: what has died is started again on its port."""
        nonlocal crashes
        while True:
            process = server.process
            assert process is not None
            await asyncio.to_thread(process.wait)
            crashes += 1
            # A model takes longer to load. One that is back before it was missed is not known to have died.
            await asyncio.sleep(RESTART_S)
            await asyncio.to_thread(server.start)

    async def main() -> None:
        data = [{"instruction": f"record {n}{' of poison' if n == poison else ''}."} for n in range(RECORDS)]
        with Pipeline(name="poison") as pipeline:
            LoadDataFromDicts(data=data) >> TextGeneration(llm=LLM(model=MODEL))
        with Served(deadly="of poison") as server:
            keeper = asyncio.create_task(supervise(server))
            try:
                result = await pipeline.arun(
                    servers=[server.base_url],
                    output=tmp_path / "run",
                    window=64,
                    concurrency=32,
                )
            finally:
                crashed = crashes
                keeper.cancel()
                if server.process is not None:
                    server.process.kill()
                with contextlib.suppress(asyncio.CancelledError):
                    await keeper
        assert 2 <= crashed <= 4, crashed
        tried(RECORDS, "records over real sockets", most=(crashed, "crashes"))
        counts = result.report.counts
        assert counts.failures == {"poison": 1}, counts
        assert counts.ok == RECORDS - 1
        assert {row["instruction"] for row in data} - {row["instruction"] for row in result["default"]["train"]} == {
            f"record {poison} of poison."
        }

    run_async(main())
