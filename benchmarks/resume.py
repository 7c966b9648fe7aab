"""How fast a run with a large journal resumes after a `kill -9`, and how fast `status` answers.

    python benchmarks/resume.py --records 1000000

A child process writes the journal of a run with `--steps` model steps through the engine's own run directory
and journal, records ending out of order within a window and 1 in 20 of them failing, and is then killed with
SIGKILL. Child processes, one after the other, then open the run for resuming (until the first record is looked
up, and until all of them are), read its status, and export its rows. `--cold` drops the page cache before each
(root, Linux). Times count from the start of the process, imports included. The first opening also cuts the
torn end and writes the missing sidecars.

Prints a table on standard error and one JSON line on standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.engine.options import RunOptions
from asyncsynth.engine.run import Run
from asyncsynth.engine.run_directory import RunDirectory
from asyncsynth.engine.status import RunStatus
from asyncsynth.engine.walk import Walked
from asyncsynth.inputs.reader import Reader
from asyncsynth.records import Record
from asyncsynth.storage.exports import export

_WINDOW = 1024


def instruction(number: int) -> str:
    return f"Write a short story about the number {number}.".ljust(120, ".")


def pipeline_of(options: argparse.Namespace) -> Pipeline:
    def rows() -> Iterator[dict[str, Any]]:
        return ({"id": f"row-{n}", "instruction": instruction(n)} for n in range(options.records))

    with Pipeline(name="resume") as pipeline:
        last: Any = LoadDataFromDicts(data=rows, id_column="id" if options.keys == "id" else None)
        column = "instruction"
        for number in range(options.steps):
            task = TextGeneration(
                llm=LLM(model="m"),
                input_mappings={"instruction": column},
                output_mappings={"generation": f"generation_{number}", "model_name": f"model_{number}"},
            )
            last >> task
            last, column = task, f"generation_{number}"
    return pipeline


def parts(options: argparse.Namespace) -> tuple[Run, Reader]:
    run = pipeline_of(options).resolved(RunOptions(output=options.run))
    return run, run.plan.source.open()


def result(key: str, column: str, text: str) -> dict[str, Any]:
    meta = {"model": "m", "finish": ["stop"], "prompt_tokens": 37, "completion_tokens": 128}
    return {"k": key, "h": "0123456789abcdef", "o": {column: text, "model": "m"}, "m": meta}


async def write(options: argparse.Namespace) -> None:
    """Writes all records, acknowledged in groups, and dies."""
    run, reader = parts(options)
    fingerprints = [node.fingerprint for node in run.plan.model_steps]
    rng = random.Random(7)  # noqa: S311 (a benchmark)
    texts = ["".join(rng.choices("abcdefghij     ", k=options.chars)) for _ in range(64)]

    async with RunDirectory.opened(run, reader) as directory:
        waiting: list[tuple[Record, int, list[str]]] = []

        def advance() -> None:
            at = rng.randrange(len(waiting))
            record, step, made = waiting[at]
            failed = record.position % 20 == 19
            made.append(texts[rng.randrange(64)])
            results: list[Any] = [result(record.key, f"generation_{step}", made[-1])]
            if step + 1 < options.steps and not (failed and step == 0):
                directory.save_step(record, fingerprints[step], results)
                waiting[at] = (record, step + 1, made)
                return
            waiting[at] = waiting[-1]
            waiting.pop()
            if failed:
                dead: Any = {"k": record.key, "step": "gen", "reason": "timeout", "message": "no answer", "attempts": 8}
                directory.finish(record, Walked({}, [dead]))
            else:
                row = {**record.data, **{f"generation_{n}": text for n, text in enumerate(made)}}
                directory.finish(record, Walked({"default": [row]}, unsaved=[(fingerprints[step], results)]))

        for number, source in enumerate(reader):
            record = Record(source.key or str(number), number, source.row)
            directory.claim(record, retry_failed=False)
            waiting.append((record, 0, []))
            while len(waiting) >= _WINDOW:
                advance()
            if number % 256 == 0:
                await directory.flush()
        while waiting:
            advance()
        await directory.flush()
        os.kill(os.getpid(), signal.SIGKILL)


async def resume(options: argparse.Namespace) -> dict[str, Any]:
    """Opens the run as a resume does; looks every record up."""
    run, reader = parts(options)
    async with RunDirectory.opened(run, reader) as directory:
        opened, cpu = time.monotonic() - options.started, time.process_time()
        done = 0
        for number, source in enumerate(reader):
            done += directory.claim(Record(source.key or str(number), number, source.row), retry_failed=False)
    looked_up = time.monotonic() - options.started
    return {
        "start_s": round(opened, 2),
        "start_cpu_s": round(cpu, 2),
        "all_looked_up_s": round(looked_up, 2),
        "done": done,
    }


def child(options: argparse.Namespace) -> None:
    """One measurement, printed as JSON."""
    if options.part == "write":
        asyncio.run(write(options))
    numbers: dict[str, Any] = {}
    if options.part == "resume":
        numbers = asyncio.run(resume(options))
    elif options.part == "status":
        status = RunStatus.read(options.run, examples=5)
        numbers = {
            "s": round(time.monotonic() - options.started, 2),
            "cpu_s": round(time.process_time(), 2),
            "done": status.ok + status.failed,
        }
    elif options.part == "export":
        rows = export(options.run, options.run.with_name("rows.jsonl")).rows
        numbers = {"s": round(time.monotonic() - options.started, 2), "rows": rows}
    unit = 1 if sys.platform == "darwin" else 1024
    numbers["rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
    print(json.dumps(numbers))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--chars", type=int, default=350, help="characters of each generated text")
    parser.add_argument("--keys", choices=["position", "id"], default="position")
    parser.add_argument("--cold", action="store_true", help="drop the page cache before each part")
    parser.add_argument("--run", type=Path, help="run directory to use again, or to make and keep")
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)  # monotonic: the same clock in the child
    parser.add_argument("--part", choices=["write", "resume", "status", "export"], help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(options: argparse.Namespace, part: str) -> dict[str, Any]:
    if options.cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    command = [sys.executable, __file__, "--part", part, "--run", str(options.run), "--records", str(options.records)]
    command += ["--steps", str(options.steps), "--chars", str(options.chars), "--keys", options.keys]
    command += ["--started", str(time.monotonic())]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if part == "write":
        if ended.returncode != -signal.SIGKILL:
            raise SystemExit(f"the writer ended with {ended.returncode}")
        return {}
    ended.check_returncode()
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    if not options.run.exists():
        measured(options, "write")
    wrote = time.perf_counter() - start
    status = measured(options, "status")  # what the kill left: the last segments are read line by line
    first = measured(options, "resume")
    again = measured(options, "resume")
    later = measured(options, "status")
    exported = measured(options, "export")
    segments = list(options.run.glob("seg-*.jsonl"))
    size = sum(path.stat().st_size for path in segments)
    if not first["done"] == again["done"] == status["done"] == later["done"] == options.records:
        raise SystemExit(f"records were lost: {first} {again} {status}")
    return {
        "benchmark": "resume", "records": options.records, "steps": options.steps, "keys": options.keys,
        "cold": options.cold, "write_s": round(wrote, 1), "journal_mb": round(size / 1e6, 1),
        "bytes_per_record": round(size / options.records), "segments": len(segments),
        "sidecar_mb": round(sum(path.stat().st_size for path in options.run.glob("*.idx")) / 1e6, 1),
        "resume_start_s": first["start_s"], "resume_start_cpu_s": first["start_cpu_s"],
        "resume_rss_mb": first["rss_mb"],
        "resume_all_looked_up_s": first["all_looked_up_s"], "resume_again_start_s": again["start_s"],
        "status_s": status["s"], "status_cpu_s": status["cpu_s"], "status_rss_mb": status["rss_mb"],
        "status_later_s": later["s"],
        "status_later_cpu_s": later["cpu_s"], "export_s": exported["s"], "export_rss_mb": exported["rss_mb"],
        "python": platform.python_version(), "cores": os.cpu_count(),
    }  # fmt: skip


def main() -> None:
    """Prints the table and the JSON line."""
    options = arguments()
    if options.part:
        child(options)
        return
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        options.run = options.run or Path(folder) / "run"
        numbers = measure(options)
    for name, value in numbers.items():
        print(f"{name:<24} {value}", file=sys.stderr)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
