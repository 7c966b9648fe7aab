"""The cost of the engine itself: CPU per record, records per second, latency, memory, and how fast a run resumes.

    python benchmarks/engine_overhead.py --records 50000 --concurrency 256,1024 --repeat 5
    python benchmarks/engine_overhead.py --url http://127.0.0.1:8000/v1 --model NAME --records 500

The job is that of `asyncsynth run`: a JSONL file of 1 KB requests, a chain of generation steps (`--steps`), answers of
0.8 KB, the journal, the export. Each run has its own process, on one core; the bundled mock server has another. CPU
is the user and system time of that process, all threads, after its imports.

Records per second contains the mock's speed if both share few cores; CPU per record is the engine's alone.
`requests_per_s` covers the run only, the other rates also the export. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import tempfile
from pathlib import Path

from harness import (
    FOLDER,
    MODEL,
    Cores,
    Numbers,
    Table,
    child_numbers,
    instructions,
    interleaved,
    machine,
    medians,
    mock_server,
    publish,
    spread,
)

_SHOWN = ("cpu_us_per_record", "records_per_s", "p50_ms", "p99_ms", "peak_rss_mb")


def one_run(options: argparse.Namespace, url: str, rows: Path, concurrency: int, core: int | None) -> Numbers:
    """The engine's run, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="engine-overhead-", dir=options.folder) as folder:
        job = {
            "url": url, "input": str(rows), "output": f"{folder}/run", "records": options.records,
            "concurrency": concurrency, "steps": options.steps, "again": options.resume, "model": options.model,
        }  # fmt: skip
        return child_numbers([sys.executable, str(FOLDER / "engine_job.py"), json.dumps(job)], core)


def measure(options: argparse.Namespace, url: str, rows: Path, cores: Cores) -> Numbers:
    """All runs, interleaved; medians and spread of each concurrency."""
    levels = [int(level) for level in options.concurrency.split(",")]
    variants = {str(level): functools.partial(one_run, options, url, rows, level, cores.client) for level in levels}
    runs = interleaved(variants, options.repeat)
    results = [
        {"concurrency": level, **medians(runs[str(level)]), "spread": spread(runs[str(level)], _SHOWN)}
        for level in levels
    ]
    return {
        "benchmark": "engine_overhead",
        "records": options.records,
        "steps": options.steps,
        "request_bytes": options.request_bytes,
        "repeats": options.repeat,
        "pinned": cores.pinned,
        "server": "bundled mock" if options.url is None else "given",
        "delay_ms": options.delay_ms,
        **results[0],
        "results": results,
        "machine": machine(),
    }


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="an OpenAI-compatible server to use instead of the bundled mock")
    parser.add_argument("--model", default=MODEL, help="the model to ask it for")
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument(
        "--concurrency", default="256", help="requests in flight; several, with commas, are interleaved"
    )
    parser.add_argument("--steps", type=int, default=1, help="generation steps in a chain")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="the mock's time to answer")
    parser.add_argument("--request-bytes", type=int, default=1024, help="length of a request's body")
    parser.add_argument("--resume", action="store_true", help="also resume the finished run, and read its status")
    parser.add_argument("--folder", type=Path, help="where the runs are written [default: the system's temporary one]")
    return parser.parse_args()


def main() -> None:
    """Prints the table and the JSON line."""
    options = arguments()
    cores = Cores.found() if options.url is None else Cores(None, None)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="engine-overhead-")))
        rows = instructions(folder / "rows.jsonl", options.records, options.request_bytes)
        url = options.url or stack.enter_context(mock_server(cores.server, delay_ms=options.delay_ms))
        numbers = measure(options, url, rows, cores)
    table = Table(["in flight", "runs", *_SHOWN, "CPU least-greatest"])
    for row in numbers["results"]:
        least, greatest = row["spread"]["cpu_us_per_record"]
        table.rows.append(
            [row["concurrency"], options.repeat, *(row[name] for name in _SHOWN), f"{least:.0f}-{greatest:.0f}"]
        )
    publish(numbers, table)


if __name__ == "__main__":
    main()
