"""Where the engine's instructions go: the whole engine, then again with one part left out at a time.

    python benchmarks/instructions.py
    python benchmarks/instructions.py --root ../other-checkout --only encoding,append

Instructions hang little on who else uses the machine (timers and commit groups move them by a percent or two), so two
versions of the code compare where microseconds differ by a third from one minute to the next. They are counted by
valgrind (Linux; `apt install valgrind`), for one record more: the difference between runs of 1,000 and of 2,000
records, the median of `--repeat` such pairs. The requests are answered within the process, after a millisecond, by
ready answers of 0.8 KB: what sockets and kernel cost is not in it, and neither is the export. 1,000 instructions are
0.1 to 0.2 microseconds.

A part's cost is what is saved when its work is left out (its functions give ready results instead). Parts overlap: a
call to the pool holds the request's encoding and the answer's decoding.

`--root` measures another checkout; if the part to leave out is gone there, or is not called, the report says so.
Prints a table on standard error and one JSON line on standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness import MODEL, Numbers, Table, instructions, machine, publish

SIZES = (1000, 2000)
IN_FLIGHT = 256
NOT_THERE = 3  #: exit code of a process whose checkout has not what a part replaces
_COUNTED = re.compile(r"I\s+refs:\s+([\d,]+)")


# --- leaving a part out: in the measured process ---------------------------------------------------


def _answer() -> Any:
    from asyncsynth.client.messages import Choice, Completion, Usage

    return Completion([Choice("word " * 112, "stop")], MODEL, Usage(200, 100))


class NotThere(Exception):
    """The checkout does not have what a part is made of."""


_used: set[str] = set()  #: replacements that were called
_replaced: set[str] = set()


def replace(owner: Any, name: str, stand_in: Callable[..., Any]) -> None:
    """Puts `stand_in` in the place of a function or class. NotThere if there is none of that name."""
    if not hasattr(owner, name):
        raise NotThere(f"{owner.__name__}.{name}")
    key = f"{owner.__name__}.{name}"
    _replaced.add(key)

    def first_time(*given: Any, **named: Any) -> Any:
        """Notes that it is used, and is gone: counting costs nothing after the first call."""
        _used.add(key)
        setattr(owner, name, stand_in)
        return stand_in(*given, **named)

    setattr(owner, name, first_time)


def no_hash() -> None:
    """Hashes of the record and of the step's input."""
    from asyncsynth.engine import run_directory, walk

    replace(walk, "content_hash", lambda _: "0123456789abcdef")
    replace(run_directory, "content_hash", lambda _: "0123456789abcdef")
    _used.add(f"{walk.__name__}.content_hash")  # not called where a step sees the whole record


def no_seed() -> None:
    """The request's sampling seed."""
    from asyncsynth.pipeline.context import Context

    replace(Context, "seed", lambda *_: 1)


def no_encoding() -> None:
    """The request's JSON."""
    from asyncsynth.client import server_pool

    replace(server_pool, "encode", lambda *_, **__: ("/chat/completions", b"{}"))


def no_decoding() -> None:
    """Reading the answer."""
    from asyncsynth.client import server_pool
    from asyncsynth.core.outcomes import Ok

    ready = Ok(_answer(), 100, 200)
    replace(server_pool, "decode", lambda *_, **__: ready)


def no_scheduler() -> None:
    """Admission, limits, breakers: every call starts at once."""
    from asyncsynth.client import server_pool
    from asyncsynth.core import scheduler

    class Passing(scheduler.Scheduler):
        """Starts what comes, ends what came."""

        def submit(self, call_id: int, *_: Any) -> list[Any]:
            return [scheduler.Start(call_id, 0, 1)]

        def outcome(self, call_id: int, outcome: Any, _: float) -> list[Any]:
            return [scheduler.Finish(call_id, outcome, 1)]

    for method in ("submit", "outcome"):
        if not hasattr(scheduler.Scheduler, method):
            raise NotThere(f"Scheduler.{method}")
    replace(server_pool, "Scheduler", Passing)


def no_pool() -> None:
    """All of the call: scheduler, encoding, decoding, statistics."""
    from asyncsynth.client.server_pool import ServerPool

    async def send(self: ServerPool, *_: Any, **__: Any) -> Any:
        await self._links[0].server.exchange.post("", b"")
        return _answer()

    replace(ServerPool, "send", send)


def no_task() -> None:
    """The task: prompt, request, parsing, and the call with all that belongs to it."""
    from asyncsynth.tasks.base import Task

    async def generate(*_: Any) -> list[dict[str, Any]]:
        return [{"generation": "word " * 112, "model_name": MODEL}]

    replace(Task, "generate", generate)


def no_facts() -> None:
    """Noting each entry for the segment's sidecar."""
    from asyncsynth.storage.facts import SegmentFacts

    replace(SegmentFacts, "final", lambda *_: None)


def no_append() -> None:
    """Framing, CRC and writing of the journal's lines."""
    from asyncsynth.storage.journal import Journal

    replace(Journal, "append_encoded", lambda *_: 1)


def no_reading() -> None:
    """Reading and parsing the input."""
    from asyncsynth.engine.runner import Runner
    from asyncsynth.records import Record

    def rows(self: Runner) -> Any:
        text = "word " * 170
        for number in range(self._run.limit or 0):
            yield Record(str(number), number, {"instruction": f"{text}{number}"})

    replace(Runner, "_rows", rows)


PARTS: dict[str, Callable[[], None]] = {
    "reading": no_reading,
    "hash": no_hash,
    "task": no_task,
    "seed": no_seed,
    "pool": no_pool,
    "scheduler": no_scheduler,
    "encoding": no_encoding,
    "decoding": no_decoding,
    "facts": no_facts,
    "append": no_append,
}


# --- the measured process --------------------------------------------------------------------------


class Ready:
    """An `Exchange` that answers all that came within a millisecond at once."""

    base_url = "http://ready/v1"

    def __init__(self) -> None:
        from mock_server import completion

        from asyncsynth.client.transport import DEFAULT_TIMEOUTS

        self.timeouts = DEFAULT_TIMEOUTS
        self._body = completion(560)
        self._waiting: list[asyncio.Future[Any]] = []

    async def post(self, path: str, body: bytes, timeout: Any = None) -> Any:
        """See `Exchange`."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_later(0.001, self._fire)
        answer = loop.create_future()
        self._waiting.append(answer)
        return await answer

    async def get(self, *_: Any, **__: Any) -> Any:
        """Nothing to be had: no load, no health."""
        from asyncsynth.client.transport import TransportFailure

        raise TransportFailure("connect", "this server answers requests only")

    def _fire(self) -> None:
        from asyncsynth.client.transport import WireResponse

        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer.set_result(WireResponse(200, {"content-type": "application/json"}, self._body))

    async def aclose(self) -> None:
        """Nothing is open."""


async def run(rows: Path, output: Path, records: int, answers: str) -> None:
    """The engine over `records` rows, as a run does it once its servers are known."""
    from asyncsynth import LLM, LoadJSONL, Pipeline, TextGeneration
    from asyncsynth.client.server_pool import Server, ServerPool
    from asyncsynth.engine.options import RunOptions
    from asyncsynth.engine.stages import open_stages, run_stages

    with Pipeline(name="instructions") as pipeline:
        load: Any = LoadJSONL(rows)
        load >> TextGeneration(llm=LLM(model=MODEL))
    pool = ServerPool([Server("ready", Ready.base_url, frozenset({MODEL}), Ready(), limit=IN_FLIGHT)])
    kept: dict[str, Any] = {"answers": answers} if answers else {}
    options = RunOptions(output=output, limit=records, **kept)
    async with open_stages(pipeline.resolved(options)) as stages:
        report = await run_stages(stages, pool)
    await pool.aclose()
    if report.counts.ok != records:
        raise SystemExit(f"not a clean run: {report.counts}")


def child(part: str, records: int, answers: str) -> None:
    """One run without a part."""
    import uvloop

    try:
        PARTS.get(part, lambda: None)()
    except (NotThere, ImportError) as missing:
        print(missing, file=sys.stderr)
        raise SystemExit(NOT_THERE) from missing
    with tempfile.TemporaryDirectory() as folder:
        rows = instructions(Path(folder) / "rows.jsonl", records)
        uvloop.run(run(rows, Path(folder) / "run", records, answers))
    if unused := _replaced - _used:
        raise SystemExit(f"replaced, but never called: {', '.join(sorted(unused))}")


# --- counting --------------------------------------------------------------------------------------


def counted(part: str, records: int, root: Path, answers: str) -> int:
    """Instructions of one whole process. Raises NotThere when the checkout has not what the part replaces, SystemExit
    when it failed."""
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", sys.executable]
    command += [__file__, "--child", part, "--sizes", str(records), "--answers", answers]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = _COUNTED.search(done.stderr)
    if done.returncode == NOT_THERE:
        raise NotThere(part)
    if done.returncode or found is None:
        raise SystemExit(f"{part}: ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return int(found[1].replace(",", ""))


def a_record(part: str, sizes: tuple[int, int], root: Path, repeat: int, answers: str) -> int | None:
    """Instructions for one record more; None if the checkout has not what the part replaces."""
    small, large = sizes
    try:
        with ThreadPoolExecutor(2) as both:
            runs = list(both.map(lambda records: counted(part, records, root, answers), sizes * repeat))
    except NotThere:
        return None
    slopes = [(after - before) / (large - small) for before, after in zip(runs[::2], runs[1::2], strict=True)]
    return round(statistics.median(slopes))


def main() -> None:
    """Prints the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="which parts")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parents[1], help="the checkout to measure"
    )
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="records of the smaller and the larger run")
    parser.add_argument("--repeat", type=int, default=3, help="pairs of runs, of which the median is shown")
    parser.add_argument("--answers", default="", help="which answers the run keeps, as `run --answers` takes it")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = tuple(int(size) for size in options.sizes.split(","))
    if options.child:
        child(options.child, sizes[0], options.answers)
        return
    if len(sizes) != 2:
        raise SystemExit("--sizes takes two numbers, such as 1000,2000")
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed: it counts the instructions")
    parts = [part for part in options.only.split(",") if part]
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    whole = a_record("all", sizes, options.root, options.repeat, options.answers)
    assert whole is not None
    found: Numbers = {"all": whole}
    table = Table(["part", "instructions a record", "share"], [["all", whole, "100 %"]])
    for part in parts:
        left = a_record(part, sizes, options.root, options.repeat, options.answers)
        found[part] = None if left is None else whole - left
        share = "-" if left is None else f"{100 * (whole - left) / whole:.1f} %"
        table.rows.append([part, "not there" if left is None else whole - left, share])
    publish({"benchmark": "instructions", "instructions_per_record": found, "machine": machine()}, table)


if __name__ == "__main__":
    main()
