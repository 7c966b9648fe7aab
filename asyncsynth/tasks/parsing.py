"""Shared readers of a model's text: JSON between prose, lists under any numbering, rewritten
texts without the words that models put around them, and signs of useless answers (refusals, loops).

All functions are pure and linear in the text, except for the bounded search in `json_values`.

If an answer holds several different values of one kind, the last complete one counts, or the answer is a
ParseFailure; the first never counts, because it is a draft.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from asyncsynth.errors import ParseFailure
from asyncsynth.tasks.exact_json import InexactJson, NoJson, exact_json

T = TypeVar("T")

#: If a run of this many words comes back this often, the model loops.
_LOOP_WORDS, _LOOP_TIMES = 8, 3

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
_BRACKET = re.compile(r"[\[{]")
_JSON_BEGINS = re.compile(r'\{\s*"|\[\s*["{\[\dtfn-]')
#: Text that is meant as a JSON object, whether it is one or not.
_OBJECT_BEGINS = re.compile(r"\{\s*(?:\"[^\"\n]{1,80}\"|'[^'\n]{1,80}')\s*:")
#: At the beginning of a sentence: it takes back what was said before.
TAKES_BACK = (
    r"(?:^|(?<=[.!?,;(])\s|\n)\W{0,20}(?:but\s+)?(?:actually|wait|no\s*[,:;.!]|on\s+(?:further\s+)?reflection"
    r"|on\s+second\s+thoughts?|(?:i\s+)?correct(?:ion)?\b|i\s+(?:change|take|revise)\w*|revised|make\s+(?:it|that))"
)
#: Finds the end of a value, bare control characters in its strings allowed.
_SCAN = json.JSONDecoder(strict=False).raw_decode
_MOST_WORK = 200_000  #: characters that may be read without a result, plus fifty times the text
_REFUSAL = re.compile(
    r"^\W*(?:(?:i\s*['\u2019]?\s*a?m\s+)?(?:(?:very|so|really)\s+)?sorry\b(?=[\s,.:;!\u2014-]*(?:but|i\b|as|that|for|$))"
    r"|i\s+(?:must\s+|have\s+to\s+)?apologi[sz]e\b|(?:my\s+)?apologies\b"
    r"|as\s+an?\s+(?:ai|(?:large\s+)?language)\b"
    r"|(?:unfortunately,?\s+)?i\s*(?:can\s*not|can['\u2019]t|won['\u2019]t|will\s+not|['\u2019]?\s*a?m\s+(?:unable|not\s+able)\s+to)"
    r"\s+(?:help|assist|comply|fulfil|provide|rewrite|create|generate|write|answer|discuss|engage|do\s+that|continue)"
    r"|申し訳|抱歉|对不起|lo siento\b|je suis désolé)",
    re.IGNORECASE,
)
_THING = (
    r"(?:instructions?|prompts?|quer(?:y|ies)|questions?|requests?|tasks?|responses?|answers?|texts?|versions?|lists?|"
    r"rewrit(?:e|ing)|revisions?)"
)
_MADE = r"(?:re-?written|revised|improved|evolved|enhanced|new|updated|modified|final|refined|rephrased|better)"
#: "Sure! Here is the rewritten instruction:" at the start of a line, and it ends the line
_PREAMBLE = re.compile(
    rf"^\W*(?:(?:sure|certainly|of\s+course|absolutely|okay|ok|great|gladly)\b[^\n]{{0,200}}?[:!.]"
    rf"|(?:here\s+(?:is|are)|here['\u2019]s|below\s+(?:is|are)|the\s+following|these\s+are|this\s+is)\b[^\n]{{0,200}}?:"
    rf"|(?:the\s+|my\s+|your\s+)?{_MADE}\s+{_THING}\s*\#?\s*:)[\s*_]*$",
    re.IGNORECASE,
)
#: the same before the text on one line
_LABEL = re.compile(
    rf"^[\s#*_]*(?:(?:sure|certainly|of\s+course|okay|ok)\s*[!,.:]\s*)?"
    rf"(?:(?:here\s+(?:is|are)|here['\u2019]s)\s+(?:the|an?|your|my)\s+)?(?:(?:the\s+)?{_MADE}\s+{_THING})\s*[*_\#]*\s*:[\s*_]*",
    re.IGNORECASE,
)
#: the same, anywhere
_LABEL_LINE = re.compile(_LABEL.pattern.replace(r"[\s#*_]*", r"[ \t#*_]*", 1), re.IGNORECASE | re.MULTILINE)
_DRAFT = re.compile(r"[\s#*_]*(?:(?:my|the|an?|first|rough|initial)\s+)*draft\b[^\n:]{0,40}:", re.IGNORECASE)
#: a last paragraph about the text instead of the text
_EPILOGUE = re.compile(
    rf"^[\s(*_-]*(?:let\s+me\s+know\b|feel\s+free\b|(?:please\s+)?note(?:\s*:|\s+that\s+(?:i|the|this)\b)|"
    rf"i\s+(?:hope|have\s+(?:added|rewritten|made|revised|changed)|added|rewrote|made\s+the)\b|explanation\s*:|"
    rf"(?:changes|edits)\s+(?:made|i\s+made)\b|th(?:is|ese)\s+(?:{_MADE}\s+)?{_THING}\b|"
    rf"would\s+you\s+like\b|the\s+{_MADE}\s+{_THING}\s+(?!:))",
    re.IGNORECASE,
)
_FENCED = re.compile(r"^```[\w+-]*[ \t]*\n(?P<inside>.*?)\n?```\s*$", re.DOTALL)
_TAG = re.compile(
    r"<(instruction|response|answer|request|revision|text|prompt|output|rewrit\w*|evolved\w*|new\w*)>", re.IGNORECASE
)
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb", "\u300c": "\u300d"}


def json_values(text: str, refused: list[str] | None = None) -> Iterator[Any]:
    """JSON values in a text: the whole, or objects and arrays between prose and code fences.

    In those, strings may contain unescaped line breaks, tabs and other control characters, against RFC 8259: models
    write them so, and the grammars that constrain a vLLM's answer to a schema let them pass. A value that the end of
    the text cuts off is left out, with all that is in it, and so is one that a row cannot hold as it was written (an
    integer over 64 bits, NaN, a key twice); `refused` gets a line that names the latter and its place.
    Raises ParseFailure for hostile texts, full of brackets.
    """
    for value, _ in _json_parts(text):
        if not isinstance(value, _Unusable):
            yield value
        elif refused is not None and value.is_json:
            refused.append(value.why)


def last_value(text: str, read: Callable[[Any], T | None], refused: list[str] | None = None) -> tuple[T, str] | None:
    """The result of `read` for the last JSON value that it can read, and the text after that value.

    A model that drafts and corrects itself writes several values; the first is never its answer. `read` gives None
    for a value of another kind. None if no value is of the right kind. `refused` as in `json_values`.

    Raises:
        ParseFailure: the last one is not known, because a further value is cut off, is not JSON after all, or cannot be
            kept as it was written.
    """
    last: tuple[T, str] | None = None
    unusable: _Unusable | None = None
    for value, end in _json_parts(text):
        if isinstance(value, _Unusable):
            unusable = value
            if refused is not None and value.is_json:
                refused.append(value.why)
        elif (made := read(value)) is not None:
            last, unusable = (made, text[end:]), None
    if unusable is not None and last is not None:
        words = f"the answer cannot be kept as it is: {unusable.why}" if unusable.is_json else unusable.why
        raise ParseFailure(words, raw=text)
    return last


class _Unusable:
    """Takes the place of a value that cannot be used, with the reason."""

    def __init__(self, why: str, *, is_json: bool = True) -> None:
        self.why = why
        self.is_json = is_json  #: a whole value, which cannot be kept as it was written


def _json_parts(text: str) -> Iterator[tuple[Any, int]]:
    """Each outermost JSON value with the place after it; `_Unusable` for one that is cut off or inexact."""
    try:
        whole: Any = exact_json(text.strip())
    except NoJson:
        pass
    except InexactJson as error:
        yield _Unusable(str(error)), len(text)
        return
    else:
        yield whole, len(text)
        return
    length, start, work = len(text.rstrip()), 0, 0
    while (found := _BRACKET.search(text, start)) is not None:
        begin = found.start()
        try:
            _, end = _SCAN(text, begin)
            value: Any = exact_json(text[begin:end])
        except InexactJson as error:
            start = end
            yield _Unusable(str(error)), end
        except json.JSONDecodeError as error:
            start = begin + 1
            is_string = error.msg.startswith("Unterminated string")
            if (is_string or error.pos >= length) and _JSON_BEGINS.match(text, begin):
                yield _Unusable("the answer holds a value, and another one that is cut off", is_json=False), len(text)
                return
            if _OBJECT_BEGINS.match(text, begin):
                yield _Unusable("the answer holds a value, and another one that is no JSON", is_json=False), start
            work += length - begin if is_string else max(1, error.pos - begin)
        except (RecursionError, NoJson):  # nested too deep
            start = begin + 1
            work += 1000
        else:
            start = end
            yield value, end
        if work > _MOST_WORK + 50 * length:
            raise ParseFailure("the answer is full of brackets that are no JSON", raw=text)


def string_of(value: Any) -> str:
    """A JSON value as text, without surrounding white space; '' for null."""
    return value.strip() if isinstance(value, str) else "" if value is None else str(value)


def without_markdown(text: str) -> str:
    """Without emphasis, headings, quotes and code marks: `**Rating:** 4` is `Rating: 4`."""
    text = re.sub(r"^[ \t]*(?:#+|>+)[ \t]*", "", text.replace("\r\n", "\n"), flags=re.MULTILINE)
    return re.sub(r"\*+|`+|(?<!\w)_+|_+(?!\w)", "", text)


def words(text: str) -> list[str]:
    """The words of a text, case folded, without punctuation."""
    return _WORD.findall(text.casefold())


def is_refusal(text: str) -> bool:
    """Whether a text begins as models do when they decline ("I'm sorry, but I can't ...")."""
    return _REFUSAL.match(text) is not None


def is_looping(text: str, times: int = _LOOP_TIMES) -> bool:
    """Whether a run of words comes back `times` times, or a line one time more, as small models write them until
    max_tokens."""
    said = words(text)
    runs = Counter(tuple(said[place : place + _LOOP_WORDS]) for place in range(len(said) - _LOOP_WORDS + 1))
    if runs and max(runs.values()) >= times:
        return True
    lines = Counter(" ".join(words(line)) for line in text.splitlines())
    return any(count > times and len(line) >= 15 for line, count in lines.items())


def is_chatter(line: str) -> bool:
    """Whether a line introduces or follows a list or a text, and is not part of it."""
    return _PREAMBLE.match(line) is not None or _EPILOGUE.match(line) is not None


def unquoted(text: str) -> str:
    """Without a pair of quotes or of emphasis marks around the whole of it."""
    text = text.strip()
    for _ in range(3):
        if len(text) > 2 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
            text = text[1:-1].strip()
        elif found := re.fullmatch(r"(\*\*|__|\*|_)(?P<inside>[^*_].*?)\1", text, re.DOTALL):
            if found[1] in found["inside"]:
                break
            text = found["inside"].strip()
        else:
            break
    return text


def rewritten_text(text: str) -> str:
    """A text that a model was asked to rewrite, without its words before and after it, tags, a fence
    around the whole, labels and quotes. May be ''."""
    text = text.replace("\r\n", "\n").strip()
    if (one := _only_string(text)) is not None:
        return one
    text = _last_labelled(text)
    text = _without_preamble(text)
    text = _inside_tags(text)
    if fenced := _FENCED.match(text):
        text = fenced["inside"].strip()
    paragraphs = re.split(r"\n\s*\n", text)
    while len(paragraphs) > 1 and _EPILOGUE.match(paragraphs[-1]):
        paragraphs.pop()
    text = "\n\n".join(paragraphs)
    return unquoted(_LABEL.sub("", text, count=1))


def _last_labelled(text: str) -> str:
    """The text under the last label, if the text begins with the same label or calls itself a draft."""
    marks = list(_LABEL_LINE.finditer(text))
    if not marks or not (_DRAFT.match(text) or (len(marks) > 1 and marks[0].start() == 0)):
        return text
    if len(marks) > 1 and len({" ".join(words(mark[0])) for mark in marks}) > 1:
        return text  # other words may be part of the text
    return text[marks[-1].end() :].strip()


def _inside_tags(text: str) -> str:
    """The text in a pair of tags that holds most of it; else the text without stray tags around it."""
    opening = _TAG.search(text)
    if opening is not None:
        # Several drafts in the same tags: the last whole one counts.
        drafts = list(re.finditer(f"<({re.escape(opening[1])})>(.*?)</\\1>", text, re.DOTALL | re.IGNORECASE))
        if len(drafts) > 1 and sum(len(draft[0]) for draft in drafts) * 2 > len(text):
            return drafts[-1][2].strip()
        end = text.find(f"</{opening[1]}>", opening.end())
        if (end - opening.end()) * 2 > len(text):
            return text[opening.end() : end].strip()
        if opening.start() == 0:
            return text[opening.end() :].strip()
    return re.sub(r"</(?:instruction|response|answer|request|revision)>$", "", text, flags=re.IGNORECASE).strip()


def _without_preamble(text: str) -> str:
    first, _, rest = text.partition("\n")
    return rest.strip() if rest.strip() and _PREAMBLE.match(first) else text


def _only_string(text: str) -> str | None:
    """The text in a JSON object of one string: some models put everything into JSON."""
    if not text.startswith(("{", "```")):
        return None
    found = last_value(text, lambda value: next(iter(value.values())) if _is_single(value) else None)
    return found[0].strip() if found is not None and isinstance(found[0], str) else None


def _is_single(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1
