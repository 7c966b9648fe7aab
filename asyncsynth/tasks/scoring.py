"""The base of DEITA's scorers: one whole number for each text of a list, all in one call."""

from __future__ import annotations

from typing import Any, ClassVar

from asyncsynth.client.messages import Choice, Message
from asyncsynth.errors import TaskFailure
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task
from asyncsynth.tasks.ratings import LOWEST, read_ratings
from asyncsynth.tasks.schemas import array_of, object_of, whole_number
from asyncsynth.tasks.templates import prompt_source, render

#: DEITA's scale.
HIGHEST_SCORE = 6


class Scorer(Task):
    """Base of the tasks that score a list of texts from 1 to 6."""

    version = 3  # the model is named in judge_model
    #: The column with the list.
    subject: ClassVar[str]

    outputs: tuple[str, ...] = ("scores", "judge_model")

    def answers_prompt(self) -> bool:
        """False: its texts do not answer the prompt of the row."""
        return False

    async def sample(self, row: Row, ctx: Context, number: int) -> Row:
        """Scores in the places of their texts. Blank texts are not sent; their score is None."""
        texts = texts_of(row, self.subject)
        places = [place for place, text in enumerate(texts) if text.strip()]
        scores: list[int | None] = [None] * len(texts)
        if not places:
            return {"scores": scores, "judge_model": self.llm.model}
        found = await self.answer({**row, self.subject: [texts[place] for place in places]}, ctx, number)
        for place, score in zip(places, found["scores"], strict=True):
            scores[place] = score
        return {"scores": scores, "judge_model": found["judge_model"]}

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """The scale first (servers cache a common prefix), then the texts."""
        values = {**row, "highest": HIGHEST_SCORE}
        return [{"role": "user", "content": render(prompt_source(self.prompt or ""), values)}]

    def schema(self, row: Row) -> dict[str, Any]:
        """As many scores as there are texts."""
        return object_of({"scores": array_of(whole_number(LOWEST, HIGHEST_SCORE), len(row[self.subject]))})

    def parse(self, choice: Choice, row: Row) -> Row:
        """Scores from JSON, or from the model's text on a server without schemas."""
        found = read_ratings(choice.text, len(row[self.subject]), highest=HIGHEST_SCORE)
        return {"scores": [evaluation.rating for evaluation in found]}


def texts_of(row: Row, name: str) -> list[str]:
    """A list of texts, '' for None. Raises TaskFailure for anything but a list of texts."""
    texts = row[name]
    if not isinstance(texts, list) or any(not isinstance(text, str | None) for text in texts):
        raise TaskFailure(f"the input {name!r} is not a list of texts", reason="bad_input")
    return [text or "" for text in texts]
