"""Chat messages in rows: what a valid conversation is, and the text in a message.

A message is a mapping with the keys of the OpenAI API. This module checks its form, so that an error names the
message. Every key is passed on unchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson

from asyncsynth.calling import nearest
from asyncsynth.client.messages import Message

ROLES = ("system", "developer", "user", "assistant", "tool")
#: Roles whose message sets the model's behaviour; it comes first.
SYSTEM_ROLES = ("system", "developer")
#: Roles that the last message may have when a model is asked to answer.
ASKING_ROLES = ("user", "tool")


def checked_conversation(value: Any) -> tuple[list[Message], str]:
    """(a copy of a list of messages, ''), or ([], what is wrong with it).

    The copy is one level deep: each message is a new dict with the same values.
    """
    if not isinstance(value, list) or not value:
        return [], f"{value!r:.60} is not a list of messages"
    for number, message in enumerate(value):
        if fault := message_fault(message):
            return [], f"message {number} is {message!r:.80}; {fault}"
        if number and message["role"] in SYSTEM_ROLES:
            return [], f"message {number} is a {message['role']} message; it can only be the first"
    return [cast(Message, dict(message)) for message in value], ""


def message_fault(message: Any, *, any_role: bool = False) -> str:
    """What was expected, for a value that is not a message; '' for a message. `any_role`: a role may be any text."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(role, str) or not (any_role or role in ROLES):
        meant = nearest(role, ROLES) if isinstance(role, str) else ""
        return f"a mapping with a role ({', '.join(ROLES)}){meant} and a content was expected"
    content, calls = message.get("content"), message.get("tool_calls")
    if calls is not None and (
        role != "assistant" or not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls)
    ):
        return "tool_calls must be a list of mappings in an assistant message"
    if isinstance(content, str) or (content is None and calls):
        return ""
    if isinstance(content, list):
        if all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in content):
            return ""
        return 'each part of a content must be a mapping with a "type"'
    return "the content must be text or a list of parts (only a message with tool_calls needs none)"


def text_in(content: Any) -> str:
    """The text of a message's content: of a list of parts, the texts of its parts with a line break between."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text")
        return "\n".join(text for text in texts if isinstance(text, str))
    return ""


def for_templates(message: Message) -> Message:
    """A message with tool calls as chat templates read it: arguments that are the JSON text of an object become that
    object, and a missing content the empty text. Any other message is returned as it is."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    made: list[dict[str, Any]] = []
    for call in calls:
        function = call.get("function")
        if isinstance(function, Mapping) and isinstance(text := function.get("arguments"), str):
            with contextlib.suppress(orjson.JSONDecodeError):
                if isinstance(found := orjson.loads(text or "{}"), dict):
                    call = {**call, "function": {**function, "arguments": found}}
        made.append(call)
    content = message.get("content")
    return {**message, "content": "" if content is None else content, "tool_calls": made}


def is_blank(message: Mapping[str, Any]) -> bool:
    """True if a message is empty: no text, no part other than text, no tool call."""
    content = message.get("content")
    if message.get("tool_calls") or text_in(content).strip():
        return False
    return not isinstance(content, list) or all(part.get("type") == "text" for part in content)


def system_text(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The text of the system message that a conversation begins with; None if there is none."""
    head = messages[0] if messages else {}
    return text_in(head.get("content")) if head.get("role") in SYSTEM_ROLES else None
