"""Reading a list of instructions out of a model's text: JSON, whole or cut short, or lines under any numbering.

The result is clean: no preamble, numbering, bullets, headings, quotes, blanks, placeholders, refusals,
duplicates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from asyncsynth.tasks.parsing import is_chatter, is_looping, is_refusal, json_values, last_value, unquoted, words

_NAME = r"(?:instructions?|quer(?:y|ies)|questions?|tasks?|prompts?|items?|q)"
#: "1. ", "2) ", "[3] ", "(4) ", "**5.** ", "Instruction 6: ", "### Query 7"
_NUMBERED = re.compile(
    rf"^[\s#>*_`]*(?:[\[(]\d{{1,3}}[\])][.:]?|(?:{_NAME}\s*\#?\s*)?\d{{1,3}}\s*(?:[.):](?!\d)|[\u2013\u2014-](?=\s))"
    rf"|{_NAME}\s*\#?\s*\d{{1,3}}(?=\W*$))[\s*_`:]*",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^\s*(?:[-+*\u2022\u2023\u25e6\u2013\u2014\u25cf]|\u30fb)\s+(?:\[[ xX]?\]\s+)?")
_INLINE = re.compile(r"(?<=[.?!\"\u201d\u3002\uff1f])\s+(?=\(?\d{1,2}[.)]\s+\S)")
_HEADING = re.compile(r"^\s*(?:##+\s+\S|\*\*[^*]+\*\*\s*:?\s*$)")
_LABEL = re.compile(rf"^[*_]*{_NAME}[*_]*\s*:[\s*_]*(?=\S)", re.IGNORECASE)
#: "**Story:** Write ...": a title before the instruction itself
_TITLE = re.compile(
    r"^(?:\*\*|__)(?P<title>[^*_\n]{1,60}?):?(?:\*\*|__)\s*:?\s*[\u2013\u2014-]?\s*(?P<rest>\S.*)$", re.DOTALL
)
_STRING = re.compile(r'"((?:[^"\\\n]|\\.)*)"(?=\s*[,\]}\n])')
_KEYS = ("instructions", "queries", "questions", "prompts", "tasks", "items", "list")
_KEY = ("instruction", "query", "question", "prompt", "task", "text", "content")
_ENDS = re.compile(r"[.?!:)\]\"'`\u201d\u3002\uff1f\uff01]$")
_FINAL = re.compile(
    rf"^[\s#*_]*(?:(?:here\s+(?:is|are)|here's)\s+)?(?:(?:the|my|an?)\s+)?(?:final|revised|corrected|improved|better)\s+"
    rf"(?:list|versions?|ones?|answers?|{_NAME})[\s*_]*:[\s*_]*$"
    r"|^\W*(?:let\s+me|i\s+will|i['\u2019]ll)\s+(?:improve|revise|refine|rewrite|redo|fix)\b[^\n]{0,60}:[\s*_]*$",
    re.IGNORECASE,
)
_PLACEHOLDERS = frozenset(
    {"string", "instruction", "query", "question", "prompt", "your instruction here", "n a", "none"}
)
#: Scripts without spaces need fewer characters; a shorter item is not an instruction.
_LEAST_WORDS, _LEAST_CHARS = 2, 6


def read_list(text: str, *, cut: bool = False) -> list[str]:
    """The items in a text, in their order, each once. `cut`: the text ends at max_tokens, and the
    unfinished item is left out. [] if there is none."""
    text = text.replace("\r\n", "\n").strip()
    if is_refusal(text):
        return []
    found = _from_json(text, cut=cut)
    if found is None:
        found = _from_lines(text, cut=cut)
    return distinct(item for item in map(_clean, found) if _is_item(item))


def distinct(items: Iterable[str], seen: Iterable[str] = ()) -> list[str]:
    """The items that differ from `seen` and from one another by more than case, spaces and punctuation."""
    known = {_sameness(item) for item in seen}
    kept = []
    for item in items:
        key = _sameness(item)
        if key not in known:
            known.add(key)
            kept.append(item)
    return kept


def _sameness(item: str) -> str:
    return " ".join(words(item)) or item


# --- JSON ----------------------------------------------------------------------------------------


def _from_json(text: str, *, cut: bool) -> list[str] | None:
    """Strings of JSON that makes up the answer; not of JSON quoted inside an instruction."""
    start = re.search(r"^[ \t]*[\[{]", text, re.MULTILINE)
    if start is None or any(_marked(line) for line in text[: start.start()].splitlines()):
        return None
    body = text[start.start() :]
    if (last := last_value(body, _strings)) is not None:
        found, after = last
        lines = after.splitlines()
        final = [place for place, line in enumerate(lines) if _FINAL.match(line) and any(map(_marked, lines[place:]))]
        return _from_lines("\n".join(lines[final[-1] + 1 :]), cut=cut) if final else found
    if re.match(r'\s*(?:\[|\{\s*"\w+"\s*:\s*\[)\s*[{"]', body):  # cut short: the strings that are whole
        whole = [found[1] for found in _STRING.finditer(body)]
        return [_unescaped(item) for item in whole if item.lower() not in (*_KEYS, *_KEY)]
    return None


def _unescaped(text: str) -> str:
    for value in json_values(f'"{text}"'):
        return str(value)
    return text


def _strings(value: Any) -> list[str] | None:
    if isinstance(value, list):
        items = [_string(item) for item in value]
        found = [item for item in items if item is not None]
        return found or None
    if isinstance(value, dict):
        lowered = {str(key).lower(): item for key, item in value.items()}
        for key in _KEYS:
            if isinstance(lowered.get(key), (list, dict)):
                return _strings(lowered[key])
        inner = [item for item in value.values() if isinstance(item, (list, dict))]
        if len(inner) == 1:
            return _strings(inner[0])
        items = [_string(item) for item in value.values()]
        return [item for item in items if item is not None] or None
    return None


def _string(item: Any) -> str | None:
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        lowered = {str(key).lower(): part for key, part in item.items()}
        texts = [lowered[key] for key in _KEY if isinstance(lowered.get(key), str)]
        texts += [part for part in item.values() if isinstance(part, str)]
        return texts[0] if texts else None
    return None


# --- lines ---------------------------------------------------------------------------------------


def _marked(line: str) -> bool:
    return _NUMBERED.match(line) is not None or _BULLET.match(line) is not None


def _from_lines(text: str, *, cut: bool) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n") if not line.lstrip().startswith("```")]
    if sum(_NUMBERED.match(line) is not None for line in lines) < 2:
        lines = [part for line in lines for part in _INLINE.split(line)]
    lines = _last_draft(lines)
    numbered = sum(_NUMBERED.match(line) is not None for line in lines)
    bullets = sum(_BULLET.match(line) is not None for line in lines)
    if numbered > 1 or (numbered == 1 and bullets < 2):
        items = _under_marks(lines, _NUMBERED)
    elif bullets:
        items = _under_marks(lines, _BULLET)
    else:
        items = [line for line in lines if line.strip() and not is_chatter(line)]
        if len(items) > 1 and items[0].endswith(":"):  # an unusual preamble
            del items[0]
    if cut and items and not _ENDS.search(items[-1]):
        items.pop()
    return items


def _last_draft(lines: list[str]) -> list[str]:
    """The lines after the last "Final list:" that is between two lists; else all of them."""
    for place in range(len(lines) - 1, 0, -1):
        if _FINAL.match(lines[place]) and all(any(map(_marked, part)) for part in (lines[:place], lines[place:])):
            return lines[place + 1 :]
    return lines


def _under_marks(lines: list[str], mark: re.Pattern[str]) -> list[str]:
    """One item for each mark. Lines that follow belong to it until a blank line; prose before and between does not."""
    items: list[str] = []
    is_open = False
    for line in lines:
        found = mark.match(line)
        if found is not None:
            # Emphasis that begins in the mark ("**1. Title:** text") ends in the item.
            rest = line[found.end() :]
            opened = re.search(r"\*\*|__", found[0])
            items.append(opened[0] + rest if opened and rest.count(opened[0]) % 2 else rest)
            is_open = True
        elif _HEADING.match(line) and items and items[-1].strip():
            is_open = False
        elif not line.strip():
            is_open = is_open and not items[-1].strip()  # "Instruction 1:", blank, text
        elif is_open and not is_chatter(line):
            items[-1] = f"{items[-1]}\n{line.strip()}" if items[-1].strip() else line.strip()
    return items


def _clean(item: str) -> str:
    item = item.strip()
    for _ in range(3):
        before = item
        item = unquoted(_LABEL.sub("", _BULLET.sub("", _NUMBERED.sub("", item, count=1), count=1), count=1))
        title = _TITLE.match(item)
        if title is not None and len(words(title["rest"])) > 2:
            item = title["rest"].strip()
        if item == before:
            break
    return re.sub(r"(?<!\*)\*\*(?!\*)|(?<!\w)__|__(?!\w)", "", re.sub(r"[ \t]+", " ", item)).strip()


def _is_item(item: str) -> bool:
    said = words(item)
    plain = " ".join(said)
    if not any(char.isalpha() for char in item) or plain in _PLACEHOLDERS or re.fullmatch(rf"{_NAME} \d+", plain):
        return False
    if len(said) < _LEAST_WORDS and (item.isascii() or len(item) < _LEAST_CHARS):
        return False
    is_heading = item.endswith(":") and len(said) <= 4
    is_answer = plain.startswith(("answer ", "the answer is ", "possible answer "))  # asked and answered
    if is_answer and item.partition(":")[1]:
        return False
    return not (is_heading or is_refusal(item) or is_looping(item, times=2))
