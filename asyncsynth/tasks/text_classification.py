"""`TextClassification`: one label, or several, for a text."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Unpack

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice, Message
from asyncsynth.errors import ConfigurationError, ParseFailure
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task, TaskSettings, text_of
from asyncsynth.tasks.parsing import TAKES_BACK, last_value, without_markdown
from asyncsynth.tasks.templates import prompt_source, render

_LABEL = re.compile(
    r"\b(?:labels?|category|categories|class|classification|final\s+answer)\b\s*(?:is|are|:|=)+", re.IGNORECASE
)
_TAKEN_BACK = re.compile(rf"{TAKES_BACK}\b[^\n]{{0,60}}", re.IGNORECASE)
#: The model says that no label applies.
_NONE = frozenset({"none", "no label", "no labels", "n/a", "none of them", "none of these", "none of the labels"})


class TextClassification(Task):
    """Sorts texts into given categories. The answer is constrained to the labels if the server can do it
    (an ``enum`` in the JSON schema), and is never anything but one of them.

    Columns: ``text``, optionally ``system_prompt`` -> ``label``, ``judge_model``; with `multi_label`
    ``labels`` (list, in the order of the argument, perhaps empty), ``judge_model``.

    Args:
        labels: the labels, or a dict of label to what it means.
        multi_label: any number of labels may apply.
        context: a description of the texts, or of what matters, for the prompt ("The texts are reviews of films.").
        Others: see `Task`.

    Example::

        TextClassification(llm=LLM(model="Qwen/Qwen2.5-1.5B-Instruct", temperature=0),
                           labels={"praise": "the writer liked it", "complaint": "the writer did not"})

    ``{"text": "It broke after a day."}`` gives ``{"label": "complaint", "judge_model": ...}``.
    """

    version = 3  # the model is named in judge_model
    inputs: tuple[str, ...] = ("text",)
    prompt: ClassVar[str | None] = "text_classification"

    def __init__(
        self,
        llm: LLM,
        *,
        labels: Sequence[str] | Mapping[str, str],
        multi_label: bool = False,
        context: str = "",
        **settings: Unpack[TaskSettings],
    ) -> None:
        meanings = dict(labels) if isinstance(labels, Mapping) else dict.fromkeys(_listed(labels), "")
        if any(not isinstance(text, str) for pair in meanings.items() for text in pair):
            raise ConfigurationError("TextClassification: labels and their meanings are texts")
        if len({_plain(label) for label in meanings} - {""}) < max(2, len(_listed(labels))):
            raise ConfigurationError(
                "TextClassification: two labels or more were expected, each another word",
                hint="Labels must differ by more than case, spaces and punctuation at their ends.",
            )
        # Their order is in the prompt.
        self.labels: list[list[str]] = [[label, meaning] for label, meaning in meanings.items()]
        self.multi_label = multi_label
        self.context = context
        self.outputs: tuple[str, ...] = ("labels" if multi_label else "label", "judge_model")
        super().__init__(llm, **settings)

    def answers_prompt(self) -> bool:
        """False: its texts do not answer the prompt of the row."""
        return False

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """The labels first (servers cache a common prefix), then the text."""
        values = {
            "labels": self.labels,
            "multi_label": self.multi_label,
            "context": self.context,
            "text": text_of(row, "text"),
        }
        return [{"role": "user", "content": render(prompt_source("text_classification"), values)}]

    def schema(self, row: Row) -> dict[str, Any]:
        """Allows only the labels."""
        one: dict[str, Any] = {"type": "string", "enum": [label for label, _ in self.labels]}
        name = "labels" if self.multi_label else "label"
        many = {"type": "array", "items": one, "maxItems": len(self.labels)}
        return {
            "type": "object",
            "properties": {name: many if self.multi_label else one},
            "required": [name],
            "additionalProperties": False,
        }

    def parse(self, choice: Choice, row: Row) -> Row:
        """Labels from JSON, or from the model's text on a server without schemas."""
        names = [label for label, _ in self.labels]
        found = read_labels(choice.text, names)
        if self.multi_label:
            return {"labels": found}
        if len(found) != 1:
            raise ParseFailure(f"{len(found)} labels where one was asked for", raw=choice.text)
        return {"label": found[0]}


def read_labels(text: str, labels: Sequence[str]) -> list[str]:
    """The labels in an answer, in their own order. Raises ParseFailure for any other label."""
    for bare in (False, True):  # a list without a name counts only if nothing else does
        found = last_value(text, functools.partial(_said, bare=bare))
        if found is not None:
            said, after = found
            chosen = _known(said, labels, text)
            after = without_markdown(after)
            again = _mentioned(_LABEL.split(after)[-1], labels) if _LABEL.search(after) else chosen
            back = _TAKEN_BACK.search(after)
            if again != chosen or (back is not None and _mentioned(back[0], labels) not in ([], chosen)):
                raise ParseFailure("the answer has a label in JSON, and another one after it", raw=text)
            return chosen
    return _named(without_markdown(text), labels, text)


def _said(value: Any, *, bare: bool) -> list[str] | None:
    """The labels in a JSON value; None for a value of another kind."""
    if isinstance(value, dict) == bare:
        return None
    if isinstance(value, dict):
        lowered = {str(key).lower(): item for key, item in value.items()}
        if "labels" not in lowered and "label" not in lowered:
            return None
        value = lowered.get("labels", lowered.get("label"))
    said = [value] if isinstance(value, str) else [] if value is None else value
    return said if isinstance(said, list) and all(isinstance(item, str) for item in said) else None


def _known(said: Iterable[str], labels: Sequence[str], text: str) -> list[str]:
    by_plain = {_plain(label): label for label in labels}
    plain = [_plain(item) for item in said]
    unknown = [item for item in plain if item not in by_plain and item not in _NONE]
    if unknown:
        raise ParseFailure(f"{unknown[0]!r} is none of the labels", raw=text)
    chosen = {by_plain[item] for item in plain if item in by_plain}
    return [label for label in labels if label in chosen]


def _named(plain: str, labels: Sequence[str], text: str) -> list[str]:
    """The labels that prose names; longer ones first, so that "not spam" does not count as "spam"."""
    rest = _LABEL.split(plain)[-1]
    if _plain(rest) in _NONE:
        return []
    if chosen := _mentioned(rest, labels):
        return chosen
    raise ParseFailure("no label was found in the answer", raw=text)


def _mentioned(rest: str, labels: Sequence[str]) -> list[str]:
    """The labels in a text."""
    chosen = []
    for label in sorted(labels, key=len, reverse=True):
        pattern = re.compile(rf"(?<!\w){re.escape(label.strip())}(?!\w)", re.IGNORECASE)
        if pattern.search(rest):
            chosen.append(label)
            rest = pattern.sub(" ", rest)
    return [label for label in labels if label in chosen]


def _plain(label: str) -> str:
    return re.sub(r"\s+", " ", label).strip(" \t\n.,;:!\"'`*()[]").casefold()


def _listed(labels: Any) -> list[str]:
    if isinstance(labels, str) or not isinstance(labels, (Sequence, Mapping)):
        raise ConfigurationError(f"TextClassification(labels={labels!r:.60}): a list or a dict was expected")
    return list(labels)
