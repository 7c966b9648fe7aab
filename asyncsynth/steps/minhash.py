"""MinHash signatures and an index of near neighbours: how alike texts are, without comparing all pairs.

Two texts are as alike as their sets of word n-grams (Jaccard: shared by all). Broder, "On the resemblance and
containment of documents" (1997): under a random order of all n-grams, the chance that two sets have the same
least one is their Jaccard similarity. A signature has the least value under `num_perm` orders, each given by 32
bits of SHAKE-128; of each it keeps 8 bits (Li and König, "b-Bit Minwise Hashing", 2010). The share of equal
places, less the 1/256 that are equal by chance, estimates the similarity with a standard error of about
sqrt(s (1 - s) / num_perm): 0.044 at most for 128.

Candidates come from banding (locality-sensitive hashing; Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", ch. 3): signatures that agree in all places of some band. They are then compared in full, so that bands
can only miss neighbours (less than 1 % at the threshold, fewer above), never invent one.

Pure Python on hashlib, with 128 permutations: about 1 ms for each 100 words, 0.2 KB of memory per signature, and
1.5 KB more in the index.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from asyncsynth.errors import PipelineError
from asyncsynth.records import canonical_json
from asyncsynth.steps.similarity import tokens

Signature = bytes

_BY_CHANCE = 1 / 256  #: share of places that are equal in unlike texts
_BLOCK = 4096  #: n-grams hashed at a time: bounds the memory that a long text takes
_LEAST_RECALL = 0.99


class MinHash:
    """Makes signatures. The same settings and seed give the same ones on every machine.

    Args:
        num_perm: places in a signature, a byte each; 1 or more.
        ngram: words in an n-gram; a shorter text is one n-gram as a whole.
    """

    def __init__(self, num_perm: int = 128, ngram: int = 3, *, seed: int = 0) -> None:
        whole_number("MinHash", "num_perm", num_perm, least=1)
        whole_number("MinHash", "ngram", ngram, least=1)
        self.num_perm = num_perm
        self.ngram = ngram
        self._salt = f"{seed} ".encode()

    def signature(self, text: str) -> Signature:
        """The text's signature. Texts without a word are all alike."""
        grams = iter(self.ngrams(text))
        least = self._least(grams)
        while block := self._least(grams):
            least = list(map(min, least, block))
        return bytes([value & 0xFF for value in least])

    def ngrams(self, text: str) -> set[str]:
        """The set that stands for the text; never empty."""
        words = tokens(text)
        count = max(1, len(words) - self.ngram + 1)
        return {" ".join(words[at : at + self.ngram]) for at in range(count)}

    def _least(self, grams: Iterator[str]) -> list[int]:
        """The least values of the next block of n-grams, one for each order; none at the end."""
        salt, size, orders = self._salt, 4 * self.num_perm, self.num_perm
        hashes = b"".join([hashlib.shake_128(salt + gram.encode()).digest(size) for gram in islice(grams, _BLOCK)])
        values = array("I", hashes)
        if sys.byteorder == "big":
            values.byteswap()
        return [min(values[order::orders]) for order in range(orders)] if values else []


def resemblance(first: Signature, second: Signature) -> float:
    """Estimated Jaccard similarity of the texts of two signatures: 0.0 to 1.0."""
    size = len(first)
    differing = int.from_bytes(first, "big") ^ int.from_bytes(second, "big")
    equal = differing.to_bytes(size, "big").count(0) / size
    return max(0.0, (equal - _BY_CHANCE) / (1 - _BY_CHANCE))


class NearIndex:
    """Signatures, and those that are at least `threshold` similar to another one."""

    def __init__(self, num_perm: int, threshold: float) -> None:
        self.threshold = threshold
        self._rows = band_rows(num_perm, threshold)
        self._bands = [range(start, start + self._rows) for start in range(0, num_perm - self._rows + 1, self._rows)]
        # By band: hash of its part of a signature -> number of the signature, or a list of several.
        self._tables: list[dict[int, int | list[int]]] = [{} for _ in self._bands]
        self._signatures: list[Signature] = []

    def __len__(self) -> int:
        return len(self._signatures)

    def nearest(self, signature: Signature) -> tuple[int, float] | None:
        """(number, similarity) of the signature that is most like this one, if any reaches the threshold."""
        candidates: set[int] = set()
        for table, part in zip(self._tables, self._parts(signature), strict=True):
            found = table.get(part)
            if found is not None:
                candidates.update(found) if isinstance(found, list) else candidates.add(found)
        best: tuple[int, float] | None = None
        for number in sorted(candidates):
            similarity = resemblance(signature, self._signatures[number])
            if similarity >= self.threshold and (best is None or similarity > best[1]):
                best = number, similarity
        return best

    def add(self, signature: Signature) -> int:
        """Adds a signature and numbers it, from 0."""
        number = len(self._signatures)
        self._signatures.append(signature)
        for table, part in zip(self._tables, self._parts(signature), strict=True):
            found = table.setdefault(part, number)
            if isinstance(found, list):
                found.append(number)
            elif found != number:
                table[part] = [found, number]
        return number

    def _parts(self, signature: Signature) -> Iterable[int]:
        return (hash(signature[band.start : band.stop]) for band in self._bands)


def band_rows(num_perm: int, threshold: float) -> int:
    """The widest bands (fewest candidates) that still find 99 % of the pairs that are just alike enough."""
    for rows in range(num_perm, 1, -1):
        if 1 - (1 - threshold**rows) ** (num_perm // rows) >= _LEAST_RECALL:
            return rows
    return 1


def text_of(row: Mapping[str, Any], columns: Iterable[str]) -> str:
    """The columns as one text: lists and objects as JSON, missing or null values as nothing."""
    values = (row.get(column) for column in columns)
    return "\n".join(
        value if isinstance(value, str) else "" if value is None else canonical_json(value).decode() for value in values
    )


def whole_number(step: str, argument: str, value: Any, *, least: int) -> None:
    """Raises PipelineError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PipelineError(
            f"{step}: {argument} is {value!r}; a whole number of at least {least} was expected", step=step
        )


def share(step: str, argument: str, value: Any) -> None:
    """Raises PipelineError unless 0 < `value` <= 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise PipelineError(f"{step}: {argument} is {value!r}; above 0 and at most 1 was expected", step=step)
