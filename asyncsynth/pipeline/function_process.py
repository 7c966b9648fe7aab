"""A process that calls one of the user's functions, row by row: the parent's side and its own side.

The process loads the function from its module, or from the file of the script that the parent runs, so nothing is
pickled. Messages in both directions are JSON, each after its length in four bytes. What the function prints goes to
standard error. The process is the leader of a session of its own: Ctrl-C does not reach it, and killing it takes its
own children along. It ends when its standard input does, in the middle of a call too, which is when the parent is gone.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import IO, Any

import orjson

from asyncsynth.errors import AsyncsynthError, ConfigurationError, PipelineError, RecordError
from asyncsynth.pipeline.dropped import Dropped
from asyncsynth.pipeline.seen import SeenRow, keepable, row_error
from asyncsynth.records import Row, plain_json

_LENGTH = struct.Struct("<I")
_MAINS = frozenset({"__main__", "__mp_main__", "asyncsynth_pipeline"})
_is_loading = False  #: this is a worker process that loads a user's script, which must not start its run again


@dataclass(frozen=True)
class FunctionPlace:
    """Where a process finds a function.

    Attributes:
        module: the name that it has there.
        file: the script that is run, which cannot be imported by name; "" for a module that can.
        name: the function's qualified name. It may name the step class that `@step` made of it.
    """

    module: str
    file: str
    name: str


def place_of_function(function: Callable[..., Any], *, where: str) -> FunctionPlace:
    """Where a worker process will find a function. Raises PipelineError for one that it cannot find."""
    module, name = function.__module__, function.__qualname__
    if "<" in name:
        kind = "a lambda" if "<lambda>" in name else "defined inside a function"
        raise PipelineError(
            f'{where}: run_in="process" needs a function that another process can import; {name!r} is {kind}',
            hint='Define it at the top level of a module, or use run_in="thread".',
        )
    if module not in _MAINS:
        return FunctionPlace(module, "", name)
    file = function.__code__.co_filename
    if not os.path.isfile(file) or "ipykernel" in file:
        raise PipelineError(
            f'{where}: run_in="process" needs a function that another process can import; {name!r} was typed into '
            "an interpreter or a notebook",
            hint='Write it into a module and import it from there, or use run_in="thread".',
        )
    return FunctionPlace("__mp_main__", os.path.abspath(file), name)


def refuse_run() -> None:
    """Raises ConfigurationError in a worker process that loads the script of a run: a run there would never end."""
    if _is_loading:
        raise ConfigurationError(
            "the script starts its run when a worker process loads it",
            hint='Put the call of run() under `if __name__ == "__main__":`, or the function into a module of its own.',
        )


# --- the parent's side ---------------------------------------------------------------------------


class WorkerProcess:
    """The parent's end. `call` blocks, one call at a time; `kill` and `close` may come from any thread."""

    def __init__(self, step: str, place: FunctionPlace) -> None:
        self._step = step
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_calling = False  #: the calling thread reads the pipes, and closes them
        self._closed = False

    def call(self, row: Row) -> Any:
        """What the function returns for a row. Raises RecordError, Dropped and PipelineError."""
        process = self._begin()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, orjson.dumps({"row": row}))
            answer = _received(process.stdout)
        except OSError:
            answer = None
        with self._lock:
            self._is_calling = False
            if answer is None and self._process is process:
                self._process = None
        if answer is None:
            raise RecordError(_how_it_ended(process), reason="worker_died")
        return _outcome(orjson.loads(answer), self._step)

    def kill(self) -> None:
        """Ends the process with its children, in the middle of a call too. The next call starts another."""
        with self._lock:
            process, self._process = self._process, None
            is_calling = self._is_calling
        if process is not None:
            _kill(process)
            if not is_calling:
                _reap(process)

    def close(self) -> None:
        """As `kill`; no other is started."""
        self._closed = True
        self.kill()

    def _begin(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise RecordError("the run ended", reason="worker_died")
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", "from asyncsynth.pipeline.function_process import main; main()"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
                assert self._process.stdin is not None
                with contextlib.suppress(OSError):  # it ended at once: found out when the answer is read
                    _send(self._process.stdin, orjson.dumps({**asdict(self._place), "argv": sys.argv}))
            self._is_calling = True
            return self._process


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    """In words, of a process whose pipe is closed: it has ended, or cannot be used any more."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
    _kill(process)
    _reap(process)
    code = process.returncode
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"the worker process of this step was ended by {signal.Signals(-code).name} during the call"
    return f"the worker process of this step ended with exit code {code} during the call"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the process, and its children also where it has ended itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _outcome(answer: dict[str, Any], step: str) -> Any:
    """What the process says of a call: its result, or the error that it stands for."""
    if "made" in answer:
        return answer["made"]
    if "dropped" in answer:
        raise Dropped(answer["dropped"])
    if "failed" in answer:
        failed = answer["failed"]
        raise RecordError(failed["message"], reason=failed["reason"], attempts=failed["attempts"], raw=failed["raw"])
    raise PipelineError(f"step {step!r}: {answer['stop']}", step=step, hint=answer.get("hint", ""))


def _send(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(_LENGTH.pack(len(message)) + message)
    pipe.flush()


def _received(pipe: IO[bytes]) -> bytes | None:
    """The next message; None at the end."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    message = pipe.read(_LENGTH.unpack(head)[0])
    return message if len(message) == _LENGTH.unpack(head)[0] else None


# --- the process itself --------------------------------------------------------------------------


def main() -> None:
    """Loads the function that the first message names, and calls it for each of the others."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the user's code prints is no answer
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, requests), daemon=True).start()
    place = orjson.loads(requests.get())
    problem: dict[str, Any] | None = None
    function: Callable[[Any], Any] | None = None
    global _is_loading
    _is_loading = True
    try:
        sys.argv = place.pop("argv")
        function = _loaded(FunctionPlace(**place))
    except BaseException as error:
        hint = error.hint if isinstance(error, AsyncsynthError) else ""
        told = error.message if isinstance(error, AsyncsynthError) else f"{type(error).__name__}: {error}"
        where = place["file"] or place["module"]
        problem = {"stop": f"its worker process cannot load {place['name']!r} from {where}: {told}", "hint": hint}
    _is_loading = False
    while True:
        row = orjson.loads(requests.get())["row"]
        _send(answers, _made(function, row) if function is not None else orjson.dumps(problem))


def _listen(pipe: IO[bytes], requests: queue.SimpleQueue[bytes]) -> None:
    """Passes on what the parent sends. Ends the process and its children when the parent is gone."""
    while (message := _received(pipe)) is not None:
        requests.put(message)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _loaded(place: FunctionPlace) -> Callable[[Any], Any]:
    if place.file:
        spec = importlib.util.spec_from_file_location(place.module, place.file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[place.module] = module
        sys.path.insert(0, os.path.dirname(place.file))
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place.module)
    found: Any = module
    for part in place.name.split("."):
        found = getattr(found, part)
    if inspect.isclass(found) and hasattr(found, "function"):  # the step that `@step` made of it
        found = found.function
    function: Callable[[Any], Any] = found
    return function


def _made(function: Callable[[Any], Any], row: Row) -> bytes:
    """The answer to one call, as JSON."""

    try:
        return orjson.dumps({"made": plain_json(function(SeenRow(row)))})
    except Dropped as dropped:
        return orjson.dumps({"dropped": keepable(dropped.reason)})
    except BaseException as error:
        if isinstance(error, AsyncsynthError) and not isinstance(error, RecordError):
            return orjson.dumps({"stop": keepable(error.message), "hint": keepable(error.hint)})
        failed = row_error(error, row)
        raw = None if failed.raw is None else keepable(failed.raw)
        said = {"message": keepable(failed.message), "reason": keepable(failed.reason)}
        return orjson.dumps({"failed": {**said, "attempts": failed.attempts, "raw": raw}})


if __name__ == "__main__":
    main()
