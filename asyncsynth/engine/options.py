"""Options for one run. The pipeline defines the work; these define how to execute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from asyncsynth.calling import checked_class
from asyncsynth.core.retry import RetryPolicy
from asyncsynth.engine.failing import FailureLimit
from asyncsynth.errors import ConfigurationError
from asyncsynth.records import Part, Row
from asyncsynth.servers.capabilities import Capabilities
from asyncsynth.serving.vllm.starting import StartOptions

#: Default of `window_bytes`. The largest window has 16,384 records, so that rows of up to 16 KiB never wait for it.
WINDOW_BYTES = 256 << 20


class RunSettings(TypedDict, total=False):
    """The keywords of `Pipeline.run()`, `arun()` and `stream()`. They are the fields of `RunOptions`, which explains
    them. A test keeps the two equal."""

    output: Path | str | None
    servers: Sequence[str]
    start: StartOptions | None
    embedded: bool | str
    limit: int | None
    seed: int
    retry_failed: bool
    update: bool
    answers: bool | str | Path | None
    use_cache: bool
    concurrency: int | None
    request_timeout: float | None
    model_change: str
    window: int | None
    window_bytes: int
    max_failures: int | str | None
    retry: RetryPolicy | None
    shard: Part | None
    share: Part | None
    on_download: Callable[[int, int], None] | None
    on_servers: Callable[[Sequence[Capabilities]], None] | None
    on_wait: Callable[[str], None] | None


@checked_class
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of one run.

    Args:
        output: the run directory; None takes ``asyncsynth-runs/<pipeline name>``. A pipeline without a name takes the
            name of its file; one made in a notebook takes ``pipeline-<fingerprint>``, which changes when you edit it.
        servers: URLs, files or directories, as on the command line; empty takes ``ASYNCSYNTH_SERVERS``.
        start: starts the vLLM servers that `servers` describes, if the models need them and they do not answer; they
            are stopped at the end. None starts nothing.
        embedded: an embedded model answers for every model (True takes the default one; or a name, or the path of a
            GGUF file). ``ASYNCSYNTH_SERVERS`` is then ignored. Not together with `servers`.
        limit: stop after this many input records.
        seed: the run seed; all sampling seeds and random choices follow from it.
        retry_failed: try records again that failed in an earlier run.
        update: accept that the pipeline or its input has changed since the directory was made.
        answers: which answers of models are kept, so that a changed parser can read them again without paying:
            "own" (None) keeps those of steps with code of your own, in the run directory; "run" (True) keeps all,
            there; "none" (False) keeps and reads none; any other path keeps all, in a directory that runs may share.
        use_cache: False starts again in the same place, and keeps the old directory under another name.
        concurrency: requests in flight on each server, fixed; None adapts to each server.
        request_timeout: seconds for each whole answer, the server's queue included; a request that takes longer is
            given up and tried again, which costs its record an attempt. None sets no limit: a request is given up only
            when its server shows no progress.
        model_change: what happens when a server's answers begin to name another model than before. "stop" (default)
            takes none of these answers and sends nothing more there; the run continues with other servers of the
            model, or stops, resumable. "note" takes them, and says so in the notes.
        window: maximum number of records in flight; None takes twice the servers' total limit plus 256.
        window_bytes: maximum size of the input rows of all records in flight, in bytes.
        on_download: called with (bytes so far, bytes in total) while an embedded model's weights are downloaded.
        on_servers: called with what the tests of the servers found, before anything else is sent.
        on_wait: called with a line when a server keeps the start waiting for more than 5 s.
        max_failures: stop the run, resumable, when more than this many records have failed in it (``100``), or more
            than this share of those that have ended (``"5%"``, once 50 have). None stops it only if the first 20
            records all fail in the same way and none ends well; a number or share replaces that rule.
        retry: waits, stops and budgets (`core.retry.RetryPolicy`).
        shard: the part of the records that this process does, of several that share a run (`engine.sharded_run`).
        share: the part of each server's limits, and of the largest automatic window, that this process may use.
    """

    output: Path | str | None = None
    servers: Sequence[str] = ()
    start: StartOptions | None = None
    embedded: bool | str = False
    limit: int | None = None
    seed: int = 0
    retry_failed: bool = False
    update: bool = False
    answers: bool | str | Path | None = None
    use_cache: bool = True
    concurrency: int | None = None
    request_timeout: float | None = None
    model_change: str = "stop"
    window: int | None = None
    window_bytes: int = WINDOW_BYTES
    max_failures: int | str | None = None
    retry: RetryPolicy | None = None
    shard: Part | None = None
    share: Part | None = None
    on_download: Callable[[int, int], None] | None = None
    on_servers: Callable[[Sequence[Capabilities]], None] | None = None
    on_wait: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        for name, least in (("limit", 0), ("concurrency", 1), ("window", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigurationError(f"{name} is {value}; at least {least} is needed")
        if self.request_timeout is not None and not 0 < self.request_timeout < float("inf"):
            raise ConfigurationError(
                f"request_timeout is {self.request_timeout}; a number of seconds above 0 is needed",
                hint="Leave it out to set no limit: a request is given up when its server shows no progress.",
            )
        if self.model_change not in ("stop", "note"):
            raise ConfigurationError(
                f"model_change must be stop or note (got {self.model_change!r})",
                hint='"stop" takes no answer of another model; "note" takes it and says so.',
            )
        if not (self.answers is None or (isinstance(self.answers, (bool, Path, str)) and str(self.answers).strip())):
            raise ConfigurationError(
                f"answers must be own, run, none or the path of a directory (got {self.answers!r})",
                hint="`own` keeps the answers of steps with your code, `run` keeps all, `none` keeps none.",
            )
        if self.max_failures is not None:
            FailureLimit(self.max_failures)
        if self.servers and self.embedded:
            raise ConfigurationError(
                "both servers and an embedded model are given; only one of them can answer",
                hint="Leave out --embedded (and --embedded-model) to use the servers, or --servers to use the small "
                "model on this CPU.",
            )


#: Options that each worker process resolves again. The others are the parent's.
_WORKER_OPTIONS = (
    "servers", "limit", "seed", "concurrency", "request_timeout", "model_change", "window", "window_bytes",
    "retry_failed", "max_failures", "answers",
)  # fmt: skip


def worker_options(options: RunOptions, directory: Path) -> dict[str, Any]:
    """The options of a worker process as JSON: `RunOptions(**...)` reads them. `directory`: the whole run's."""
    said = {name: getattr(options, name) for name in _WORKER_OPTIONS}
    answers = said["answers"]
    # Another process may work in another folder.
    said["answers"] = str(answers.absolute()) if isinstance(answers, Path) else answers
    return {**said, "servers": list(options.servers), "output": str(directory)}


FinishedRows = dict[str, list[Row]]  #: leaf -> rows of one record
