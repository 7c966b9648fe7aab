"""`DiversitySelect`: selects rows that differ as much as possible from one another."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from asyncsynth.errors import PipelineError
from asyncsynth.pipeline.step import AllRows, Dropped, GlobalStep
from asyncsynth.records import Row, stable_seed
from asyncsynth.steps.arguments import column_names, one_of
from asyncsynth.steps.minhash import MinHash, NearIndex, Signature, resemblance, share, text_of, whole_number

Method = Literal["farthest_first", "repetition_filter"]
Action = Literal["remove", "flag"]


class DiversitySelect(GlobalStep):
    """Keeps `n` rows, or a `fraction` of them, chosen for variety. Waits for all rows; order stays.

    Args:
        columns: the columns to compare, together, as text; distance is 1 - Jaccard similarity (see `steps.minhash`).
        n: rows to keep at most; or
        fraction: part of the rows to keep, above 0 and at most 1, rounded up.
        method: "farthest_first" begins with a random row and repeatedly takes the one farthest from all taken
            (Gonzalez 1985): the most varied choice, in n times all comparisons (about 1 µs each: 10,000 of
            100,000 rows take a quarter of an hour). "repetition_filter" goes through the rows in random order and takes
            each that is less than `max_similarity` like all taken, as in DEITA (arXiv 2312.15685): linear; it
            may find fewer than `n`.
        max_similarity: for "repetition_filter", above 0 and at most 1.
        seed: of the random choices.
        num_perm, ngram: as in `Deduplicate`.
        action: "remove" drops the others, counted as `not_selected` or `too_similar`; "flag" keeps all rows and
            adds the column `is_selected`.

    Example::

        texts = ["Name a river in Asia.", "Name a river in Asia, please.", "Prove that two is prime."]
        with Pipeline(name="example") as pipeline:
            data = LoadDataFromDicts([{"instruction": text} for text in texts])
            data >> DiversitySelect("instruction", n=2, action="flag")

    Result::

        {'instruction': 'Name a river in Asia.', 'is_selected': False}
        {'instruction': 'Name a river in Asia, please.', 'is_selected': True}
        {'instruction': 'Prove that two is prime.', 'is_selected': True}
    """

    def __init__(
        self,
        columns: Sequence[str] | str,
        *,
        n: int | None = None,
        fraction: float | None = None,
        method: Method = "farthest_first",
        max_similarity: float = 0.5,
        seed: int = 0,
        num_perm: int = 64,
        ngram: int = 2,
        action: Action = "remove",
        name: str | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        one_of("DiversitySelect", "method", method, ("farthest_first", "repetition_filter"))
        one_of("DiversitySelect", "action", action, ("remove", "flag"))
        if (n is None) == (fraction is None):
            raise PipelineError(
                "DiversitySelect takes either n or fraction",
                step="DiversitySelect",
                hint="Write DiversitySelect(columns, n=1000) or DiversitySelect(columns, fraction=0.1).",
            )
        if n is not None:
            whole_number("DiversitySelect", "n", n, least=1)
        if fraction is not None:
            share("DiversitySelect", "fraction", fraction)
        share("DiversitySelect", "max_similarity", max_similarity)
        whole_number("DiversitySelect", "num_perm", num_perm, least=1)
        whole_number("DiversitySelect", "ngram", ngram, least=1)
        self.inputs: tuple[str, ...] = column_names("DiversitySelect", "columns", columns)
        self.outputs: tuple[str, ...] = ("is_selected",) if action == "flag" else ()
        self.n = n
        self.fraction = fraction
        self.method = method
        self.max_similarity = max_similarity
        self.seed = seed
        self.num_perm = num_perm
        self.ngram = ngram
        self.action = action
        super().__init__(name=name, output_mappings=output_mappings)

    def decide(self, rows: AllRows) -> Iterable[Row | Dropped]:
        """One pass for the signatures (0.1 KB per row at 64 permutations), then the choice."""
        minhash = MinHash(self.num_perm, self.ngram)
        signatures = [minhash.signature(text_of(row, self.inputs)) for row in rows]
        wanted = self.n if self.n is not None else math.ceil(round((self.fraction or 0) * len(signatures), 6))
        rng = random.Random(stable_seed("diversity", self.seed))  # noqa: S311
        if self.method == "farthest_first":
            # Looking at a row now and then is what lets the engine stop a long choice.
            chosen, similar = farthest_first(signatures, wanted, rng, lambda: next(iter(rows), None)), set[int]()
        else:
            order = list(range(len(signatures)))
            rng.shuffle(order)
            chosen, similar = repetition_filter(signatures, order, wanted, self.max_similarity)
        for number in range(len(signatures)):
            if self.action == "flag":
                yield {"is_selected": number in chosen}
            elif number in chosen:
                yield {}
            else:
                yield Dropped("too_similar" if number in similar else "not_selected")


def farthest_first(
    signatures: Sequence[Signature], wanted: int, rng: random.Random, on_choice: Callable[[], object] = lambda: None
) -> set[int]:
    """Numbers of `wanted` signatures, each the farthest from those before; the earliest of equals.

    `on_choice` is called after each, and may raise.
    """
    if wanted >= len(signatures):
        return set(range(len(signatures)))
    newest = rng.randrange(len(signatures))
    chosen = {newest}
    nearest = [0.0] * len(signatures)  # similarity to the most similar one chosen
    left = [number for number in range(len(signatures)) if number != newest]
    while len(chosen) < wanted:
        latest = signatures[newest]
        for number in left:
            if nearest[number] < 1 and (similarity := resemblance(signatures[number], latest)) > nearest[number]:
                nearest[number] = similarity
        newest = min(left, key=nearest.__getitem__)
        chosen.add(newest)
        left.remove(newest)
        on_choice()
    return chosen


def repetition_filter(
    signatures: Sequence[Signature], order: Iterable[int], wanted: int, max_similarity: float
) -> tuple[set[int], set[int]]:
    """(chosen, refused): in `order`, those less than `max_similarity` like all chosen, until `wanted` are.

    Later rows are in neither.
    """
    chosen: set[int] = set()
    refused: set[int] = set()
    kept: NearIndex | None = None
    for number in order:
        if len(chosen) >= wanted:
            break
        signature = signatures[number]
        kept = kept or NearIndex(len(signature), max_similarity)
        if kept.nearest(signature) is None:
            kept.add(signature)
            chosen.add(number)
        else:
            refused.add(number)
    return chosen, refused
