"""`QualityScorer`: how good responses to an instruction are (arXiv 2312.15685)."""

from __future__ import annotations

from typing import ClassVar

from asyncsynth.client.messages import Message
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import text_of
from asyncsynth.tasks.scoring import Scorer


class QualityScorer(Scorer):
    """Scores responses to one instruction from 1 (useless) to 6 (outstanding).

    All responses of a row are scored in one call, so that the judge compares them: versions of one response
    from `EvolQuality`, or those of several models put together by `GroupColumns`.

    Columns: ``instruction``, ``responses`` (list of str) -> ``scores`` (list of int, as long as ``responses``;
    None for one that is blank or that the judge declined), ``judge_model``.

    Args: see `Task`.

    Example:
        ``{"instruction": "What are tides?", "responses": ["Water.", "The rise and fall of the sea, caused by
        the moon and the sun."]}`` -> ``{"scores": [1, 5], "judge_model": "..."}``

    Paper: DEITA, arXiv 2312.15685.
    """

    inputs: tuple[str, ...] = ("instruction", "responses")
    subject = "responses"
    prompt: ClassVar[str | None] = "quality_scorer"

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """The scale, the instruction, the responses."""
        text_of(row, "instruction")
        return super().messages(row, ctx)
