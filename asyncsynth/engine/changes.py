"""What has changed since a run directory was made, and what ``--update`` would cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncsynth.errors import RunChangedError
from asyncsynth.inputs.reader import Reader
from asyncsynth.pipeline import ModelStep, Node, Plan, SourceStep
from asyncsynth.records import canonical_json
from asyncsynth.storage.entries import RecordEntry
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.manifest import Epoch, Manifest, diff

_SAMPLED = 200  #: records whose earlier results say how many requests one costs


@dataclass(slots=True)
class Journals:
    """The journals of a run: that of its directory, or those of its shards. Each has a function that reads an entry."""

    parts: Sequence[tuple[RunIndex, Callable[[int], RecordEntry]]] = ()

    def records(self) -> int:
        """Records of the input that there are entries of."""
        return sum(index.counts().ok + index.counts().failed + index.partial() for index, _ in self.parts)

    def results(self, fingerprint: str) -> int:
        """Records that have results of the step."""
        return sum(index.step_count(fingerprint) for index, _ in self.parts)

    def requests_of_one(self, fingerprint: str) -> float | None:
        """Requests that the step took for one record, on average; None if there is no result."""
        calls, records = 0, 0
        for index, read in self.parts:
            for where in index.step_sample(fingerprint, _SAMPLED):
                results = read(where).results(fingerprint).values()
                calls += sum((result.meta or {}).get("calls", 0) for result in results)
                records += 1
        return calls / records if records else None


@dataclass(slots=True)
class StepState:
    """One step, and its results in the run directory."""

    name: str
    asks: bool  #: it asks a model
    changed: bool  #: since the run's last epoch
    depends: frozenset[str]  #: steps whose change may change its input
    lost: list[str] = field(default_factory=list)  #: steps that came before it, and do not now or in another order
    there: int = 0  #: records that have results of the step as it is now
    before: int = 0  #: records that have results of the step as it was
    records: int = 0  #: records that go through it, as far as is known
    each: float = 1.0  #: requests for one record, estimated
    measured: bool = False  #: `each` comes from earlier results

    def requests(self, records: int) -> int:
        return math.ceil(records * self.each)


@dataclass(slots=True)
class Survey:
    """A run directory compared with a plan."""

    changes: list[str]
    steps: list[StepState] = field(default_factory=list)
    records: int = 0  #: of the input, as far as the run has come
    more: int = 0  #: records that the input is known to have beyond these
    input_changed: bool = False
    by_position: bool = False


def changes_since(manifest: Manifest, plan: Plan, reader: Reader, keys: str) -> list[str]:
    """The differences from the plan and input that the directory was made with, a line each."""
    current = manifest.epochs[-1]
    changes = [] if current.fingerprint == plan.fingerprint else diff(current.fields, plan.fields)
    if manifest.keys != keys:
        changes.append(f"keys: {manifest.keys} -> {keys}")
    if not reader.extends(manifest.source):
        changes.append(f"input: {manifest.source.get('name')} begins differently, or is another input")
    return changes


def survey(
    manifest: Manifest | None, plan: Plan, changes: list[str], journals: Journals, *, total: int | None = None
) -> Survey:
    """Which steps changed, and which results each has. Without a manifest nothing has run yet.

    `total`: records of the input, if that is known.
    """
    epoch = Epoch("", {}, {}) if manifest is None else manifest.epochs[-1]
    old: dict[str, dict[str, Any]] = epoch.fields.get("steps", {})
    known = {_settings_key(settings) for settings in old.values()}
    records = journals.records()
    found = Survey(changes, records=records, more=max(0, (total or 0) - records))
    found.by_position = manifest is not None and manifest.keys == "position"
    found.input_changed = any(change.startswith("input: ") for change in changes)
    for node in plan.nodes:
        if isinstance(node.step, ModelStep) and node.step.models():
            found.steps.append(_model_step(node, epoch, old, plan.fields["steps"], journals, records))
        elif not isinstance(node.step, SourceStep):
            changed = _settings_key(plan.fields["steps"][node.step.name]) not in known
            found.steps.append(StepState(node.step.name, False, changed, node.depends))
    new: dict[str, dict[str, Any]] = plan.fields["steps"]
    for step in found.steps:
        step.lost = _lost_before(step.name, old, new)
    return found


def _lost_before(name: str, old: Mapping[str, dict[str, Any]], new: Mapping[str, dict[str, Any]]) -> list[str]:
    """Steps that rows went through before this one, and now do not, or do in another order."""
    if name not in old:
        return []
    earlier, now = _before(name, old), _before(name, new)
    there = {_settings_key(new[each]) for each in now}
    gone = [each for each in earlier if each not in now and _settings_key(old[each]) not in there]
    both = [each for each in earlier if each in now]
    moved = [a for a, b in zip(both, (each for each in now if each in earlier), strict=True) if a != b]
    return gone or moved


def _before(name: str, steps: Mapping[str, dict[str, Any]]) -> list[str]:
    """The steps before one, those further up first."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for left in steps.get(waiting.pop(), {}).get("after", ()):
            if left not in found:
                found.add(left)
                waiting.append(left)
    return [each for each in steps if each in found]


def _rows_into(name: str, steps: Mapping[str, dict[str, Any]]) -> int:
    """Rows that reach a step for one record, by `num_generations` of the steps before it."""
    counts: dict[str, int] = {}
    for each in [*_before(name, steps), name]:
        lefts = steps.get(each, {}).get("after", ())
        made = [counts.get(left, 1) * _generations(steps.get(left, {})) for left in lefts]
        counts[each] = max(made, default=1)
    return counts[name]


def _generations(settings: Mapping[str, Any]) -> int:
    return 1 if settings.get("group_generations") else _asked(settings)


def _asked(settings: Mapping[str, Any]) -> int:
    """`num_generations` of a step; 1 where its settings have none that counts."""
    number = settings.get("num_generations", 1)
    return number if isinstance(number, int) and number > 0 else 1


def _model_step(
    node: Node,
    epoch: Epoch,
    old: Mapping[str, dict[str, Any]],
    new: Mapping[str, dict[str, Any]],
    journals: Journals,
    records: int,
) -> StepState:
    name = node.step.name
    changed = node.fingerprint not in epoch.steps.values()
    was = epoch.steps.get(name, "") if changed else node.fingerprint
    there, before = journals.results(node.fingerprint), journals.results(was)
    generations = getattr(node.step, "num_generations", 1)
    each = journals.requests_of_one(was)
    measured = each is not None
    rows = _rows_into(name, new)
    if each is None:
        each = float(generations * rows)
    else:  # of the step that has these results now, or had them
        each *= rows / _rows_into(next((other for other, own in epoch.steps.items() if own == was), name), old)
    if measured and changed and "num_generations" in old.get(name, {}):
        each *= generations / _asked(old[name])
    return StepState(
        name, True, changed, node.depends, there=there, before=before, records=before or records, each=each,
        measured=measured,
    )  # fmt: skip


def _settings_key(settings: Mapping[str, Any]) -> bytes:
    return canonical_json({key: value for key, value in settings.items() if key != "after"})


def refusal(
    path: Path, surveys: Sequence[Survey], notes: Sequence[str] = (), *, kept: Mapping[str, int] | None = None
) -> RunChangedError:
    """The error with the changes and the plan, for one directory or for all stages of a pipeline.

    `kept`: kept answers by step (see `engine.paid_answers`).
    """
    lines: list[str] = []
    for number, one in enumerate(surveys, 1):
        if one.changes:
            told = ["changed:", *(f"  {change}" for change in one.changes)]
            lines += [f"stage {number}:", *(f"  {line}" for line in told)] if len(surveys) > 1 else told
    lines += ["plan:", *(f"  {line}" for line in _plan(surveys, kept or {})), *notes]
    return RunChangedError(
        f"the pipeline or its input has changed since {path} was made",
        plan=lines,
        hint="Run again with --update (update=True) to accept this plan, or choose another --output.",
        survey=surveys[0],
    )


def _plan(surveys: Sequence[Survey], kept: Mapping[str, int]) -> list[str]:
    """A line for each step (reused, redone because it changed, redone where its input changes), then the cost."""
    changed: set[str] = set()  # steps whose rows are not what they were
    lines: list[str] = []
    to_pay: list[str] = []
    reread: list[str] = []  # steps to pay for whose answers are kept
    sieves: list[str] = []  # changed steps that ask no model: other rows than before may pass them
    total, measured, most = 0, True, 0
    input_changed = False
    for one in surveys:
        input_changed |= one.input_changed
        most = max(most, one.records)
        for step in one.steps:
            cause = sorted(step.depends & changed) or step.lost
            if step.changed or cause:
                changed.add(step.name)
            if not step.asks:
                if step.changed:
                    sieves.append(step.name)
                    lines.append(f"{step.name}: changed; computed again, without a request")
                continue
            if sieves or input_changed or not step.records:
                step.records = max(step.records, most)
            text, redone = _fate(step, cause, sieves, input_changed=input_changed)
            lines.append(f"{step.name}: {text}")
            if redone:
                requests = step.requests(redone)
                total += requests
                measured &= step.measured
                why = f" (depends on {', '.join(cause)})" if cause and not step.changed else ""
                to_pay.append(f"{step.name} {requests:,}{why}")
                if kept.get(step.name):
                    reread.append(f"{step.name} {kept[step.name]:,}")
    if not to_pay:
        lines.append("to pay: nothing for the records that are done")
    else:
        lines.append(f"to pay: at most about {total:,} requests: {', '.join(to_pay)}")
        if not measured:
            lines.append("  (no earlier results to measure: estimated from the steps' settings)")
    if reread:
        lines.append(f"  (kept answers: {', '.join(reread)}; an unchanged request is not paid again)")
    if more := surveys[0].more:
        lines.append(f"  (plus {_count(more, 'record')} of the input without any results yet)")
    elif input_changed:
        lines.append("  (plus records of the input without any results yet)")
    if any(one.by_position and one.input_changed for one in surveys):
        lines.append("rows are matched by their position: those after a line that was added or removed are redone")
        lines.append("(a source with an id_column keeps the results of rows that move, from its first run on)")
    return lines


def _fate(step: StepState, cause: list[str], sieves: list[str], *, input_changed: bool) -> tuple[str, int]:
    """Whether a step's results are reused or redone, and for how many records they are redone at most."""
    cost = f"{_count(step.records, 'record')}, about {_count(step.requests(step.records), 'request')}"
    if step.changed and not step.there:
        return f"{'redone, because it changed' if step.before else 'new'}: {cost}", step.records
    kept = f"{_count(step.there, 'result')}, reused for rows that did not change"
    if cause:
        why = f"it depends on {', '.join(cause)}"
        return f"redone where its input changes ({why}): at most {cost}", step.records
    if step.changed and step.depends:
        return f"{kept}; they are of an earlier version of the pipeline: redone, at most, {cost}", step.records
    if sieves:
        return f"{kept}; other rows may reach it, since {', '.join(sieves)} changed: at most {cost}", step.records
    if input_changed and step.there:
        return f"{kept}; redone where the input changed: at most {cost}", step.records
    missing = max(0, step.records - step.there)
    return f"{kept}; {_count(missing, 'record')} without one" if missing else kept, missing


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
