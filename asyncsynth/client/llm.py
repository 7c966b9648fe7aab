"""`LLM`, which a task holds: a model's name and how to sample from it, never a machine.

Servers are bound to models when a run starts (`serving.binding`), so that one pipeline file runs on an
embedded model, one vLLM, or a fleet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypedDict, Unpack, cast

import httpx

from asyncsynth.calling import checked, checked_class
from asyncsynth.client.messages import ChatRequest, CompletionRequest, Message
from asyncsynth.client.secret import check_variable
from asyncsynth.errors import ConfigurationError, TaskFailure

DEFAULT_MAX_TOKENS = 1024

#: The values that each of these settings of `LLM` may have, and advice about the choice.
_CHOICES: dict[str, tuple[tuple[str | None, ...], str]] = {
    "reasoning": (
        ("separate", "keep"),
        '"separate" takes a model\'s thinking out of its answers; "keep" leaves it in the text.',
    ),
    "max_tokens_field": (
        ("max_tokens", "max_completion_tokens"),
        "It is the name under which chat requests send max_tokens.",
    ),
    "system_role": (
        ("system", "developer", "user"),
        '"user" puts the system prompt at the beginning of the user\'s message, for models without a system role.',
    ),
    "seed": (
        ("derived", None),
        "Each request's seed derives from the run's seed and the record; set the run's with --seed or "
        "RunOptions(seed=...). None sends no seed.",
    ),
}

MaxTokensField = Literal["max_tokens", "max_completion_tokens"]
SystemRole = Literal["system", "developer", "user"]

EMBEDDED_DEFAULT = "SmolLM2-135M-Instruct"


class LLMSettings(TypedDict, total=False):
    """The keywords of `LLM` without `model`, for code that passes them on; a test compares the two."""

    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    stop: tuple[str, ...] | list[str] | None
    presence_penalty: float | None
    frequency_penalty: float | None
    extra_body: dict[str, Any]
    seed: Literal["derived"] | None
    max_tokens_field: MaxTokensField
    system_role: SystemRole
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

    None leaves a field out of the requests, for servers that refuse it; the server's own default then applies.
    `temperature`, `top_p` and `max_tokens` are sent unless they are None, because vLLM would take them from the model's
    generation_config.json otherwise.

    Args:
        model: the name servers list it under, e.g. ``Qwen/Qwen2.5-1.5B-Instruct``.
        temperature, top_p, stop, presence_penalty, frequency_penalty: OpenAI's fields.
        max_tokens: the most tokens of an answer, a thought included. None: as many as the server allows.
        extra_body: further fields by the server's own names (vLLM: ``top_k``, ``min_p``, ...). They win over the
            settings above; None leaves a field out. ``max_completion_tokens`` here replaces max_tokens.
        seed: "derived" (default) gives each request a seed that derives from the run's seed and the record, so that a
            server that honours it gives the same answer again. None sends no seed, for servers that refuse the field.
        max_tokens_field: "max_completion_tokens" sends `max_tokens` under that name in chat requests (OpenAI's
            reasoning models want it).
        system_role: "user" puts system prompts at the beginning of the next user message, for models that have no
            system role (Gemma 2, some Mistral models); "developer" sends them under that role (OpenAI).
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
    temperature: float | None = 0.7
    top_p: float | None = 1.0
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    stop: tuple[str, ...] | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)
    seed: Literal["derived"] | None = "derived"
    max_tokens_field: MaxTokensField = "max_tokens"
    system_role: SystemRole = "system"
    reasoning: str = "separate"
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    headers: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    query: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    http_client: httpx.AsyncClient | None = field(default=None, repr=False, compare=False)
    is_embedded: bool = False

    def __post_init__(self) -> None:
        if self.api_key_env:  # "": no key, also where one is exported
            check_variable(self.api_key_env, "LLM(api_key_env=...)")
        for name, (allowed, hint) in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                expected = " or ".join("None" if one is None else f'"{one}"' for one in allowed)
                raise ConfigurationError(f"LLM({name}={value!r}): {expected} was expected", hint=hint)
        if self.extra_body.get("seed") is not None:
            raise ConfigurationError(
                f"LLM(extra_body={{'seed': {self.extra_body['seed']!r}}}): each request has a seed of its own, which "
                "would replace this one",
                hint=_CHOICES["seed"][1],
            )

    @classmethod
    @checked
    def embedded(cls, model: str = EMBEDDED_DEFAULT, **settings: Unpack[LLMSettings]) -> LLM:
        """A model in a child process on this machine: a known name, or the path of a GGUF file."""
        return cls(model=model, is_embedded=True, **settings)

    def params(self) -> dict[str, Any]:
        """The sampling fields of a chat request; also what the fingerprint covers.

        Fields that are left out are missing, except that ``max_tokens: None`` says that no limit is sent at all.
        """
        return self._renamed(dict(self._fields))

    @cached_property
    def _fields(self) -> dict[str, Any]:
        """`params` under the names of the settings: ``max_tokens`` keeps its name."""
        names = ("temperature", "top_p", "max_tokens", "presence_penalty", "frequency_penalty")
        fields: dict[str, Any] = {name: getattr(self, name) for name in names}
        extra = dict(self.extra_body)
        if (limit := extra.pop("max_completion_tokens", None)) is not None and extra.get("max_tokens") is None:
            fields["max_tokens"], extra = limit, {name: extra[name] for name in extra if name != "max_tokens"}
        elif limit is not None:
            extra["max_completion_tokens"] = limit
        stop = {"stop": list(self.stop)} if self.stop else {}
        fields = {**fields, **stop, **extra}
        sent = {name: value for name, value in fields.items() if value is not None}
        if "max_tokens" not in sent and "max_completion_tokens" not in sent:
            sent["max_tokens"] = None  # left out on purpose: the codec adds its default to a request without a limit
        return sent

    @cached_property
    def _params(self) -> dict[str, Any]:
        """`params`, made once: it is copied into every chat request."""
        return self.params()

    @cached_property
    def _limit_name(self) -> str:
        """The field of chat requests that holds the most tokens of an answer."""
        extra = self.extra_body
        asked = extra.get("max_completion_tokens") is not None and extra.get("max_tokens") is None
        return "max_completion_tokens" if asked else self.max_tokens_field

    def _renamed(self, fields: dict[str, Any]) -> dict[str, Any]:
        if self._limit_name != "max_tokens" and fields.get("max_tokens") is not None:
            fields[self._limit_name] = fields.pop("max_tokens")
        return fields

    @cached_property
    def _is_plain(self) -> bool:
        """Whether requests need no changes beyond `params`: the usual case, which costs nothing."""
        return self.sends_seed and self._limit_name == "max_tokens" and self.system_role == "system"

    @cached_property
    def sends_seed(self) -> bool:
        """Whether requests have a seed."""
        return self.seed is not None and "seed" not in self.extra_body

    def _with(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """The fields merged with those of one request, without the fields that either leaves out."""
        fields = {**self._fields, **overrides}
        if not self.sends_seed:
            fields.pop("seed", None)
        return {name: value for name, value in fields.items() if value is not None or name == "max_tokens"}

    def chat(self, messages: list[Message], *, schema: dict[str, Any] | None = None, **overrides: Any) -> ChatRequest:
        """A chat request with these settings; `overrides` are request fields such as ``seed``.

        Raises TaskFailure (`bad_prompt`) if `messages` is not a list of messages.
        """
        if type(messages) is not list or len(messages) != 1 or type(messages[0]) is not dict:
            _check_messages(messages)
        if self._is_plain:
            return ChatRequest(self.model, messages, {**self._params, **overrides}, schema, self.reasoning == "keep")
        if self.system_role != "system":
            messages = without_system(messages, self.system_role)
        params = self._renamed(self._with(overrides))
        return ChatRequest(self.model, messages, params, schema, self.reasoning == "keep")

    def complete(self, prompt: str, **overrides: Any) -> CompletionRequest:
        """A raw completion request: the prompt goes out as it is. Its limit is always called ``max_tokens``."""
        params = {**self._params, **overrides} if self._is_plain else self._with(overrides)
        return CompletionRequest(self.model, prompt, params, self.reasoning == "keep")


def _check_messages(messages: Any) -> None:
    """Raises TaskFailure for what is no list of messages."""
    if type(messages) is list and {*map(type, messages)} == {dict}:
        return  # nearly always
    is_list = isinstance(messages, (list, tuple))
    if not is_list or not all(isinstance(message, dict) for message in messages):
        said = f"the prompt is {messages!r:.60}; a list of messages was expected"
        raise TaskFailure(said, reason="bad_prompt")


def without_system(messages: Sequence[Message], role: SystemRole) -> list[Message]:
    """`messages` with another role for system prompts, or, for "user", with each at the start of the user message that
    follows; a system prompt that none follows becomes a user message. The given messages stay as they are."""
    if role != "user":
        renamed = [{**m, "role": role} if m.get("role") == "system" else m for m in messages]
        return cast("list[Message]", renamed)
    made: list[Any] = []
    held: list[str] = []
    for message in messages:
        if message.get("role") == "system":
            held.append(message["content"])
            continue
        if held and message.get("role") == "user":
            content: Any = message["content"]
            if isinstance(content, list):  # parts: texts and images
                content = [{"type": "text", "text": "\n\n".join(held)}, *content]
            else:
                content = "\n\n".join([*held, content])
            message = cast("Message", {**message, "content": content})
        elif held:
            made.append({"role": "user", "content": "\n\n".join(held)})
        held = []
        made.append(message)
    if held:
        made.append({"role": "user", "content": "\n\n".join(held)})
    return made
