"""One run of the whole engine in a process of its own, measured: what the other benchmarks start.

    python benchmarks/engine_job.py '{"url": "http://127.0.0.1:8000/v1", "input": "rows.jsonl", "output": "run"}'

The job is that of `asyncsynth run`: JSONL in, a chain of `steps` generation steps, the journal with its group commit,
the export to JSONL. CPU is user and system time of this process, all threads, after its imports. Prints JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import MODEL, Phase, peak_rss_mb

from asyncsynth import LLM, LoadJSONL, Pipeline, TextGeneration
from asyncsynth.engine.pipeline import run_in_loop
from asyncsynth.engine.report import RunReport
from asyncsynth.engine.runner import Runner
from asyncsynth.engine.status import RunStatus
from asyncsynth.storage.exports import export

_SAMPLE_S = 0.25


@dataclass
class Job:
    """The job. `again` resumes the finished run, which sends nothing, and reads its status."""

    url: str
    input: str
    output: str
    records: int
    concurrency: int = 256
    steps: int = 1
    again: bool = False
    model: str = MODEL
    max_tokens: int = 256
    memory: list[tuple[int, float]] = field(default_factory=list)  #: (records done, resident MB) over the run


def pipeline_of(job: Job) -> Pipeline:
    """`steps` generations in a chain, each from the one before."""
    with Pipeline(name="engine-job") as pipeline:
        last: Any = LoadJSONL(job.input)
        column = "instruction"
        for number in range(job.steps):
            task = TextGeneration(
                llm=LLM(model=job.model, max_tokens=job.max_tokens),
                input_mappings={"instruction": column},
                output_mappings={"generation": f"generation_{number}", "model_name": f"model_name_{number}"},
            )
            last >> task
            last, column = task, f"generation_{number}"
    return pipeline


def rss_mb() -> float:
    """Resident memory now, MB; where the system does not tell, the most so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_rss_mb()
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def run(job: Job) -> RunReport:
    """One run to its end, with memory sampled on the way."""
    samplers: list[asyncio.Task[None]] = []

    async def sample(runner: Runner) -> None:
        while True:
            job.memory.append((runner.counts.ok + runner.counts.earlier, rss_mb()))
            await asyncio.sleep(_SAMPLE_S)

    def watch(runner: Runner) -> None:
        samplers.append(asyncio.get_running_loop().create_task(sample(runner)))

    try:
        result = await pipeline_of(job).arun(
            servers=[job.url], output=job.output, concurrency=job.concurrency, on_runner=watch
        )
    finally:
        for sampler in samplers:
            sampler.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*samplers)
    return result.report


def tenths(memory: list[tuple[int, float]], records: int) -> list[float]:
    """Resident MB when each tenth of the records was done."""
    marks = [next((mb for done, mb in memory if done >= records * part / 10), None) for part in range(1, 10)]
    return [round(mb, 1) for mb in [*marks, memory[-1][1] if memory else None] if mb is not None]


def measure(job: Job) -> dict[str, Any]:
    """Runs, exports, and does so again where that is asked for; the numbers."""
    phases = {name: Phase() for name in ("run", "export", "resume", "status")}
    output = Path(job.output)
    with phases["run"].measured():
        report = run_in_loop(lambda: run(job))
    with phases["export"].measured():
        rows = export(output, output / "result.jsonl").rows
    if report.counts.ok != job.records or rows != job.records:
        raise SystemExit(f"not a clean run: {report.counts.ok} records and {rows} rows of {job.records}")
    done = phases["run"]
    memory = job.memory
    numbers: dict[str, Any] = {
        "cpu_us_per_record": round(1e6 * (done.cpu_s + phases["export"].cpu_s) / job.records, 1),
        "run_cpu_us_per_record": round(1e6 * done.cpu_s / job.records, 1),
        "export_cpu_us_per_record": round(1e6 * phases["export"].cpu_s / job.records, 1),
        "records_per_s": round(job.records / (done.wall_s + phases["export"].wall_s), 1),
        "requests_per_s": round(report.requests / done.wall_s, 1),
        "p50_ms": round(1000 * (report.latency_p50_s or 0.0), 2),
        "p99_ms": round(1000 * (report.latency_p99_s or 0.0), 2),
        "wall_s": round(done.wall_s + phases["export"].wall_s, 4),
        "cpu_s": round(done.cpu_s + phases["export"].cpu_s, 4),
        "run_s": round(done.wall_s, 3),
        "export_s": round(phases["export"].wall_s, 3),
        "journal_mb": round(sum(path.stat().st_size for path in output.glob("seg-*")) / 1e6, 1),
        "rss_mb_by_tenth": tenths(memory, job.records),
        "run_peak_rss_mb": round(max((mb for _, mb in memory), default=0.0), 1),
    }
    if job.again:
        with phases["resume"].measured():
            resumed = run_in_loop(lambda: run(job)).counts.earlier
        with phases["status"].measured():
            told = RunStatus.read(output).ok
        if resumed != job.records or told != job.records:
            raise SystemExit(f"not a clean resume: {resumed} records, {told} in the status, of {job.records}")
        numbers["resume_s"] = round(phases["resume"].wall_s, 3)
        numbers["resume_us_per_record"] = round(1e6 * phases["resume"].cpu_s / job.records, 2)
        numbers["status_s"] = round(phases["status"].wall_s, 3)
    numbers["peak_rss_mb"] = round(peak_rss_mb(), 1)
    return numbers


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))
