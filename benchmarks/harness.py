"""What the benchmarks share: pinned child processes, interleaved repeats, medians, tables.

Every script prints a table on standard error and one JSON line on standard output. Repeats are interleaved (A B, B A,
A B, ...), so that other load and heat affect all variants alike. Reports show the median, and the least and greatest
value (the spread). On Linux with two cores or more, the measured process has one core to itself and the server another.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
MODEL = "test-model"  #: what the mock serves
_NOT_TEXT = 170  #: bytes of a request's body besides the instruction
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux

Numbers = dict[str, Any]


# --- cores ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cores:
    """One core for what is measured, one for the server; None if they cannot be told apart."""

    client: int | None
    server: int | None

    @classmethod
    def found(cls) -> Cores:
        """Two of those that this process may use; none if there is one only, or the system has no such call."""
        if not hasattr(os, "sched_setaffinity"):
            return cls(None, None)
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[-1], usable[0]) if len(usable) > 1 else cls(None, None)

    @property
    def pinned(self) -> bool:
        """Whether processes stay on their cores."""
        return self.client is not None


def pin(pid: int, core: int | None) -> None:
    """Keep a process (0: this one) on one core; does nothing for None. Threads started later stay there, too."""
    if core is not None:
        os.sched_setaffinity(pid, {core})


# --- child processes -----------------------------------------------------------------------------


@contextlib.contextmanager
def mock_server(core: int | None, **options: object) -> Iterator[str]:
    """The bundled mock in a child process, on its core; its base URL. `options` are those of mock_server.py."""
    command = [sys.executable, str(FOLDER / "mock_server.py")]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        pin(child.pid, core)
        assert child.stdout is not None
        try:
            url = child.stdout.readline().strip()
            if not url:
                raise SystemExit(f"the mock server did not start: {' '.join(command)}")
            yield url
        finally:
            child.terminate()


def child_numbers(
    command: Sequence[str],
    core: int | None,
    *,
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> Numbers:
    """Run a command on a core; the last line that it prints is a JSON object. SystemExit: it failed, and how."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as child:
        pin(child.pid, core)
        try:
            out, err = child.communicate(timeout=timeout_s)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, 9)  # its children as well
            raise
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if child.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}:\n{err[-2000:]}")
    numbers: Numbers = json.loads(lines[-1])
    return numbers


# --- measuring -----------------------------------------------------------------------------------


def cpu_s() -> float:
    """User and system seconds of this process, all its threads, and of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def peak_rss_mb() -> float:
    """The most resident memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT / 1e6


@dataclass
class Phase:
    """Wall and CPU seconds of a part of a benchmark."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Adds what happens meanwhile."""
        wall, cpu = time.perf_counter(), cpu_s()
        try:
            yield
        finally:
            self.wall_s += time.perf_counter() - wall
            self.cpu_s += cpu_s() - cpu


def interleaved(variants: Mapping[str, Callable[[], Numbers]], repeats: int) -> dict[str, list[Numbers]]:
    """Runs each variant `repeat` times, interleaved: in the order given, then backwards, and so on."""
    found: dict[str, list[Numbers]] = {name: [] for name in variants}
    for number in range(repeats):
        names = list(variants)
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(variants[name]())
    return found


def medians(runs: Sequence[Numbers]) -> Numbers:
    """Medians of the numbers, and the first of everything else."""
    return {
        name: round(statistics.median(run[name] for run in runs), 4) if _is_number(value) else value
        for name, value in runs[0].items()
    }


def spread(runs: Sequence[Numbers], names: Sequence[str]) -> dict[str, list[float]]:
    """[least, greatest] of some of the numbers."""
    return {name: [min(run[name] for run in runs), max(run[name] for run in runs)] for name in names}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- input ---------------------------------------------------------------------------------------


def instructions(path: Path, records: int, request_bytes: int = 1024) -> Path:
    """Writes a JSONL file of different instructions, such that a request's body has about `request_bytes` bytes."""
    filler = "Tell the whole story in plain words, as one would to a friend. " * (request_bytes // 62 + 1)
    chars = max(40, request_bytes - _NOT_TEXT)
    with path.open("w") as file:
        for number in range(records):
            text = f"Write something about the number {number}. {filler}"[:chars]
            file.write(f'{{"instruction": "{text}"}}\n')
    return path


# --- telling -------------------------------------------------------------------------------------


def machine() -> Numbers:
    """Where this runs."""
    try:
        loop = f"uvloop {metadata.version('uvloop')}"
    except metadata.PackageNotFoundError:
        loop = "asyncio"
    return {
        "python": platform.python_version(),
        "loop": loop,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


@dataclass
class Table:
    """Rows under headings, for people."""

    headings: Sequence[str]
    rows: list[Sequence[object]] = field(default_factory=list)

    def text(self) -> str:
        """The first column to the left, the others to the right."""
        cells = [[_cell(value) for value in row] for row in (self.headings, *self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.headings))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            )
            for row in cells
        ]
        return "\n".join(line.rstrip() for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def tell(text: str) -> None:
    """A line for people: standard error."""
    print(text, file=sys.stderr, flush=True)


def publish(numbers: Numbers, table: Table) -> None:
    """The table for people, the JSON line for programs."""
    tell(table.text())
    print(json.dumps(numbers), flush=True)
