"""Pipelines that the matrix runs as a user does: a file, a command, a process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncsynth.storage.entry_reader import JournalView
from tests.kit.files import write_rows
from tests.kit.processes import environment
from tests.kit.served import MODEL

#: Segments of 64 KiB instead of 32 MiB, each with a sidecar: a short run rolls from one to the next many times.
LAUNCH = """
import sys
from asyncsynth.storage import commit_groups, index, run_journal
commit_groups.Options.__init__.__kwdefaults__["segment_bytes"] = 1 << 16
run_journal.SIDECAR_MIN_BYTES = 0
index.RunIndex.__init__.__kwdefaults__["sidecar_min_bytes"] = 0
from asyncsynth.cli.main import main
sys.argv = ["asyncsynth", *sys.argv[1:]]
main()
"""

THREE_STEPS = """
from asyncsynth import LLM, LoadJSONL, Pipeline, TextGeneration

def step(number, column):
    return TextGeneration(
        llm=LLM(model={model!r}),
        template="record {{{{ n }}}}, step %d: {{{{ %s }}}}" % (number, column),
        output_mappings={{"generation": "text_%d" % number, "model_name": "model_%d" % number}},
    )

with Pipeline(name="matrix") as pipeline:
    LoadJSONL({data!r}) >> step(1, "instruction") >> step(2, "text_1") >> step(3, "text_2")
"""


def write_job(folder: Path, records: int) -> Path:
    """The file of a three-step pipeline over `records` rows."""
    data = folder / "in.jsonl"
    write_rows(data, ({"n": n, "instruction": f"Tell of {n}."} for n in range(records)))
    job = folder / "job.py"
    job.write_text(THREE_STEPS.format(model=MODEL, data=str(data)))
    return job


class Job:
    """One command that can be started repeatedly."""

    def __init__(self, job: Path, base_url: str, run: Path, *, window: int, more: Sequence[str] = ()) -> None:
        self.run = run
        self._command = [
            sys.executable, "-c", LAUNCH, "run", str(job), "--servers", base_url, "--output", str(run),
            "--window", str(window), "--json", *more,
        ]  # fmt: skip

    def start(self, *more: str) -> subprocess.Popen[str]:
        """The command, running."""
        return subprocess.Popen(
            [*self._command, *more], env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def finish(self) -> dict[str, Any]:
        """Runs the command to its end; returns its JSON. It must succeed."""
        out, err = (process := self.start()).communicate(timeout=300)
        assert process.returncode == 0, f"exit {process.returncode}: {out}\n{err}"
        said: dict[str, Any] = json.loads(out.splitlines()[-1])
        return said

    def ask(self, command: str, *options: str, code: int = 0) -> dict[str, Any]:
        """What another command reports about the run, as JSON."""
        arguments = [sys.executable, "-m", "asyncsynth", command, str(self.run), "--json", *options]
        done = subprocess.run(arguments, env=environment(), text=True, capture_output=True, timeout=60, check=False)
        assert done.returncode == code, f"exit {done.returncode}: {done.stdout}\n{done.stderr}"
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said

    def finals(self) -> Counter[str]:
        """How often each record ends in the journal, without the torn tail."""
        ends: Counter[str] = Counter()
        with contextlib.suppress(FileNotFoundError), JournalView(self.run) as view:
            ends.update(entry["k"] for _, entry in view.entries() if entry["t"] == "rec" and "st" in entry)
        return ends

    @property
    def result(self) -> Path:
        return self.run / "result.jsonl"

    def sha256(self) -> str:
        """Of the result."""
        return hashlib.sha256(self.result.read_bytes()).hexdigest()

    def numbers(self) -> list[int]:
        """The records of the result, in its order."""
        return [json.loads(line)["n"] for line in self.result.read_text().splitlines()]
