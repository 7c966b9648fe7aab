"""Measures of texts and ratings, alone."""

from __future__ import annotations

import random

import pytest

from asyncsynth.quality.text_statistics import (
    Agreement,
    Distinct,
    Sample,
    distinct_n,
    near_duplicate_share,
    self_similarity,
    signature,
    words_of,
)


def test_a_sample_is_the_same_in_any_order_and_keeps_what_its_items_were_given() -> None:
    keys = [f"record {number}" for number in range(500)]
    offers = [(key, turn) for key in keys for turn in range(3)]
    found = []
    for seed in range(3):
        random.Random(seed).shuffle(offers)
        sample: Sample[set[tuple[str, int]]] = Sample(20)
        for key, turn in offers:
            if (bag := sample.take(key, set)) is not None:
                bag.add((key, turn))
        assert len(sample) == 20
        found.append(sample.items())
    assert found[0] == found[1] == found[2]
    assert all(len(bag) == 3 and len({key for key, _ in bag}) == 1 for bag in found[0])


def test_a_sample_of_few_is_all_of_them() -> None:
    sample: Sample[str] = Sample(20)
    for key in "abc":
        sample.take(key, lambda key=key: key * 2)  # type: ignore[misc]
    assert sorted(sample.items()) == ["aa", "bb", "cc"]


def test_duplicates_are_counted_exactly_and_estimated_beyond() -> None:
    exact, estimated = Distinct(), Distinct(exact=2000)
    for number in range(20_000):
        text = "the same" if number % 4 == 0 else f"text {number % 10_000}"
        exact.add(text)
        estimated.add(text)
    assert exact.distinct == 7501
    assert exact.duplicate_share == pytest.approx(1 - 7501 / 20_000)
    assert estimated.distinct == pytest.approx(7501, rel=0.1)
    assert len(estimated._seen) <= 2000
    assert Distinct().duplicate_share == 0.0


def test_distinct_n() -> None:
    texts = [["a", "b", "a"], ["a", "b"]]
    assert distinct_n(texts, 1) == 2 / 5
    assert distinct_n(texts, 2) == 2 / 3
    assert distinct_n([["a"]], 2) is None


def test_minhash_estimates_the_jaccard_similarity_of_word_runs() -> None:
    rng = random.Random(5)
    first = [f"w{rng.randrange(5000)}" for _ in range(400)]
    second = first[:280] + [f"v{number}" for number in range(120)]
    runs = [{tuple(text[at : at + 3]) for at in range(len(text) - 2)} for text in (first, second)]
    jaccard = len(runs[0] & runs[1]) / len(runs[0] | runs[1])
    assert self_similarity([signature(first), signature(second)]) == pytest.approx(jaccard, abs=0.15)
    assert self_similarity([signature(first), signature(first)]) == 1.0
    assert self_similarity([signature(first)]) is None


@pytest.mark.parametrize("words", [[], ["one"], ["one", "two"]])
def test_short_texts_have_signatures(words: list[str]) -> None:
    assert self_similarity([signature(words), signature(words)]) == 1.0
    other = self_similarity([signature(words), signature(["quite", "another", "text", "here"])])
    assert other is not None
    assert other < 0.2


def test_near_duplicates_are_found_among_others() -> None:
    rng = random.Random(1)
    texts = [[f"w{rng.randrange(1000)}" for _ in range(80)] for _ in range(40)]
    texts.append([*texts[0][:-1], "changed"])
    assert near_duplicate_share([signature(text) for text in texts]) == pytest.approx(2 / 41)
    assert near_duplicate_share([signature(texts[0])] * 300) == 1.0  # bounded, though all are alike
    assert near_duplicate_share([]) is None


def test_words_of_is_bounded_and_knows_scripts_without_spaces() -> None:
    assert len(words_of("word " * 5000)) == 500
    assert words_of("\u6f22\u5b57") == ["\u6f22", "\u5b57"]


def test_agreement() -> None:
    same, opposite, partly = Agreement(), Agreement(), Agreement()
    for row in ([5, 1, 3], [2, 4, 4]):
        same.add(row, row)
        opposite.add(row, [6 - rating for rating in row])
    assert (same.exact_share, same.order_share, same.kappa) == (1.0, 1.0, 1.0)
    assert opposite.order_share == 1 / 6  # the tie
    assert opposite.kappa is not None
    assert opposite.kappa < 0
    partly.add([5, None, 1], [None, 3, 2])
    assert (partly.rows, partly.exact_share, partly.order_share) == (1, 0.0, None)
    partly.add([None], [None])
    assert partly.rows == 1
    assert Agreement().kappa is None


def test_kappa_of_independent_judges_is_about_zero() -> None:
    rng = random.Random(3)
    agreement = Agreement()
    for _ in range(3000):
        agreement.add([rng.randint(1, 5)], [rng.randint(1, 5)])
    assert agreement.kappa == pytest.approx(0, abs=0.06)
