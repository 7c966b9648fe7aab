"""Every exception of asyncsynth, in one tree.

A message tells what happened and where; `hint` tells what to do next. The command line prints both and
exits with `exit_code`; the codes are documented in docs/cli.md.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAULT = 1  #: an unforeseen error
EXIT_USAGE = 2  #: bad usage, configuration or input
EXIT_FAILED_RECORDS = 3  #: the run is done, some records failed
EXIT_STOPPED = 4  #: stopped before the end; the same command resumes
EXIT_STORAGE = 5  #: the disk or the journal failed


class AsyncsynthError(Exception):
    """Base of all errors. `hint` is the next action for the reader, or ''."""

    exit_code = EXIT_USAGE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


# --- what the user wrote -----------------------------------------------------------------------


class ConfigurationError(AsyncsynthError):
    """Settings that cannot work; raised before anything is sent."""


class CallError(ConfigurationError, TypeError):
    """A part of the public API was called with a wrong or surplus argument, or without a required one.

    It names the call, the argument, the nearest right name and all valid names. Also a TypeError, which is what
    Python raises for such a call.
    """


class PipelineError(ConfigurationError):
    """The graph of steps is not valid: names the step and, if there is one, the column."""

    def __init__(self, message: str, *, step: str = "", column: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.step = step
        self.column = column


class InputError(ConfigurationError):
    """The input data is not usable: names the file, the line (1-based) and the column where known."""

    def __init__(
        self, message: str, *, path: str = "", line: int | None = None, column: str = "", hint: str = ""
    ) -> None:
        place = f"{path}:{line}: " if path and line is not None else f"{path}: " if path else ""
        super().__init__(place + message, hint=hint)
        self.path = path
        self.line = line
        self.column = column


class RunChangedError(ConfigurationError):
    """The run directory was made by another pipeline; `plan` lists what would be reused and redone."""

    def __init__(self, message: str, *, plan: list[str], hint: str = "", survey: object = None) -> None:
        super().__init__("\n".join([message, *(f"  {line}" for line in plan)]), hint=hint)
        self.plan = plan
        self.survey = survey  #: the changes behind the plan, see `engine.changes`


class RunLockedError(ConfigurationError):
    """Another process is writing this run directory; the message carries its pid."""


# --- the servers -------------------------------------------------------------------------------


class ServerError(AsyncsynthError):
    """A server cannot do what the run needs. At start-up this is a configuration error (exit 2)."""


class ServerUnreachable(ServerError):
    """No answer from a server within its deadline."""


class ModelNotServed(ServerError):
    """A model that no server offers."""


class ServerRefused(ServerError):
    """Authentication, permission or model errors that every request would meet (401, 403, 404)."""


class RunStopped(ServerRefused):
    """A server began to refuse every request in the middle of a run; the run can be resumed."""

    exit_code = EXIT_STOPPED


class Withdrawn(BaseException):
    """Nothing more is sent, because the run stops. Not a failure: the record stays pending.

    Like CancelledError, it is not an `Exception`, so that a step's own ``except Exception`` does not take it for a
    failed request.
    """


class RunUnfinished(AsyncsynthError):
    """A run directory whose records have not all ended, although a complete one is required."""

    exit_code = EXIT_STOPPED


# --- the disk ----------------------------------------------------------------------------------


class StorageError(AsyncsynthError):
    """A write, sync or read of the run directory failed; nothing acknowledged is lost."""

    exit_code = EXIT_STORAGE


class CorruptJournal(StorageError):
    """Acknowledged bytes of the journal do not check; names file and offset."""


# --- one record --------------------------------------------------------------------------------


class RecordError(AsyncsynthError):
    """One row failed, for a typed `reason`; other rows continue. Becomes a dead letter in the journal."""

    reason: str = "record_error"
    exit_code = EXIT_FAILED_RECORDS

    def __init__(self, message: str, *, reason: str = "", attempts: int = 0, raw: str | None = None) -> None:
        super().__init__(message)
        if reason:
            self.reason = reason
        self.attempts = attempts
        self.raw = raw  #: the model's text, if there is one


class RequestFailed(RecordError):
    """The model call ended without a completion; `reason` is the outcome's (see core.outcomes)."""

    reason = "request_failed"
    tokens = 0  #: completion tokens paid for the last attempt, if its answer was useless


class ParseFailure(RecordError):
    """The model answered with text that the task cannot read; `raw` keeps that text."""

    reason = "parse_failure"


class TaskFailure(RecordError):
    """A step's own code raised on this row."""

    reason = "step_error"
