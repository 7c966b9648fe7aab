"""When failures stop a run: if all fail alike from the first record on, or if there are too many."""

from __future__ import annotations

import re
from collections.abc import Callable

from asyncsynth.engine.report import Counts
from asyncsynth.errors import ConfigurationError
from asyncsynth.storage.entries import FailedRow

#: The run stops when this many records failed alike and none succeeded.
ALIKE = 20
#: A percentage applies once this many records have ended.
LEAST_ENDED = 50

ADVICE = "Fix the cause. Then run the same command with --update if you edited the pipeline, else with --retry-failed."
#: A bad row costs no answer, and a user who skips bad rows has decided about them.
_COSTS_NOTHING = "bad_input"
#: A server that refuses request after request: its words may quote the prompt, or number each refusal.
_REFUSED = frozenset({"bad_request", "refused", "auth", "model_not_found", "redirect", "quota"})
#: A fault of a step's own code: the exception's type, its message (often about the row), and the line.
_OWN_FAULT = re.compile(r"(\w+): .*( \([^()]*:\d+\))", re.DOTALL)
#: The line that asked for a column that its row lacks, if it is the user's. Which column, and which it has, vary.
_MISSING_COLUMN = re.compile(r".*?( \([^()]*:\d+\))?", re.DOTALL)
#: What differs from record to record: quoted texts; words with digits in them, such as request IDs; numbers.
_VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\b[0-9a-f]{8,}\b|\b\w*\d[\w-]*|\d+")


def is_share(limit: int | str | None) -> bool:
    """Whether a `max_failures` is a percentage."""
    return str(limit).strip().endswith("%")


class FailureLimit:
    """How many records may fail: ``N`` records, or ``P%`` of those that have ended (of 50 at least).

    Raises ConfigurationError for anything else.
    """

    def __init__(self, limit: int | str) -> None:
        text, share = str(limit).strip(), is_share(limit)
        number = text.removesuffix("%").strip()
        try:
            value = float(number) if share else int(number)
        except ValueError:
            value = -1
        if isinstance(limit, bool) or not 0 <= value < float("inf") or (share and value > 100):
            raise ConfigurationError(
                f"max_failures is {limit!r}; a number of records or a percentage is needed",
                hint="Write for example 100, or '5%'.",
            )
        self._text = text
        self._share = value / 100 if share else None
        self._records = value

    def exceeded(self, failed: int, ended: int) -> str:
        """Why the run stops with `failed` of `ended` records, or ''."""
        if self._share is None:
            if failed <= self._records:
                return ""
        elif ended < LEAST_ENDED or failed <= self._share * ended:
            return ""
        return f"{failed:,} of {ended:,} records failed; at most {self._text} may (--max-failures)"


class AllAlike:
    """Whether the first records of a run all fail in the same way: then the pipeline is at fault, not the data."""

    def __init__(self) -> None:
        self._way: tuple[str, str, str] | None = None
        self._count = 0
        self._over = False  #: two ways have been seen

    def failed(self, failed: FailedRow) -> str:
        """Counts a record that failed while none has ended well. Returns why the run stops, or ''."""
        if self._over or failed.reason == _COSTS_NOTHING:
            return ""
        message = failed.message
        if failed.reason == "step_error" and (fault := _OWN_FAULT.fullmatch(message)):
            message = fault[1] + fault[2]
        elif failed.reason == "missing_column" and (missing := _MISSING_COLUMN.fullmatch(message)):
            message = missing[1] or ""
        # As a word: a key such as "a" or "5" is also in other words and numbers.
        message = re.sub(rf"(?<!\w){re.escape(failed.key)}(?!\w)", "#", message)
        way = failed.step, failed.reason, "" if failed.reason in _REFUSED else _VARIES.sub("#", message)
        self._way = self._way or way
        self._over = way != self._way
        self._count += 1
        if self._over or self._count < ALIKE:
            return ""
        return (
            f"the first {ALIKE} records all failed in the same way: step {failed.step!r}, "
            f"{failed.reason}: {failed.message}"
        )


class FailureRules:
    """When the failures of a run stop it: `max_failures` if it is given, else the first records that are all alike.

    Args:
        limit: `RunOptions.max_failures`.
        ended_well_earlier: whether an earlier run brought a record to its end; it may be one not read yet.
    """

    def __init__(self, limit: int | str | None, ended_well_earlier: Callable[[], bool]) -> None:
        self._limit = None if limit is None else FailureLimit(limit)
        self._alike = AllAlike() if limit is None else None  #: None once the pipeline is known to work
        self._ended_well_earlier = ended_well_earlier

    def broken(self, before: Counts, counts: Counts, failed: FailedRow | None) -> str:
        """Why the run stops after one more failure, or ''.

        Args:
            before: counts of the stages before.
            counts: counts of this stage, the failure included.
            failed: how the record failed; None if its input row was bad.
        """
        if self._limit is not None:
            failures = before.failed + counts.failed
            return self._limit.exceeded(failures, failures + before.ok + counts.ok)
        if self._alike is None or failed is None:
            return ""
        if before.ok or counts.ok or before.earlier + counts.earlier > before.earlier_failed + counts.earlier_failed:
            self._alike = None
            return ""
        why = self._alike.failed(failed)
        if why and self._ended_well_earlier():
            self._alike, why = None, ""
        return why
