"""Deduplicate, DiversitySelect, DeitaFilter: what they keep, drop and flag."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from asyncsynth import Deduplicate, DeitaFilter, DiversitySelect, Filter, GroupColumns, LoadDataFromDicts
from asyncsynth.errors import PipelineError
from asyncsynth.pipeline import Dropped, GlobalStep, Graph
from asyncsynth.records import Row
from asyncsynth.steps.deita_filter import deita_score
from asyncsynth.steps.diversity_select import farthest_first
from asyncsynth.steps.minhash import MinHash, resemblance


def decided(step: GlobalStep, rows: Sequence[Row]) -> list[Any]:
    """What the step says of each row: its outputs, or the reason it is dropped for."""
    said = [one.reason if isinstance(one, Dropped) else one for one in step.decide(rows)]
    again = [one.reason if isinstance(one, Dropped) else one for one in step.decide(rows)]
    assert said == again, "a resumed run decides alike"
    return said


LONG = "the quick brown fox jumps over the lazy dog while the sun sets slowly behind the old grey hills of the north"
NEAR = LONG.replace("grey", "green")


def test_exact_duplicates_by_columns() -> None:
    rows = [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"b": "x", "a": 1}, {"b": "x"}, {"a": None, "b": "x"}]
    assert decided(Deduplicate(["a", "b"]), rows) == [{}, {}, "duplicate", {}, "duplicate"]
    assert decided(Deduplicate("a"), rows) == [{}, "duplicate", "duplicate", {}, "duplicate"]
    assert decided(Deduplicate("b", action="flag"), rows[:3]) == [
        {"is_duplicate": False}, {"is_duplicate": False}, {"is_duplicate": True},
    ]  # fmt: skip


def test_near_duplicates() -> None:
    rows = [{"text": LONG}, {"text": "another thing altogether"}, {"text": NEAR}, {"text": LONG.upper() + "!"}]
    assert decided(Deduplicate("text", method="minhash", threshold=0.7), rows) == [{}, {}, "duplicate", "duplicate"]
    assert decided(Deduplicate("text", method="minhash", threshold=1.0), rows) == [{}] * 4
    assert decided(Deduplicate("text"), rows) == [{}] * 4


def test_a_thousand_texts_and_as_many_edited_copies() -> None:
    rng = random.Random(5)
    words = [f"word{number}" for number in range(2000)]
    first = [[rng.choice(words) for _ in range(40)] for _ in range(150)]
    copies = [[*text[:39], "changed"] for text in first]
    rows = [{"text": " ".join(text)} for text in [*first, *copies]]
    said = decided(Deduplicate("text", method="minhash", threshold=0.8, num_perm=64), rows)
    assert said[:150] == [{}] * 150
    assert said[150:].count("duplicate") >= 148, "similarity 0.95, far above the threshold"


def groups() -> list[Row]:
    """Three groups of rewordings, five rows each."""
    subjects = ("cook rice on the stove in a pan", "fix a flat bicycle tyre at home", "prove that roots are irrational")
    return [{"text": f"how do I {subject} {'please ' * number}"} for number in range(5) for subject in subjects]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", ["farthest_first", "repetition_filter"])
def test_a_selection_takes_one_of_each_kind(seed: int, method: Any) -> None:
    step = DiversitySelect("text", n=3, method=method, max_similarity=0.4, seed=seed)
    chosen = [number for number, said in enumerate(decided(step, groups())) if said == {}]
    assert sorted(number % 3 for number in chosen) == [0, 1, 2]


def test_a_selection_by_fraction_its_reasons_and_its_seed() -> None:
    def kept(**arguments: Any) -> Counter[Any]:
        return Counter(str(said) for said in decided(DiversitySelect("text", **arguments), groups()))

    assert kept(fraction=0.2) == {"{}": 3, "not_selected": 12}
    assert kept(fraction=0.21)["{}"] == 4, "rounded up"
    assert kept(n=100) == {"{}": 15}
    filtered = kept(n=100, method="repetition_filter", max_similarity=0.4)
    assert filtered == {"{}": 3, "too_similar": 12}
    assert kept(n=1, method="repetition_filter") == {"{}": 1, "not_selected": 14}
    flags = decided(DiversitySelect("text", n=2, action="flag"), groups())
    assert sum(said["is_selected"] for said in flags) == 2
    picks = {str(decided(DiversitySelect("text", n=1, seed=seed), groups())) for seed in range(8)}
    assert len(picks) > 1
    assert decided(DiversitySelect("text", n=1), []) == []


def test_farthest_first_is_gonzalez() -> None:
    """Each choice maximises the least distance to those before, by trying all."""
    minhash = MinHash(64, 1)
    rng = random.Random(2)
    signatures = [minhash.signature(" ".join(rng.choices("abcdefghij", k=6))) for _ in range(40)]
    start = random.Random(7).randrange(40)
    chosen = [start]
    while len(chosen) < 10:
        left = [number for number in range(40) if number not in chosen]
        chosen.append(min(left, key=lambda n: max(resemblance(signatures[n], signatures[c]) for c in chosen)))
    assert farthest_first(signatures, 10, random.Random(7)) == set(chosen)


def scored(complexity: Any, quality: Any, text: str) -> Row:
    return {"complexity_scores": complexity, "quality_scores": quality, "text": text}


def test_deita_takes_the_best_that_do_not_repeat() -> None:
    rows = [
        scored(2, 2, "a low score about cooking rice"),
        scored(5, 5, LONG),
        scored(6, 6, NEAR),
        scored(None, 5, "nobody scored this"),
        scored(3, 3, "prove that the root of two is irrational"),
        {"text": "no scores at all"},
    ]
    assert decided(DeitaFilter("text", data_budget=2), rows) == [
        "over_budget", "too_similar", {"deita_score": 36.0}, "no_score", {"deita_score": 9.0}, "no_score",
    ]  # fmt: skip
    flagged = decided(DeitaFilter("text", data_budget=1, action="flag"), rows)
    assert [said["is_selected"] for said in flagged] == [False, False, True, False, False, False]
    assert flagged[3] == {"deita_score": None, "is_selected": False}


@pytest.mark.parametrize(
    ("complexity", "quality", "score"),
    [
        (2, 3.5, 7.0),
        ([1, 2], [3, 4], 11.0),
        ([1, 2], [3], None),
        ([], [], None),
        ([1, None], [1, 1], None),
        (None, 1, None),
        (True, 1, None),
        ("3", 1, None),
    ],
)
def test_scores(complexity: Any, quality: Any, score: float | None) -> None:
    assert deita_score(complexity, quality) == score


@pytest.mark.parametrize(
    "make",
    [
        lambda: Deduplicate("a", method="fuzzy"),
        lambda: Deduplicate("a", threshold=0),
        lambda: Deduplicate("a", threshold=1.1),
        lambda: Deduplicate([]),
        lambda: DiversitySelect("a"),
        lambda: DiversitySelect("a", n=1, fraction=0.5),
        lambda: DiversitySelect("a", n=0),
        lambda: DiversitySelect("a", fraction=0.0),
        lambda: DeitaFilter("a", data_budget=0),
        lambda: DeitaFilter("a", data_budget=5, complexity="q", quality="q"),
        lambda: DeitaFilter("a", data_budget=5, action="delete"),
    ],
)
def test_settings_that_cannot_be(make: Any) -> None:
    with pytest.raises(PipelineError):
        make()


def test_columns_and_flags_are_checked_with_the_graph() -> None:
    with Graph("missing") as graph:
        LoadDataFromDicts([{"text": "x"}]) >> Deduplicate("texts")
    with pytest.raises(PipelineError, match="did you mean 'text'"):
        graph.plan()
    with Graph("flag") as graph:
        dedup = Deduplicate("text", action="flag", output_mappings={"is_duplicate": "repeated"})
        LoadDataFromDicts([{"text": "x"}]) >> dedup
    assert graph.columns()[dedup] == {"text": "load_data_from_dicts_0", "repeated": "deduplicate_0"}
    assert '[["deduplicate_0' in graph.draw()


def test_a_change_of_a_setting_is_a_change() -> None:
    assert Deduplicate("text").settings() != Deduplicate("text", threshold=0.9).settings()
    assert DiversitySelect("text", n=3).settings() != DiversitySelect("text", n=3, seed=1).settings()


def every(row: Row) -> bool:
    return True


def test_nothing_may_stand_beside_a_barrier_or_lead_around_it() -> None:
    with Graph("beside") as graph:
        load = LoadDataFromDicts([{"text": "x"}])
        load >> [Deduplicate("text"), Filter(every)] >> GroupColumns(["text"], output_columns=["texts"])
    with pytest.raises(PipelineError, match="'filter_0' is beside 'deduplicate_0'"):
        graph.plan()
    with Graph("around") as graph:
        load = LoadDataFromDicts([{"text": "x"}])
        group = GroupColumns(["text"], output_columns=["texts"])
        load >> Deduplicate("text") >> group
        load >> group
    with pytest.raises(PipelineError, match="leads around 'deduplicate_0'"):
        graph.plan()
    with Graph("two ends") as graph:
        load = LoadDataFromDicts([{"text": "x"}])
        load >> [Deduplicate("text"), Filter(every)]
    with pytest.raises(PipelineError, match="is beside"):
        graph.plan()
    with Graph("fine") as graph:
        load = LoadDataFromDicts([{"text": "x"}])
        join = GroupColumns(["text"], output_columns=["texts"])
        load >> [Filter(every), Filter(every)] >> join >> Deduplicate("texts") >> [Filter(every), Filter(every)]
    assert list(graph.plan().leaves) == ["filter_2", "filter_3"]
