"""`GenerateSentencePair`: training examples for sentence embeddings (arXiv 2401.00368)."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Unpack

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice, Message
from asyncsynth.errors import ConfigurationError, ParseFailure
from asyncsynth.pipeline.context import Context
from asyncsynth.pipeline.step import nearest
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task, TaskSettings, text_of
from asyncsynth.tasks.parsing import is_looping, last_value, unquoted, without_markdown, words
from asyncsynth.tasks.templates import prompt_source, render

#: action -> what the positive is, what the negative is, what a hard negative is
ACTIONS: dict[str, tuple[str, str, str]] = {
    "paraphrase": (
        "says the same as the anchor in other words and another sentence structure.",
        "is a text of the same kind that says something else than the anchor.",
        "keeps most of the anchor's words and its form, but says something else.",
    ),
    "similar": (
        "says something close to the anchor, on the same matter, without repeating it.",
        "is a text of the same kind on another matter.",
        "is on the anchor's matter and uses its words, but means something clearly different.",
    ),
    "query": (
        "is a query, as someone would type it into a search engine, that the anchor answers.",
        "is a query that the anchor does not answer.",
        "is a query on the anchor's matter and in its words, that the anchor does not answer.",
    ),
    "answer": (
        "answers the anchor, which is a question or a query.",
        "is a text of the same kind that does not answer the anchor.",
        "reads like an answer to the anchor and is on its matter, but does not answer it.",
    ),
}
_MAX_CHARS = 1000
#: What weak models write in place of a text.
_NOTHING = [["positive"], ["negative"], ["true"], ["false"], ["null"], ["none"]]
_LABEL = re.compile(
    r"^[^\w\n]*(?:\d+[.)]\s*)?(?:(?:final|revised|new|better|corrected|improved)\s+)?"
    r"(?P<name>positive|negative)(?:\s+(?:sentence|text|example|pair))?\W*?[:\n]",
    re.I | re.M,
)


class GenerateSentencePair(Task):
    """Writes, for an anchor, a text that belongs to it and one that does not, for training sentence embeddings
    and rerankers (as in arXiv 2401.00368).

    Columns: ``anchor``, optionally ``system_prompt`` -> ``positive``, ``negative``, ``model_name``; without
    `triplet` no ``negative``.

    An answer whose positive repeats the anchor, whose two texts are the same, whose texts loop, or that is cut off at
    ``max_tokens``, is requested again.

    Args:
        action: the relation of the positive to the anchor: "paraphrase" (default), "similar", "query" (the anchor
            answers it) or "answer" (the anchor is the question).
        triplet: also write a negative.
        hard_negative: the negative is close to the anchor in words and matter.
        context: background for the prompt ("The anchors are titles of medical papers.").
        Others: see `Task`.

    Example::

        GenerateSentencePair(llm=LLM(model="Qwen/Qwen2.5-1.5B-Instruct"), action="query", hard_negative=True)

    ``{"anchor": "Rust prevents data races by ownership."}`` gives ``{"positive": "how does rust prevent data
    races", "negative": "how to remove rust from steel", "model_name": ...}``.
    """

    version = 2  # if an answer holds several values, the last one counts
    inputs: tuple[str, ...] = ("anchor",)
    prompt: ClassVar[str | None] = "sentence_pair"

    def __init__(
        self,
        llm: LLM,
        *,
        action: str = "paraphrase",
        triplet: bool = True,
        hard_negative: bool = False,
        context: str = "",
        **settings: Unpack[TaskSettings],
    ) -> None:
        if action not in ACTIONS:
            raise ConfigurationError(
                f"GenerateSentencePair: no action {action!r}{nearest(action, ACTIONS)}", hint=", ".join(ACTIONS)
            )
        if hard_negative and not triplet:
            raise ConfigurationError("GenerateSentencePair: hard_negative goes with triplet=True")
        self.action = action
        self.triplet = triplet
        self.hard_negative = hard_negative
        self.context = context
        self.outputs: tuple[str, ...] = (
            ("positive", "negative", "model_name") if triplet else ("positive", "model_name")
        )
        super().__init__(llm, **settings)

    def settings(self) -> dict[str, Any]:
        """The task's settings, the prompt's text and the action's."""
        return {**super().settings(), "action_text": list(ACTIONS[self.action])}

    def answers_prompt(self) -> bool:
        """False: its texts do not answer the prompt of the row."""
        return False

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """What to write, then the anchor."""
        positive, negative, hard = ACTIONS[self.action]
        values = {
            "positive": positive,
            "negative": (hard if self.hard_negative else negative) if self.triplet else "",
            "context": self.context,
            "anchor": text_of(row, "anchor"),
        }
        return [{"role": "user", "content": render(prompt_source("sentence_pair"), values)}]

    def schema(self, row: Row) -> dict[str, Any]:
        """One text, or two."""
        names = ["positive", "negative"] if self.triplet else ["positive"]
        return {
            "type": "object",
            "properties": {name: {"type": "string", "minLength": 1, "maxLength": _MAX_CHARS} for name in names},
            "required": names,
            "additionalProperties": False,
        }

    def parse(self, choice: Choice, row: Row) -> Row:
        """The texts, checked to differ from each other and from the anchor. One that is cut off is no text."""
        if choice.finish_reason == "length":
            raise ParseFailure("the answer is cut off at max_tokens", raw=choice.text)
        made = read_pair(choice.text)
        names = ("positive", "negative") if self.triplet else ("positive",)
        for name in names:
            if not words(made.get(name, "")):
                raise ParseFailure(f"the answer has no {name}", raw=choice.text)
            if words(made[name]) in _NOTHING or is_looping(made[name]):
                raise ParseFailure(f"the {name} says nothing", raw=choice.text)
        if words(made["positive"]) == words(row["anchor"]):
            raise ParseFailure("the positive repeats the anchor", raw=choice.text)
        if self.triplet and words(made["negative"]) in (words(made["positive"]), words(row["anchor"])):
            raise ParseFailure("the negative repeats another text", raw=choice.text)
        return {name: made[name] for name in names}


def read_pair(text: str) -> dict[str, str]:
    """The texts under "positive" and "negative", from JSON or from labelled lines; those that can be read."""
    if (last := last_value(text, _texts)) is not None:
        found, after = last
        if _LABEL.search(without_markdown(after)):
            raise ParseFailure("the answer has a pair in JSON, and texts under labels after it", raw=text)
        return found
    plain = without_markdown(text)
    labels = list(_LABEL.finditer(plain))
    sections: dict[str, str] = {}  #: of the last pair: a label that comes again begins another one
    for number, label in enumerate(labels):
        end = labels[number + 1].start() if number + 1 < len(labels) else len(plain)
        name = label["name"].lower()
        if name in sections:
            sections = {}
        sections[name] = unquoted(plain[label.end() : end])
    return sections


def _texts(value: Any) -> dict[str, str] | None:
    """The texts in a JSON object; None if it has none."""
    if not isinstance(value, dict):
        return None
    lowered = {str(key).lower(): item for key, item in value.items()}
    found = {name: lowered[name] for name in ("positive", "negative") if isinstance(lowered.get(name), str)}
    return {name: item.strip() for name, item in found.items()} or None
