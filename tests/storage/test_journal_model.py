"""The journal against a model: any order of appending, flushing, closing, crashing and cutting."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.journal import Journal
from tests.kit.journals import FailingFS, body
from tests.matrix.plugin import FULL, Tried


class JournalMachine(RuleBasedStateMachine):
    """`written` entries were appended, `acknowledged` of them are durable; a crash keeps some number between."""

    examples = steps = 0  #: tried so far

    @initialize(segment_bytes=st.sampled_from([1, 400, 1 << 20]), group_entries=st.integers(1, 5))
    def start(self, segment_bytes: int, group_entries: int) -> None:
        JournalMachine.examples += 1
        self.place = tempfile.TemporaryDirectory()
        self.run = Path(self.place.name) / "run"
        self.options = {"segment_bytes": segment_bytes, "group_entries": group_entries, "group_delay_s": 0.0}
        self.runner = asyncio.Runner()
        self.written = self.acknowledged = 0
        self.places: list[int] = []
        self.synced: tuple[Path, int] | None = None  #: last segment and its durable size
        self.journal = Journal.create(self.run, fs=FailingFS(), **self.options)

    @rule(count=st.integers(1, 7), size=st.integers(0, 200))
    def append(self, count: int, size: int) -> None:
        async def scene() -> None:
            for _ in range(count):
                self.places.append(self.journal.append(body(self.written, size)))
                self.written += 1

        self.runner.run(scene())

    @rule()
    def flush(self) -> None:
        self.runner.run(self.journal.flushed())
        self.acknowledged = self.written
        self.remember_size()

    def remember_size(self) -> None:
        segments = sorted(self.run.glob("seg-*.jsonl"))
        self.synced = (segments[-1], segments[-1].stat().st_size) if segments else None

    # How much a crash leaves is the writer thread's timing: what is drawn must not depend on it.
    @rule(pick=st.integers(0, 1 << 20))
    def read(self, pick: int) -> None:
        if self.places:
            n = pick % len(self.places)
            assert self.journal.read(self.places[n])["k"] == str(n)

    @rule()
    def close_and_open(self) -> None:
        self.runner.run(self.journal.close())
        self.acknowledged = self.written
        self.open()
        assert self.journal.report.bytes_cut == 0
        assert self.journal.report.entries == self.written

    @rule(keep=st.integers(0, 1000), junk=st.binary(max_size=40))
    def crash(self, keep: int, junk: bytes) -> None:
        """Nothing more is written; of the bytes that were not synced, a prefix and some junk stay."""
        self.journal._release()
        segments = sorted(self.run.glob("seg-*.jsonl"))
        if segments:
            last = segments[-1]
            durable = self.synced[1] if self.synced is not None and self.synced[0] == last else None
            if durable is not None:
                data = last.read_bytes()
                last.write_bytes(data[: durable + keep] + junk)
        self.open()
        kept = self.journal.report.entries
        assert self.acknowledged <= kept <= self.written
        self.written = self.acknowledged = kept
        del self.places[kept:]

    def open(self) -> None:
        self.journal = Journal.open(
            self.run, fs=FailingFS(), visitor=RunIndex(keys="position", sidecar_min_bytes=300), **self.options
        )
        self.remember_size()

    @invariant()
    def a_reader_sees_an_exact_prefix(self) -> None:
        if not hasattr(self, "run"):
            return
        JournalMachine.steps += 1
        with JournalView(self.run) as view:
            seen = [entry["k"] for _, entry in view.entries()]
        assert seen == [str(n) for n in range(len(seen))]
        assert self.acknowledged <= len(seen) <= self.written

    def teardown(self) -> None:
        if hasattr(self, "run"):
            self.runner.run(self.journal.close())
            self.runner.close()
            self.place.cleanup()


@pytest.fixture(autouse=True)
def _counted(tried: Tried) -> Iterator[None]:
    JournalMachine.examples = JournalMachine.steps = 0
    yield
    tried(JournalMachine.examples, "examples")
    tried(JournalMachine.steps, "steps")


TestJournalModel = pytest.mark.slow(pytest.mark.row(22)(JournalMachine.TestCase))
TestJournalModel.settings = settings(
    max_examples=2_000 if FULL else 25,
    stateful_step_count=50 if FULL else 25,
    deadline=None,
    derandomize=not FULL,
    suppress_health_check=list(HealthCheck),
)
