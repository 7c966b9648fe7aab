"""The similarity of two texts, in time linear in their length (difflib takes seconds on long answers)."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

#: Scripts written without spaces: each character is a token.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of the two multisets of neighbouring word pairs, case ignored: 0.0 to 1.0.

    Pairs, not words, so that "A beats B" and "B beats A" differ.
    """
    ours, theirs = _pairs(first), _pairs(second)
    union = (ours | theirs).total()
    return (ours & theirs).total() / union if union else 1.0


def tokens(text: str) -> list[str]:
    """The words and marks of a text, case folded; in scripts written without spaces, its characters."""
    return _TOKEN.findall(text.casefold())


def _pairs(text: str) -> Counter[tuple[str, str]]:
    return Counter(pairwise(["", *tokens(text), ""]))
