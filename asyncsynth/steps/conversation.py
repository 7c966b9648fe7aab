"""Prompts in the two layouts of TRL: text ("standard") and messages ("conversational")."""

from __future__ import annotations

from typing import Any, Literal, cast

from asyncsynth.client.messages import Message
from asyncsynth.errors import RecordError
from asyncsynth.pipeline.chat_messages import ASKING_ROLES, SYSTEM_ROLES, message_fault, system_text, text_in
from asyncsynth.pipeline.making import Makings
from asyncsynth.records import Row

Layout = Literal["standard", "conversational"]
LAYOUTS = ("standard", "conversational")
#: What to do with an answer that ended at max_tokens.
Truncated = Literal["drop", "keep"]
TRUNCATED = ("drop", "keep")
#: What to do with the system prompt under which the model answered.
SystemPrompt = Literal["keep", "column", "drop"]
SYSTEM_PROMPT = ("keep", "column", "drop")
#: How the content of messages is written.
Content = Literal["keep", "text", "parts"]
CONTENT = ("keep", "text", "parts")


def prompt_messages(seen: Row) -> list[Message]:
    """The conversation to be answered: `messages`, or the `instruction` as the user's message.

    Raises RecordError (`bad_prompt`) for anything but a conversation that ends with the user or a tool.
    """
    if seen.get("messages") is not None:
        messages = checked_messages(seen["messages"])
    else:
        instruction = seen.get("instruction")
        if not isinstance(instruction, str) or not instruction.strip():
            raise RecordError(f"the instruction is {instruction!r:.60}; text was expected", reason="bad_prompt")
        messages = [Message(role="user", content=instruction)]
    if messages[-1]["role"] not in ASKING_ROLES:
        raise RecordError(
            f"the last message is the {messages[-1]['role']}'s; the user's or a tool's was expected",
            reason="bad_prompt",
        )
    return messages


def text_of_prompt(messages: list[Message]) -> str:
    """A prompt as text: the system prompt, if there is one, a blank line, and the only user message.

    The standard layout has no roles, and a trainer puts no chat template around it, so text before the prompt is
    the only place where a system prompt reaches the model. Raises RecordError for several turns, and for a message
    that is more than text.
    """
    system = system_text(messages) or ""
    messages = messages[1:] if system else messages
    if len(messages) > 1:
        raise RecordError(
            'a conversation of several turns has no standard layout; use layout="conversational"',
            reason="bad_prompt",
        )
    prompt = text_of_message(messages[0])
    return f"{system}\n\n{prompt}" if system else prompt


def text_of_message(message: Message) -> str:
    """The message as text. Raises RecordError (`bad_prompt`) if text would lose an image, audio or a tool call."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    if message.get("tool_calls") or any(part.get("type") != "text" for part in parts):
        what = "tool calls" if message.get("tool_calls") else "parts that are not text"
        raise RecordError(
            f'a message with {what} has no standard layout; use layout="conversational"', reason="bad_prompt"
        )
    return text_in(content)


def with_content(messages: list[Message], content: Content) -> list[Message]:
    """The messages with the content of each as it is ("keep"), as text, or as a list of parts.

    Raises RecordError (`bad_prompt`) where text would lose an image or audio.
    """
    return messages if content == "keep" else [_with_content(message, content) for message in messages]


def _with_content(message: Message, content: Content) -> Message:
    value: Any = message.get("content")
    if content == "parts":
        if value is None:
            value = []
        return {**message, "content": [{"type": "text", "text": value}] if isinstance(value, str) else value}
    if not isinstance(value, list):
        return message
    if others := sorted({str(part.get("type")) for part in value} - {"text"}):
        raise RecordError(
            f'the {message["role"]}\'s message has parts that are not text ({", ".join(others)}), which content="text" '
            'would lose; use content="parts"',
            reason="bad_prompt",
        )
    return {**message, "content": text_in(value)}


def system_of(seen: Row, text: str, makings: Makings, *, is_told: bool) -> str | None:
    """The system prompt that was sent to the model for an answer; None if there was none.

    The record's results have it exactly. For a text from the input it is the row's `system_prompt`. If neither is known
    of the text (a user's own step wrote it), it is the row's `system_prompt`, or else the one prompt that all of the
    record's answers share.

    Args:
        is_told: the user has named the column with `input_mappings`: it counts, whatever prompt was sent.

    Raises RecordError (`unknown_system_prompt`) if the answers of the record were made under different prompts
    and the text is none of them, or the same as several of them.
    """
    own = seen.get("system_prompt")
    own = own if isinstance(own, str) and own else None
    if is_told:
        return own
    making = makings.of(text)
    if making is not None and not making.is_answer and making.is_given:
        return own
    systems = makings.systems(text)
    if own is not None and (not systems or (own in systems and len(systems) > 1)):
        return own
    systems = systems or makings.systems()
    if len(systems) > 1:
        raise RecordError(
            f"it is not known under which system prompt the answer {text!r:.60} was made: the tasks of this row sent "
            f"{len(systems)} different system prompts. Name the column of its own with "
            "input_mappings={'system_prompt': ...}, or choose system_prompt=\"drop\"",
            reason="unknown_system_prompt",
        )
    return systems[0] if systems else None


def with_system(messages: list[Message], system: str | None, choice: str) -> tuple[list[Message], str | None]:
    """(messages as written, value of the column `system_prompt`) for the option `system_prompt` of a step.

    A system message within the messages wins over `system`.
    """
    if messages and messages[0]["role"] in SYSTEM_ROLES:
        if choice == "keep" and system_text(messages):
            return messages, None  # as it is written, with all its keys
        system, messages = system_text(messages), messages[1:]
    if not system or choice == "drop":
        return messages, None
    if choice == "column":
        return messages, system
    return [Message(role="system", content=system), *messages], None


def checked_messages(value: Any) -> list[Message]:
    """A copy of a list of messages. Raises RecordError (`bad_prompt`) for anything else."""
    if not isinstance(value, list) or not value:
        raise RecordError(f"{value!r:.60} is not a list of messages", reason="bad_prompt")
    messages: list[Message] = []
    for number, message in enumerate(value):
        if fault := message_fault(message, any_role=True):
            raise RecordError(
                f"message {number}: {message!r:.60} is not a message with role and content; {fault}",
                reason="bad_prompt",
            )
        messages.append(cast(Message, dict(message)))  # with all its keys
    return messages
