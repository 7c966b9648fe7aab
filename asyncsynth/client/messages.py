"""Requests and answers, in the shapes of the OpenAI API (chat completions and raw completions)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict


class Message(TypedDict):
    """One chat message of the OpenAI API. It is sent with all its keys, also with those not listed here."""

    role: str  #: "system" | "developer" | "user" | "assistant" | "tool"
    content: NotRequired[Any]  #: text, or a list of parts (text, images, audio); None beside `tool_calls`
    name: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]  #: of an assistant message
    tool_call_id: NotRequired[str]  #: of a tool message: the call that it answers


@dataclass(slots=True)
class ChatRequest:
    """POST /chat/completions. `params` holds OpenAI's (and vLLM's) sampling fields by their own names.

    `schema` asks for JSON constrained by this JSON schema (`response_format`), if the server honours it.
    """

    model: str
    messages: list[Message]
    params: dict[str, Any] = field(default_factory=dict)
    schema: dict[str, Any] | None = None
    keep_reasoning: bool = False  #: keep the answer's text as the server sent it; see `client.reasoning`


@dataclass(slots=True)
class CompletionRequest:
    """POST /completions: `prompt` goes to the model verbatim, without a chat template."""

    model: str
    prompt: str
    params: dict[str, Any] = field(default_factory=dict)
    keep_reasoning: bool = False  #: as in `ChatRequest`


ModelRequest = ChatRequest | CompletionRequest


@dataclass(slots=True)
class Usage:
    """Token counts as the server reported them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class Choice:
    """One answer. `text` is the answer alone, without the model's reasoning; "" if the model only calls tools.

    `logprobs` is the server's own object, unread, if the request asked for it.
    """

    text: str
    finish_reason: str | None = None  #: "stop" | "length" (for a server's "max_tokens" too) | "tool_calls" | ...
    logprobs: Any = None
    reasoning: str | None = None  #: the model's reasoning before the answer, if the server or the text shows it
    #: The tools that the model calls, as the server sent them: ``{"id", "type", "function": {"name", "arguments"}}``,
    #: where `arguments` is JSON text. None if it calls none.
    tool_calls: list[dict[str, Any]] | None = None

    def message(self) -> Message:
        """The answer as an assistant message, to continue a conversation with. It holds no reasoning."""
        if self.tool_calls is None:
            return {"role": "assistant", "content": self.text}
        return {"role": "assistant", "content": self.text or None, "tool_calls": self.tool_calls}


@dataclass(slots=True)
class Completion:
    """The result of a model call. `model` is the model that answered, as its server names it."""

    choices: list[Choice]
    model: str
    usage: Usage = field(default_factory=Usage)
    server: str = ""  #: name of the replica
    latency_s: float = 0.0  #: of the last attempt, request written to body read
    attempts: int = 1
    flags: tuple[str, ...] = ()  #: "replaced_surrogates", "repaired_json" (mended), "usage_of_first_choice"

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text
