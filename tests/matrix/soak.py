"""One long run in a process of its own, watched from inside: `python -m tests.matrix.soak PART RECORDS URL RUN`.

PART is `run` (memory, descriptors and tasks by records done), `resume` (seconds from the start of the process until
the first record is looked up, with everything done) or `status`. Prints one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.engine.pipeline import run_in_loop
from asyncsynth.engine.runner import Runner
from asyncsynth.engine.status import RunStatus

SAMPLE_S = 0.05
MODEL = "model-a"
WINDOW = 1024


def pipeline_of(records: int) -> Pipeline:
    """Two steps over rows that are made when they are pulled."""

    def rows() -> Iterator[dict[str, Any]]:
        return ({"instruction": f"Say something about the number {number}."} for number in range(records))

    with Pipeline(name="soak") as pipeline:
        first = TextGeneration(llm=LLM(model=MODEL))
        second = TextGeneration(
            llm=LLM(model=MODEL),
            input_mappings={"instruction": "generation"},
            output_mappings={"generation": "second", "model_name": "second_model"},
        )
        LoadDataFromDicts(data=rows) >> first >> second
    return pipeline


def resident_mb() -> float:
    """Of this process, now (Linux); elsewhere the most so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def highest_mb() -> float:
    """The most that this process had. On Linux `ru_maxrss` also counts the process that started it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return next(int(line.split()[1]) * 1024e-6 for line in lines if line.startswith("VmHWM:"))


def descriptors() -> int:
    """Open in this process."""
    return len(os.listdir("/dev/fd"))


async def soak(records: int, url: str, run: Path, *, started: float) -> dict[str, Any]:
    """The run, with samples (records done, resident MB, descriptors, tasks)."""
    samples: list[tuple[int, float, int, int]] = []
    watching: list[asyncio.Task[None]] = []
    begun: list[float] = []

    async def watch(runner: Runner) -> None:
        while True:
            counts = runner.counts
            done = counts.ok + counts.failed
            samples.append((done, resident_mb(), descriptors(), len(asyncio.all_tasks())))
            await asyncio.sleep(SAMPLE_S)

    def on_runner(runner: Runner) -> None:
        begun.append(time.monotonic() - started)
        watching.append(asyncio.get_running_loop().create_task(watch(runner)))

    try:
        result = await pipeline_of(records).arun(
            servers=[url], output=run, window=WINDOW, concurrency=256, on_runner=on_runner
        )
    finally:
        for task in watching:
            task.cancel()
    counts = result.report.counts
    return {
        "samples": samples, "ok": counts.ok, "failed": counts.failed, "earlier": counts.earlier, "rows": counts.rows,
        "retries": sum(result.report.retries.values()), "complete": result.report.complete, "begun_s": begun[0],
    }  # fmt: skip


def main() -> None:
    """Runs one part."""
    part, count, url, place, started = sys.argv[1:]
    run = Path(place)
    if part == "status":
        status = RunStatus.read(run, examples=5)
        said: dict[str, Any] = {"ok": status.ok, "failed": status.failed}
    else:
        said = run_in_loop(lambda: soak(int(count), url, run, started=float(started)))
    said["seconds"] = time.monotonic() - float(started)
    said["highest_mb"] = highest_mb()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
