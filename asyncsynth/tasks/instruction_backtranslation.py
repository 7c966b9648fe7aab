"""`InstructionBacktranslation`: whether a text is a good answer to an instruction. (arXiv 2308.06259)"""

from __future__ import annotations

from typing import Any, ClassVar

from asyncsynth.client.messages import Choice, Message
from asyncsynth.errors import ParseFailure
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task, text_of
from asyncsynth.tasks.ratings import HIGHEST, LOWEST, read_ratings
from asyncsynth.tasks.schemas import object_of, text_up_to, whole_number
from asyncsynth.tasks.templates import prompt_source, render

_MAX_REASON_CHARS = 600


class InstructionBacktranslation(Task):
    """Scores how well a text serves as an AI assistant's answer to an instruction, from 1 to 5, with the reason.

    The curation step of instruction backtranslation: instructions are made for texts that people wrote, and
    pairs in which the text is not a good answer are then filtered out (the paper keeps those with a 5).

    Columns: ``instruction``, ``generation`` -> ``score`` (int), ``reason`` (str), ``judge_model``.

    Args: see `Task`.

    Example:
        ``{"instruction": "How do I boil an egg?", "generation": "Eggs are eaten worldwide. Buy ours!"}`` ->
        ``{"score": 1, "reason": "It advertises and does not say how.", "judge_model": "..."}``

    Paper: Self-Alignment with Instruction Backtranslation, arXiv 2308.06259.
    """

    version = 3  # the model is named in judge_model
    inputs: tuple[str, ...] = ("instruction", "generation")
    outputs: tuple[str, ...] = ("score", "reason", "judge_model")
    prompt: ClassVar[str | None] = "instruction_backtranslation"

    def answers_prompt(self) -> bool:
        """False: its texts do not answer the prompt of the row."""
        return False

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """The scale first (servers cache a common prefix), then the pair."""
        values = {name: text_of(row, name) for name in self.inputs}
        return [{"role": "user", "content": render(prompt_source("instruction_backtranslation"), values)}]

    def schema(self, row: Row) -> dict[str, Any]:
        """The reason before the score."""
        return object_of({"reason": text_up_to(_MAX_REASON_CHARS), "score": whole_number(LOWEST, HIGHEST)})

    def parse(self, choice: Choice, row: Row) -> Row:
        """Score and reason from JSON, or from the model's text on a server without schemas."""
        [found] = read_ratings(choice.text, 1)
        if found.rating is None:
            raise ParseFailure("score: the judge gave none", raw=choice.text)
        return {"score": found.rating, "reason": found.rationale}
