"""`ChatGeneration`: the next turn of a conversation."""

from __future__ import annotations

from typing import Any

from asyncsynth.client.messages import Message
from asyncsynth.errors import TaskFailure
from asyncsynth.pipeline.chat_messages import ASKING_ROLES, checked_conversation, is_blank, system_text
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.generation import Generation


class ChatGeneration(Generation):
    """Answers a conversation, whose last message must be the user's or a tool's.

    Columns: ``messages`` (list of messages), optionally ``system_prompt`` -> ``generation``, ``model_name`` (the model
    that really answered).

    A message is a mapping with the keys of the OpenAI API. It is sent unchanged: text or a list of parts
    (images, audio), ``tool_calls``, ``name`` and keys that only your server knows. A system message at the head of
    ``messages`` wins over the row's and the task's system prompt. A conversation that is malformed, or ends with
    another message, fails its row (`bad_input`).

    Args:
        tools: tools that the model may call: schemas of the OpenAI API, or Python functions, which become schemas. The
            task then also writes ``tool_calls``: the calls as the server sent them, or None. `ToolChat` runs them.
        tool_choice: as in the OpenAI API: "auto", "none", "required", or a mapping that names a function.
        Others: see `Task`.

    Example::

        chat = ChatGeneration(llm=LLM(model="Qwen/Qwen2.5-1.5B-Instruct"))

    ``{"messages": [{"role": "user", "content": "How much is 2 + 2?"}]}`` gives
    ``{"generation": "2 + 2 is 4.", "model_name": "Qwen/Qwen2.5-1.5B-Instruct"}``.
    """

    inputs: tuple[str, ...] = ("messages",)
    outputs: tuple[str, ...] = ("generation", "model_name")

    def conversation(self, row: Row, ctx: Context) -> list[Message]:
        """The messages, with the system prompt before them unless they have one."""
        messages = self.messages(row, ctx)
        return messages if system_text(messages) is not None else super().conversation(row, ctx)

    def system_sent(self, row: Row, ctx: Context, number: int) -> str | None:
        """The prompt of the messages, or the row's or the task's."""
        own = system_text(row["messages"])
        return own if own is not None else super().system_sent(row, ctx, number)

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """The row's messages, checked."""
        return user_conversation(row["messages"])


def user_conversation(value: Any) -> list[Message]:
    """A copy of a list of messages that ends with the user's or a tool's. Raises TaskFailure (`bad_input`)."""
    messages, fault = checked_conversation(value)
    if fault:
        raise TaskFailure(f"the input 'messages': {fault}", reason="bad_input")
    last = messages[-1]
    if last["role"] not in ASKING_ROLES:
        raise TaskFailure(
            f"the last message is the {last['role']}'s; the user's or a tool's was expected", reason="bad_input"
        )
    if last["role"] == "user" and is_blank(last):
        raise TaskFailure("the last message is blank", reason="bad_input")
    return messages
