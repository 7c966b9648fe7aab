"""A model's chat template, rendered here, for prompts that end in the middle of a conversation.

A template that comes with a model is an untrusted program: it runs in Jinja's sandbox, with the names that
transformers gives it, except the clock (a date in the prompt would change the requests of a resumed run).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from asyncsynth.client.messages import Message
from asyncsynth.errors import ConfigurationError, TaskFailure

#: ChatML. A model whose own template begins a conversation without a system prompt with one of its own has hardly
#: seen a user speak without it: asked to, a small one writes no user's turn (SmolLM2-135M: 5 of 16 had no end).
CHATML = (
    "{% if default_system and messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\n' + default_system + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
)
#: Parts of models' names -> the system prompt that their chat templates put in.
_DEFAULT_SYSTEM = {
    "qwen2.5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "smollm2": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
}
_CHATML_STOP = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
#: Takes the place of the user's text. Letters only, so that a template's `trim` does not change it.
_PLACEHOLDER = "QzUserTurnPlaceholderQz"
_MAX_CONFIG_BYTES = 16 << 20


class _Generation(Extension):
    """transformers' ``{% generation %}`` marks the assistant's tokens for training; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012  # so declared by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    return made


_ENVIRONMENT = _environment()


@lru_cache(maxsize=32)
def _compiled(source: str) -> Any:
    return _ENVIRONMENT.from_string(source)


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and what it needs.

    Attributes:
        source: Jinja, as in a tokenizer's configuration.
        special_tokens: ``eos_token`` and others, by the names that templates use.
        stop: texts that end a turn.
    """

    source: str
    special_tokens: dict[str, str]
    stop: tuple[str, ...] = ()

    def before_user(self, messages: list[Message]) -> str:
        """The conversation so far, up to the user's next turn.

        Raises TaskFailure (`template`) if the template refuses the conversation (for example its system prompt).
        """
        return self._split(messages)[0]

    def _split(self, messages: list[Message]) -> tuple[str, str]:
        turn: Message = {"role": "user", "content": _PLACEHOLDER}
        values = {"messages": [*messages, turn], "add_generation_prompt": False, **self.special_tokens}
        try:
            text: str = _compiled(self.source).render(values)
        except Exception as error:  # a template can raise anything
            raise TaskFailure(f"the chat template could not be filled: {error}", reason="template") from error
        before, found, after = text.rpartition(_PLACEHOLDER)
        if not found:
            raise TaskFailure("the chat template leaves the user's turn out", reason="template")
        return before, after


def chatml(model: str = "") -> ChatTemplate:
    """The built-in template: ChatML, with the system prompt that a known model's own template puts in."""
    default = next((text for part, text in _DEFAULT_SYSTEM.items() if part in model.lower()), "")
    return ChatTemplate(CHATML, {"default_system": default}, _CHATML_STOP)


def read_template(path: str | Path) -> ChatTemplate:
    """The template in a model's tokenizer_config.json (or in the model folder that holds one).

    Raises ConfigurationError if there is none, or when it does not work.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "tokenizer_config.json"
    config = _read_config(file)
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if source is None and (beside := file.with_name("chat_template.jinja")).is_file():
        source = beside.read_text(encoding="utf-8")
    if not isinstance(source, str) or not source.strip():
        raise ConfigurationError(
            f"{file} has no chat_template",
            hint="A base model has none: Magpie needs an instruct model and its tokenizer_config.json.",
        )
    return _checked(source, _special_tokens(config), file)


def _read_config(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            config = json.loads(opened.read(_MAX_CONFIG_BYTES))
    except OSError as error:
        raise ConfigurationError(
            f"the chat template {str(file)!r} cannot be read: {error.strerror}",
            hint='Give "chatml", or the path of the model\'s tokenizer_config.json.',
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigurationError(f"{file} is not a tokenizer configuration")
    return config


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token"):
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        tokens[name] = text if isinstance(text, str) else ""
    # Servers put it before a raw prompt themselves, and models are not trained on two.
    if config.get("add_bos_token") is not False:
        tokens["bos_token"] = ""
    return tokens


def _checked(source: str, tokens: dict[str, str], file: Path) -> ChatTemplate:
    """The template with its stop texts: what follows the user's turn, and the end-of-text token."""
    template = ChatTemplate(source, tokens)
    try:
        after = template._split([])[1].strip()
    except TaskFailure as failure:
        raise ConfigurationError(f"{file}: {failure.message}") from failure
    end = after.split("\n")[0].strip()
    stop = tuple(dict.fromkeys(text for text in (end, tokens["eos_token"]) if text))
    return ChatTemplate(source, tokens, stop)
