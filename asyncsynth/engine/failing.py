"""When failures stop a run: if all records fail alike from the first one on, or if too many fail."""

from __future__ import annotations

import re

from asyncsynth.errors import ConfigurationError
from asyncsynth.storage.entries import FailedRow

#: The run stops when this many records failed alike and none succeeded.
ALIKE = 20
#: A percentage applies once this many records have ended.
LEAST_ENDED = 50

ADVICE = "Fix the cause. Then run the same command with --update if you edited the pipeline, else with --retry-failed."
#: A bad row costs no answer, and a user who skips bad rows has decided about them.
_COSTS_NOTHING = "bad_input"
_STEP_ERROR = "step_error"
#: A server that refuses request after request: its words may quote the prompt, or number each refusal.
_REFUSED = frozenset({"bad_request", "refused", "auth", "model_not_found", "redirect", "quota"})
#: A fault of a step's own code: the exception's type, what it says (often of the row), and the line.
_OWN_FAULT = re.compile(r"(\w+): .*( \([^()]*:\d+\))", re.DOTALL)
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
    """Whether the first records of a run all fail in the same way: then the cause is the pipeline, not the data."""

    def __init__(self) -> None:
        self._way: tuple[str, str, str] | None = None
        self._count = 0
        self._over = False  #: records failed in two ways

    def failed(self, failed: FailedRow) -> str:
        """Counts a record that failed while none has succeeded. Returns why the run stops, or ''."""
        if self._over or failed["reason"] == _COSTS_NOTHING:
            return ""
        message = failed["message"]
        if failed["reason"] == _STEP_ERROR and (fault := _OWN_FAULT.fullmatch(message)):
            message = fault[1] + fault[2]
        # As a word: a key such as "a" or "5" is also in other words and numbers.
        message = re.sub(rf"(?<!\w){re.escape(failed['k'])}(?!\w)", "#", message)
        alike = "" if failed["reason"] in _REFUSED else _VARIES.sub("#", message)
        way = failed["step"], failed["reason"], alike
        self._way = self._way or way
        self._over = way != self._way
        self._count += 1
        if self._over or self._count < ALIKE:
            return ""
        return (
            f"the first {ALIKE} records all failed in the same way: step {failed['step']!r}, "
            f"{failed['reason']}: {failed['message']}"
        )
