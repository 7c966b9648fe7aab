"""`asyncsynth serve` and `asyncsynth run` as a user calls them, and what can be seen of the servers from outside."""

from __future__ import annotations

import json
import os
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.real_vllm.environment import HERE, Environment

SMOL, TINY = "smollm2-135m.yaml", "qwen2.5-tiny.yaml"
READY_S = 600.0


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """A folder of configuration files with ports filled in, and the `asyncsynth serve` that runs them.

    Args:
        flags: laid over each file's own, as a fleet file does.
    """

    def __init__(
        self, environment: Environment, folder: Path, files: list[str], flags: Mapping[str, Any] | None = None
    ) -> None:
        folder.mkdir(parents=True)
        self.environment = environment
        self.folder = folder
        self.fleet = folder / "fleet.yaml"
        self.ports = {name: free_port() for name in files}
        for name, port in self.ports.items():
            text = string.Template((HERE / "configs" / name).read_text(encoding="utf-8"))
            (folder / name).write_text(text.substitute(models=environment.models, port=port), encoding="utf-8")
        # JSON is YAML.
        servers = [{"config": name, **({"flags": dict(flags)} if flags else {})} for name in files]
        self.fleet.write_text(json.dumps({"servers": servers}), encoding="utf-8")
        self.process: subprocess.Popen[str] | None = None

    def url(self, name: str) -> str:
        """The base URL of a file's server."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def start(self) -> float:
        """Starts them, waits until `serve` says that all answer, and returns the seconds."""
        began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "asyncsynth", "serve", str(self.fleet), "--logs", str(self.folder), "--json"],
            stdout=(self.folder / "serve.jsonl").open("w"),
            stderr=(self.folder / "serve.err").open("w"),
            env=self.environment.variables(),
            text=True,
        )
        while not any(event["event"] == "ready" for event in self.events()):
            if self.process.poll() is not None or time.monotonic() - began > READY_S:
                raise SystemExit(f"serve did not come up:\n{(self.folder / 'serve.err').read_text()[-3000:]}")
            time.sleep(0.5)
        return time.monotonic() - began

    def events(self) -> list[dict[str, Any]]:
        """What `serve --json` has said so far."""
        lines = (self.folder / "serve.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def stop(self) -> tuple[int, float]:
        """SIGTERM, as an operator would; the exit code and the seconds."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(120)
        return code, time.monotonic() - began

    def close(self) -> None:
        """Ends what still runs, whatever happened."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def processes(self, name: str | None = None) -> list[int]:
        """The processes of one file's server (of all), vLLM's own children included, the guardian not."""
        table = _process_table()
        files = [str(self.folder / each) for each in ([name] if name else self.ports)]
        found = {
            pid
            for pid, (_, line) in table.items()
            if "guardian" not in line and any(f"serve --config {file}" in line for file in files)
        }
        grown = True
        while grown:
            more = {pid for pid, (parent, _) in table.items() if parent in found} - found
            found |= more
            grown = bool(more)
        return sorted(found)

    def kill(self, name: str) -> list[int]:
        """`kill -9` of a whole server, as the kernel does when memory runs out."""
        victims = self.processes(name)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        return victims

    def metric(self, name: str, series: str) -> float:
        """The sum of a series of a server's `/metrics`."""
        text = httpx.get(f"{self.url(name)}/metrics", timeout=30).text
        lines = [line for line in text.splitlines() if line.startswith((f"{series}{{", f"{series} "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def _process_table() -> dict[int, tuple[int, str]]:
    """pid -> (its parent, its command line). Linux."""
    table = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has just ended
                continue
            table[int(folder.name)] = (parent, line)
    return table


class Running:
    """One `asyncsynth run --json` over a pipeline of this folder."""

    def __init__(self, environment: Environment, pipeline: str, output: Path, *options: str) -> None:
        self.output = output
        self._out = output.with_name(f"{output.name}.jsonl")
        self._err = output.with_name(f"{output.name}.err")
        command = [sys.executable, "-m", "asyncsynth", "run", str(HERE / "pipelines" / f"{pipeline}.py")]
        self.process = subprocess.Popen(
            [*command, "--output", str(output), "--export", "--json", *options],
            stdout=self._out.open("w"),
            stderr=self._err.open("w"),
            env=environment.variables(),
        )

    def progress(self) -> dict[str, Any]:
        """The last snapshot, or {}."""
        events = [json.loads(line) for line in self._out.read_text().splitlines() if line.endswith("}")]
        return events[-1] if events else {}

    def finish(self, timeout: float = 600) -> dict[str, Any]:
        """Waits for the end: the report, with `exit_code`."""
        code = self.process.wait(timeout)
        last = self.progress()
        if last.get("event") != "done":
            raise SystemExit(f"the run ended with {code}:\n{last}\n{self._err.read_text()[-3000:]}")
        return last | {"exit_code": code}

    def rows(self) -> list[dict[str, Any]]:
        """What was exported."""
        lines = (self.output / "result.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
