"""The base of tasks that send a prompt unchanged: the text of the answer, and the tools that the model may call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task, TaskSettings
from asyncsynth.tasks.tool_schema import ToolGiven, tool_schemas


class Generation(Task):
    """Base of `TextGeneration` and `ChatGeneration`.

    Args:
        tools: tools that the model may call: schemas of the OpenAI API, or functions, which become schemas. The task
            then also writes the column `tool_calls`.
        tool_choice: as in the OpenAI API: "auto", "none", "required", or a mapping that names a function.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        tools: Sequence[ToolGiven] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        **settings: Unpack[TaskSettings],
    ) -> None:
        self.tools = None if tools is None else tool_schemas(type(self).__name__, tools)
        self.tool_choice = tool_choice
        self.reads_tool_calls = self.tools is not None or bool(getattr(llm, "extra_body", {}).get("tools"))
        if self.reads_tool_calls:
            first, *others = self.outputs
            self.outputs: tuple[str, ...] = (first, "tool_calls", *others)
        super().__init__(llm, **settings)

    def request_fields(self) -> dict[str, Any]:
        """The tools, if there are any."""
        fields: dict[str, Any] = {}
        if self.tools is not None:
            fields["tools"] = self.tools
        if self.tool_choice is not None:
            fields["tool_choice"] = self.tool_choice
        return fields

    def settings(self) -> dict[str, Any]:
        """As for every task; without settings that are not used, so that earlier results stay valid."""
        settings = super().settings()
        for name in ("tools", "tool_choice"):
            if settings[name] is None:
                del settings[name]
        if self.reads_tool_calls and self.tools is None:  # the tools are among the model's own settings
            settings["reads_tool_calls"] = True
        return settings

    def parse(self, choice: Choice, row: Row) -> Row:
        """The text as the model wrote it, without surrounding white space; and its tool calls, if it has tools."""
        if not self.reads_tool_calls:
            return {"generation": choice.text.strip()}
        return {"generation": choice.text.strip(), "tool_calls": choice.tool_calls}
