"""`TextGeneration`: an answer to an instruction."""

from __future__ import annotations

from typing import Unpack

from jinja2 import meta

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice, Message
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task, TaskSettings, text_of
from asyncsynth.tasks.templates import check_template, environment, render


class TextGeneration(Task):
    """Answers an instruction.

    Columns: ``instruction``, optionally ``system_prompt`` -> ``generation``, ``model_name`` (the model that
    really answered).

    Args:
        template: a Jinja template over columns of the row, instead of sending ``instruction`` as it is; the
            columns it names become the task's inputs.
        Others: see `Task`.
    """

    outputs: tuple[str, ...] = ("generation", "model_name")

    def __init__(self, llm: LLM, *, template: str | None = None, **settings: Unpack[TaskSettings]) -> None:
        self.template = template
        self.inputs = ("instruction",)
        if template is not None:
            check_template(template)
            named = meta.find_undeclared_variables(environment().parse(template))
            self.inputs: tuple[str, ...] = tuple(sorted(named - {"system_prompt"} - set(environment().globals)))
        super().__init__(llm, **settings)

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """One user turn."""
        text = text_of(row, "instruction") if self.template is None else render(self.template, row)
        return [{"role": "user", "content": text}]

    def parse(self, choice: Choice, row: Row) -> Row:
        """The text as the model wrote it, without surrounding white space."""
        return {"generation": choice.text.strip()}
