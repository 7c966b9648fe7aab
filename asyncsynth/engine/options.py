"""Options for one run. The pipeline defines the work; these define how to execute it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from asyncsynth.calling import checked_class
from asyncsynth.core.retry import RetryPolicy
from asyncsynth.engine.failing import FailureLimit
from asyncsynth.errors import ConfigurationError
from asyncsynth.records import Part, Row
from asyncsynth.servers.capabilities import Capabilities
from asyncsynth.serving.embedded import EmbeddedSpec
from asyncsynth.serving.vllm.starting import StartOptions

#: Rows per record credit of the byte window: 64 KiB each is far above usual rows and bounds the rest.
WINDOW_BYTES = 256 << 20


class RunSettings(TypedDict, total=False):
    """The keywords of `Pipeline.run()`, `arun()` and `stream()`: the fields of `RunOptions`, which says what each
    means. A test holds the two together."""

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


@checked_class
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of one run.

    Args:
        output: the run directory; None takes ``asyncsynth-runs/<pipeline name>``. A pipeline without a name has that
            of its file; one made in a notebook has ``pipeline-<fingerprint>``, which changes when it is edited.
        servers: URLs, files or directories, as on the command line; empty takes ``ASYNCSYNTH_SERVERS``.
        start: start the vLLM servers that `servers` describes, that the models need and that do not answer; they
            are stopped at the end. None starts nothing.
        embedded: answer every model with an embedded one (True for the default, or its name or GGUF path), whatever
            ``ASYNCSYNTH_SERVERS`` says; not together with `servers`.
        limit: stop after this many input records.
        seed: the run seed; all sampling seeds and random choices come from it.
        retry_failed: try the records that failed in an earlier run again.
        update: accept that the pipeline or its input has changed since the directory was made.
        answers: which answers of models are kept, so that a changed parser reads them again instead of paying again:
            "own" (None) those of steps with code of your own, in the run directory; "run" (True) all, there; "none"
            (False) none, and none is read; any other path all, in a directory that several runs may share.
        use_cache: False starts over in the directory's place, keeping the old one aside.
        concurrency: requests in flight on each server, fixed; None finds out what each server takes.
        request_timeout: seconds for each whole answer, the server's queue included; a request that takes longer is
            given up and tried again, which costs its record an attempt. None sets no limit: a request is given up only
            when its server shows no progress.
        model_change: what happens when a server's answers begin to name another model than before. "stop" (default)
            takes none of these answers and sends nothing more there; the run continues with other servers of the
            model, or stops, resumable. "note" takes them, and says so in the notes.
        window: records in flight at most; None follows the servers' limits: twice their sum and some.
        window_bytes: what the input rows of the records in flight may take together, in bytes.
        on_download: told (bytes got, bytes in all) while an embedded model's weights are fetched.
        on_servers: told what was found out about each server and model, before anything is sent.
        max_failures: stop the run, resumable, when more than this many records have failed in it (``100``), or more
            than this share of those that have ended (``"5%"``, once 50 have). None stops it only when the first 20
            records all fail in the same way and none ends well; a number or share replaces that rule.
        retry: waits, stops and budgets (`core.retry.RetryPolicy`).
        shard: which part of the records is this run's; of several processes that share one (`engine.sharded_run`).
        share: which part of each server's limits, of memory and of records in flight is this process's.
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
                "both servers and an embedded model are given: which of them answers?",
                hint="Leave out --embedded (and --embedded-model) to use the servers, or --servers to use the small "
                "model on this CPU.",
            )

    def directory(self, pipeline_name: str) -> Path:
        """Where the run lives."""
        if self.output is not None:
            return Path(self.output)
        return Path(os.environ.get("ASYNCSYNTH_RUNS", "asyncsynth-runs")) / pipeline_name

    def kept_answers(self) -> bool | Path | None:
        """`answers` without its words: None for those of steps with user code, True for all."""
        if isinstance(self.answers, str):
            words = {"own": None, "run": True, "none": False}
            return words[self.answers] if self.answers in words else Path(self.answers)
        return self.answers

    def embedded_spec(self) -> EmbeddedSpec | None:
        """Which embedded model is to answer, if one is."""
        if self.embedded is False:
            return None
        return EmbeddedSpec() if self.embedded is True else EmbeddedSpec(model=self.embedded)


FinishedRows = dict[str, list[Row]]  #: leaf -> rows of one record
