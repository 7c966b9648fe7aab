"""What the engine itself costs: CPU a record, records a second, memory over time, and how fast a run resumes.

    python benchmarks/engine_overhead.py --records 200000 --concurrency 256

Lazily made records go through a chain of generation steps (`--steps`) over a real socket; the bundled mock
server answers from a process of its own, so that its CPU is not counted. Then the same command "resumes" the
finished run (nothing is sent) and reads its status. CPU is this process's user and system time, all threads.

Prints a table on standard error and one JSON line on standard output. Records a second is the mock's speed
as well as the engine's where both share few cores; CPU a record is the engine's alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.engine.pipeline import run_in_loop
from asyncsynth.engine.report import Progress, RunReport
from asyncsynth.engine.runner import Runner
from asyncsynth.engine.status import RunStatus

MODEL = "test-model"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SAMPLE_S = 0.25


def rss_mb() -> float:
    """Resident memory of this process now, MB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 1e6


@dataclass
class Phase:
    """Wall and CPU seconds of a part of the benchmark, and (records done, resident MB) over its time."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory: list[tuple[int, float]] = field(default_factory=list)

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall_s, self.cpu_s = time.perf_counter() - wall, time.process_time() - cpu


def pipeline_of(records: int, steps: int, make: Callable[[int], str]) -> Pipeline:
    """`steps` generations in a chain, each from the one before, over rows that are made when they are pulled."""

    def rows() -> Iterator[dict[str, Any]]:
        return ({"instruction": make(number)} for number in range(records))

    with Pipeline(name="engine-overhead") as pipeline:
        last: Any = LoadDataFromDicts(data=rows)
        column = "instruction"
        for number in range(steps):
            made = f"generation_{number}"
            task = TextGeneration(
                llm=LLM(model=MODEL),
                input_mappings={"instruction": column},
                output_mappings={"generation": made, "model_name": f"model_name_{number}"},
            )
            last >> task
            last, column = task, made
    return pipeline


async def run(pipeline: Pipeline, servers: str, output: Path, phase: Phase) -> RunReport:
    """One run to its end, with memory sampled on the way."""
    samplers: list[asyncio.Task[None]] = []

    async def sample(runner: Runner) -> None:
        while True:
            progress: Progress = runner.progress()
            phase.memory.append((progress.counts.ok + progress.counts.earlier, rss_mb()))
            await asyncio.sleep(_SAMPLE_S)

    def watch(runner: Runner) -> None:
        samplers.append(asyncio.get_running_loop().create_task(sample(runner)))

    try:
        with phase.measured():
            result = await pipeline.arun(servers=[servers], output=output, on_runner=watch)
    finally:
        for sampler in samplers:
            sampler.cancel()
        await asyncio.gather(*samplers, return_exceptions=True)
    return result.report


@contextlib.contextmanager
def mock_server(delay_ms: float) -> Iterator[str]:
    """The bundled server in a child process; its base URL."""
    command = [sys.executable, "-m", "asyncsynth.testing.fault_server", "--model", MODEL, "--delay-ms", str(delay_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child.stdout.readline().strip()
        finally:
            child.terminate()


def tenths(memory: list[tuple[int, float]], records: int) -> list[float]:
    """Resident MB when each tenth of the records was done."""
    marks = [next((mb for done, mb in memory if done >= records * part / 10), None) for part in range(1, 10)]
    return [round(mb, 1) for mb in [*marks, memory[-1][1] if memory else None] if mb is not None]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="server to use instead of the bundled mock; it must serve 'test-model'")
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--concurrency", type=int, default=256, help="requests in flight at most")
    parser.add_argument("--steps", type=int, default=1, help="generation steps in a chain")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="the mock's time to answer")
    parser.add_argument("--prompt-chars", type=int, default=80, help="length of each record's instruction")
    return parser.parse_args()


def measure(options: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    """Runs, resumes, asks for the status; the numbers."""
    fleet = folder / "fleet.yaml"
    fleet.write_text(json.dumps({"servers": [{"url": url, "limit": options.concurrency}]}))  # JSON is YAML
    output = folder / "run"

    def instruction(number: int) -> str:
        return f"Say something about the number {number}.".ljust(options.prompt_chars, ".")

    phases = {name: Phase() for name in ("run", "resume", "status")}
    reports = {}
    for name in ("run", "resume"):
        pipeline = pipeline_of(options.records, options.steps, instruction)
        reports[name] = run_in_loop(lambda: run(pipeline, str(fleet), output, phases[name]))  # noqa: B023
    with phases["status"].measured():
        status = RunStatus.read(output)

    first, again = reports["run"].counts, reports["resume"].counts
    if first.ok != options.records or again.earlier != options.records or status.ok != options.records:
        raise SystemExit(f"not a clean run: ok {first.ok}, resumed {again.earlier}, status {status.ok}")
    done = phases["run"]
    return {
        "benchmark": "engine_overhead",
        "records": options.records,
        "steps": options.steps,
        "concurrency": options.concurrency,
        "records_per_s": round(options.records / done.wall_s, 1),
        "requests_per_s": round(reports["run"].requests / done.wall_s, 1),
        "cpu_us_per_record": round(1e6 * done.cpu_s / options.records, 1),
        "run_s": round(done.wall_s, 2),
        "rss_mb_by_tenth": tenths(done.memory, options.records),
        "rss_mb_highest": round(max(mb for phase in phases.values() for _, mb in phase.memory or [(0, 0.0)]), 1),
        "journal_mb": round(sum(path.stat().st_size for path in output.glob("seg-*")) / 1e6, 1),
        "resume_s": round(phases["resume"].wall_s, 2),
        "resume_us_per_record": round(1e6 * phases["resume"].cpu_s / options.records, 1),
        "status_s": round(phases["status"].wall_s, 2),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }


def main() -> None:
    """Prints the table and the JSON line."""
    options = arguments()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="engine-overhead-")))
        url = options.url or stack.enter_context(mock_server(options.delay_ms))
        numbers = measure(options, url, folder)
    for name, value in numbers.items():
        print(f"{name:<22} {value}", file=sys.stderr)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
