"""How good the data of a run are, in numbers: read from the journal, also while another process writes it.

The journal is read once from its beginning to its end, after its index; memory is bounded by the number of
steps and columns, not of records. See docs/cli.md for what each measure means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import NoneType
from typing import Any

from asyncsynth.quality.measures import StepMeasures
from asyncsynth.quality.text_statistics import SAMPLE_SIZE, Agreement, Ratings, Sample
from asyncsynth.storage.entries import RecordEntry, StepResult
from asyncsynth.storage.entry_reader import JournalView
from asyncsynth.storage.index import RunIndex
from asyncsynth.storage.manifest import Epoch, Manifest, diff
from asyncsynth.storage.shard_directories import journals
from asyncsynth.storage.stage_directories import stages_before

#: A judge's numbers for one row: hash of what it was shown, column -> ratings.
Judged = tuple[str, dict[str, list[float | None]]]
Bag = dict[tuple[str, str], Judged]  #: by step and row key


@dataclass(slots=True)
class RunQuality:
    """The measures of a run's current state (the manifest's last epoch)."""

    directory: Path
    pipeline: str
    fields: dict[str, Any]  #: what was fingerprinted
    steps: dict[str, StepMeasures] = field(default_factory=dict)
    judged: list[Sample[Bag]] = field(default_factory=list)  #: one for each journal

    @classmethod
    def read(cls, directory: Path) -> RunQuality:
        """Reads manifests and journals. Raises ConfigurationError if there is no run, CorruptJournal."""
        manifest = Manifest.of_run(directory)
        fields: dict[str, Any] = {"steps": {}}
        quality = cls(directory, manifest.pipeline, fields)
        for place, part in [*stages_before(directory, manifest), *journals(directory, manifest)]:
            epoch = part.epochs[-1]
            steps = {**fields["steps"], **epoch.fields.get("steps", {})}
            fields.update(epoch.fields, steps=steps)
            quality._read(place, part, epoch)
        return quality

    def _read(self, directory: Path, manifest: Manifest, epoch: Epoch) -> None:
        for name, settings in epoch.fields.get("steps", {}).items():
            self.steps.setdefault(name, StepMeasures(name, str(settings.get("step", ""))))
        names = {fingerprint: name for name, fingerprint in epoch.steps.items()}
        number = len(manifest.epochs) - 1
        index = RunIndex(keys=manifest.keys, stride=manifest.stride)
        judged: Sample[Bag] = Sample()
        self.judged.append(judged)
        with JournalView(directory) as view:
            view.walk(index)
            for where, entry in view.records():
                self._entry(entry, where, index, names, number, judged)

    def _entry(
        self, entry: RecordEntry, where: int, index: RunIndex, names: dict[str, str], epoch: int, judged: Sample[Bag]
    ) -> None:
        record = entry.key
        for fingerprint, results in entry.steps:
            name = names.get(fingerprint)
            if name is None or not index.is_current(record, where, fingerprint):
                continue
            step = self.step(name)
            for result in results:
                step.add(record, result)
                for judge, numbers in ratings_of(result).items():
                    bag = judged.take(record, dict)
                    if bag is not None:
                        bag[f"{name}{judge}", result.key] = (result.input_hash, numbers)
        if entry.epoch == epoch and index.is_current(record, where):
            for failed in entry.failed:
                self.step(failed.step).add_failed(failed)
            for name, reasons in entry.dropped.items():
                self.step(name).dropped.update(reasons)

    def step(self, name: str) -> StepMeasures:
        """The measures of a step, "input" for rows that could not be read."""
        return self.steps.setdefault(name, StepMeasures(name, ""))

    def agreements(self) -> list[dict[str, Any]]:
        """For each two steps that rated the same rows: how far they agree."""
        pairs: dict[tuple[str, str, str], Agreement] = {}
        order = {name: number for number, name in enumerate(self.steps)}
        for sample in self.judged:
            for bag in sample.items():
                for (one, first), (other, second) in combinations(bag.items(), 2):
                    if one[0] == other[0] or one[1] != other[1] or first[0] != second[0]:
                        continue  # not two judges of one row, shown the same
                    if [order.get(one[0], -1), one[0]] > [order.get(other[0], -1), other[0]]:
                        (one, first), (other, second) = (other, second), (one, first)
                    for column in first[1].keys() & second[1].keys():
                        pair = pairs.setdefault((one[0], other[0], column), Agreement())
                        pair.add(first[1][column], second[1][column])
        return [
            {
                "judges": [one, other],
                "column": column,
                "sampled_rows": pair.rows,
                **_known(exact_share=pair.exact_share, order_share=pair.order_share, kappa=pair.kappa),
            }
            for (one, other, column), pair in sorted(pairs.items())
            if pair.rows
        ]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "event": "quality",
            "pipeline": self.pipeline,
            "directory": str(self.directory),
            "sample_size": SAMPLE_SIZE,
            "steps": [made for step in self.steps.values() if len(made := step.as_json()) > 2],
            "agreement": self.agreements(),
        }


def ratings_of(result: StepResult) -> dict[str, dict[str, list[float | None]]]:
    """The ratings in a judge's result, by judge and column: of a list one for each answer, else one.

    The judge is "" for the step as a whole, and for the members of a jury " (model)".
    """
    judges: dict[str, dict[str, list[float | None]]] = {}
    if len(result.outputs) != 1:
        return judges
    outputs = result.outputs[0]
    if numbers := {name: values for name, value in outputs.items() if (values := _numbers(value)) is not None}:
        judges[""] = numbers
    models, verdicts = outputs.get("jury_models"), outputs.get("jury_ratings")
    if isinstance(models, list) and isinstance(verdicts, list):
        for place, (model, verdict) in enumerate(zip(models, verdicts, strict=False)):
            if (values := _numbers(verdict)) is not None:
                before = models[:place].count(model)
                judges[f" ({model}){f' #{before + 1}' if before else ''}"] = {"jury_ratings": values}
    return judges


def _numbers(value: Any) -> list[float | None] | None:
    values: Ratings = value if isinstance(value, list) else [value]
    if all(item is None for item in values) or not all(isinstance(item, (int, float, NoneType)) for item in values):
        return None
    return list(values)


def flat_measures(measures: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a step's measures by a name with spaces; those that end in "_share" are shares of 1."""
    flat: dict[str, float] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, item in value.items():
                walk(path if name == "columns" and not path else f"{path} {name}".strip(), item)
        elif isinstance(value, (int, float)):
            flat[path] = value

    walk("", measures)
    return flat


@dataclass(slots=True)
class Comparison:
    """Two runs side by side."""

    first: RunQuality
    second: RunQuality

    def settings(self) -> list[str]:
        """One line for each setting that differs: `steps.gen.llm.temperature: 0.7 -> 1.0`."""
        return diff(self.first.fields, self.second.fields)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``: measure -> [first, second, difference]; None if a run does not have it."""
        sides = [measure_table(run.as_json()) for run in (self.first, self.second)]
        steps = {
            step: {name: _side_by_side(*(side.get(step, {}).get(name) for side in sides)) for name in names}
            for step, names in _union(*sides).items()
        }
        return {
            "event": "compare",
            "directories": [str(self.first.directory), str(self.second.directory)],
            "settings": self.settings(),
            "sample_size": SAMPLE_SIZE,
            "steps": steps,
        }


def measure_table(quality: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Step (or two judges) -> measure -> number, from `RunQuality.as_json`."""
    table = {step["step"]: flat_measures(step) for step in quality["steps"]}
    for pair in quality["agreement"]:
        table[f"{' / '.join(pair['judges'])}: {pair['column']}"] = flat_measures(pair)
    return table


def _union(*tables: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    union: dict[str, dict[str, None]] = {}
    for table in tables:
        for step, measures in table.items():
            union.setdefault(step, {}).update(dict.fromkeys(measures))
    return {step: list(names) for step, names in union.items()}


def _side_by_side(first: float | None, second: float | None) -> list[float | None]:
    return [first, second, None if first is None or second is None else round(second - first, 4)]


def _known(**measures: float | None) -> dict[str, float]:
    return {name: round(value, 4) for name, value in measures.items() if value is not None}
