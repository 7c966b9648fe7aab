"""A run directory as the engine sees it: opened and checked, records claimed, results journaled.

What changed since the directory was made is found here, before anything is sent: the run continues only if
nothing did, or if the user accepts the plan (`--update`).
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asyncsynth.engine.changes import Journals, Survey, changes_since, refusal, survey
from asyncsynth.engine.options import FinishedRows
from asyncsynth.engine.paid_answers import paid_answers
from asyncsynth.engine.run import Run
from asyncsynth.engine.walk import Recall, Walked
from asyncsynth.errors import ConfigurationError, InputError, StorageError
from asyncsynth.inputs.reader import BadRow, Reader
from asyncsynth.pipeline import Plan
from asyncsynth.records import Record, content_hash
from asyncsynth.storage import layout
from asyncsynth.storage.entries import DroppedEntry, FailedRow, MovedEntry, NotJson, RecordEntry, StepResult
from asyncsynth.storage.extent import Completeness, Extent, judged
from asyncsynth.storage.index import Claim, RunIndex
from asyncsynth.storage.lock import RunLock
from asyncsynth.storage.manifest import Epoch, Manifest
from asyncsynth.storage.run_journal import RunJournal


class RunDirectory:
    """One open run directory, with its only writer. Made by `opened`."""

    def __init__(self, path: Path, journal: RunJournal, index: RunIndex, manifest: Manifest, epoch: int) -> None:
        self.path = path
        self.notes: list[str] = []
        self._journal = journal
        #: Gives its argument to `on_durable` when all that was journaled so far is durable. Raises StorageError.
        self.settle: Callable[[object], None] = journal.settle
        self._index = index
        self._manifest = manifest
        self._epoch = epoch
        self._claims: dict[str, Claim] = {}  #: records in flight that have earlier results, or ended earlier
        self._extent = extent = Extent.load(path)
        is_whole = extent is not None and extent.limit is None and not manifest.rows_of
        self._extent_before = extent.records if extent is not None and is_whole else None
        #: Records in flight that failed and are tried again -> (step fingerprint, row key) of the rows whose answers
        #: were useless: reading these again would fail again.
        self.refused: dict[str, set[tuple[str, str]]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, run: Run, reader: Reader) -> AsyncIterator[RunDirectory]:
        """Creates or recovers the directory, takes its lock, and checks that it belongs to this plan.

        Raises RunChangedError with the plan of what would be reused and redone, RunLockedError, StorageError.
        """
        path, plan = run.directory, run.plan
        check_place(path)
        if not run.use_cache:
            set_aside(path)
        keys = "id" if reader.id_column else "position"
        manifest = Manifest.load(path)
        if manifest is not None and manifest.shards:
            raise ConfigurationError(
                f"{path} is a run that {manifest.shards} processes share",
                hint="Resume it with `asyncsynth run PIPELINE.py --output DIR`, or choose another directory.",
            )
        index = RunIndex(keys=keys, stride=1 if manifest is None else manifest.stride)
        run_id = manifest.run_id if manifest is not None else uuid.uuid4().hex
        if manifest is None:
            journal = RunJournal.create(path, keys=keys, run_id=run_id)
        else:
            journal = RunJournal.open(path, keys=keys, run_id=run_id, visitor=index)
        try:
            if manifest is None:
                manifest = new_manifest(run, run_id, keys, reader)
                # First: a directory with a manifest and no extent is taken for one of an earlier version.
                Extent(0, None).save(path)
                manifest.save(path)
            elif changes := changes_since(manifest, plan, reader, keys):
                there = Journals([(index, journal.read)])
                # A run that has no entry yet has nothing to redo; a later stage is looked at with those before it.
                if not run.update and (there.records() or manifest.rows_of):
                    found = survey(manifest, plan, changes, there, total=reader.size_hint())
                    raise refusal(path, [found], plan.notes, kept=paid_answers(run))
                add_epoch(manifest, keys, plan, reader)
                manifest.save(path)
            directory = cls(path, journal, index, manifest, len(manifest.epochs) - 1)
            directory.notes += [*plan.notes, *other_packages(manifest, plan)]
            if journal.report.bytes_cut:
                directory.notes.append(str(journal.report))
            yield directory
        finally:
            await journal.close()

    def survey(self, plan: Plan) -> Survey:
        """What there is of the plan's steps, where the plan is the one that the directory was made by."""
        return survey(self._manifest, plan, [], Journals([(self._index, self._journal.read)]))

    # --- one record ----------------------------------------------------------------------------

    def claim(self, record: Record, *, retry_failed: bool) -> Claim | None:
        """How the record ended, when it is done already. Raises InputError for a key that came before in this run."""
        try:
            record.digest = digest = content_hash(record.data)
        except TypeError as error:
            raise InputError(
                f"record {record.key}: not JSON: {error}", hint="Integers must fit 64 bits; text must be Unicode."
            ) from error
        claim = self._index.claim(record.key, record.position, digest, self._epoch)
        if claim.done and not (claim.failed and retry_failed):
            if claim.moved:
                self._journal.append(MovedEntry(record.key, record.position))
            return claim
        if claim.steps or claim.ended:
            self._claims[record.key] = claim
        if retry_failed and (claim.failed or claim.lost_rows) and (refused := self._refused_answers(record)):
            self.refused[record.key] = refused
        return None

    def _refused_answers(self, record: Record) -> set[tuple[str, str]]:
        """Of a record that failed: the rows that were answered, and failed on the answer."""
        where = self._index.final_of(record.key)
        if where is None:
            return set()
        entry = self._journal.read(where)
        steps = self._manifest.epochs[entry.epoch or 0].steps
        return {
            (steps[failed.step], failed.key)
            for failed in entry.failed
            # One that has attempts and no text got no answer: what was answered before that is still good.
            if failed.step in steps and (failed.raw is not None or not failed.attempts)
        }

    def recall(self, record: Record) -> Recall:
        """Looks up the record's earlier results of a step, by row key."""
        claim = self._claims.get(record.key)
        if claim is None:
            return _nothing
        steps = claim.steps

        def look_up(fingerprint: str) -> Mapping[str, StepResult]:
            where = steps.get(fingerprint)
            return _NO_RESULTS if where is None else self._journal.read(where).results(fingerprint)

        return look_up

    def save_step(self, record: Record, fingerprint: str, results: list[StepResult]) -> None:
        """Journals a finished step of a record that has further steps. Raises StorageError once writing has failed."""
        self._journal.append(RecordEntry(record.key, record.position, record.digest, [(fingerprint, results)]))

    def finish(self, record: Record, walked: Walked) -> None:
        """Journals a record's end: durable after the next `flush`."""
        if self._claims:
            self._claims.pop(record.key, None)
        if self.refused:
            self.refused.pop(record.key, None)
        is_whole = not walked.failed
        entry = RecordEntry(
            record.key, record.position, record.digest, walked.unsaved, self._epoch,
            "ok" if is_whole or walked.ok else "failed", walked.rows, walked.failed, walked.dropped,
            None if is_whole else record.data or None,
        )  # fmt: skip
        try:
            self._journal.append(entry)
        except NotJson as error:  # a user's step made something that is not JSON
            failed = FailedRow(record.key, "", "not_json", str(error), 0)
            walked.rows.clear()
            walked.failed.append(failed)
            entry = RecordEntry(record.key, record.position, record.digest, (), self._epoch, "failed", failed=[failed])
            entry.input = record.data or None
            self._journal.append(entry)

    def bad_row(self, record: Record, row: BadRow) -> FailedRow:
        """Journals an input row that could not be read, under ``on_bad_row="skip"``; how it failed."""
        failed = FailedRow(record.key, "input", "bad_input", row.message, 0)
        self.finish(record, Walked({}, [failed]))
        return failed

    def any_ended_well(self) -> bool:
        """Whether an earlier run of the same pipeline brought a record to its end with no failed row."""
        return self._index.any_ended_well(self._epoch)

    def ended_unread(self) -> int:
        """Records that ended in an earlier run of the same pipeline, and that the input has not brought this time."""
        return self._index.unclaimed_ended(self._epoch)

    def completeness(self, ended: int, *, rows_of: str = "") -> Completeness:
        """Whether all records have ended, as `storage.extent.completeness` finds it once everything is on the disk.

        Args:
            ended: records of the input that ended, in this run or in an earlier one.
            rows_of: see `Completeness`.
        """
        again = sum(claim.ended for claim in self._claims.values())  # tried again and pending: the journal has an end
        return judged(self._extent, self._epoch, lambda: ended + again, rows_of=rows_of)

    def finished_rows(self, record: Record) -> FinishedRows:
        """The rows of a record that is done."""
        where = self._index.final_of(record.key)
        return {} if where is None else self._journal.read(where).rows

    def forget_unseen(self) -> None:
        """The input was read to its end: records it no longer has leave the result, not the journal."""
        for key in self._index.unclaimed_keys(lambda where: self._journal.read(where).key):
            self._journal.append(DroppedEntry(key))

    def note_extent(self, records: int | None, limit: int | None, *, complete: bool = False) -> None:
        """Keeps how many records the input has, and whether all of them have ended. Raises StorageError.

        Adds a note where that is fewer than an earlier run had: a file's beginning tells nothing of its end.
        """
        before, exact = self._extent_before, 1.0 if complete else _ESTIMATE
        if records is not None and limit is None and before is not None and records < before * exact:
            self._extent_before = None  # told once
            self.notes.append(
                f"the input has {records:,} records now and had {before:,} in an earlier run: those that are gone"
                " leave the result. If it was cut by mistake, restore it and run the same command again."
            )
        self._extent = Extent(self._epoch, records, limit, complete)
        self._extent.save(self.path)

    @property
    def state(self) -> tuple[int, int]:
        """(epoch, entries of the journal): the same state, the same rows; entries are only ever added."""
        return self._epoch, self._journal.report.entries + self._journal.appended

    def watch(self, on_durable: Callable[[list[Any]], None], on_fatal: Callable[[StorageError], None]) -> None:
        """See `Journal.watch`."""
        self._journal.watch(on_durable, on_fatal)

    async def flush(self) -> None:
        """Returns when all that was journaled so far is durable. Raises StorageError."""
        await self._journal.flushed()


#: The number of a large input's records is an estimate until it has been read: a difference below 1 % says nothing.
_ESTIMATE = 0.99
_NO_RESULTS: dict[str, StepResult] = {}


def _nothing(_: str) -> Mapping[str, StepResult]:
    return _NO_RESULTS


def check_place(path: Path) -> None:
    """Raises ConfigurationError for a file, and for a directory of something else."""
    if path.exists() and not path.is_dir():
        raise ConfigurationError(f"{path} is a file", hint="Choose a directory for --output.")
    if path.is_dir() and not Manifest.exists(path) and not layout.may_become_run(item.name for item in path.iterdir()):
        raise ConfigurationError(
            f"{path} holds other files and is not a run directory",
            hint="Choose an empty or a new directory for --output.",
        )


def set_aside(path: Path) -> None:
    """`use_cache=False`: the old run stays, under another name. Raises RunLockedError while a process is writing it."""
    if not Manifest.exists(path):
        return
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    aside = path.with_name(f"{path.name}.{stamp}")
    lock = RunLock(path)
    try:
        path.rename(aside)
    except OSError as error:
        raise StorageError(f"{path}: cannot be set aside as {aside}: {error}") from error
    finally:
        lock.release()


def _epoch(plan: Plan) -> Epoch:
    return Epoch(
        fingerprint=plan.fingerprint,
        steps={node.step.name: node.fingerprint for node in plan.model_steps},
        fields=plan.fields,
        leaves=list(plan.leaves),
        packages=plan.packages,
    )


def new_manifest(run: Run, run_id: str, keys: str, reader: Reader) -> Manifest:
    """The manifest of a run that begins."""
    return Manifest(
        run_id=run_id,
        pipeline=run.name,
        run_seed=run.seed,
        keys=keys,
        source=reader.identity(),
        epochs=[_epoch(run.plan)],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def add_epoch(manifest: Manifest, keys: str, plan: Plan, reader: Reader) -> None:
    """The plan becomes the directory's current one; results under earlier fingerprints stay usable."""
    if manifest.keys != keys:
        raise ConfigurationError(
            f"this run knows its records by {manifest.keys}, the pipeline now by {keys}: none would match",
            hint="Choose another run directory.",
        )
    manifest.source = reader.identity()
    manifest.epochs.append(_epoch(plan))


def other_packages(manifest: Manifest, plan: Plan) -> list[str]:
    """Which installed packages have another version than when the results were made, a line each."""
    before = manifest.epochs[-1].packages
    return [
        f"package {name} is now {version} and was {before[name]}: results made with {before[name]} are kept"
        for name, version in sorted(plan.packages.items())
        if before.get(name, version) != version
    ]
