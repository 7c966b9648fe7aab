"""Reads ratings in a judge's text: the JSON that was requested, or the text that a model writes on a server that
ignores the schema. If reading would need a guess, it is a ParseFailure, never a made-up number."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asyncsynth.errors import ParseFailure
from asyncsynth.tasks.parsing import TAKES_BACK, last_value, string_of, without_markdown

LOWEST, HIGHEST = 1, 5


@dataclass(slots=True)
class Evaluation:
    """The judge's evaluation of one answer. `rating` is None if the judge declined (``N/A``)."""

    rating: int | None
    rationale: str = ""


class _Unreadable(Exception):
    """This way of reading found ratings that are not valid."""


_NUMBER = r"(?P<value>[-+]?\d+(?:\.\d+)?|n\s*/\s*a\b|none\b|null\b)"
_SCALE = r"(?:\s*(?:/|out\s+of)\s*(?P<scale>\d+(?:\.0+)?))?"
_ANSWER = (
    r"(?:response|output|completion|answer|generation|text|candidate|assistant|instruction|question|prompt|query|item)"
)
_LABEL = re.compile(
    rf"\b(?P<overall>overall\s+)?(?:quality\s+)?(?:rating|score|grade)s?\b"
    rf"(?:\s*\(?\s*(?:(?:from\s+)?1\s*(?:[-\u2013]|to\b)\s*|out\s+of\s+)(?P<upto>\d+)\s*\)?(?=\s*[:=]))?"
    rf"(?:\s+(?:for|of)\b)?(?:\s+(?:the\s+)?{_ANSWER})?(?:\s*\#?(?P<number>\d+))?"
    rf"[\"'\s]*(?:[:=\u2013\u2014-]|\bis\b|\s)[\"'\s]*{_NUMBER}{_SCALE}(?![\d.]*\d)",
    re.IGNORECASE,
)
_HEADER = re.compile(
    rf"^[^\w\n]*(?:(?:the\s+)?(?:rating|score|evaluation|review)s?\s+(?:for|of)\s+)?(?:the\s+)?{_ANSWER}\s*"
    rf"\#?\s*\(?(?P<number>\d+)\)?\s*(?:[:.)\]\u2013\u2014-]+|(?=$)|(?=\(?\s*(?:rating|score)))",
    re.IGNORECASE | re.MULTILINE,
)
#: "4 - reason", "2. 4/5: reason", "- 4", "(4) reason"
_LINE = re.compile(
    rf"^[ \t]*(?:[-\u2022+]\s+)?(?P<listed>\(?\d+[.)]\s+)?[\[(]?{_NUMBER}{_SCALE}[\])]?"
    r"(?:\s*(?:stars?|points?|\uc810|\u5206|\u70b9))?\s*"
    r"(?:$|(?P<sign>[:\u2013\u2014-]|,|\.(?=\s))\s*(?P<rest>.*)$)",
    re.IGNORECASE | re.MULTILINE,
)
#: after a rating: "3 or 4", "4-5", "3, maybe 4": none was given
_ANOTHER = re.compile(
    r"\s*(?:\(?\s*(?:or|to|,?\s*(?:or\s+)?(?:maybe|perhaps|possibly))\s+(?:(?:even|maybe|perhaps)\s+)?(?:an?\s+)?\d"
    r"|\s*,\s*\d+(?:\.\d+)?(?=\s*(?:\Z|[,;\n]|\.(?!\d)))|\s*(?:[-=]>|\u2192)\s*\d"
    r"|[-\u2013\u2014~](?=\d)|\s[-\u2013\u2014~]\s+\d+(?:\.\d+)?\s*(?:$|[.,;:)\n]|out\b))",
    re.IGNORECASE,
)
#: after a rating: a sentence that takes it back and ends with another one ("Actually, 4.")
_SAID = r"(?P<values>\d(?:\s*/\s*\d+)?(?:(?:\s*,\s*|\s+(?:and\s+)?)\d(?:\s*/\s*\d+)?)*)[\s.!)\]*]*$"
_FINAL = r"^[^\w\n]{0,20}final(?:\s+(?:answer|verdict|decision|judge?ment))?\W{0,5}"
_TAKEN_BACK = re.compile(rf"(?:{TAKES_BACK}[^\n\d]{{0,60}}|{_FINAL}){_SAID}", re.IGNORECASE | re.MULTILINE)
#: after ratings in JSON, which has room for reasons, the words "final" and "ratings" do as well
_NAMED_AGAIN = re.compile(
    rf"\b(?:final(?:ly)?\b[^\n\d]{{0,40}}|(?:ratings|scores)\b[\s:=\"']*\[?){_SAID}", re.IGNORECASE | re.MULTILINE
)
#: how far after a rating another one counts as offered beside it
_BESIDE = 60
_MARK = re.compile(r"^[ \t]*\[(\d{1,3})\][ \t]*(?=[^\W\d])", re.MULTILINE)
_BARE = re.compile(rf"{_NUMBER}{_SCALE}", re.IGNORECASE)
_AT_THE_END = re.compile(r"[:,\s](\d)(?:\s*/\s*\d)?[\s.!*]*$")
_RATIONALE_LABEL = re.compile(
    r"^[^\w\n]*(?:rationale|reason(?:ing)?|explanation|justification|critique|feedback|comment)s?\b\s*"
    r"(?:for\s+(?:the\s+)?(?:rating|score)\s*)?[:\u2013\u2014-]*\s*",
    re.IGNORECASE | re.MULTILINE,
)


def read_ratings(text: str, count: int, *, highest: int = HIGHEST) -> list[Evaluation]:
    """`count` evaluations on a scale from 1 to `highest`. Raises ParseFailure, with `text` kept, for anything else."""
    raw = text
    why = f"the answer has no {count} ratings that can be read"
    text = _numbers_as_headers(text, count)
    plain = without_markdown(text)
    readings: tuple[Callable[[str, int, int], list[Evaluation] | None], ...] = (
        _from_json,
        _from_sections,
        _from_labels,
        _from_lines,
        _from_numbers,
    )
    for reading in readings:
        try:
            found = reading(text if reading is _from_json else plain, count, highest)
        except _Unreadable as error:
            why = str(error)
            break
        except ParseFailure as failure:
            failure.raw = raw
            raise
        if found is not None:
            return found
    raise ParseFailure(f"ratings: {why}", raw=raw)


def _numbers_as_headers(text: str, count: int) -> str:
    """ "[2] Score: 4" is the second answer's, not a JSON list with a 2."""
    if sorted(int(found[1]) for found in _MARK.finditer(text)) != list(range(1, count + 1)):
        return text
    return _MARK.sub(r"Answer \1: ", text)


def valid_rating(value: Any, scale: Any = None, *, highest: int = HIGHEST) -> int | None:
    """1 to `highest`, or None for a declined one."""
    if isinstance(value, str):
        text = re.sub(r"\s", "", value).lower()
        if text in ("n/a", "na", "none", "null"):
            return None
        if "/" in text:
            text, _, scale = text.partition("/")
        try:
            value = float(text)
        except ValueError:
            raise _Unreadable(f"{value!r} is no rating") from None
    if value is None:
        return None
    if scale is not None and str(scale).rstrip("0").rstrip(".") != str(highest):
        raise _Unreadable(f"{value} is on a scale to {scale}, not to {highest}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise _Unreadable(f"{value!r} is no whole rating")
    if not LOWEST <= value <= highest:
        raise _Unreadable(f"{value:g} is outside {LOWEST} to {highest}")
    return int(value)


# --- JSON ----------------------------------------------------------------------------------------


def _from_json(text: str, count: int, highest: int) -> list[Evaluation] | None:
    """The last value that holds ratings. A bare list counts only if nothing else does: prose may contain a [1]."""
    for bare in (False, True):
        found: tuple[list[Evaluation] | _Unreadable, str] | None
        found = last_value(text, functools.partial(_given, count=count, highest=highest, bare=bare))
        if found is not None:
            items, after = found
            if isinstance(items, _Unreadable):
                raise items
            _not_taken_back(items, without_markdown(after), highest)
            return items
    return None


def _given(value: Any, count: int, highest: int, *, bare: bool) -> list[Evaluation] | _Unreadable | None:
    """The ratings in a JSON value, or why it has none; None for a value of another kind."""
    if bare != (isinstance(value, list) and not any(isinstance(item, dict) for item in value)):
        return None
    try:
        items = _json_items(value, count, highest)
    except _Unreadable as error:
        return error
    if items is None and isinstance(value, dict) and {"ratings", "scores"} & {str(key).lower() for key in value}:
        return _Unreadable(f"it names ratings, and holds no {count}")
    if items is not None and len(items) != count:
        return _Unreadable(f"{len(items)} ratings for {count} answers")
    return items


def _not_taken_back(items: list[Evaluation], after: str, highest: int) -> None:
    """The text after the ratings must not give others ("Final rating: 2")."""
    ratings = [item.rating for item in items]
    _same_again(ratings, after, highest, _TAKEN_BACK)
    _same_again(ratings, after, highest, _NAMED_AGAIN)
    marks = list(_LABEL.finditer(after))
    if len(marks) != len(items):
        return
    said = [valid_rating(mark["value"], mark["scale"], highest=highest) for mark in marks]
    if said != [item.rating for item in items]:
        raise _Unreadable("it has ratings in JSON, and others after it")


def _same_again(ratings: list[int | None], after: str, highest: int, pattern: re.Pattern[str]) -> None:
    """Raises _Unreadable if as many ratings are given again, and they differ."""
    for found in pattern.finditer(after):
        numbers = [int(number) for number in re.findall(r"\d+", re.sub(r"/\s*\d+", "", found["values"]))]
        is_scale = all(LOWEST <= number <= highest for number in numbers)
        if is_scale and len(numbers) == len(ratings) and numbers != ratings:
            raise _Unreadable("it gives ratings, and others after them")


def _json_items(value: Any, count: int, highest: int) -> list[Evaluation] | None:
    """The evaluations in a JSON value of one of the shapes that models write; None if it is of another."""
    if isinstance(value, dict):
        lowered = {str(key).lower(): item for key, item in value.items()}
        if isinstance(ratings := lowered.get("ratings", lowered.get("scores")), list):
            others = [other for key, other in lowered.items() if re.search("rating|score", key)]
            if any(isinstance(other, list) and other != ratings for other in others):
                raise _Unreadable("it holds several lists of ratings")
            if all(isinstance(item, dict) for item in ratings):
                return _json_items(ratings, count, highest)
            given = lowered.get("rationales", lowered.get("reasons"))
            reasons = given if isinstance(given, list) and len(given) == len(ratings) else [""] * len(ratings)
            return [
                Evaluation(valid_rating(rating, highest=highest), string_of(why))
                for rating, why in zip(ratings, reasons, strict=True)
            ]
        if (one := _one(lowered, highest)) is not None:
            return [one] if count == 1 else None
        inner = list(value.values())
        if len(inner) == 1:
            return _json_items(inner[0], count, highest)
        if inner and len(inner) == count:  # {"answer 1": {...}, "answer 2": {...}}
            return _json_items(inner, count, highest)
        return None
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(item, dict) for item in value):
        ones = [_one({str(key).lower(): part for key, part in item.items()}, highest) for item in value]
        return [one for one in ones if one is not None] if None not in ones else None
    if all(item is None or isinstance(item, (int, float, str)) for item in value):
        if any(isinstance(item, str) and not _BARE.fullmatch(item.strip()) for item in value):
            return None
        return [Evaluation(valid_rating(item, highest=highest)) for item in value]
    return None


def _one(item: dict[str, Any], highest: int) -> Evaluation | None:
    names = ("rating", "score", "overall_rating", "overall-rating", "overall", "grade", "final_rating", "final_score")
    said = [item[name] for name in names if name in item]
    if len({value for value in said if isinstance(value, (int, float))}) > 1:
        raise _Unreadable("it gives one answer several ratings")
    for name in names:
        if name in item:
            reasons = ("rationale", "reason", "explanation", "justification", "critique", "feedback")
            why = next((item[key] for key in reasons if key in item), "")
            return Evaluation(valid_rating(item[name], highest=highest), string_of(why))
    return None


# --- text ----------------------------------------------------------------------------------------


def _from_sections(text: str, count: int, highest: int) -> list[Evaluation] | None:
    """One section for each answer, under its header: "Response 2: ..."."""
    headers = list(_HEADER.finditer(text))
    numbers = [int(header["number"]) for header in headers]
    if sorted(numbers) != list(range(1, count + 1)):
        return None
    ends = [*(header.start() for header in headers[1:]), len(text)]
    sections = {number: text[header.end() : end] for number, header, end in zip(numbers, headers, ends, strict=True)}
    done = []
    for number in range(1, count + 1):
        section = sections[number]
        found = (
            _from_labels(section, 1, highest) or _from_lines(section, 1, highest) or _from_numbers(section, 1, highest)
        )
        if found is None:
            return None
        done += found
    return done


def _from_labels(text: str, count: int, highest: int) -> list[Evaluation] | None:
    """ "Rating: 4/5" with its rationale after it, or before it."""
    marks = list(_LABEL.finditer(text))
    if len(marks) > count and sum(mark["overall"] is not None for mark in marks) == count:
        marks = [mark for mark in marks if mark["overall"] is not None]
    if not marks:
        return None
    for mark in marks:
        _alone(mark, text)
    ratings = [valid_rating(mark["value"], mark["scale"] or mark["upto"], highest=highest) for mark in marks]
    if len(marks) != count:
        if count == 1 and len(set(ratings)) == 1:  # given twice
            marks, ratings = marks[:1], ratings[:1]
        elif count == 1 and _is_final(marks[-1], text):
            marks, ratings = marks[-1:], ratings[-1:]
        elif len(marks) > count:
            raise _Unreadable(f"it has {len(marks)} ratings that differ, so the {count} are not clear")
        else:
            return None
    _same_again(ratings, text[marks[-1].end("value") :], highest, _TAKEN_BACK)
    before = [text[start : mark.start()] for start, mark in zip(_starts(marks), marks, strict=True)]
    after = [text[mark.end() : end] for mark, end in zip(marks, _ends(marks, text), strict=True)]
    chosen = before if not _words(after[-1]) and all(map(_words, before)) else after
    done = [Evaluation(rating, _rationale(why)) for rating, why in zip(ratings, chosen, strict=True)]
    numbers = [int(mark["number"]) for mark in marks if mark["number"]]
    if sorted(numbers) == list(range(1, count + 1)):
        done = [evaluation for _, evaluation in sorted(zip(numbers, done, strict=True), key=lambda x: x[0])]
    return done


def _from_lines(text: str, count: int, highest: int) -> list[Evaluation] | None:
    """ "4 - rationale", one for each answer; further lines belong to the rationale above them."""
    marks = [mark for mark in _LINE.finditer(text) if not _is_list_number(mark)]
    if len(marks) != count:
        return None
    for mark in marks:
        _alone(mark, text)
    numbers = [str(place + 1) for place in range(count)]
    in_order = count > 1 and [mark["value"] for mark in marks] == numbers
    if in_order and all(mark["rest"] and not mark["listed"] for mark in marks):
        raise _Unreadable(f"its lines are numbered 1 to {count}, which may be all that the numbers say")
    ends = _ends(marks, text)
    if count == 1 and (last := _AT_THE_END.search(text[marks[0].end() :])) and last[1] != marks[0]["value"]:
        raise _Unreadable(f"it begins with {marks[0]['value']} and ends with {last[1]}")
    done = []
    for mark, end in zip(marks, ends, strict=True):
        rating = valid_rating(mark["value"], mark["scale"], highest=highest)
        done.append(Evaluation(rating, _rationale((mark["rest"] or "") + text[mark.end() : end])))
    return done


def _from_numbers(text: str, count: int, highest: int) -> list[Evaluation] | None:
    """Only the numbers: "4, 5"."""
    if re.sub(r"[\s,;|.()\[\]]|\band\b", "", _BARE.sub("", text)):
        return None
    marks = list(_BARE.finditer(text))
    if len(marks) != count:
        return None
    return [Evaluation(valid_rating(mark["value"], mark["scale"], highest=highest)) for mark in marks]


def _alone(mark: re.Match[str], text: str) -> None:
    """No other rating is offered beside this one."""
    end = mark.end("scale") if mark["scale"] is not None else mark.end("value")
    if _ANOTHER.match(text[end : end + _BESIDE]):
        said = text[mark.start("value") : end + 12].splitlines()[0]
        raise _Unreadable(f"{said!r} leaves open which one it is")


def _is_final(mark: re.Match[str], text: str) -> bool:
    return re.search(r"\b(?:final|last|revised|corrected)\s*$", text[: mark.start()], re.IGNORECASE) is not None


def _is_list_number(mark: re.Match[str]) -> bool:
    """Whether "2. It is wrong" numbers a list: a full stop and words follow."""
    return mark["listed"] is None and mark["sign"] == "." and _words(mark["rest"])


def _starts(marks: list[re.Match[str]]) -> list[int]:
    return [0, *(mark.end() for mark in marks[:-1])]


def _ends(marks: list[re.Match[str]], text: str) -> list[int]:
    return [*(mark.start() for mark in marks[1:]), len(text)]


def _words(text: str) -> bool:
    return any(char.isalpha() for char in text)


def _rationale(text: str) -> str:
    """A rationale without its label, list number and the punctuation that joined it to the rating."""
    label = _RATIONALE_LABEL.search(text)
    text = text[label.end() :] if label is not None else text
    text = re.sub(r"\n\s*(?:\d+[.)]|[-\u2022])\s*$", "", text.rstrip())
    return text.strip(" \t\n\r-\u2013\u2014:,;|\"'").lstrip(".)] ").strip()
