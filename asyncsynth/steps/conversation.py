"""Prompts in the two layouts of TRL: text ("standard") and messages ("conversational")."""

from __future__ import annotations

from typing import Any, Literal

from asyncsynth.client.messages import Message
from asyncsynth.errors import RecordError
from asyncsynth.records import Row

Layout = Literal["standard", "conversational"]
LAYOUTS = ("standard", "conversational")


def prompt_messages(seen: Row) -> list[Message]:
    """The conversation to be answered: `messages`, or `system_prompt` and `instruction`.

    Raises RecordError (`bad_prompt`) for what is not a conversation that ends with the user.
    """
    if seen.get("messages") is not None:
        messages = checked_messages(seen["messages"])
    else:
        instruction = seen.get("instruction")
        if not isinstance(instruction, str) or not instruction.strip():
            raise RecordError(f"the instruction is {instruction!r:.60}; text was expected", reason="bad_prompt")
        messages = [Message(role="user", content=instruction)]
    if messages[-1]["role"] != "user":
        raise RecordError(
            f"the last message is the {messages[-1]['role']}'s; the user's was expected", reason="bad_prompt"
        )
    system = seen.get("system_prompt")
    if isinstance(system, str) and system and messages[0]["role"] != "system":
        messages.insert(0, Message(role="system", content=system))
    return messages


def prompt_text(seen: Row) -> str:
    """The prompt as text: the instruction, or a conversation's only user message. Raises RecordError."""
    messages = [message for message in prompt_messages(seen) if message["role"] != "system"]
    if len(messages) > 1:
        raise RecordError(
            'a conversation of several turns has no standard layout; use layout="conversational"',
            reason="bad_prompt",
        )
    return messages[0]["content"]


def checked_messages(value: Any) -> list[Message]:
    """A copy of a list of messages. Raises RecordError (`bad_prompt`) for anything else."""
    if not isinstance(value, list) or not value:
        raise RecordError(f"{value!r:.60} is no list of messages", reason="bad_prompt")
    messages: list[Message] = []
    for message in value:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise RecordError(f"{message!r:.60} is no message with role and content", reason="bad_prompt")
        messages.append(Message(role=role, content=content))
    return messages
