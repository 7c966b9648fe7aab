"""The embedded server's process: llama.cpp behind its own OpenAI-compatible HTTP server, on loopback.

Run by path by `embedded.EmbeddedServer`, never imported: it imports nothing of asyncsynth, so that it starts
fast and works wherever the package lies. It is a process of its own because llama.cpp's server runs C++
threads that only a process exit ends reliably (a clean stop waits for every request in flight).

Its one argument: the settings, in JSON. Its guardian (`guardian.py`) ends it when the parent is gone.
stdout: one JSON line, ``{"address": "http://127.0.0.1:PORT"}`` once ready, or ``{"error": "..."}``.
stderr: llama.cpp's log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def serve(settings: dict[str, Any]) -> Any:
    """Load the model and listen on 127.0.0.1: on the port of the settings, or on a free one where that is 0."""
    # Before llama.cpp is loaded: OpenMP workers that wait by spinning halve the speed of a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.model_alias = {settings["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = settings["port"]
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["slots"] * settings["context"]
    params.cache_ram_mib = 0  # synthetic rows rarely come back; the default would keep up to 8 GB of them
    params.ui = False
    if settings["threads"]:
        params.cpuparams.n_threads = settings["threads"]
    return xllamacpp.Server(params)


def main() -> None:
    """Serve until killed."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever llama.cpp prints goes to the log, and the answer line stays alone
    settings = json.loads(sys.argv[1])
    try:
        server = serve(settings)  # its threads serve while this object lives
        said = {"address": str(server.listening_address)}
    except ImportError as error:
        said = {"error": str(error), "kind": "import"}
    except Exception as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    answer.write(json.dumps(said) + "\n")
    answer.flush()
    if "error" in said:
        os._exit(1)
    signal.pause()


if __name__ == "__main__":
    main()
