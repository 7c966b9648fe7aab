"""Prompt templates: Jinja, sandboxed, one file for each prompt. Rows are values, never template source."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from asyncsynth.errors import ConfigurationError, TaskFailure

#: No autoescape: prompts are plain text for a model, not HTML.
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
)


@lru_cache(maxsize=256)
def _compiled(source: str) -> Any:
    try:
        return _ENVIRONMENT.from_string(source)
    except TemplateError as error:
        raise ConfigurationError(
            f"the template does not compile: {error}", hint=f"Template: {source[:200]!r}"
        ) from error


@lru_cache(maxsize=64)
def prompt_source(name: str) -> str:
    """The text of `tasks/prompts/<name>.jinja`."""
    return (files("asyncsynth.tasks") / "prompts" / f"{name}.jinja").read_text(encoding="utf-8")


def render(source: str, values: dict[str, Any]) -> str:
    """Fills a template. Raises TaskFailure if it uses a column that the row does not have."""
    try:
        text: str = _compiled(source).render(values)
    except Exception as error:  # a template can raise anything: `{{ a + b }}` a TypeError
        raise TaskFailure(f"the prompt template could not be filled: {error}", reason="template") from error
    return text.strip()


def check_template(source: str) -> None:
    """Raises ConfigurationError if the template does not compile; called before anything is sent."""
    _compiled(source)


def environment() -> ImmutableSandboxedEnvironment:
    """The sandboxed environment that all prompts are rendered in."""
    return _ENVIRONMENT
