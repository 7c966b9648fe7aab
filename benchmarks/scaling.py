"""Whether the cost of a record stays flat: more records, more requests in flight, longer chains, larger journals.

    python benchmarks/scaling.py --repeat 3
    python benchmarks/scaling.py --million --only records

Four series of runs of the whole engine against the bundled mock, each run in a process of its own (pinned), the runs of
a series interleaved; medians:

- records, 1,000 to 100,000 (`--million`: to 1,000,000), at 256 in flight: CPU per record, peak memory;
- in flight, 16 to 4,096: the same;
- steps, chains of 1 to 20: CPU per *call*;
- resume: CPU per record, and the time, to resume the finished runs of the first series.

`growth` is the largest member of a series divided by the cheapest smaller one: the fixed cost of a start makes
small runs expensive, and would hide growth. Goals: CPU within 15 % (2x at 4,096 in flight), memory within
15 % from 10,000 records on.

Prints a table on standard error and one JSON line on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness import (
    FOLDER,
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
    tell,
)

FLAT, TWICE = 1.15, 2.0
SERIES = ("records", "in_flight", "steps", "resume")


class Bench:
    """Runs of the engine against one mock; input files are made once."""

    def __init__(self, url: str, folder: Path, core: int | None, repeats: int) -> None:
        self._url = url
        self._folder = folder
        self._core = core
        self._repeats = repeats
        self._rows: dict[int, Path] = {}

    def series(self, jobs: dict[str, Numbers]) -> dict[str, Numbers]:
        """Medians of the runs that these jobs describe, interleaved."""
        runs = interleaved({name: functools.partial(self._run, job) for name, job in jobs.items()}, self._repeats)
        return {name: medians(found) for name, found in runs.items()}

    def _run(self, job: Numbers) -> Numbers:
        records = job["records"]
        if records not in self._rows:
            self._rows[records] = instructions(self._folder / f"{records}.jsonl", records)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            whole = {"url": self._url, "input": str(self._rows[records]), "output": f"{folder}/run", **job}
            tell(f"  {', '.join(f'{name} {value}' for name, value in job.items())}")
            return child_numbers([sys.executable, str(FOLDER / "engine_job.py"), json.dumps(whole)], self._core)


def growth(values: Sequence[float]) -> float:
    """The last against the least before it; 1 if there is none."""
    earlier = [value for value in values[:-1] if value > 0]
    return round(values[-1] / min(earlier), 3) if earlier else 1.0


def verdict(what: str, sizes: Sequence[int], values: Sequence[float], goal: float) -> Numbers:
    """One quantity over a series."""
    grown = growth(values)
    return {"what": what, "sizes": list(sizes), "values": list(values), "growth": grown, "goal": goal,
            "reached": grown <= goal}  # fmt: skip


def records_and_resume(bench: Bench, options: argparse.Namespace, wanted: Sequence[str]) -> list[Numbers]:
    """More records in a run, and larger journals to come back to."""
    sizes = _numbers(options.sizes) + ([1_000_000] if options.million else [])
    again = "resume" in wanted
    jobs = {str(n): {"records": n, "concurrency": 256, "again": again} for n in sizes}
    found = bench.series(jobs)
    rows = [found[str(n)] for n in sizes]
    verdicts = []
    if "records" in wanted:
        verdicts.append(verdict("CPU us a record, by records", sizes, [r["cpu_us_per_record"] for r in rows], FLAT))
        large = [n for n in sizes if n >= 10_000] or sizes
        memory = [found[str(n)]["run_peak_rss_mb"] for n in large]
        verdicts.append(verdict("peak MB of the run, by records", large, memory, FLAT))
    if again:
        verdicts.append(
            verdict("resume: CPU us a record, by records", sizes, [r["resume_us_per_record"] for r in rows], FLAT)
        )
        verdicts[-1]["seconds"] = [r["resume_s"] for r in rows]
    return verdicts


def in_flight(bench: Bench, options: argparse.Namespace) -> list[Numbers]:
    """More requests at once."""
    levels = _numbers(options.levels)
    found = bench.series({str(c): {"records": options.records, "concurrency": c} for c in levels})
    rows = [found[str(c)] for c in levels]
    return [
        verdict("CPU us a record, by requests in flight", levels, [r["cpu_us_per_record"] for r in rows], TWICE),
        verdict("peak MB, by requests in flight", levels, [r["peak_rss_mb"] for r in rows], TWICE),
    ]


def steps(bench: Bench, options: argparse.Namespace) -> list[Numbers]:
    """Longer chains; about the same number of calls in each run."""
    lengths = _numbers(options.steps)
    records = {length: max(50, options.records // length) for length in lengths}
    found = bench.series({str(k): {"records": records[k], "concurrency": 256, "steps": k} for k in lengths})
    cost = [round(found[str(k)]["cpu_us_per_record"] / k, 1) for k in lengths]
    return [verdict("CPU us a call, by steps", lengths, cost, FLAT)]


def _numbers(text: str) -> list[int]:
    return sorted(int(word) for word in text.split(","))


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000", help="records of the first series")
    parser.add_argument("--million", action="store_true", help="and 1,000,000: minutes, and 2.5 GB of disk")
    parser.add_argument("--levels", default="16,64,256,1024,4096", help="requests in flight of the second")
    parser.add_argument("--steps", default="1,2,5,10,20", help="lengths of the chains of the third")
    parser.add_argument("--records", type=int, default=20_000, help="records of the second, calls of the third")
    parser.add_argument("--only", default=",".join(SERIES), help="which series")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the runs are written [default: the system's temporary one]")
    return parser.parse_args()


def main() -> None:
    """Prints the table and the JSON line."""
    options = arguments()
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(SERIES):
        raise SystemExit(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(SERIES)}")
    cores = Cores.found()
    found: list[Numbers] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scaling-", dir=options.folder)))
        bench = Bench(stack.enter_context(mock_server(cores.server)), folder, cores.client, options.repeat)
        if {"records", "resume"} & set(wanted):
            found += records_and_resume(bench, options, wanted)
        if "in_flight" in wanted:
            found += in_flight(bench, options)
        if "steps" in wanted:
            found += steps(bench, options)
    table = Table(["what", "sizes", "values", "growth", "goal", "reached"])
    for row in found:
        sizes, values = (" / ".join(f"{value:,}" for value in row[name]) for name in ("sizes", "values"))
        table.rows.append([row["what"], sizes, values, row["growth"], row["goal"], "yes" if row["reached"] else "NO"])
    numbers = {
        "benchmark": "scaling", "repeats": options.repeat, "pinned": cores.pinned,
        "reached": all(row["reached"] for row in found), "series": found, "machine": machine(),
    }  # fmt: skip
    publish(numbers, table)


if __name__ == "__main__":
    main()
