"""`DeitaFilter`: the best rows by complexity and quality that do not repeat one another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from asyncsynth.pipeline.step import AllRows, Dropped, GlobalStep
from asyncsynth.records import Row
from asyncsynth.steps.arguments import column_names, one_of
from asyncsynth.steps.diversity_select import repetition_filter
from asyncsynth.steps.minhash import MinHash, Signature, share, text_of, whole_number

Action = Literal["remove", "flag"]


class DeitaFilter(GlobalStep):
    """Score-first, diversity-aware selection (Liu et al., DEITA, arXiv 2312.15685). Waits for all rows.

    A row's score is complexity × quality; for a dialogue with lists of scores, the sum over its turns. The step takes
    rows from the highest score down, skips each whose similarity to a row already taken is `max_similarity` or more,
    and stops at `data_budget` rows. The paper compares embeddings by cosine; this step compares word n-grams (see
    `steps.minhash`), which finds fewer rewordings and needs no model. Rows stay in input order.

    Args:
        columns: the columns to compare, together, as text.
        data_budget: rows to keep at most.
        complexity, quality: columns with the scores: a number, or a list of numbers.
        max_similarity: above 0 and at most 1.
        num_perm, ngram: as in `Deduplicate`.
        action: "remove" drops the others, counted as `no_score` (missing or None), `too_similar` or `over_budget`;
            "flag" keeps all rows and adds the column `is_selected`.

    Adds the column `deita_score` (None if there is no score). Memory: 0.2 KB per row and 1.5 KB more per
    kept row.

    Example::

        rows = [
            {"instruction": "Name a river in Asia.", "complexity_scores": 2, "quality_scores": 3},
            {"instruction": "Name a river in Asia.", "complexity_scores": 2, "quality_scores": 5},
            {"instruction": "Prove that two is prime.", "complexity_scores": 4, "quality_scores": 4},
        ]
        with Pipeline(name="example") as pipeline:
            best = DeitaFilter("instruction", data_budget=2)
            LoadDataFromDicts(rows) >> best >> KeepColumns(["instruction", "deita_score"])

    Result::

        {'instruction': 'Name a river in Asia.', 'deita_score': 10.0}
        {'instruction': 'Prove that two is prime.', 'deita_score': 16.0}
    """

    def __init__(
        self,
        columns: Sequence[str] | str,
        *,
        data_budget: int,
        complexity: str = "complexity_scores",
        quality: str = "quality_scores",
        max_similarity: float = 0.5,
        num_perm: int = 128,
        ngram: int = 2,
        action: Action = "remove",
        name: str | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        one_of("DeitaFilter", "action", action, ("remove", "flag"))
        whole_number("DeitaFilter", "data_budget", data_budget, least=1)
        share("DeitaFilter", "max_similarity", max_similarity)
        whole_number("DeitaFilter", "num_perm", num_perm, least=1)
        whole_number("DeitaFilter", "ngram", ngram, least=1)
        self.columns: tuple[str, ...] = column_names("DeitaFilter", "columns", columns)
        self.complexity: str
        self.quality: str
        self.complexity, self.quality = column_names("DeitaFilter", "complexity and quality", (complexity, quality))
        self.inputs: tuple[str, ...] = tuple(dict.fromkeys((*self.columns, complexity, quality)))
        self.outputs: tuple[str, ...] = ("deita_score", "is_selected") if action == "flag" else ("deita_score",)
        self.data_budget = data_budget
        self.max_similarity = max_similarity
        self.num_perm = num_perm
        self.ngram = ngram
        self.action = action
        super().__init__(name=name, output_mappings=output_mappings)

    def decide(self, rows: AllRows) -> Iterable[Row | Dropped]:
        """One pass for scores and signatures, then the choice."""
        minhash = MinHash(self.num_perm, self.ngram)
        scores: list[float | None] = []
        signatures: list[Signature] = []
        for row in rows:
            score = deita_score(row.get(self.complexity), row.get(self.quality))
            scores.append(score)
            # Rows without a score are never compared.
            signatures.append(_NONE if score is None else minhash.signature(text_of(row, self.columns)))
        ranked = sorted(
            (number for number, score in enumerate(scores) if score is not None),
            key=lambda number: (-(scores[number] or 0), number),
        )
        chosen, similar = repetition_filter(signatures, ranked, self.data_budget, self.max_similarity)
        for number, score in enumerate(scores):
            if self.action == "flag":
                yield {"deita_score": score, "is_selected": number in chosen}
            elif number in chosen:
                yield {"deita_score": score}
            else:
                yield Dropped("no_score" if score is None else "too_similar" if number in similar else "over_budget")


def deita_score(complexity: Any, quality: Any) -> float | None:
    """The product of two scores, or the sum of the products of two lists; None for rows without a score."""
    if isinstance(complexity, list) and isinstance(quality, list):
        if not complexity or len(complexity) != len(quality):
            return None
        products = [deita_score(one, other) for one, other in zip(complexity, quality, strict=True)]
        known = [product for product in products if product is not None]
        return sum(known) if len(known) == len(products) else None
    numbers = (complexity, quality)
    if all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers):
        return float(complexity * quality)
    return None


_NONE: Signature = b""
