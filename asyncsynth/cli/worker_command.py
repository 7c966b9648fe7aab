"""A worker of `asyncsynth run --workers`: one shard of a run. Its parent is `engine.worker_processes`."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import orjson

from asyncsynth.cli.pipeline_file import load_pipeline
from asyncsynth.engine.execution import execute
from asyncsynth.engine.options import RunOptions
from asyncsynth.engine.overrides import apply_settings
from asyncsynth.engine.pipeline import run_in_loop
from asyncsynth.engine.run import Run
from asyncsynth.engine.runner import Runner
from asyncsynth.engine.sharded_run import shard_of
from asyncsynth.engine.worker_processes import error_json, latency_json
from asyncsynth.errors import EXIT_FAULT, EXIT_STOPPED, AsyncsynthError
from asyncsynth.records import Part

_EVERY_S = 0.5  #: seconds between two reports of progress


def main() -> None:
    """Does the job that the first line of standard input describes."""
    # What the pipeline's code prints must not mix with the lines that the parent reads.
    say = Voice(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    words = _lines(0)
    job = orjson.loads(next(words))
    try:
        made = job["pipeline"]
        pipeline = load_pipeline(made["target"])
        apply_settings(pipeline, made["settings"])
        if made["input"] is not None:
            pipeline.with_input(made["input"])
        run = pipeline.resolved(RunOptions(**job["options"]))
        run = shard_of(run, Part(job["shard"], job["shards"]), Part(job["place"], job["workers"]))
        run_in_loop(lambda: _Shard(run, say, words).run())
    except AsyncsynthError as error:
        say(error_json(error))
        sys.exit(error.exit_code)
    except Exception as error:
        traceback.print_exc()
        message = f"worker {job['shard']}: unexpected: {type(error).__name__}: {error}"
        say(error_json(_fault(message)))
        sys.exit(EXIT_FAULT)


def _fault(message: str) -> AsyncsynthError:
    error = AsyncsynthError(message, hint="Its traceback is above. Finished records are safe.")
    error.exit_code = EXIT_FAULT
    return error


class Voice:
    """Writes JSON lines to the parent. Ends the process if the parent is gone."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def __call__(self, said: dict[str, Any]) -> None:
        try:
            self._stream.write(orjson.dumps(said, default=str, option=orjson.OPT_NON_STR_KEYS) + b"\n")
            self._stream.flush()
        except BrokenPipeError:
            os._exit(EXIT_STOPPED)


class _Shard:
    """The run of one shard, and the parent's commands meanwhile."""

    def __init__(self, run: Run, say: Voice, words: Iterator[bytes]) -> None:
        self._run = run
        self._say = say
        self._words = words
        self._runner: Runner | None = None
        self._told = ""

    async def run(self) -> None:
        """Runs to the end and reports; a cancelled run reports what it has done."""
        main = asyncio.current_task()
        assert main is not None
        loop = asyncio.get_running_loop()

        def heard(word: str) -> None:
            loop.call_soon_threadsafe(self._heard, main, word)

        # A thread, so that the process ends with its parent even while its loop is blocked.
        threading.Thread(target=_listen, args=(self._words, heard), name="asyncsynth parent", daemon=True).start()
        progress = asyncio.create_task(self._tell_progress(), name="asyncsynth progress")
        try:
            await execute(self._run, on_runner=self._begun)
        except asyncio.CancelledError:
            if not self._told:
                raise
            main.uncancel()
        finally:
            progress.cancel()
        if self._runner is None:
            self._say({"event": "stopped"})
            return
        report = self._runner.report().as_json()
        self._say({"event": "done", **report, "latency": latency_json(self._runner.latency())})

    def _begun(self, runner: Runner) -> None:
        self._runner = runner

    def _heard(self, main: asyncio.Task[Any], word: str) -> None:
        verb, _, why = word.partition(" ")
        self._told = verb
        if self._runner is not None:
            self._runner.drain(why)
            self._say({"event": "progress", **self._runner.progress().as_json()})  # the parent shows what is left
        if verb == "cancel" or self._runner is None:
            main.cancel()

    async def _tell_progress(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            if self._runner is not None:
                self._say({"event": "progress", **self._runner.progress().as_json()})


def _listen(words: Iterator[bytes], heard: Callable[[str], object]) -> None:
    for word in words:
        try:
            heard(word.decode())
        except RuntimeError:  # the loop has ended, and the process ends next
            return
    os._exit(EXIT_STOPPED)


def _lines(fd: int) -> Iterator[bytes]:
    """Lines as they come: no buffered reader, whose lock a thread would hold when the process ends."""
    rest = b""
    while chunk := os.read(fd, 1 << 16):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole


if __name__ == "__main__":
    main()
