"""`ComplexityScorer`: how demanding instructions are (arXiv 2312.15685)."""

from __future__ import annotations

from typing import ClassVar

from asyncsynth.tasks.scoring import Scorer


class ComplexityScorer(Scorer):
    """Scores instructions by how hard they are to answer well, from 1 (trivial) to 6 (very demanding).

    All instructions of a row are scored in one call, so that the judge compares them: versions of one
    instruction from `EvolComplexity`, or different ones put together by `GroupColumns`.

    Columns: ``instructions`` (list of str) -> ``scores`` (list of int, as long as ``instructions``; None for one
    that is blank or that the judge declined), ``judge_model``.

    Args: see `Task`.

    Example:
        ``{"instructions": ["Name a colour.", "Prove that there are infinitely many primes."]}`` ->
        ``{"scores": [1, 5], "judge_model": "..."}``

    Paper: DEITA, arXiv 2312.15685.
    """

    inputs: tuple[str, ...] = ("instructions",)
    subject = "instructions"
    prompt: ClassVar[str | None] = "complexity_scorer"
