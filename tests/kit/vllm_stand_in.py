"""A stand-in for the `vllm` command: `serve --config FILE [--flag=value]`, over real sockets, no model.

It reads the tests' files as vLLM does and starts a child (vLLM has an engine process). The folder STAND_IN makes it
fail: a file `<port>.<what>` there asks for `<what>`. Every start appends the pids of the server and its child to
`<port>.starts`, and SIGTERM appends to `<port>.terminated`.

what: crash (exit 1 with an error log), hang (SIGTERM does nothing), never (does not listen), escape (its child
leaves the process group), slow (5 ms an answer; notes `<port>.answering` after 100).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from asyncsynth.testing import FaultServer, RequestInfo

NOTES = Path(os.environ["STAND_IN"])
ERROR = """\
(EngineCore_0 pid=77) ERROR 11-21 08:00:00 [core.py:387] EngineCore failed to start.
(EngineCore_0 pid=77) ERROR 11-21 08:00:00 [core.py:387] torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB.
(APIServer pid=76) RuntimeError: Engine core initialization failed. See root cause above.
"""


def settings() -> dict[str, str]:
    arguments = sys.argv[1:]
    if arguments[:2] != ["serve", "--config"]:
        sys.exit(f"vllm: error: unexpected {arguments}")
    found = {key.replace("_", "-"): str(value) for key, value in yaml.safe_load(Path(arguments[2]).read_text()).items()}
    for argument in arguments[3:]:
        name, sign, value = argument.removeprefix("--").partition("=")
        found[name] = value if sign else "true"
    return found


async def serve(port: int, model: str, drain_s: float) -> None:
    what = {path.suffix[1:] for path in NOTES.glob(f"{port}.*")}
    stopped = asyncio.Event()

    def terminated() -> None:
        with (NOTES / f"{port}.terminated").open("a") as file:
            file.write(f"{drain_s}\n")
        if "hang" not in what:
            stopped.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated)
    if "never" in what:
        await stopped.wait()
        return

    def count(info: RequestInfo) -> None:
        if "slow" in what and info.index == 100:
            (NOTES / f"{port}.answering").touch()

    server = FaultServer(
        models=[model],
        port=port,
        api_key=os.environ.get("VLLM_API_KEY"),
        script=count,
        delay_s=0.005 if "slow" in what else 0.0,
    )
    try:
        await server.start()
    except OSError as error:
        sys.exit(f"OSError: [Errno 98] {error.strerror}")
    await stopped.wait()
    await server.stop()


def main() -> None:
    found = settings()
    port = int(found.get("port", "8000"))
    child = subprocess.Popen(["sleep", "300"], start_new_session=(NOTES / f"{port}.escape").exists())
    starts = NOTES / f"{port}.starts"
    note = {"pid": os.getpid(), "child": child.pid, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "flags": found}
    with starts.open("a") as file:
        file.write(json.dumps(note) + "\n")
    print(
        f"(APIServer pid={os.getpid()}) INFO 11-21 08:00:00 [api.py:1] \x1b[32mloading\x1b[0m {found['model']}",
        flush=True,
    )
    if (NOTES / f"{port}.crash").exists():
        print(ERROR, end="", file=sys.stderr, flush=True)
        sys.exit(1)
    asyncio.run(serve(port, found["model"], float(found.get("shutdown-timeout", "0"))))
    child.kill()
    child.wait()


if __name__ == "__main__":
    main()
