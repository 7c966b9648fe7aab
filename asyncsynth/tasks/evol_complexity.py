"""`EvolComplexity`: instructions of growing complexity (arXiv 2312.15685)."""

from __future__ import annotations

from typing import ClassVar

from asyncsynth.tasks.evol_instruct import IN_DEPTH, EvolInstruct


class EvolComplexity(EvolInstruct):
    """Rewrites an instruction into harder and harder ones: `EvolInstruct` only in depth.

    A chain of versions of one instruction, to be ranked by `ComplexityScorer`: with `store_evolutions` and
    `include_original_instruction`, the versions of a row are what DEITA trains its scorer on.

    Columns: ``instruction``, optionally ``system_prompt`` -> ``evolved_instruction`` (or
    ``evolved_instructions``), ``answer`` (or ``answers``) with `generate_answers`, ``model_name``.

    Args:
        mutations: out of ``constraints``, ``deepen``, ``concretise`` and ``reasoning``; all by default.
        Others: see `EvolInstruct` and `Task`.

    Example:
        ``{"instruction": "Sort a list."}`` -> ``{"evolved_instruction": "Sort a list of 10 million numbers that
        does not fit into memory.", "model_name": "..."}``

    Paper: DEITA, arXiv 2312.15685.
    """

    mutations_known: ClassVar[tuple[str, ...]] = IN_DEPTH
