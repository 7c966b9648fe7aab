"""`TextGeneration`: an answer to an instruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from jinja2 import meta

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Message
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import TaskSettings, text_of
from asyncsynth.tasks.generation import Generation
from asyncsynth.tasks.templates import check_template, environment, render
from asyncsynth.tasks.tool_schema import ToolGiven


class TextGeneration(Generation):
    """Answers an instruction.

    Columns: ``instruction``, optionally ``system_prompt`` -> ``generation``, ``model_name`` (the model that
    really answered).

    Args:
        template: a Jinja template over columns of the row, instead of sending ``instruction`` unchanged; the
            columns it names become the task's inputs.
        tools: tools that the model may call: schemas of the OpenAI API, or Python functions, which become schemas. The
            task then also writes ``tool_calls``: the calls as the server sent them, or None. `ToolChat` runs them.
        tool_choice: as in the OpenAI API: "auto", "none", "required", or a mapping that names a function.
        Others: see `Task`.
    """

    outputs: tuple[str, ...] = ("generation", "model_name")

    def __init__(
        self,
        llm: LLM,
        *,
        template: str | None = None,
        tools: Sequence[ToolGiven] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        **settings: Unpack[TaskSettings],
    ) -> None:
        self.template = template
        self.inputs = ("instruction",)
        if template is not None:
            check_template(template)
            named = meta.find_undeclared_variables(environment().parse(template))
            self.inputs: tuple[str, ...] = tuple(sorted(named - {"system_prompt"} - set(environment().globals)))
        super().__init__(llm, tools=tools, tool_choice=tool_choice, **settings)

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """One user turn."""
        text = text_of(row, "instruction") if self.template is None else render(self.template, row)
        return [{"role": "user", "content": text}]
