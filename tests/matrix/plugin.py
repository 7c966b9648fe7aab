"""Pytest's side of the matrix: choosing tests by row, counting what they tried, one line a row at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.matrix.rows import ROWS

#: The long forms of the rows' tests.
FULL = bool(os.environ.get("ASYNCSYNTH_FULL_MATRIX"))


@dataclass
class Result:
    """What came of a row."""

    row: int
    seconds: float = 0.0
    tests: int = 0
    tried: dict[str, int] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)  #: the highest values measured
    held: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  #: reasons

    @property
    def verdict(self) -> str:
        """One word."""
        if self.failed:
            return "FAILED"
        return "ok" if self.tests > len(self.skipped) else "SKIPPED"

    def line(self) -> str:
        """For people."""
        tried = [f"{number:,} {what}" for what, number in self.tried.items()]
        often = ", ".join([*tried, f"{self.tests} test{'s' * (self.tests != 1)}"])
        if self.failed:
            held = f"failed: {', '.join(self.failed)}"
        else:
            most = [f"at most {value:,.4g} {what}" for what, value in self.most.items()]
            held = "; ".join([ROWS[self.row].holds, *most, *self.held])
        if self.skipped:
            held += f"; not here: {'; '.join(sorted(set(self.skipped)))}"
        return f"{self.row:>2} {self.verdict:<7} {ROWS[self.row].title} | {often} | {held} | {self.seconds:.1f} s"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "row": self.row, "verdict": self.verdict, "title": ROWS[self.row].title, "tests": self.tests,
            "tried": self.tried, "holds": ROWS[self.row].holds, "most": self.most, "held": self.held,
            "failed": self.failed, "skipped": self.skipped, "seconds": round(self.seconds, 2),
        }  # fmt: skip

    @classmethod
    def of_json(cls, made: dict[str, Any]) -> Result:
        """Back from `as_json`."""
        names = ("row", "seconds", "tests", "tried", "most", "held", "failed", "skipped")
        return cls(**{name: made[name] for name in names})


class Tried:
    """What a test has tried: `tried(2000, "bits flipped")`.

    `held` is worth a word beside what the row promises; `most` is (a measured value, what it counts), of which the
    highest is reported. `row` for tests that hold several.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._item = item

    def __call__(
        self, count: int, what: str, held: str = "", *, most: tuple[float, str] | None = None, row: int | None = None
    ) -> None:
        self._item.user_properties.append(("tried", (row, count, what, held, most)))


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Tried:
    """Counts what a test of the matrix really tried."""
    return Tried(request.node)


def rows_of(item: pytest.Item) -> set[int]:
    """The rows that a test holds."""
    return {number for mark in item.iter_markers("row") for number in mark.args}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("reliability matrix")
    group.addoption("--rows", help="only the tests of these rows of the matrix: 4,12 or all")
    group.addoption("--row-table", action="store_true", help="print one line a row at the end")
    group.addoption("--row-report", help="write what came of each row to this file, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Collector(config), "asyncsynth-matrix")


class Collector:
    """Gathers the results of one pytest run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        wanted = config.getoption("--rows")
        self._wanted = None if wanted is None else parse_rows(wanted)
        self._rows: dict[str, set[int]] = {}
        self._results: dict[int, Result] = {}
        self._skips: dict[str, str] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        for item in items:
            self._rows[item.nodeid] = rows_of(item)
            unknown = self._rows[item.nodeid] - set(ROWS)
            if unknown:
                raise pytest.UsageError(f"{item.nodeid}: no such row of the matrix: {sorted(unknown)}")
        if self._wanted is not None:
            kept = [item for item in items if self._rows[item.nodeid] & self._wanted]
            config.hook.pytest_deselected(items=[item for item in items if item not in kept])
            items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for row in self._rows.get(report.nodeid, set()):
            if self._wanted is not None and row not in self._wanted:
                continue
            result = self._results.setdefault(row, Result(row))
            result.seconds += report.duration
            if report.failed:
                result.failed.append(report.nodeid)
            if report.skipped:
                result.skipped.append(_reason(report))
            if report.when == "teardown":
                result.tests += 1
                self._count(result, report)

    def _count(self, result: Result, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name != "tried" or not isinstance(value, tuple):
                continue
            row, count, what, held, most = value
            if row is not None and row != result.row:
                continue
            if what:
                result.tried[what] = result.tried.get(what, 0) + count
            if most is not None:
                result.most[most[1]] = max(most[0], result.most.get(most[1], most[0]))
            if held and held not in result.held:
                result.held.append(held)

    def results(self) -> list[Result]:
        """In the order of the rows."""
        return [self._results[row] for row in sorted(self._results)]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        target = self._config.getoption("--row-report")
        if target:
            Path(target).write_text(json.dumps([result.as_json() for result in self.results()]))
        if self._config.getoption("--row-table") and self._results:
            terminalreporter.section("reliability matrix: row, what was tried | how often | what held | time", sep="-")
            for result in self.results():
                terminalreporter.write_line(result.line())


def _reason(report: pytest.TestReport) -> str:
    longrepr = report.longrepr
    text = str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ")


def parse_rows(text: str) -> set[int]:
    """{4, 12} of "4,12"; all of them for "all"."""
    return set(ROWS) if text == "all" else {int(part) for part in text.split(",")}


def read_results(path: Path) -> Iterator[Result]:
    """What `--row-report` wrote."""
    for made in json.loads(path.read_text()):
        yield Result.of_json(made)
