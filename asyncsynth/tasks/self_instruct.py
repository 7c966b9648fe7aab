"""`SelfInstruct`: instructions made from a text (arXiv 2212.10560)."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice, Message
from asyncsynth.errors import ConfigurationError, ParseFailure
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task, TaskSettings, text_of
from asyncsynth.tasks.copied import copies_prompt
from asyncsynth.tasks.lists import distinct, read_list
from asyncsynth.tasks.parsing import words
from asyncsynth.tasks.schemas import array_of, object_of, text_up_to
from asyncsynth.tasks.templates import prompt_source, render

_MAX_INSTRUCTION_CHARS = 600
#: Keeps the seeds of the requests for missing instructions apart from those of `num_generations`.
_ROUND_STRIDE = 10_000

DEFAULT_CRITERIA = (
    "Begin each with another verb or question word. Mix questions with requests, easy ones with hard ones, and call"
    " for answers of different forms. Each must be possible to answer in writing, and must be understood without"
    " the text."
)
DEFAULT_APPLICATION = "an AI assistant that answers in writing"


class SelfInstruct(Task):
    """Makes instructions that users could give an assistant, from a text that gives their subject.

    Columns: ``input`` -> ``instructions`` (list of str), ``model_name``. The list is clean: no preamble,
    numbering, bullets, blanks, duplicates, or sentences copied from the text or the prompt. It holds at most
    `num_instructions`; if a model writes fewer different ones, the missing ones are requested again (at most
    `max_reasks` times, showing those that exist), and the number still missing is noted as
    ``missing_instructions`` in the row's provenance. A row without any instruction fails with
    ``parse_failure``.

    Args:
        num_instructions: how many to request (5).
        criteria_for_query_generation: what makes a good instruction; by default variety in verbs, form and
            difficulty, within what can be answered in writing.
        application_description: the assistant that the instructions are for.
        structured: constrain the answer by a JSON schema, if the server honours one. Off by default: models of
            few billion parameters or less write much better instructions as plain lines, which are read as well.
        Others: see `Task`.

    Example:
        ``{"input": "Tides come from the pull of the moon."}`` ->
        ``{"instructions": ["Explain to a child why the sea rises and falls.", ...], "model_name": "..."}``

    Paper: Self-Instruct, arXiv 2212.10560.
    """

    version = 2  # if an answer holds several values, the last one counts
    inputs: tuple[str, ...] = ("input",)
    outputs: tuple[str, ...] = ("instructions", "model_name")
    prompt: ClassVar[str | None] = "self_instruct"

    def __init__(
        self,
        llm: LLM,
        *,
        num_instructions: int = 5,
        criteria_for_query_generation: str = DEFAULT_CRITERIA,
        application_description: str = DEFAULT_APPLICATION,
        structured: bool = False,
        **settings: Unpack[TaskSettings],
    ) -> None:
        if num_instructions < 1:
            raise ConfigurationError(f"SelfInstruct: num_instructions is {num_instructions}; it must be 1 or more")
        self.num_instructions = num_instructions
        self.criteria_for_query_generation = criteria_for_query_generation
        self.application_description = application_description
        self.structured = structured
        super().__init__(llm, **settings)

    def answers_prompt(self) -> bool:
        """False: its texts do not answer the prompt of the row."""
        return False

    async def sample(self, row: Row, ctx: Context, number: int) -> Row:
        """One list, completed by further requests if the first gives too few."""
        done: list[str] = []
        model = self.llm.model
        for round_number in range(self.max_reasks + 1):
            view = {**row, "taken": done}
            try:
                found = await self.answer(view, ctx, number + round_number * _ROUND_STRIDE)
            except ParseFailure:
                if done:
                    break  # what exists stays; only the rest could not be generated
                raise
            done += distinct(found["instructions"], seen=done)
            model = found["model_name"]
            if len(done) >= self.num_instructions:
                break
        if (missing := self.num_instructions - len(done)) > 0:
            ctx.notes["missing_instructions"] = ctx.notes.get("missing_instructions", 0) + missing
        return {"instructions": done[: self.num_instructions], "model_name": model}

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """The text first and the request last: small models forget what comes before a text."""
        taken = row.get("taken", [])
        values = {
            "input": text_of(row, "input"),
            "count": self.num_instructions - len(taken),
            "criteria": self.criteria_for_query_generation,
            "application": self.application_description,
            "taken": taken,
            "structured": self.structured,
        }
        return [{"role": "user", "content": render(prompt_source("self_instruct"), values)}]

    def constrains(self) -> bool:
        """If `structured` is set."""
        return self.structured

    def schema(self, row: Row) -> dict[str, Any] | None:
        """A list of as many texts as are still wanted, if the answer is constrained."""
        if not self.structured:
            return None
        count = self.num_instructions - len(row.get("taken", []))
        return object_of({"instructions": array_of(text_up_to(_MAX_INSTRUCTION_CHARS), count)})

    def parse(self, choice: Choice, row: Row) -> Row:
        """The list, from JSON or from lines under any numbering."""
        found = [
            item
            for item in read_list(choice.text, cut=choice.finish_reason == "length")
            if not is_copied(item, row["input"])
        ]
        if not found:
            raise ParseFailure("instructions: the answer holds none", raw=choice.text)
        return {"instructions": found}


def is_copied(item: str, text: str) -> bool:
    """Whether an item only repeats the text or the prompt, as small models do."""
    said = " ".join(words(item))
    return said in " ".join(words(text)) or copies_prompt(item, text, "self_instruct")
