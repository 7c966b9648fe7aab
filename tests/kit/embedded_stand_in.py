"""A stand-in for the embedded server's process: the last argument holds its settings, and a line on stdout
gives its address.

The model's file configures it, one word a line, read at each start: `slow` (20 ms an answer), `memory` (complains like
llama.cpp and ends with 1), `fails` (says why it does not start). Each start appends its pid to the file's `.pids`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from asyncsynth.testing import FaultServer


async def main() -> None:
    settings = json.loads(sys.argv[-1])
    model = Path(settings["model"])
    words = model.read_text().split()
    with model.with_suffix(".pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if "memory" in words:
        print("ggml_aligned_malloc: insufficient memory (attempted to allocate 900.00 MB)", file=sys.stderr, flush=True)
        sys.exit(1)
    if "fails" in words:
        print(json.dumps({"error": "RuntimeError: no such model"}), flush=True)
        sys.exit(1)
    server = FaultServer(any_model=True, port=settings["port"], delay_s=0.02 if "slow" in words else 0.0)
    await server.start()
    print(json.dumps({"address": server.base_url.removesuffix("/v1")}), flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
