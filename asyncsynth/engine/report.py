"""What a run reports: snapshots while it is in progress, and a report when it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from asyncsynth.errors import EXIT_FAILED_RECORDS, EXIT_OK, EXIT_STOPPED
from asyncsynth.storage.entries import FailedRow
from asyncsynth.storage.extent import Completeness

_EXAMPLES = 100  #: reasons that get an example
_MESSAGE_CHARS = 1_000  #: of an example's message

#: Share of a step's answers that may end at max_tokens without a warning.
CUT_SHARE = 0.01


@dataclass(slots=True)
class Counts:
    """Counts of one run. ``read == earlier + ok + failed + pending`` is always true."""

    read: int = 0  #: records taken from the source
    earlier: int = 0  #: of these, already done in an earlier run of this directory
    earlier_failed: int = 0  #: of those, done with failed rows, or without any row that did not fail
    ok: int = 0  #: done in this run
    failed: int = 0  #: ended in this run without a row
    in_flight: int = 0
    rows: int = 0  #: result rows made in this run
    failed_rows: int = 0  #: rows that failed in this run, also those of records that have other rows
    reused_steps: int = 0  #: step results taken from the journal instead of being paid for again
    failures: Counter[str] = field(default_factory=Counter)  #: reason -> rows
    dropped: Counter[str] = field(default_factory=Counter)  #: "step: reason" -> rows
    answers: Counter[str] = field(default_factory=Counter)  #: step -> answers that it got in this run
    cut: Counter[str] = field(default_factory=Counter)  #: "step: max_tokens=160" -> those that ended there
    #: reason -> the first row that failed for it: ``key``, ``step``, ``reason``, ``message``
    examples: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def pending(self) -> int:
        """Records that were read and have not ended: in flight, or given back because the run stopped."""
        return self.read - self.earlier - self.ok - self.failed

    def fail(self, failed: FailedRow) -> None:
        """Counts a row that failed."""
        reason = failed.reason
        self.failed_rows += 1
        self.failures[reason] += 1
        if reason not in self.examples and len(self.examples) < _EXAMPLES:
            message = failed.message
            if len(message) > _MESSAGE_CHARS:
                message = message[:_MESSAGE_CHARS] + "…"
            self.examples[reason] = {"key": failed.key, "step": failed.step, "reason": reason, "message": message}

    def add(self, other: Counts) -> None:
        """Adds another part's counts. If both have an example for a reason, this one's stays."""
        for one in fields(self):
            if one.name == "examples":
                self.examples = {**other.examples, **self.examples}
            else:
                setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def as_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them."""
        # Not `asdict`: Python 3.11 makes a counter whose keys are pairs of one.
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        plain = {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}
        return {**plain, "pending": self.pending}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Counts:
        """What `as_json` wrote."""
        counts = cls()
        for one in fields(cls):
            value = values[one.name]
            is_counter = isinstance(getattr(counts, one.name), Counter)
            setattr(counts, one.name, Counter(value) if is_counter else value)
        return counts


@dataclass(slots=True)
class Progress:
    """A snapshot of a run in progress. Times in seconds, rates per second."""

    pipeline: str
    elapsed_s: float
    counts: Counts
    total: int | None  #: records in all, if that is known
    requests_in_flight: int
    requests_waiting: int
    completion_tokens: int
    tokens_per_s: float
    records_per_s: float
    retries: dict[str, int]
    servers: list[dict[str, Any]]  #: see `engine.server_lines`
    notes: list[str] = field(default_factory=list)  #: what happened to servers since the start
    reread_answers: int = 0  #: answers that were paid for earlier and read again
    stage: str = ""  #: "1/2" is the first of two; "1/2, deduplicate_0" at the step after it; '' if one
    waits: str = ""  #: why requests wait for anything other than a slot; '' if none does

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at the present rate, if the number of records is known."""
        if self.total is None or self.records_per_s <= 0:
            return None
        done = self.counts.earlier + self.counts.ok + self.counts.failed
        return max(0, self.total - done) / self.records_per_s

    def as_json(self) -> dict[str, Any]:
        """For ``--json``: the same facts as plain values."""
        return {**_plain(self), "eta_s": self.eta_s}


@dataclass(slots=True)
class RunReport:
    """The result of a run, in numbers.

    `complete` is true only when the input was read to its end (or to ``limit``) and every record that was read has
    ended. Otherwise the run was stopped: run it again to resume.
    """

    pipeline: str
    directory: Path
    completeness: Completeness  #: what is missing; `asyncsynth status DIR` says the same
    elapsed_s: float
    counts: Counts
    answered_by: dict[str, int]  #: model that really answered -> completions
    requests: int  #: answers that servers generated, useless ones (empty, refused, cut in thought) included
    prompt_tokens: int  #: of all `requests`, by the servers' counts
    completion_tokens: int
    retries: dict[str, int]
    latency_p50_s: float | None
    latency_p99_s: float | None
    stopped_why: str = ""
    advice: str = ""  #: what to do about it, if a restart alone does not help
    notes: list[str] = field(default_factory=list)
    reread_answers: int = 0  #: answers that were paid for earlier and read again; `requests` does not count them
    limits: list[dict[str, Any]] = field(default_factory=list)  #: the servers' last state, as `Progress.servers`
    servers: list[dict[str, Any]] = field(
        default_factory=list
    )  #: what the tests at the start found, see `Capabilities`

    def cut_answers(self) -> list[dict[str, Any]]:
        """Steps with 1 % or more of their answers cut at a limit: "step", "limit", "cut", "answers", "share"."""
        found = []
        for place, cut in sorted(self.counts.cut.items()):
            step, _, limit = place.rpartition(": ")
            answers = self.counts.answers[step]
            if cut >= CUT_SHARE * answers:
                found.append(
                    {"step": step, "limit": limit, "cut": cut, "answers": answers, "share": round(cut / answers, 4)}
                )
        return found

    @property
    def complete(self) -> bool:
        """Whether every record of the input has ended."""
        return bool(self.completeness.complete)

    @property
    def total(self) -> int | None:
        """Records of the input (of the stage that was stopped), if that is known."""
        return self.completeness.records

    @property
    def unfinished(self) -> int | None:
        """Records of `total` that have not ended; None if that is not known."""
        return self.completeness.unfinished

    @property
    def missing(self) -> str:
        """What a run that was stopped has not done, in words; '' for a complete one."""
        return self.completeness.missing

    @property
    def exit_code(self) -> int:
        """0 done, 3 done with failed records (now or in an earlier run), 4 stopped and resumable."""
        if not self.complete:
            return EXIT_STOPPED
        return EXIT_FAILED_RECORDS if self.counts.failed_rows or self.counts.earlier_failed else EXIT_OK

    def as_json(self) -> dict[str, Any]:
        """For ``--json``: the same facts as plain values."""
        return {
            **_plain(self),
            **self.completeness.as_json(),
            "total": self.total,
            "cut": self.cut_answers(),
            "directory": str(self.directory),
            "exit_code": self.exit_code,
        }


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of named counts."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def _plain(report: Progress | RunReport) -> dict[str, Any]:
    return {**asdict(report), "counts": report.counts.as_json()}
