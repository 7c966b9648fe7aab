"""`Revision`: improves an answer by as few changes as possible (CLAIR, arXiv 2408.06266)."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from asyncsynth.client.messages import Choice, Message
from asyncsynth.errors import ParseFailure
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task, text_of
from asyncsynth.tasks.parsing import is_looping, is_refusal, last_value, rewritten_text
from asyncsynth.tasks.schemas import object_of, text_up_to
from asyncsynth.tasks.templates import prompt_source, render

_MAX_RATIONALE_CHARS = 600
_NAMES = {
    "rationale": r"(?:rationale|rational|reasons?|reasoning|explanation|changes|teacher\s+reasoning)",
    "revision": r"(?:(?:corrected|revised|improved|new|final)\s+(?:answer|response|version|revision|text)|revision)",
}
_LABEL = re.compile(
    rf"^[ \t#*_-]*(?:(?P<rationale>{_NAMES['rationale']})|(?P<revision>{_NAMES['revision']}))[\s*_]*(?::[\s*_]*|$)",
    re.IGNORECASE | re.MULTILINE,
)


class Revision(Task):
    """Revises the response to an instruction with only the changes that improve it, and gives the reason.

    The pair (revision, response) differs in little but the improvement, which is a clear signal for
    preference tuning: the revision is the chosen answer, the response the rejected one.

    Columns: ``instruction``, ``response`` -> ``revision`` (str), ``rationale`` (str: what was wrong and is
    changed), ``model_name``. A response that needs no change is returned unchanged.

    Args: see `Task`.

    Example:
        ``{"instruction": "Who wrote Emma?", "response": "Emma was written by Emily Bronte in 1815."}`` ->
        ``{"revision": "Emma was written by Jane Austen in 1815.", "rationale": "The author was wrong.",
        "model_name": "..."}``

    Paper: CLAIR (contrastive learning from AI revisions), arXiv 2408.06266.
    """

    version = 2  # if an answer holds several values, the last one counts
    inputs: tuple[str, ...] = ("instruction", "response")
    outputs: tuple[str, ...] = ("revision", "rationale", "model_name")
    prompt: ClassVar[str | None] = "revision"

    def answers_prompt(self) -> bool:
        """False: its texts do not answer the prompt of the row."""
        return False

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """One user turn."""
        values = {name: text_of(row, name) for name in self.inputs}
        return [{"role": "user", "content": render(prompt_source("revision"), values)}]

    def schema(self, row: Row) -> dict[str, Any]:
        """The rationale first, so that the revision follows from it."""
        return object_of({"rationale": text_up_to(_MAX_RATIONALE_CHARS), "revision": {"type": "string"}})

    def parse(self, choice: Choice, row: Row) -> Row:
        """Both parts; a revision that is cut off, declined or looping is a ParseFailure."""
        rationale, revision = read_revision(choice.text)
        fault = ""
        if not revision:
            fault = "the answer holds none"
        elif choice.finish_reason == "length":
            fault = "it is cut off at max_tokens"
        elif is_refusal(revision) and not is_refusal(str(row["response"])):
            fault = "the model declined"
        elif is_looping(revision) and not is_looping(str(row["response"])):
            fault = "the model repeats itself"
        if fault:
            raise ParseFailure(f"revision: {fault}", raw=choice.text)
        return {"revision": revision, "rationale": rationale}


def read_revision(text: str) -> tuple[str, str]:
    """(rationale, revision) from JSON, tags or labels, in any order; ('', '') if there is no revision."""
    if (last := last_value(text, _parts)) is not None:
        found, after = last
        if any(mark.lastgroup == "revision" for mark in _LABEL.finditer(after)):
            raise ParseFailure("revision: the answer has one in JSON, and another after it", raw=text)
        return found
    tagged = {
        name: list(re.finditer(rf"<{pattern}>(.*?)</{pattern}>", text, re.DOTALL | re.IGNORECASE))
        for name, pattern in _NAMES.items()
    }
    if revisions := tagged["revision"]:
        why = tagged["rationale"]
        return why[-1][1].strip() if why else "", revisions[-1][1].strip()
    return _labelled(text)


def _parts(value: Any) -> tuple[str, str] | None:
    """(rationale, revision) in a JSON object; None if it has no revision."""
    if not isinstance(value, dict):
        return None
    lowered = {str(key).lower().replace("_", " "): item for key, item in value.items()}
    parts = {
        name: next((item for key, item in lowered.items() if re.fullmatch(pattern, key)), None)
        for name, pattern in _NAMES.items()
    }
    revision = parts["revision"]
    return (str(parts["rationale"] or "").strip(), revision.strip()) if isinstance(revision, str) else None


def _labelled(text: str) -> tuple[str, str]:
    """The parts under "Rationale:" and "Revision:". A label that comes again in the same words begins another draft,
    and the last one counts; in other words it may be part of the text ("Final answer: 8")."""
    marks: dict[str, re.Match[str]] = {}
    for mark in _LABEL.finditer(text):
        name = str(mark.lastgroup)
        if name not in marks or mark[name].casefold() == marks[name][name].casefold():
            marks[name] = mark
    if "revision" not in marks:
        return "", ""
    parts = {"rationale": ""}
    for name, mark in marks.items():
        end = min((other.start() for other in marks.values() if other.start() > mark.start()), default=len(text))
        parts[name] = text[mark.end() : end].strip()
    return parts["rationale"], rewritten_text(parts["revision"])
