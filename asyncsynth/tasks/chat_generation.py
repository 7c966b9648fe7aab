"""`ChatGeneration`: the next turn of a conversation."""

from __future__ import annotations

from typing import Any

from asyncsynth.client.messages import Choice, Message
from asyncsynth.errors import TaskFailure
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task

_ROLES = ("system", "user", "assistant")


class ChatGeneration(Task):
    """Answers a conversation, whose last message must be the user's.

    Columns: ``messages`` (list of ``{"role", "content"}``), optionally ``system_prompt`` -> ``generation``,
    ``model_name`` (the model that really answered).

    A system message at the head of ``messages`` wins over the row's and the task's system prompt. A
    conversation that is malformed, or does not end with the user, fails its row (`bad_input`).

    Args: see `Task`.

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
        return messages if messages[0]["role"] == "system" else super().conversation(row, ctx)

    def system_sent(self, row: Row, ctx: Context, number: int) -> str | None:
        """That of the messages, the row's or the task's."""
        head = row["messages"][0]
        return head["content"] if head["role"] == "system" else super().system_sent(row, ctx, number)

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """The row's messages, checked."""
        return user_conversation(row["messages"])

    def parse(self, choice: Choice, row: Row) -> Row:
        """The text as the model wrote it, without surrounding white space."""
        return {"generation": choice.text.strip()}


def user_conversation(value: Any) -> list[Message]:
    """A copy of a list of messages that ends with the user's. Raises TaskFailure (`bad_input`) for another."""
    if not isinstance(value, list) or not value:
        raise TaskFailure("the input 'messages' is not a list of messages", reason="bad_input")
    messages: list[Message] = []
    for number, message in enumerate(value):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in _ROLES or not isinstance(content, str):
            raise TaskFailure(
                f"message {number} is {message!r:.80}; a role ({', '.join(_ROLES)}) and a text were expected",
                reason="bad_input",
            )
        if role == "system" and number:
            raise TaskFailure(f"message {number} is a system message; it can only be the first", reason="bad_input")
        messages.append({"role": role, "content": content})
    last = messages[-1]
    if last["role"] != "user":
        raise TaskFailure(f"the last message is the {last['role']}'s; the user's was expected", reason="bad_input")
    if not last["content"].strip():
        raise TaskFailure("the last message is blank", reason="bad_input")
    return messages
