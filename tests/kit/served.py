"""A fault server in its own process, which survives `kill -9` of the engine and reports what it was asked for.

`python -m tests.kit.served OPTIONS` (JSON) prints the base URL; it answers each line "tell" on
its input with one JSON line. Prompts say `record N`; a second answer for the same request was paid twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from typing import Any, Self

from asyncsynth.testing import Fault, FaultServer, RequestInfo, random_faults
from tests.kit.files import ROOT
from tests.kit.processes import environment

_RECORD = re.compile(rb"record (\d+)")
MODEL = "model-a"


class Served:
    """The server, seen from the test. A context manager."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self.process: subprocess.Popen[str] | None = None
        self.base_url = ""

    def start(self) -> None:
        """Starts it (again); it keeps its port."""
        self._let_go()
        command = [sys.executable, "-m", "tests.kit.served", json.dumps(self._options)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.base_url = self.process.stdout.readline().strip()
        assert self.base_url, "the server did not start"
        self._options["port"] = int(self.base_url.rpartition(":")[2].partition("/")[0])

    def tell(self, *, forget: bool = False) -> dict[str, Any]:
        """Requests, and records asked for again, since the last call; `forget` also forgets what was answered."""
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("forget\n" if forget else "tell\n")
        self.process.stdin.flush()
        told: dict[str, Any] = json.loads(self.process.stdout.readline())
        return told

    def stop(self) -> None:
        """Ends it, whatever its state."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._let_go()
        self.process = None

    def _let_go(self) -> None:
        if self.process is not None and self.process.stdin is not None and self.process.stdout is not None:
            self.process.stdin.close()
            self.process.stdout.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Memory:
    """The server's script: deterministic faults, and who was answered before."""

    def __init__(self, *, fault_rate: float, seed: int, deadly: str | None) -> None:
        self._faults = random_faults(fault_rate, seed, kinds=("status", "reset"))
        self._deadly = deadly.encode() if deadly is not None else None
        self._answered: set[int] = set()
        self._fresh()

    def _fresh(self) -> None:
        self._requests = 0
        self._again = 0
        self._records: set[int] = set()

    def __call__(self, info: RequestInfo) -> Fault | None:
        if self._deadly is not None and self._deadly in info.body:
            os._exit(1)  # as an engine that dies of a request: all connections end at once
        named = _RECORD.search(info.body)
        if named is None:
            return None  # a canary, a health check or a probe
        self._requests += 1
        fault = self._faults(info)
        if fault is None:
            body = hash(info.body)
            if body in self._answered:
                self._again += 1
                self._records.add(int(named[1]))
            self._answered.add(body)
        return fault

    def tell(self, line: str) -> str:
        told = {"requests": self._requests, "again": self._again, "records": sorted(self._records)}
        if line.startswith("forget"):
            self._answered.clear()
        self._fresh()
        return json.dumps(told)


async def serve(options: dict[str, Any]) -> None:
    """Serves until its input ends."""
    memory = Memory(
        fault_rate=options.pop("fault_rate", 0.0), seed=options.pop("seed", 0), deadly=options.pop("deadly", None)
    )
    ended = asyncio.Event()
    async with FaultServer(script=memory, models=(MODEL,), **options) as server:
        print(server.base_url, flush=True)

        def heard() -> None:
            line = sys.stdin.readline()
            if line:
                print(memory.tell(line), flush=True)
            else:
                ended.set()

        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), heard)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
