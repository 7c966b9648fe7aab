"""The engine's share of the throughput that a real vLLM can reach, with answers of very different lengths.

    python benchmarks/vllm_share.py --servers server.yaml --vllm VENV/bin/vllm --tokenizer MODEL_FOLDER

The same prompts with the same lengths of answers (lognormal, `ignore_eos`), in the same order, are sent to a running
vLLM by the whole engine (pipeline, journal, export) and by vLLM's own client, `vllm bench serve`, with a fixed number
in flight, one number after the other (`--sweep`). The runs of a round are interleaved; the engine's is the first of
odd rounds and the last of even ones. Reported are medians of

- tokens a second, from the first request sent to the last answer, and the engine's as a share of the best of the sweep;
- the share of busy slots: the running requests according to `/metrics`, from the moment when all slots are busy for the
  first time until too few requests are left to fill them (the ramp-up is reported separately, in seconds).

The engine tunes its concurrency automatically unless `--concurrency` fixes it. `--results FILE` appends every run to
the file, so that several short quiet periods can be combined. `--runs engine,64` runs only these.

Prints a table on standard error and one JSON line on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from asyncsynth import LLM, LoadDataFromDicts, Pipeline
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.servers.configs import ServerConfig, parse_servers
from asyncsynth.tasks.base import Task

_SAMPLE_S = 0.25
_SERIES = re.compile(r"^vllm:(num_requests_running|num_requests_waiting|request_success_total)\{[^}]*\} (\S+)$", re.M)
ENGINE = "engine"


@dataclass(frozen=True)
class Sample:
    """What the server said at one moment."""

    at: float
    running: float
    waiting: float
    finished: float


@dataclass
class Run:
    """One run: who sent, how fast, how full."""

    who: str  #: "engine", or what `vllm bench serve` had in flight
    tokens_per_s: float
    seconds: float
    busy: float  #: share of slots, 0 to 1
    ramp_up_s: float
    waiting: float  #: mean of the server's own queue meanwhile
    tokens: int


@dataclass
class Watch:
    """Samples `/metrics` beside a run."""

    origin: str
    client: httpx.Client
    samples: list[Sample] = field(default_factory=list)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._sample, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _sample(self, stop: threading.Event) -> None:
        while not stop.wait(_SAMPLE_S):
            with contextlib.suppress(httpx.HTTPError):
                self.samples.append(self.now())

    def now(self) -> Sample:
        """One look. Raises httpx.HTTPError."""
        text = self.client.get(f"{self.origin}/metrics").text
        sums: dict[str, float] = {}
        for name, value in _SERIES.findall(text):
            sums[name] = sums.get(name, 0.0) + float(value)
        return Sample(
            time.monotonic(),
            sums.get("num_requests_running", 0.0),
            sums.get("num_requests_waiting", 0.0),
            sums.get("request_success_total", 0.0),
        )

    def fullness(self, slots: int, requests: int, finished_before: float) -> tuple[float, float, float]:
        """Share of slots busy, seconds until they first were, and mean waiting; while enough is left to fill them."""
        active = [s for s in self.samples if s.running > 0]
        enough = [s for s in active if s.finished - finished_before <= requests - slots]
        if not enough:
            return math.nan, math.nan, math.nan
        full = next((s.at for s in enough if s.running >= 0.97 * slots), None)
        # Never full: its worst half is not hidden as a ramp-up.
        begin = full if full is not None else enough[0].at
        counted = [s for s in enough if s.at >= begin]
        busy = _over_time(counted, "running") / slots
        return busy, (begin - active[0].at) if full is not None else math.inf, _over_time(counted, "waiting")


def _over_time(samples: list[Sample], name: str) -> float:
    """The mean over time: a busy machine takes samples at uneven distances."""
    if len(samples) < 2:
        return float(getattr(samples[0], name)) if samples else math.nan
    area = sum((after.at - before.at) * getattr(before, name) for before, after in itertools.pairwise(samples))
    return float(area / (samples[-1].at - samples[0].at))


class Answer(Task):
    """One raw completion of exactly the row's length."""

    inputs = ("prompt", "output_tokens")
    optional_inputs = ()
    outputs = ("text", "tokens")

    def __init__(self, llm: LLM, clock: Clock) -> None:
        self._clock = clock
        super().__init__(llm)

    async def sample(self, row: Row, ctx: Context, number: int) -> Row:
        """The answer, timed as the other client times its own."""
        request = self.llm.complete(row["prompt"], max_tokens=row["output_tokens"], ignore_eos=True)
        self._clock.sent()
        answer = await ctx.send(request)
        self._clock.answered(answer.usage.completion_tokens)
        return {"text": answer.text, "tokens": answer.usage.completion_tokens}


@dataclass
class Clock:
    """When the first request was sent, when the last answer came, and the tokens between."""

    first: float = 0.0
    last: float = 0.0
    tokens: int = 0

    def sent(self) -> None:
        """A request is about to be sent."""
        self.first = self.first or time.perf_counter()

    def answered(self, tokens: int) -> None:
        """An answer is here."""
        self.last = time.perf_counter()
        self.tokens += tokens


def workload(requests: int, median: float, sigma: float, longest: int, seed: int) -> list[dict[str, Any]]:
    """Prompts, none alike from the first word on, and how many tokens each is answered with."""
    draw = random.Random(seed)  # noqa: S311 - a workload, not a secret
    subjects = ["rivers", "bridges", "the sea", "bread", "old maps", "trains", "music", "gardens", "winter", "clocks"]
    return [
        {
            "prompt": f"{number}. A short text about {draw.choice(subjects)} and {draw.choice(subjects)}:",
            "output_tokens": max(10, min(longest, round(draw.lognormvariate(math.log(median), sigma)))),
        }
        for number in range(requests)
    ]


class Bench:
    """Runs of both clients against one server."""

    def __init__(self, server: ServerConfig, rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
        self.http = httpx.Client(timeout=10)
        self.model = self.http.get(f"{server.base_url}/models").json()["data"][0]["id"]
        self.rows = rows
        self.options = options
        parts = urlsplit(server.base_url)
        self.origin = f"{parts.scheme}://{parts.netloc}"

    def run(self, who: str) -> Run:
        """One run of the engine, or of vLLM's client with a fixed number in flight."""
        watch = Watch(self.origin, self.http)
        before = watch.now().finished
        with tempfile.TemporaryDirectory() as folder, watch.watching():
            seconds, tokens = self._engine(Path(folder)) if who == ENGINE else self._client(Path(folder), int(who))
        busy, ramp, waiting = watch.fullness(self.options.slots, len(self.rows), before)
        return Run(who, tokens / seconds, seconds, busy, ramp, waiting, tokens)

    def _engine(self, folder: Path) -> tuple[float, int]:
        clock = Clock()
        with Pipeline(name="vllm-share") as pipeline:
            LoadDataFromDicts(data=self.rows) >> Answer(LLM(model=self.model, temperature=0.0), clock)
        result = pipeline.run(
            servers=[self.options.servers], output=folder / "run", concurrency=self.options.concurrency
        )
        assert len(list(result["default"]["train"])) == len(self.rows), "a record was lost"
        return clock.last - clock.first, clock.tokens

    def _client(self, folder: Path, in_flight: int) -> tuple[float, int]:
        data = folder / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        command = [
            self.options.vllm, "bench", "serve", "--backend", "openai", "--base-url", self.origin,
            "--endpoint", "/v1/completions", "--model", self.model, "--tokenizer", str(self.options.tokenizer),
            "--dataset-name", "custom", "--dataset-path", str(data), "--custom-output-len", "-1",
            "--skip-chat-template", "--disable-shuffle", "--ignore-eos", "--temperature", "0",
            "--num-prompts", str(len(self.rows)), "--max-concurrency", str(in_flight),
            "--save-result", "--result-dir", str(folder), "--result-filename", "result.json", "--disable-tqdm",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"vllm bench serve failed:\n{(done.stdout + done.stderr)[-3000:]}")
        result = json.loads((folder / "result.json").read_text())
        assert result["completed"] == len(self.rows), result
        return result["duration"], result["total_output_tokens"]


def summary(runs: list[Run], options: argparse.Namespace, facts: dict[str, Any]) -> dict[str, Any]:
    """Medians by client, and the engine's shares."""
    table: dict[str, dict[str, float]] = {}
    for who in sorted({run.who for run in runs}, key=lambda name: (name == ENGINE, name.zfill(6))):
        mine = [run for run in runs if run.who == who]
        rates = [run.tokens_per_s for run in mine]
        table[who] = {
            "runs": len(mine),
            "tokens_per_s": round(statistics.median(rates), 1),
            "lowest": round(min(rates), 1),
            "highest": round(max(rates), 1),
            "slots_busy": round(statistics.median(run.busy for run in mine), 4),
            "ramp_up_s": round(statistics.median(run.ramp_up_s for run in mine), 2),
            "waiting": round(statistics.median(run.waiting for run in mine), 1),
        }
    clients = {who: row["tokens_per_s"] for who, row in table.items() if who != ENGINE}
    best = max(clients, key=lambda who: clients[who], default="")
    shares = {}
    if best and ENGINE in table:
        shares = {
            "share_of_best": round(table[ENGINE]["tokens_per_s"] / clients[best], 4),
            "best_fixed": int(best),
            "slots_busy": table[ENGINE]["slots_busy"],
        }
    return {"benchmark": "vllm_share", **facts, "slots": options.slots, **shares, "clients": table}


def show(found: dict[str, Any]) -> None:
    """The table, for people."""
    write = sys.stderr.write
    write(f"{'in flight':>10} {'runs':>5} {'tokens/s':>9} {'(spread)':>17} {'slots busy':>11}")
    write(f" {'ramp-up':>8} {'waiting':>8}\n")
    for who, row in found["clients"].items():
        spread = f"{row['lowest']:.0f} - {row['highest']:.0f}"
        write(
            f"{who:>10} {row['runs']:>5} {row['tokens_per_s']:>9.1f} {spread:>17} {row['slots_busy']:>10.1%} "
            f"{row['ramp_up_s']:>6.1f} s {row['waiting']:>8.1f}\n"
        )
    if "share_of_best" in found:
        write(f"the engine reaches {found['share_of_best']:.1%} of vLLM's own client at {found['best_fixed']}\n")


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", required=True, help="the running vLLM: its --config file, or its URL")
    parser.add_argument("--vllm", required=True, help="the vllm command whose `bench serve` is the ceiling")
    parser.add_argument("--tokenizer", required=True, help="the model's folder or name, for that client")
    parser.add_argument("--slots", type=int, default=64, help="the server's max-num-seqs")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--median", type=float, default=60, help="of the lengths, in tokens")
    parser.add_argument("--sigma", type=float, default=0.9, help="of their logarithm")
    parser.add_argument("--longest", type=int, default=500)
    parser.add_argument("--sweep", default="64,72,96,128", help="fixed concurrencies of vLLM's client")
    parser.add_argument("--runs", help="which runs a round has; default: engine and the sweep")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, help="fixes the engine's; default: it adapts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, help="a file of runs to add to")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    (server,) = parse_servers([options.servers])
    rows = workload(options.requests, options.median, options.sigma, options.longest, options.seed)
    bench = Bench(server, rows, options)
    wanted = (options.runs or f"{ENGINE},{options.sweep}").split(",")
    runs = []
    if options.results and options.results.exists():
        runs = [Run(**json.loads(line)) for line in options.results.read_text().splitlines()]
    for number in range(options.rounds):
        for who in wanted if number % 2 == 0 else reversed(wanted):
            run = bench.run(who)
            runs.append(run)
            sys.stderr.write(f"{who}: {run.tokens_per_s:.0f} tokens/s, {run.busy:.1%} busy, {run.seconds:.1f} s\n")
            if options.results:
                with options.results.open("a") as file:
                    file.write(json.dumps(asdict(run)) + "\n")
    facts = {
        "model": bench.model,
        "requests": len(rows),
        "tokens": sum(row["output_tokens"] for row in rows),
        "concurrency": options.concurrency or "adaptive",
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    found = summary(runs, options, facts)
    show(found)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
