"""The measures of one step and of one output column, counted result by result. See docs/cli.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from asyncsynth.core.stats import Histogram
from asyncsynth.pipeline.step import PROVENANCE_COLUMNS
from asyncsynth.quality.text_statistics import (
    Distinct,
    Sample,
    distinct_n,
    near_duplicate_share,
    self_similarity,
    signature,
    words_of,
)
from asyncsynth.storage.entries import FailedRow, StepResult
from asyncsynth.tasks.parsing import is_refusal

#: A column of more different numbers or labels than this is shown by its mean and quantiles alone.
_MAX_VALUES = 20
_MAX_LABEL_CHARS = 40
_MAX_NOTES = 100
#: Characters kept of a sampled text.
_SAMPLED_CHARS = 8000
#: `PairwiseJudge` says here when it chose one place in both orders.
_BIAS = "position_bias"
#: What `Context.provenance` writes; other numbers in a result's metadata are notes of its task.
_PROVENANCE = frozenset(
    {
        "calls",
        "attempts",
        "prompt_tokens",
        "completion_tokens",
        "latency_s",
        "parse_failures",
        "cut",
        "system_prompts",
        "system_prompt_of",
    }
)


class ColumnMeasures:
    """One output column of a step: its texts, or its numbers."""

    def __init__(self) -> None:
        self.values: int = 0
        self.blank: int = 0
        self.refusals: int = 0
        self.chars: Histogram = Histogram()
        self.numbers: Histogram = Histogram()
        self.distinct: Distinct = Distinct()
        self.sample: Sample[str] = Sample()
        self._seen: Counter[str] | None = Counter()

    def add(self, key: str, value: Any) -> None:
        """Counts a value, and what is in it where it is a list. `key` is unique to the row."""
        for number, item in enumerate(_flat(value)):
            self.values += 1
            if item is None or (isinstance(item, str) and not item.strip()):
                self.blank += 1
            elif isinstance(item, (bool, int, float)):
                self.numbers.add(float(item))
                self._saw(f"{round(item, 2):g}")
            else:
                self._text(f"{key}/{number}", item if isinstance(item, str) else _json(item))

    def _text(self, key: str, text: str) -> None:
        self.chars.add(len(text))
        self.refusals += is_refusal(text)
        self.distinct.add(text)
        self.sample.take(key, lambda: text[:_SAMPLED_CHARS])
        self._saw(text)

    def _saw(self, value: str) -> None:
        if self._seen is not None:
            self._seen[value] += 1
            if len(self._seen) > _MAX_VALUES or len(value) > _MAX_LABEL_CHARS:
                self._seen = None

    def as_json(self) -> dict[str, Any]:
        """The measures; those that do not apply are left out."""
        shown: dict[str, Any] = {"values": self.values, "blank_share": _share(self.blank, self.values)}
        if self.numbers.count:
            shown.update(spread(self.numbers))
        seen = self._seen
        if seen and (self.numbers.count or len(seen) < self.chars.count):  # texts that are all different are no labels
            shown["distribution"] = {f"{value}_share": _share(n, seen.total()) for value, n in sorted(seen.items())}
        if self.chars.count:
            shown["chars"] = spread(self.chars)
            shown["refusal_share"] = _share(self.refusals, self.chars.count)
            shown["duplicate_share"] = round(self.distinct.duplicate_share, 4)
            shown["sampled_texts"] = len(self.sample)
            shown.update(_diversity(self.sample.items()))
        return shown


def _diversity(texts: list[str]) -> dict[str, float]:
    words = [words_of(text) for text in texts]
    signatures = [signature(text) for text in words]
    measures = {
        "distinct_1": distinct_n(words, 1),
        "distinct_2": distinct_n(words, 2),
        "self_similarity": self_similarity(signatures),
        "near_duplicate_share": near_duplicate_share(signatures),
    }
    return {name: round(value, 4) for name, value in measures.items() if value is not None}


class StepMeasures:
    """One step: what was asked, what came back, what failed."""

    def __init__(self, name: str, task: str) -> None:
        self.name = name
        self.task = task
        self.results: int = 0
        self.calls: int = 0
        self.cut: int = 0  #: results with an answer that ended at max_tokens
        self.unparsable: int = 0
        self.reasks: int = 0
        self.models: Counter[str] = Counter()
        self.finish: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.orders: Counter[str] = Counter()
        self.prompt_tokens: Histogram = Histogram()
        self.completion_tokens: Histogram = Histogram()
        self.columns: dict[str, ColumnMeasures] = {}

    def add(self, record: str, result: StepResult) -> None:
        """Counts the step's result for one row of a record."""
        self.results += 1
        meta: Mapping[str, Any] = result.meta or {}
        if calls := meta.get("calls"):
            again = meta.get("parse_failures", 0)
            self.calls += calls
            self.unparsable += again
            self.reasks += again
            self.models[str(meta.get("model"))] += 1
            self.finish[str(meta.get("finish"))] += 1
            self.cut += "cut" in meta or meta.get("finish") == "length"
            self.prompt_tokens.add(meta.get("prompt_tokens", 0))
            self.completion_tokens.add(meta.get("completion_tokens", 0))
        for name, note in meta.items():
            if name not in _PROVENANCE:
                self._note(name, note)
        # A row's key says where in its record it is; with the record's own it is unique in the run.
        for number, outputs in enumerate(result.outputs):
            if calls and _BIAS in outputs:
                self.orders[str(outputs[_BIAS])] += 1
            for name, value in outputs.items():
                if name not in PROVENANCE_COLUMNS and name != _BIAS:
                    self.columns.setdefault(name, ColumnMeasures()).add(f"{record}/{result.key}/{number}", value)

    def _note(self, name: str, note: Any) -> None:
        """A task's own note: a number, or a list, of whose objects the values are counted."""
        if isinstance(note, list):
            for item in note:
                for key, value in item.items() if isinstance(item, dict) else ():
                    if isinstance(value, str) and len(value) <= _MAX_LABEL_CHARS:
                        self._note(f"{name} {key} {value}", 1)
            note = len(note)
        if isinstance(note, int) and (name in self.notes or len(self.notes) < _MAX_NOTES):
            self.notes[name] += note

    def add_failed(self, failed: FailedRow) -> None:
        """Counts a row that ended at the step."""
        self.failed[failed.reason] += 1
        if failed.reason == "parse_failure":
            self.calls += failed.attempts
            self.unparsable += failed.attempts
            self.reasks += max(0, failed.attempts - 1)

    def as_json(self) -> dict[str, Any]:
        """Name, task and measures."""
        shown: dict[str, Any] = {"step": self.name, "task": self.task}
        if self.results or self.calls:
            shown.update(
                results=self.results,
                calls=self.calls,
                unparsable_answers=self.unparsable,
                unparsable_share=_share(self.unparsable, self.calls),
                reasks=self.reasks,
            )
        for name, counts in (("failed", self.failed), ("dropped", self.dropped), ("notes", self.notes)):
            if counts:
                shown[name] = dict(sorted(counts.items()))
        for name, counts in (("models", self.models), ("finish", self.finish)):
            if counts:
                shown[name] = {f"{key}_share": _share(n, counts.total()) for key, n in sorted(counts.items())}
        if self.finish:
            shown["truncated_share"] = _share(self.cut, self.finish.total())
            shown["prompt_tokens"] = spread(self.prompt_tokens)
            shown["completion_tokens"] = spread(self.completion_tokens)
        if asked := self.orders.total():
            shown["orders"] = {
                "agreeing_share": _share(self.orders["None"], asked),
                "first_place_share": _share(self.orders["first"], asked),
                "second_place_share": _share(self.orders["second"], asked),
            }
        if self.columns:
            shown["columns"] = {name: column.as_json() for name, column in self.columns.items()}
        return shown


def spread(histogram: Histogram) -> dict[str, float]:
    """Mean (exact), median and 95th percentile (within 5 %)."""
    return {
        "mean": round(histogram.mean, 2),
        "p50": round(histogram.quantile(0.5), 2),
        "p95": round(histogram.quantile(0.95), 2),
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def _flat(value: Any) -> Iterator[Any]:
    """What a cell holds: list items one by one, of a conversation what was said in it."""
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict) and isinstance(value.get("content"), str) and "role" in value:
        if value["role"] != "system":
            yield value["content"]
    else:
        yield value


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
