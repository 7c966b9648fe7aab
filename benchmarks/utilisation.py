"""How full the engine keeps a server whose answers take very different times, and how near the ideal its run is.

    python benchmarks/utilisation.py --slots 50,512 --steps 1,2,3

The server works on `slots` requests at once; each takes a lognormal time (median 2 s, sigma 0.6), and the others wait
in its queue. The whole engine runs (pipeline, scheduler, statistics, journal, retries) on an event loop in virtual
time: hours take seconds, and every run is the same. Requests go through a transport of an httpx client, which takes
`--way-ms` in each direction; during that time the slot is empty. This does not show the cost of CPU; engine_overhead.py
does.

For each run, W is the slot-seconds of work in its requests, S the slots and M the makespan, from the first request at
the server to the last answer there:

- `share_busy` = W / (S·M): all slots over the whole run, with its start and end.
- `share_full` = the same, between the first and the last moment in which all slots are busy: without the ramp-up, and
  without the end, when too few requests are left to fill the slots. No schedule can avoid the latter.
- `ramp_up_s` before that and `tail_s` after it.
- `of_greedy` = G / M. G is the makespan of list scheduling with the same durations: whenever a slot is free it takes
  the next request, later steps first, then older records, without any network time. No schedule does much better
  without knowing the durations; `of_bound` is the same for W / S, which no schedule can beat.

Limits: `fixed` is `--concurrency` = slots; `adaptive` does not know the slots and reads the queue from `/metrics` once
a second, as with vLLM; `known` has them from vLLM's configuration file (max-num-seqs).

Prints a table on standard error and one JSON line on standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import random
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from harness import MODEL, Numbers, Table, machine, publish, tell

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.testing.virtual_time import run_virtually

URL = "http://server.test/v1"
GOAL = 0.98
_COMMIT_S = 0.005  #: virtual seconds that writing and syncing a group of the journal takes


class LongTailedServer(httpx.AsyncBaseTransport):
    """`slots` slots, a queue, and a duration for each request that depends only on its record and step."""

    def __init__(self, slots: int, options: argparse.Namespace) -> None:
        self.slots = slots
        self.busy = 0
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.most_waiting = 0
        self.work_s = 0.0
        self.first_at: float | None = None
        self.last_at = 0.0
        self.full_from: float | None = None
        self.full_to = 0.0
        self._options = options
        self._clock = asyncio.get_running_loop().time
        self._area = self._area_at_full = self._area_to_full = (
            0.0  # slot-seconds busy: so far; at full_from; at full_to
        )
        self._changed_at = 0.0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answers what the engine asks."""
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": MODEL}]})
        if path == "/metrics":
            text = f"\nvllm:num_requests_running {self.busy}\nvllm:num_requests_waiting {len(self.waiting)}\n"
            return httpx.Response(200, text=text)
        if not path.endswith("/chat/completions"):
            return httpx.Response(200 if path == "/health" else 404)
        asked = json.loads(await request.aread())["messages"][-1]["content"]
        if not asked.startswith("record "):
            return answer("ready")  # a canary before the run
        record, step = (int(word) for word in asked.split() if word.isdigit())
        await asyncio.sleep(self._options.way_ms / 1000)
        await self._work(duration(self._options, record, step))
        await asyncio.sleep(self._options.way_ms / 1000)
        return answer(f"record {record} step {step + 1}")

    async def _work(self, seconds: float) -> None:
        if self.first_at is None:
            self.first_at = self._clock()
        if self.busy >= self.slots:
            turn = asyncio.get_running_loop().create_future()
            self.waiting.append(turn)
            self.most_waiting = max(self.most_waiting, len(self.waiting))
            await turn  # the slot is handed over, still busy
        else:
            self._change(+1)
        self.work_s += seconds
        await asyncio.sleep(seconds)
        self.last_at = self._clock()
        if self.waiting:
            self.waiting.popleft().set_result(None)
        else:
            self._change(-1)

    def _change(self, by: int) -> None:
        now = self._clock()
        self._area += self.busy * (now - self._changed_at)
        self._changed_at = now
        if self.busy == self.slots:
            self.full_to, self._area_to_full = now, self._area
        self.busy += by
        if self.busy == self.slots and self.full_from is None:
            self.full_from, self._area_at_full = now, self._area

    def numbers(self) -> Numbers:
        """The result of the run."""
        assert self.first_at is not None
        made = self.last_at - self.first_at
        found: Numbers = {"makespan_s": round(made, 3), "share_busy": round(self.work_s / (self.slots * made), 4)}
        if self.full_from is not None and self.full_to > self.full_from:
            full = (self._area_to_full - self._area_at_full) / (self.slots * (self.full_to - self.full_from))
            found |= {
                "share_full": round(full, 4),
                "ramp_up_s": round(self.full_from - self.first_at, 3),
                "tail_s": round(self.last_at - self.full_to, 3),
            }
        else:
            found |= {"share_full": 0.0, "ramp_up_s": round(made, 3), "tail_s": 0.0}  # it was never full
        return found | {"most_waiting": self.most_waiting, "of_bound": round(self.work_s / self.slots / made, 4)}


def answer(text: str) -> httpx.Response:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 100, "total_tokens": 110}
    return httpx.Response(200, json={"id": "x", "model": MODEL, "choices": [choice], "usage": usage})


def duration(options: argparse.Namespace, record: int, step: int) -> float:
    """Seconds that the server works on a record's step; the same for every client and at any time."""
    drawn = random.Random(f"{options.seed}/{record}/{step}")  # noqa: S311 - a workload, not a secret
    return float(options.median_s * drawn.lognormvariate(0.0, options.sigma))


def greedy_s(options: argparse.Namespace, records: int, slots: int, steps: int) -> float:
    """The makespan of list scheduling: later steps first, then older records."""
    free_at: list[tuple[float, int, int]] = []  # when it ends, record, step
    ready: list[tuple[int, int]] = []  # (-step, record)
    fresh = iter(range(records))
    now = 0.0

    def next_request() -> tuple[int, int] | None:
        if ready:
            step, record = heapq.heappop(ready)
            return record, -step
        first = next(fresh, None)
        return None if first is None else (first, 0)

    while True:
        while len(free_at) < slots and (request := next_request()) is not None:
            record, step = request
            heapq.heappush(free_at, (now + duration(options, record, step), record, step))
        if not free_at:
            return now
        now, record, step = heapq.heappop(free_at)
        if step + 1 < steps:
            heapq.heappush(ready, (-(step + 1), record))


def pipeline_of(records: int, steps: int, client: httpx.AsyncClient) -> Pipeline:
    """`steps` generations in a chain."""

    def rows() -> Iterator[dict[str, Any]]:
        return ({"instruction": f"record {number} step 0"} for number in range(records))

    with Pipeline(name="utilisation") as pipeline:
        last: Any = LoadDataFromDicts(data=rows)
        column = "instruction"
        for number in range(steps):
            task = TextGeneration(
                llm=LLM(model=MODEL, max_tokens=400, base_url=URL, http_client=client),
                input_mappings={"instruction": column},
                output_mappings={"generation": f"generation_{number}", "model_name": f"model_name_{number}"},
            )
            last >> task
            last, column = task, f"generation_{number}"
    return pipeline


async def one_run(options: argparse.Namespace, slots: int, steps: int, limit: str, folder: Path) -> Numbers:
    """The engine's run against a new server."""
    records = options.records or options.rounds * slots
    server = LongTailedServer(slots, options)
    servers = []
    if limit == "known":
        fleet = folder / "fleet.yaml"
        fleet.write_text(json.dumps({"servers": [{"url": URL, "max_num_seqs": slots}]}))  # JSON is YAML
        servers = [str(fleet)]
    async with httpx.AsyncClient(transport=server) as client:
        result = await pipeline_of(records, steps, client).arun(
            servers=servers,
            output=folder / "run",
            concurrency=slots if limit == "fixed" else None,
            window=options.window,
        )
    counts = result.report.counts
    if counts.ok != records or counts.failed:
        raise SystemExit(f"not a clean run: {counts.ok} of {records}")
    numbers = server.numbers()
    greedy = greedy_s(options, records, slots, steps)
    return {
        "slots": slots, "steps": steps, "limit": limit, "records": records, **numbers,
        "greedy_s": round(greedy, 3), "of_greedy": round(greedy / numbers["makespan_s"], 4),
        "reached": numbers["share_full"] >= GOAL,
    }  # fmt: skip


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", default="50,512")
    parser.add_argument("--steps", default="1,2,3")
    parser.add_argument("--limits", default="fixed,adaptive", help="of fixed, known and adaptive")
    parser.add_argument("--window", type=int, help="records in flight at most [default: the engine's own choice]")
    parser.add_argument("--rounds", type=int, default=20, help="records for each slot")
    parser.add_argument("--records", type=int, help="records in all [default: --rounds for each slot]")
    parser.add_argument("--median-s", type=float, default=2.0, help="of a request's time at the server")
    parser.add_argument("--sigma", type=float, default=0.6, help="of its logarithm")
    parser.add_argument("--way-ms", type=float, default=1.0, help="of a request to the server, and of its answer back")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Prints the table and the JSON line."""
    options = arguments()
    results = []
    for slots in map(int, options.slots.split(",")):
        for steps in map(int, options.steps.split(",")):
            for limit in options.limits.split(","):
                with tempfile.TemporaryDirectory(prefix="utilisation-") as folder:
                    run = one_run(options, slots, steps, limit, Path(folder))
                    results.append(run_virtually(run, executor_s=_COMMIT_S))
                tell(f"{slots} slots, {steps} steps, {limit}: {results[-1]['share_full']:.2%} busy while full")
    columns = ("slots", "steps", "limit", "records", "share_full", "share_busy", "of_greedy", "ramp_up_s", "tail_s")
    table = Table([*columns, "makespan_s"])
    table.rows = [[row[name] for name in table.headings] for row in results]
    numbers: Numbers = {
        "benchmark": "utilisation",
        "median_s": options.median_s,
        "sigma": options.sigma,
        "way_ms": options.way_ms,
        "seed": options.seed,
        "goal": GOAL,
        "lowest_share_full": min(row["share_full"] for row in results),
        "lowest_of_greedy": min(row["of_greedy"] for row in results),
        "results": results,
        "machine": machine(),
    }
    publish(numbers, table)


if __name__ == "__main__":
    main()
