"""The cost of kept answers: bytes on the disk, memory, microseconds to keep, to open and to look up.

    python benchmarks/answers.py --answers 1000000

A child process keeps the answers through the run's own code (`engine.paid_answers`), one request each, with prompts of
`--prompt` and texts of `--text` characters. Another opens the store and looks all of them up in random order. Beside
it, the same answers' bytes in the journal of a run (step result and row).

Prints a table on standard error and one JSON line on standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import MODEL, Table, machine, publish

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.client.messages import ChatRequest, Choice, Completion, Usage
from asyncsynth.engine.paid_answers import KeptAnswers
from asyncsynth.pipeline import Plan
from asyncsynth.storage.entries import RecordEntry, StepResult
from asyncsynth.storage.kept_answers import AnswerStore

_BATCH = 10_000


def filled(number: int, size: int) -> str:
    return (f"answer {number} " * (size // 8))[:size]


def request(number: int, size: int) -> ChatRequest:
    params = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 1024, "seed": number}
    return ChatRequest(MODEL, [{"role": "user", "content": filled(number, size)}], params)


async def ask(store: AnswerStore, numbers: list[int], options: argparse.Namespace) -> None:
    """A request each, as a step sends it."""
    with Pipeline(name="answers") as pipeline:
        LoadDataFromDicts(data=[{"instruction": "x"}]) >> TextGeneration(llm=LLM(model=MODEL))
    [node] = pipeline.checked().model_steps
    kept = KeptAnswers(store, Plan([node], {}, {}, ""), run_seed=0, only_own=False, refused={})

    async def send(asked: Any, **_: Any) -> Completion:
        number = asked.params["seed"]
        return Completion(
            [Choice(filled(number, options.text), "stop")], MODEL, Usage(200, 100), "replica-1", 1.2345678
        )

    for at in range(0, len(numbers), _BATCH):
        for number in numbers[at : at + _BATCH]:
            asker = kept.asker(node, str(number), str(number), send)
            assert asker is not None
            await asker.send(request(number, options.prompt))
        await asyncio.sleep(0)


def keep(options: argparse.Namespace) -> None:
    """Keeps them all."""
    store = AnswerStore(options.place)
    began = time.perf_counter()
    asyncio.run(ask(store, list(range(options.answers)), options))
    took = time.perf_counter() - began
    store.close()
    assert store.kept == options.answers, store.notes()
    print(json.dumps({"keep_us": 1e6 * took / options.answers}))


def look_up(options: argparse.Namespace) -> None:
    """Opens the store and finds all of them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    store = AnswerStore(None, [options.place])
    opened = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert store.count == options.answers
    numbers = list(range(options.answers))
    random.Random(0).shuffle(numbers)  # noqa: S311 - an order, not a secret
    numbers = numbers[:200_000]
    began = time.perf_counter()
    asyncio.run(ask(store, numbers, options))
    took = time.perf_counter() - began
    table = 16 * (store._mask + 1)
    store.close()
    print(
        json.dumps(
            {
                "open_s": opened,
                "reread_us": 1e6 * took / len(numbers),
                "memory_bytes": table / options.answers,
                "peak_growth_bytes": grown / options.answers,
            }
        )
    )


def journal_bytes(options: argparse.Namespace) -> int:
    """What one of these answers takes in the journal: the step's result and the row."""
    answer, prompt = filled(1, options.text), "x" * options.prompt
    meta = {"model": MODEL, "server": "replica-1", "calls": 1, "attempts": 1, "prompt_tokens": 200,
            "completion_tokens": 100, "finish": "stop", "latency_s": 1.2346}  # fmt: skip
    result = StepResult("1", "0" * 16, [{"generation": answer, "model_name": MODEL}], meta)
    row = {"instruction": prompt, "generation": answer, "model_name": MODEL}
    steps = [("0" * 12, [result])]
    entry = RecordEntry("1", 1, "0" * 16, steps, epoch=0, status="ok", rows={"default": [row]})
    return len(entry.encode()) + 30


def main() -> None:
    """Prints the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=1_000_000)
    parser.add_argument("--prompt", type=int, default=800, help="characters of a prompt")
    parser.add_argument("--text", type=int, default=560, help="characters of an answer")
    parser.add_argument("--part", choices=("keep", "look_up"), help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        {"keep": keep, "look_up": look_up}[options.part](options)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "answers"
        arguments = ["--answers", options.answers, "--prompt", options.prompt, "--text", options.text]
        found: dict[str, Any] = {}
        for part in ("keep", "look_up"):
            command = [sys.executable, __file__, "--part", part, "--place", place, *arguments]
            done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
            found.update(json.loads(done.stdout))
        size = sum(path.stat().st_size for path in place.iterdir())
    found |= {"bytes": size / options.answers, "overhead_bytes": size / options.answers - options.text}
    found |= {"journal_bytes": journal_bytes(options)}
    table = Table(["of one answer", ""], [[name, f"{value:,.2f}"] for name, value in found.items()])
    publish({"benchmark": "answers", "answers": options.answers, **found, "machine": machine()}, table)


if __name__ == "__main__":
    main()
