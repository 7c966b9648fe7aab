"""Measures of texts and ratings in bounded memory; pure, and the same for the same data in any order.

What looks at single texts or rows works on a sample: those whose keys have the smallest hashes, so that two
readings of one run, and two runs over one input, look at the same records.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import combinations
from typing import Generic, TypeVar

from asyncsynth.steps.minhash import MinHash, NearIndex, Signature
from asyncsynth.steps.similarity import tokens

T = TypeVar("T")

#: Texts of a column that distinct-n and self-similarity look at, and rows on which judges are compared.
SAMPLE_SIZE = 1000
#: How much of a sampled text is examined.
SAMPLE_TOKENS = 500
#: Distinct texts are counted one by one up to this number, and estimated (within 1 %) beyond.
DISTINCT_EXACT = 1 << 16
#: Two texts that share this part of their runs of three words are near duplicates.
NEAR_DUPLICATE = 0.7

_PLACES = 64  #: of a signature
_MINHASH = MinHash(_PLACES)
_BY_CHANCE = 1 / 256  #: of the places of unlike texts, a byte each, are equal
_SPACE = 1 << 64


def hash64(text: str) -> int:
    """A hash of 64 bits that does not change from one process to the next."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Sample(Generic[T]):
    """Items by key: the `size` whose keys have the smallest hashes."""

    def __init__(self, size: int = SAMPLE_SIZE) -> None:
        self._size = size
        self._largest_first: list[tuple[int, str]] = []
        self._items: dict[str, T] = {}

    def take(self, key: str, make: Callable[[], T]) -> T | None:
        """The key's item, made when it is new; None when the key is not in the sample.

        A key that is in the sample at the end was in it ever since it was first offered.
        """
        found = self._items.get(key)
        if found is not None:
            return found
        entry = (-hash64(key), key)
        if len(self._items) >= self._size:
            if entry <= self._largest_first[0]:
                return None
            del self._items[heapq.heappushpop(self._largest_first, entry)[1]]
        else:
            heapq.heappush(self._largest_first, entry)
        item = self._items[key] = make()
        return item

    def items(self) -> list[T]:
        """The items, ordered by their keys' hashes."""
        return [self._items[key] for _, key in sorted(self._largest_first, reverse=True)]

    def __len__(self) -> int:
        return len(self._items)


class Distinct:
    """Counts different texts: exactly up to `exact`, then by those whose hashes are below a falling bound."""

    def __init__(self, exact: int = DISTINCT_EXACT) -> None:
        self._exact = exact
        self._bound = _SPACE
        self._seen: set[int] = set()
        self.total: int = 0

    def add(self, text: str) -> None:
        """Counts a text."""
        self.total += 1
        if (digest := hash64(text)) < self._bound:
            self._seen.add(digest)
            if len(self._seen) > self._exact:
                self._bound >>= 1
                self._seen = {seen for seen in self._seen if seen < self._bound}

    @property
    def distinct(self) -> int:
        """How many different texts there are."""
        return min(self.total, round(len(self._seen) * (_SPACE / self._bound)))

    @property
    def duplicate_share(self) -> float:
        """The share of texts that an equal one came before."""
        return 1 - self.distinct / self.total if self.total else 0.0


def distinct_n(texts: Iterable[Sequence[str]], n: int) -> float | None:
    """Distinct-n (arXiv 1510.03055): different runs of `n` words as a share of all. None without any."""
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        for place in range(len(text) - n + 1):
            seen.add(tuple(text[place : place + n]))
            total += 1
    return len(seen) / total if total else None


def words_of(text: str) -> list[str]:
    """The words that the measures look at."""
    return tokens(text)[:SAMPLE_TOKENS]


def signature(words: Sequence[str]) -> Signature:
    """The MinHash signature of a text's runs of three words."""
    return _MINHASH.signature(" ".join(words))


def self_similarity(signatures: Sequence[Signature]) -> float | None:
    """The mean similarity of two texts of the sample (0: nothing in common, 1: all alike). None below two."""
    count = len(signatures)
    if count < 2:
        return None
    equal = sum(n * (n - 1) // 2 for column in zip(*signatures, strict=True) for n in Counter(column).values())
    share = equal / (_PLACES * (count * (count - 1) // 2))
    return max(0.0, (share - _BY_CHANCE) / (1 - _BY_CHANCE))


def near_duplicate_share(signatures: Sequence[Signature]) -> float | None:
    """The share of texts of the sample that have another one much like them in it. None below two."""
    if len(signatures) < 2:
        return None
    times = Counter(signatures)
    alike = {one for one, n in times.items() if n > 1}
    # An index finds what came before: there and back, each text is asked about all others.
    for order in (list(times), list(times)[::-1]):
        index = NearIndex(_PLACES, NEAR_DUPLICATE)
        for one in order:
            if index.nearest(one) is not None:
                alike.add(one)
            index.add(one)
    return sum(times[one] for one in alike) / len(signatures)


Ratings = Sequence[float | None]


class Agreement:
    """How far two judges agree, over rows that both rated: single ratings, and the order of answers."""

    def __init__(self) -> None:
        self.rows: int = 0
        self._pairs: list[tuple[float, float]] = []
        self._orders = 0
        self._same_orders = 0

    def add(self, first: Ratings, second: Ratings) -> None:
        """Both judges' ratings of one row's answers, as many from each; None if there is none."""
        both = [(a, b) for a, b in zip(first, second, strict=False) if a is not None and b is not None]
        if not both:
            return
        self.rows += 1
        self._pairs += both
        for (a1, b1), (a2, b2) in combinations(both, 2):
            self._orders += 1
            self._same_orders += _sign(a1 - a2) == _sign(b1 - b2)

    @property
    def exact_share(self) -> float | None:
        """The share of equal ratings."""
        return sum(a == b for a, b in self._pairs) / len(self._pairs) if self._pairs else None

    @property
    def order_share(self) -> float | None:
        """The share of pairs of answers that both put in the same order, ties being an order."""
        return self._same_orders / self._orders if self._orders else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa with quadratic weights: 1 full agreement, 0 as by chance. None without any spread."""
        count = len(self._pairs)
        if not count:
            return None
        mean_a, mean_b = (sum(pair[side] for pair in self._pairs) / count for side in (0, 1))
        var_a, var_b = (
            sum((pair[side] - mean) ** 2 for pair in self._pairs) / count for side, mean in ((0, mean_a), (1, mean_b))
        )
        by_chance = var_a + var_b + (mean_a - mean_b) ** 2
        found = sum((a - b) ** 2 for a, b in self._pairs) / count
        return 1 - found / by_chance if by_chance > 0 else None


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
