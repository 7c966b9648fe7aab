"""What the stages of a run add up to: each runner counts its own stage, and the totals say it for the whole run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asyncsynth.engine.report import Counts, RunReport
from asyncsynth.errors import AsyncsynthError, RunStopped
from asyncsynth.storage.extent import Completeness


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run ends early, and what to do about it if a restart alone does not help."""

    why: str
    advice: str = ""


def say_missing(problem: AsyncsynthError, report: Callable[[], RunReport]) -> None:
    """Adds to the error of a server that refuses everything how much of the run is left."""
    if isinstance(problem, RunStopped) and (missing := report().missing):
        problem.message += f"; {missing}"


@dataclass(slots=True)
class RunTotals:
    """The whole run, while its stages come and go.

    Args:
        places: the directories of its stages, in order; the last one is the run's own.
        started: when the run began, by the event loop's clock in seconds.
        servers: what the tests at the start found.
    """

    places: Sequence[Path]
    started: float
    servers: list[dict[str, Any]] = field(default_factory=list)
    stage: int = 1  #: the one that is done now, from 1
    before: Counts = field(default_factory=Counts)  #: of the stages before it
    stop: Stop | None = None  #: the first reason why the run ends early
    at_barrier: str = ""  #: name of the step over all rows that the stage's rows are going through
    notes: list[str] = field(default_factory=list)
    _reread: int = 0

    def stop_for(self, stop: Stop) -> None:
        """Notes why the run ends early; the first reason counts."""
        self.stop = self.stop or stop

    def passed(self, report: RunReport, note: str, dropped: Mapping[str, int]) -> None:
        """The stage is done, and its rows are through the step over all rows after it.

        Args:
            report: the stage's own.
            dropped: rows that the step left out now, by reason.
        """
        self.before.add(replace(report.counts, rows=0))  # a next stage takes its rows: they are no result rows
        for reason, number in dropped.items():
            self.before.dropped[f"{self.at_barrier}: {reason}"] += number
        self.notes.append(note)
        self._reread += report.reread_answers
        self.at_barrier = ""
        self.stage += 1

    def name_of(self, stage: int) -> str:
        """A stage's place in the run, as `Progress.stage`."""
        if len(self.places) == 1:
            return ""
        barrier = f", {self.at_barrier}" if self.at_barrier and stage == self.stage else ""
        return f"{stage}/{len(self.places)}{barrier}"

    @property
    def rows_of(self) -> str:
        """The folder of the stage whose rows this one takes; '' for the first."""
        return self.places[self.stage - 2].name if self.stage > 1 else ""

    def whole(self, report: RunReport, now: float) -> RunReport:
        """The report of the run up to now, from that of its present stage. `now`: as `started`."""
        last = self.stage == len(self.places)
        counts = Counts()
        counts.add(self.before)
        counts.add(report.counts if last else replace(report.counts, rows=0))
        completeness = self._completeness(report.completeness)
        complete = bool(completeness.complete)
        stop = self.stop or Stop("")
        return replace(
            report,
            directory=self.places[-1],
            completeness=completeness,
            counts=counts,
            elapsed_s=now - self.started,
            stopped_why="" if complete else stop.why,
            advice="" if complete else stop.advice,
            notes=[*self.notes, *report.notes],
            reread_answers=self._reread + report.reread_answers,
            servers=self.servers,
        )

    def _completeness(self, stage: Completeness) -> Completeness:
        """What is missing of the whole run, in the words of `storage.extent.completeness`."""
        if not stage.complete:
            return replace(stage, part=self._part(self.stage))
        if self.stage == len(self.places):
            return stage
        return Completeness(
            False, None, None, part=self._part(self.stage + 1), rows_of=self.places[self.stage - 1].name
        )

    def _part(self, stage: int) -> str:
        return "" if stage == len(self.places) else self.places[stage - 1].name
