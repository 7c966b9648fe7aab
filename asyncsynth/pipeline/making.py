"""How the texts of a record were made, for steps that write training examples.

A row's columns do not say whether a text in them was cut off, or which system prompt the model saw: columns are
renamed, grouped, expanded, joined and rewritten on the way. The journal does know, for each result of a model step.
So the engine keeps a record's results while it walks, and a step with `learns` may ask about any text, by
`KNOWN.get()` in its `apply`. A text is recognised by its end: a prefix that a step adds changes nothing, while a
text that a step shortened to its last whole sentence is no longer the one that was cut. Texts from the input are known
as such, so that no task's system prompt is taken for theirs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from asyncsynth.pipeline.chat_messages import text_in
from asyncsynth.records import Row

#: Characters at a text's end that identify it, white space counted once. A shorter text is identified by all of it.
_END_CHARS = 64
#: A text that differs from a known one at its beginning must share at least this many characters at its end.
_LEAST_CHARS = 12
#: Where a known text is looked for, if something was added after it (a token that ends the turn, a greeting).
_TAIL_CHARS = 4 * _END_CHARS
#: In a result's provenance, where its requests began with different system prompts: the end of each answer, and the
#: system prompt that was sent for it (or None).
SYSTEM_OF = "system_prompt_of"
#: Where a row carries its makings across a step over all rows; the walker removes it again.
CARRIED = "_asyncsynth_made"


class Making(NamedTuple):
    """How one text was made."""

    end: str  #: `end_of` the text
    is_cut: bool  #: the answer ended at max_tokens
    is_answer: bool  #: it answers the row's prompt; False for a rewrite or a judge's words
    system: str | None = None  #: the system prompt that was sent to the model, if there was one
    reasoning: str | None = None  #: the model's reasoning, if the task keeps it
    whole: int = 0  #: a checksum of the text, for texts that end alike; 0: not known
    is_given: bool = False  #: it comes from the input


def checksum_of(text: str) -> int:
    """A checksum of a text, white space apart."""
    return zlib.crc32(" ".join(text.split()).encode("utf-8", "replace"))


def end_of(text: str) -> str:
    """A text's last characters, white space apart."""
    return " ".join(text[-4 * _END_CHARS :].split())[-_END_CHARS:]


def same_end(one: str, other: str) -> bool:
    """Whether two texts, given by `end_of`, end alike."""
    if one == other:
        return True
    shorter, longer = sorted((one, other), key=len)
    return len(shorter) >= _LEAST_CHARS and longer.endswith(shorter)


class Makings:
    """What is known of the texts of one record."""

    def __init__(self, makings: Iterable[Making] = ()) -> None:
        self._makings = list(makings)

    def of(self, text: str) -> Making | None:
        """How a text was made, or None if neither a model step of this record nor the input made it.

        A text that a rewriting step left unchanged has two makings: it is cut if either says so, and its system
        prompt is that of the answer.
        """
        found = self._of(text)
        if not found:
            return None
        answers = [making for making in found if making.is_answer]
        thoughts = [making.reasoning for making in found if making.reasoning]
        return Making(
            end=end_of(text),
            is_cut=any(making.is_cut for making in found),
            is_answer=bool(answers),
            system=answers[-1].system if answers else None,
            reasoning=thoughts[-1] if thoughts else None,
            is_given=any(making.is_given for making in found),
        )

    def _of(self, text: str) -> list[Making]:
        """The makings of a text: of the same text, or else of one that ends alike, or else of one that something was
        added to."""
        end = end_of(text)
        if not end:
            return []
        found = [making for making in self._makings if making.end == end]
        if len(found) > 1:  # models end many answers with the same words
            checksum = checksum_of(text)
            return [making for making in found if making.whole == checksum] or found
        if not found:
            found = [making for making in self._makings if same_end(making.end, end)]
        if not found:
            tail = " ".join(text[-_TAIL_CHARS:].split())
            found = [
                making
                for making in self._makings
                if len(making.end) >= (_END_CHARS if making.is_given else _LEAST_CHARS) and making.end in tail
            ]
        return found

    def thoughts(self, text: str) -> list[str]:
        """The model's reasoning before it wrote a text; several if it wrote the same text several times."""
        return [making.reasoning for making in self._of(text) if making.reasoning]

    def is_cut(self, text: str) -> bool:
        """Whether a text is known to have ended at max_tokens."""
        making = self.of(text)
        return making is not None and making.is_cut

    def systems(self, text: str | None = None) -> list[str | None]:
        """The different system prompts under which a text was made as an answer, or, if no text is given, any answer
        of this record; None for none."""
        makings = self._makings if text is None else self._of(text)
        return list(dict.fromkeys(making.system for making in makings if making.is_answer))

    def carried(self, row: Row) -> list[list[Any]]:
        """As JSON, the makings of the row's texts, and each further system prompt; [] if none says more than
        "whole, and without a system prompt"."""
        if not any(making.is_cut or making.system or making.reasoning for making in self._makings):
            return []
        texts = list(texts_in(row))
        wanted = {id(making) for _, text in texts for making in self._of(text)}
        kept = [making for making in self._makings if id(making) in wanted]
        there = {making.system for making in kept if making.is_answer}
        kept += [Making("", False, True, system) for system in self.systems() if system not in there]
        return [list(making) for making in kept]


#: Nothing is known: for a step used outside a run, or rows that no model step has touched.
NOTHING = Makings()


#: Answers questions of the running `apply` of a step with `learns`; the engine sets it around the call
#: (`apply_knowing`).
KNOWN: ContextVar[Makings] = ContextVar("asyncsynth_makings", default=NOTHING)


#: Keys of the value of `CARRIED`: makings, and the user's own column of that name if there is one.
_MAKINGS, _OWN = "asyncsynth makings", "own"


def with_carried(row: Row, told: list[list[Any]]) -> Row:
    """The row with makings to carry (`Makings.carried`). A column of the user's own of that name travels inside."""
    if CARRIED in row:
        return {**row, CARRIED: {_MAKINGS: told, _OWN: row[CARRIED]}}
    return {**row, CARRIED: {_MAKINGS: told}} if told else row


def without_carried(row: Row) -> tuple[Row, list[Making]]:
    """The row as it was before `with_carried`, and the makings."""
    value = row.get(CARRIED)
    if isinstance(value, dict) and _MAKINGS in value and value.keys() <= {_MAKINGS, _OWN}:
        plain = {name: item for name, item in row.items() if name != CARRIED}
        return ({**plain, CARRIED: value[_OWN]} if _OWN in value else plain), carried_makings(value[_MAKINGS])
    if value and isinstance(value, list) and all(_is_making(item) for item in value):  # of an earlier version
        return {name: item for name, item in row.items() if name != CARRIED}, carried_makings(value)
    return row, []  # a column of the user's own


def _is_making(item: Any) -> bool:
    kinds: tuple[Any, ...] = (str, bool, bool, (str, type(None)), (str, type(None)), int, bool)
    if not isinstance(item, list) or len(item) != len(kinds):
        return False
    return all(isinstance(part, kind) for part, kind in zip(item, kinds, strict=True))


def carried_makings(value: Any) -> list[Making]:
    """The makings in what `Makings.carried` returned."""
    return [Making(*item) for item in value or ()]


def given_makings(row: Row) -> list[Making]:
    """The texts from the input. Long ones are common, so no checksums are made of them."""
    return [Making(end, False, False, is_given=True) for _, text in texts_in(row) if (end := end_of(text))]


def texts_in(value: Any) -> Iterator[tuple[str, str]]:
    """(role, text) of every text in a value; the role is "" outside of messages."""
    if isinstance(value, str):
        yield "", value
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)
    elif isinstance(value, dict):
        role, content = value.get("role"), value.get("content")
        if isinstance(role, str) and isinstance(content, str):
            yield role, content
        elif isinstance(role, str) and (isinstance(content, list) or "tool_calls" in value):
            if text := text_in(content):  # an image's data and a call's arguments are not texts
                yield role, text
        else:
            for item in value.values():
                yield from texts_in(item)


def makings_of(
    samples: Sequence[Row], meta: dict[str, Any], *, is_answer: bool, prompt_of: Callable[[int], str | None]
) -> list[Making]:
    """The makings in one result of a model step.

    Args:
        samples: its outputs, one row for each answer.
        meta: its provenance. Results of older versions have no `cut`: there the only call's `finish` tells.
        prompt_of: the system prompt that was sent for the sample of this number.
    """
    cut = meta.get("cut")
    all_cut = cut is None and meta.get("finish") == "length" and meta.get("calls") == 1
    made: list[Making] = []
    sent_for = [(end, system) for end, system in meta.get(SYSTEM_OF) or ()]
    for number, outputs in enumerate(samples):
        reasoning = outputs.get("reasoning")
        sent = prompt_of(number)
        for name, value in outputs.items():
            if name in ("model_name", "judge_model", "reasoning"):
                continue
            for role, text in texts_in(value):
                if role in ("", "assistant") and (end := end_of(text)):
                    is_cut = all_cut or any(same_end(end, known) for known in cut or ())
                    thought = reasoning if isinstance(reasoning, str) else None
                    systems = _systems_of(end, sent_for) if sent_for else [sent]
                    made += [Making(end, is_cut, is_answer, each, thought, checksum_of(text)) for each in systems]
    return made


def _systems_of(end: str, sent_for: Sequence[tuple[str, str | None]]) -> list[str | None]:
    """The system prompts that may have been sent for a text: of the answers that end alike, or else of all."""
    found = [system for known, system in sent_for if known and same_end(end, known)]
    return list(dict.fromkeys(found or [system for _, system in sent_for]))
