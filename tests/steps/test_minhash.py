"""MinHash estimates Jaccard similarity; the index finds neighbours and invents none."""

from __future__ import annotations

import random

import pytest

from asyncsynth.errors import PipelineError
from asyncsynth.steps.minhash import MinHash, NearIndex, band_rows, resemblance, text_of


def jaccard(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second)


def texts(count: int, *, words: int = 60, changed: float = 0.05, seed: int = 1) -> list[str]:
    """Texts in pairs: every second one is the one before with some words changed."""
    rng = random.Random(seed)
    made: list[str] = []
    for _ in range(count // 2):
        first = [f"w{rng.randrange(5000)}" for _ in range(words)]
        second = [f"x{rng.randrange(5000)}" if rng.random() < changed else word for word in first]
        made += [" ".join(first), " ".join(second)]
    return made


def test_the_estimate_is_as_good_as_broder_says() -> None:
    minhash = MinHash(256, 2)
    errors = []
    for changed in (0.02, 0.1, 0.3):
        made = texts(40, changed=changed)
        for first, second in zip(made[::2], made[1::2], strict=True):
            true = jaccard(minhash.ngrams(first), minhash.ngrams(second))
            errors.append(resemblance(minhash.signature(first), minhash.signature(second)) - true)
    assert abs(sum(errors) / len(errors)) < 0.02, "unbiased"
    assert (sum(error**2 for error in errors) / len(errors)) ** 0.5 < 0.04, "1/sqrt(256) at most, less near 0 and 1"


def test_the_index_finds_what_comparing_all_pairs_finds() -> None:
    minhash = MinHash(128, 1)
    for threshold in (0.3, 0.5, 0.8):
        index = NearIndex(128, threshold)
        signatures = [minhash.signature(text) for text in texts(120, changed=0.12, seed=3)]
        missed = wrong = true = 0
        for number, signature in enumerate(signatures):
            best = max((resemblance(signature, signatures[other]) for other in range(number)), default=0.0)
            found = index.nearest(signature)
            wrong += found is not None and (best < threshold or found[1] > best)
            true += best >= threshold
            missed += best >= threshold and found is None
            assert index.add(signature) == number
        assert wrong == 0
        assert true >= 20
        assert missed <= true * 0.02
        assert len(index) == 120


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("num_perm", [16, 64, 128, 200])
def test_bands_find_nearly_all_at_the_threshold(threshold: float, num_perm: int) -> None:
    rows = band_rows(num_perm, threshold)
    if rows > 1:
        assert 1 - (1 - threshold**rows) ** (num_perm // rows) >= 0.99


def test_texts_shorter_than_an_ngram_without_words_and_without_spaces() -> None:
    minhash = MinHash(16, 3)
    assert minhash.ngrams("One two") == {"one two"}
    assert minhash.ngrams("a b c d") == {"a b c", "b c d"}
    assert minhash.ngrams("") == {""}
    assert minhash.signature("") == minhash.signature("  \n")
    assert len(minhash.ngrams("東京は日本の首都")) == 6


def test_a_signature_is_the_same_everywhere() -> None:
    assert list(MinHash(4, 2).signature("the quick brown fox")) == SIGNATURE
    assert list(MinHash(4, 2, seed=1).signature("the quick brown fox")) != SIGNATURE


SIGNATURE = [46, 63, 223, 229]


def test_columns_as_one_text() -> None:
    row = {"a": "text", "b": None, "c": [{"role": "user"}], "d": 1}
    assert text_of(row, ("a", "b", "c", "missing", "d")) == 'text\n\n[{"role":"user"}]\n\n1'


@pytest.mark.parametrize("arguments", [(0, 3), (128, 0), (1.5, 3), (True, 3)])
def test_settings_that_cannot_be(arguments: tuple[int, int]) -> None:
    with pytest.raises(PipelineError, match="at least 1"):
        MinHash(*arguments)
