"""`Deduplicate`: keeps the first of equal or nearly equal rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from asyncsynth.pipeline.step import AllRows, Dropped, GlobalStep
from asyncsynth.records import Row, canonical_json
from asyncsynth.steps.arguments import column_names, one_of
from asyncsynth.steps.minhash import MinHash, NearIndex, share, text_of, whole_number

Method = Literal["exact", "minhash"]
Action = Literal["remove", "flag"]


class Deduplicate(GlobalStep):
    """Removes or flags rows that repeat an earlier row of the input. Waits for all rows.

    Args:
        columns: the columns to compare, together; a missing value counts as null.
        method: "exact" compares the columns unchanged; "minhash" finds near-duplicates (see `steps.minhash`).
        threshold: near-duplicates share at least this part of their word n-grams, above 0 and at most 1.
        num_perm: size of the MinHash signatures: larger is more exact, slower, and takes more memory.
        ngram: words in an n-gram.
        action: "remove" drops duplicates, counted as `duplicate`; "flag" keeps all rows and adds the column
            `is_duplicate`.

    Each row is compared with the rows kept so far, not with those removed. Memory: about 0.1 KB per kept row when
    exact, 2 KB with the defaults of MinHash.

    Example::

        texts = ["Name a river.", "Name a lake.", "Name a river."]
        with Pipeline(name="example") as pipeline:
            LoadDataFromDicts([{"instruction": text} for text in texts]) >> Deduplicate("instruction")

    Result::

        {'instruction': 'Name a river.'}
        {'instruction': 'Name a lake.'}
    """

    def __init__(
        self,
        columns: Sequence[str] | str,
        *,
        method: Method = "exact",
        threshold: float = 0.8,
        num_perm: int = 128,
        ngram: int = 3,
        action: Action = "remove",
        name: str | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        one_of("Deduplicate", "method", method, ("exact", "minhash"))
        one_of("Deduplicate", "action", action, ("remove", "flag"))
        share("Deduplicate", "threshold", threshold)
        whole_number("Deduplicate", "num_perm", num_perm, least=1)
        whole_number("Deduplicate", "ngram", ngram, least=1)
        self.inputs: tuple[str, ...] = column_names("Deduplicate", "columns", columns)
        self.outputs: tuple[str, ...] = ("is_duplicate",) if action == "flag" else ()
        self.method = method
        self.threshold = threshold
        self.num_perm = num_perm
        self.ngram = ngram
        self.action = action
        super().__init__(name=name, output_mappings=output_mappings)

    def decide(self, rows: AllRows) -> Iterable[Row | Dropped]:
        """One pass: each row is compared when it arrives."""
        repeats = self._exact(rows) if self.method == "exact" else self._near(rows)
        if self.action == "flag":
            return ({"is_duplicate": repeat} for repeat in repeats)
        duplicate = Dropped("duplicate")
        return (duplicate if repeat else {} for repeat in repeats)

    def _exact(self, rows: AllRows) -> Iterator[bool]:
        """By 128-bit digests: two different rows count as equal less than once in 10^20 runs of a billion."""
        seen: set[bytes] = set()
        for row in rows:
            values = canonical_json([row.get(column) for column in self.inputs])
            digest = hashlib.blake2b(values, digest_size=16).digest()
            yield digest in seen
            seen.add(digest)

    def _near(self, rows: AllRows) -> Iterator[bool]:
        minhash = MinHash(self.num_perm, self.ngram)
        kept = NearIndex(self.num_perm, self.threshold)
        for row in rows:
            signature = minhash.signature(text_of(row, self.inputs))
            repeat = kept.nearest(signature) is not None
            if not repeat:
                kept.add(signature)
            yield repeat
