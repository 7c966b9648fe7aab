"""The same job through asyncsynth and its peers: the cost of a record, and records per second.

    python benchmarks/peers.py --records 20000 --concurrency 256,1024 --repeat 5

The job: a JSONL file of 1 KB requests in, one chat completion of 0.8 KB for each, a JSONL file out. asyncsynth has all
its features on (journal and group commit, statistics, adaptive retries). `bare_aiohttp` is a loop written by hand
(aiohttp, orjson, uvloop; it writes at the end and retries nothing). Each peer has its own virtual environment under
`--cache` and follows its documentation (peer_jobs.py). The report says which peers do not install or do not finish.

All of them send to the bundled mock, which has its own core; each peer's processes share the other core. Runs are
interleaved. CPU is the user and system time of the process and its children, after the imports. Slow peers get fewer
records, and the report says how many. To separate the cost of starting, each peer runs two sizes: `marginal_cpu_us` is
the slope between them, the cost of one more record. `times` is this cost relative to asyncsynth's.

Prints a table on standard error and one JSON line on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    spread,
    tell,
)

OURS = "asyncsynth"
_SMALL = 4  #: the smaller run of the two has a fourth of the records
_QUIET = {
    "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TELEMETRY_ENABLED": "false", "NEMO_TELEMETRY_ENABLED": "false",
    "CURATOR_DISABLE_RICH_DISPLAY": "1", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore",
}  # fmt: skip
_HAND = ("aiohttp==3.14.5", "orjson==3.13.0", "uvloop==0.23.0")
_SDK = ("openai[aiohttp]==3.52.0", "orjson==3.13.0", "uvloop==0.23.0")


@dataclass(frozen=True)
class Peer:
    """Another program: what its virtual environment holds, and which share of the records it is given."""

    environment: str
    requirements: tuple[str, ...]
    share: float


PEERS = {
    "bare_aiohttp": Peer("aiohttp", _HAND, 1.0),
    "openai_sdk": Peer("openai", _SDK, 0.1),
    "openai_sdk_raised": Peer("openai", _SDK, 0.1),
    "openai_sdk_aiohttp": Peer("openai", _SDK, 0.1),
    "distilabel": Peer("distilabel", ("distilabel[openai]==1.5.3", "requests==2.34.2"), 0.1),
    "curator": Peer("curator", ("bespokelabs-curator==0.1.31",), 0.1),
    "data_designer": Peer("data-designer", ("data-designer==0.9.6",), 0.1),
}


class DidNotInstall(Exception):
    """Why a peer's environment could not be made."""


def python_of(peer: Peer, cache: Path) -> Path:
    """The interpreter of a peer's environment, made if it is not there. Raises DidNotInstall.

    Each interpreter that runs this script has environments of its own: one build of the same Python takes a fifth
    less than another, and all programs of a comparison have to run on the same.
    """
    interpreter = hashlib.blake2b(f"{sys.version} {sys.base_prefix}".encode(), digest_size=4).hexdigest()
    folder = cache / f"{peer.environment}-{interpreter}"
    python, marker = folder / "bin" / "python", folder / "installed.json"
    wanted = json.dumps(peer.requirements)
    if marker.exists() and marker.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    tell(f"installing {', '.join(peer.requirements)} into {folder}")
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise DidNotInstall(next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else ""))
    marker.write_text(wanted)
    return python


class Bench:
    """Jobs of all programs against one mock."""

    def __init__(self, url: str, folder: Path, cores: Cores, options: argparse.Namespace) -> None:
        self._url = url
        self._folder = folder
        self._cores = cores
        self._options = options
        self.failed: dict[str, str] = {}  #: program -> what went wrong, once
        self.pythons: dict[str, Path] = {}

    def records_of(self, name: str, concurrency: int) -> int:
        """How many records a program is given: enough to be in flight at once at least four times over."""
        share = PEERS[name].share if name in PEERS else 1.0
        most: int = self._options.records
        return max(int(most * share), min(most, 4 * concurrency))

    def run(self, name: str, concurrency: int) -> Numbers:
        """Both sizes of a program's job; zeros where it has failed."""
        records = self.records_of(name, concurrency)
        if name in self.failed:
            return {}
        try:
            small, whole = (self._job(name, size, concurrency) for size in (records // _SMALL, records))
        except (SystemExit, subprocess.TimeoutExpired) as error:
            self.failed[name] = str(error).strip()[-600:]
            tell(f"{name} at {concurrency} in flight failed: {self.failed[name]}")
            return {}
        more = records - records // _SMALL
        numbers = {
            "cpu_us_per_record": round(1e6 * whole["cpu_s"] / records, 1),
            "marginal_cpu_us": round(1e6 * (whole["cpu_s"] - small["cpu_s"]) / more, 1),
            "records_per_s": round(records / whole["wall_s"], 1),
            "peak_rss_mb": whole["peak_rss_mb"],
        }
        tell(f"{name} at {concurrency} in flight: {numbers}")
        return numbers

    def _job(self, name: str, records: int, concurrency: int) -> Numbers:
        rows = self._folder / f"{records}.jsonl"
        if not rows.exists():
            instructions(rows, records)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            job = {"url": self._url, "input": str(rows), "records": records, "concurrency": concurrency}
            core, limit = self._cores.client, self._options.timeout
            if name == OURS:
                command = [
                    sys.executable,
                    str(FOLDER / "engine_job.py"),
                    json.dumps({**job, "output": f"{folder}/run"}),
                ]
                return child_numbers(command, core, timeout_s=limit)
            python, text = str(self.pythons[name]), json.dumps({**job, "output": f"{folder}/out.jsonl"})
            command = [python, str(FOLDER / "peer_jobs.py"), name, text]
            return child_numbers(command, core, environment={**os.environ, **_QUIET}, timeout_s=limit)


def measure(bench: Bench, names: Sequence[str], options: argparse.Namespace) -> list[Numbers]:
    """All programs at all concurrencies, interleaved; a line for each."""
    levels = [int(level) for level in options.concurrency.split(",")]
    variants: dict[str, Callable[[], Numbers]] = {
        f"{name} {level}": functools.partial(bench.run, name, level) for level in levels for name in names
    }
    runs = interleaved(variants, options.repeat)
    results = []
    for level in levels:
        ours = [run for run in runs.get(f"{OURS} {level}", []) if run]
        for name in names:
            good = [run for run in runs[f"{name} {level}"] if run]
            line: Numbers = {"program": name, "concurrency": level, "records": bench.records_of(name, level)}
            if not good:
                results.append({**line, "failed": bench.failed.get(name, "")})
                continue
            line |= medians(good) | {"runs": len(good), "spread": spread(good, ["marginal_cpu_us", "records_per_s"])}
            if ours:
                line["times"] = round(line["marginal_cpu_us"] / medians(ours)["marginal_cpu_us"], 2)
            results.append(line)
    return results


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000, help="of the quick ones; the slow ones do a tenth")
    parser.add_argument("--concurrency", default="256,1024")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="the mock's time to answer")
    parser.add_argument("--only", default=",".join([OURS, *PEERS]), help="which programs")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one run")
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asyncsynth" / "peers"
    parser.add_argument("--cache", type=Path, default=default, help="folder of the virtual environments")
    return parser.parse_args()


def main() -> None:
    """Prints the table and the JSON line."""
    options = arguments()
    names = options.only.split(",")
    if unknown := set(names) - {OURS, *PEERS}:
        raise SystemExit(f"--only: {', '.join(sorted(unknown))} is none of {', '.join([OURS, *PEERS])}")
    cores = Cores.found()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
        url = stack.enter_context(mock_server(cores.server, delay_ms=options.delay_ms))
        bench = Bench(url, folder, cores, options)
        for name in names:
            if name == OURS:
                continue
            try:
                bench.pythons[name] = python_of(PEERS[name], options.cache)
            except DidNotInstall as error:
                bench.failed[name] = f"did not install: {error}"
                tell(f"{name} {bench.failed[name]}")
        results = measure(bench, names, options)
    columns = ("records", "cpu_us_per_record", "marginal_cpu_us", "times", "records_per_s", "peak_rss_mb")
    table = Table(["program", "in flight", *columns])
    for row in results:
        cells = [row.get(name, "-") for name in columns]
        table.rows.append([row["program"], row["concurrency"], *cells])
    for name, why in bench.failed.items():
        tell(f"{name}: {why}")
    numbers: Numbers = {
        "benchmark": "peers", "repeats": options.repeat, "pinned": cores.pinned, "delay_ms": options.delay_ms,
        "requirements": {name: list(PEERS[name].requirements) for name in names if name in PEERS},
        "failed": bench.failed, "results": results, "machine": machine(),
    }  # fmt: skip
    publish(numbers, table)


if __name__ == "__main__":
    main()
