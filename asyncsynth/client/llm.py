"""`LLM`: what a task holds. A model's name and how to sample from it; never a machine.

Servers are bound to models when a run starts (`serving.binding`), so that one pipeline file runs on an
embedded model, one vLLM, or a fleet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypedDict, Unpack

import httpx

from asyncsynth.calling import checked, checked_class
from asyncsynth.client.messages import ChatRequest, CompletionRequest, Message
from asyncsynth.errors import ConfigurationError, TaskFailure

DEFAULT_MAX_TOKENS = 1024

#: Sampling fields that vLLM would fill from the model's own generation_config.json when they are not sent.
#: All are always sent, so that a result does not depend on what the server's model folder says.
_EXPLICIT_DEFAULTS: dict[str, Any] = {"temperature": 0.7, "top_p": 1.0, "max_tokens": DEFAULT_MAX_TOKENS}

REASONING = ("separate", "keep")  #: what `LLM.reasoning` may be

EMBEDDED_DEFAULT = "SmolLM2-135M-Instruct"


class LLMSettings(TypedDict, total=False):
    """The keywords of `LLM` without `model`, for those that pass them on; a test holds the two together."""

    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...] | list[str] | None
    presence_penalty: float | None
    frequency_penalty: float | None
    extra_body: dict[str, Any]
    reasoning: str
    base_url: str | None
    api_key_env: str
    headers: dict[str, str]
    query: dict[str, str]
    http_client: httpx.AsyncClient | None


@checked_class
@dataclass(frozen=True, kw_only=True)
class LLM:
    """A model and its generation settings.

    Args:
        model: the name servers list it under, e.g. ``Qwen/Qwen2.5-1.5B-Instruct``.
        temperature, top_p, max_tokens, stop, presence_penalty, frequency_penalty: OpenAI's fields.
        extra_body: further fields by the server's own names (vLLM: ``top_k``, ``min_p``, ...).
        reasoning: "separate" (default) takes what a model thinks before it answers out of the answer; "keep" leaves
            the text as the server sends it, for models whose answers hold such marks as data.
        base_url: one server for this model (``http://127.0.0.1:8000/v1``), instead of ``--servers``.
        api_key_env: the *name* of the environment variable that holds the key for `base_url`.
        headers, query: sent with every request to `base_url`. ``${NAME}`` is the value of an environment variable; keys
            are given in this form only: ``headers={"api-key": "${AZURE_KEY}"}, query={"api-version": "2024-10-21"}``.
        http_client: your own ``httpx.AsyncClient`` for `base_url`.
        is_embedded: set by `LLM.embedded()`: the model runs on this machine's CPU.

    Example::

        from asyncsynth import LLM

        llm = LLM(model="Qwen/Qwen2.5-1.5B-Instruct", temperature=0.2, extra_body={"top_k": 20})
        print(llm.params())
        print(LLM.embedded().model)

    Result::

        {'temperature': 0.2, 'top_p': 1.0, 'max_tokens': 1024, 'top_k': 20}
        SmolLM2-135M-Instruct
    """

    model: str
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = DEFAULT_MAX_TOKENS
    stop: tuple[str, ...] | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)
    reasoning: str = "separate"
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    headers: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    query: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    http_client: httpx.AsyncClient | None = field(default=None, repr=False, compare=False)
    is_embedded: bool = False

    def __post_init__(self) -> None:
        if self.reasoning not in REASONING:
            raise ConfigurationError(
                f'LLM(reasoning={self.reasoning!r}): "separate" or "keep" was expected',
                hint='"separate" takes a model\'s thinking out of its answers; "keep" leaves it in the text.',
            )

    @classmethod
    @checked
    def embedded(cls, model: str = EMBEDDED_DEFAULT, **settings: Unpack[LLMSettings]) -> LLM:
        """A model in a child process on this machine: a known name, or the path of a GGUF file."""
        return cls(model=model, is_embedded=True, **settings)

    def params(self) -> dict[str, Any]:
        """The sampling fields as they are sent; also what the fingerprint covers."""
        sent: dict[str, Any] = dict(_EXPLICIT_DEFAULTS)
        sent.update(temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens)
        if self.stop:
            sent["stop"] = list(self.stop)
        for name in ("presence_penalty", "frequency_penalty"):
            if (value := getattr(self, name)) is not None:
                sent[name] = value
        sent.update(self.extra_body)
        return sent

    @cached_property
    def _params(self) -> dict[str, Any]:
        """`params`, made once: it is copied into every request."""
        return self.params()

    def chat(self, messages: list[Message], *, schema: dict[str, Any] | None = None, **overrides: Any) -> ChatRequest:
        """A chat request with these settings; `overrides` are request fields such as ``seed``.

        Raises TaskFailure (`bad_prompt`) for what is no list of messages.
        """
        for message in messages if isinstance(messages, (list, tuple)) else (None,):
            if not isinstance(message, dict):
                said = f"the prompt is {messages!r:.60}; a list of messages was expected"
                raise TaskFailure(said, reason="bad_prompt")
        return ChatRequest(self.model, messages, {**self._params, **overrides}, schema, self.reasoning == "keep")

    def complete(self, prompt: str, **overrides: Any) -> CompletionRequest:
        """A raw completion request: the prompt goes out as it is."""
        return CompletionRequest(self.model, prompt, {**self._params, **overrides}, self.reasoning == "keep")
