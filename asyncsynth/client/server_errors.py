"""Errors in servers' own words: a status, or an error object inside HTTP 200, becomes an Outcome. Pure; part of the
codec.

Servers agree on few error bodies, so all of these are read: OpenAI's, vLLM's and SGLang's (`error` with `message`,
`type`, `code`), FastAPI's (`detail`), llama.cpp's, TGI's (`error`, `error_type`), Mistral's (`message` with `detail`),
Gemini's (a list; `status`; `details` with `RetryInfo`), OpenRouter's (`metadata`), Azure's (`innererror`), plain text.
"""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from asyncsynth.client.no_answer import ANSWER_ATTEMPTS, printable, sample
from asyncsynth.core.outcomes import Outcome, Overloaded, Permanent, Transient, span

_OVERLOADED = frozenset({429, 498, 503, 529})  # 498: Groq's "capacity exceeded"
#: 421: another connection may work; 424: TGI, Hugging Face and Bedrock for a generation that failed; 444, 460, 499:
#: proxies whose connection broke. 409, 423 and 425 mean "not now".
_RETRIED_4XX = frozenset({408, 409, 421, 423, 424, 425, 444, 460, 499})
_CODES = ("code", "status", "status_code", "statusCode", "http_code")  #: names of a status in an error
_MESSAGE_CHARS = 2000  #: of a server's message, in an outcome

#: Wordings of "the prompt is too long".
_CONTEXT = re.compile(
    "|".join(
        (
            r"context_length_exceeded|exceed_context_size|max_model_len|maximum model length",  # OpenAI, llama.cpp
            r"(?:maximum|max|model's) context (?:length|window)|context length (?:is only|of only)",  # vLLM, SGLang
            r"exceed(?:s|ed)? (?:the |its )?(?:available |maximum |model'?s? )*context",  # llama.cpp, Ollama, Anthropic
            r"longer than (?:the|this) (?:model'?s )?(?:maximum|context)",  # vLLM, SGLang
            r"tokens?`? \+ .{0,2}max_new_tokens.{0,2} must be <=|must have less than \d+ tokens",  # TGI
            r"input token count.{0,30} exceeds the maximum",  # Gemini
            r"exceed the configured limit of \d+ tokens",  # OpenAI
            r"(?:prompt|input) is too long|too many tokens: total number",  # Anthropic, Bedrock; Cohere
            r"context the overflows|context overflow|n_keep >= n_ctx",  # LM Studio
            r"maximum prompt length|prompt length .{0,20}exceeds max",  # xAI; TensorRT-LLM
        )
    ),
    re.IGNORECASE,
)
#: How filters call themselves, in codes; and in the messages of Azure and OpenAI, some of which carry no code.
_FILTERED = re.compile(r"\bcontent_filter\b|content_policy_violation|ResponsibleAIPolicyViolation|\bflagged_input\b")
_FILTER_WORDS = re.compile(r"content management policy|rejected (?:as a result of|by) our safety system", re.IGNORECASE)
#: A balance or a quota is spent, and does not come back within a run.
_SPENT = re.compile(
    r"insufficient[_ ](?:quota|balance|credits?|funds)|billing_(?:hard_limit|not_active)|credit balance is too low"
    r"|(?:used all|out of|no) (?:available |remaining )?credits|(?:monthly|hard) (?:spending )?limit|PerDay",
    re.IGNORECASE,
)
#: The same, if the server does not say when to try again.
_QUOTA = re.compile(r"\bquota\b|\bdaily\b|per[-_ ]?day\b|\bbilling\b", re.IGNORECASE)
_TRY_AGAIN = re.compile(
    r"(?:try again|retry) in (?:(?P<hours>\d{1,4})h)?(?:(?P<minutes>\d{1,5})m(?!s))?"
    r"(?:(?P<seconds>\d{1,7}(?:\.\d{1,9})?)(?P<unit>ms|s))?",
    re.IGNORECASE,
)
#: Not now: the same request is answered later, whatever the status says.
_LOADING = re.compile(r"\b(?:is|are|still|currently) (?:being )?load(?:ing|ed)\b|\bwarming up\b", re.IGNORECASE)
_TOO_FAST = re.compile(r"rate_?limit|too_?many_?requests|overloaded", re.IGNORECASE)
_TEXTS = ("message", "msg", "detail", "faultstring", "status_msg", "title")
#: Where errors are, beside OpenAI's `error` (FastAPI, Cloudflare, AWS API Gateway and Lambda, Apigee, MiniMax).
_PLACES = ("error", "errors", "detail", "message", "msg", "errorMessage", "error_message", "fault", "base_resp")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")
#: What a word in an error object inside HTTP 200 means, as a status. The first that is found counts.
_WORDS: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(words, re.IGNORECASE), status)
    for words, status in (
        (r"insufficient_(?:quota|balance|credits)|billing", 402),
        (r"rate_?limit|too_?many_?requests|resource_?exhausted", 429),
        (r"overloaded|unavailable|capacity", 503),
        (r"context_length|content_filter|content_policy", 400),
        (r"authentication|unauthenticated|unauthorized|invalid_api_key", 401),
        (r"permission", 403),
        (r"not_?found", 404),
        (r"bad_?request|invalid_?(?:request|argument)|validation", 400),
    )
)


class Said(NamedTuple):
    """The content of an error body. `kinds`: its types and codes; `code`: a status in it; `wait_s`: when to ask
    again."""

    message: str
    kinds: str = ""
    code: int | None = None
    wait_s: float | None = None


def refusal(status: int, headers: Mapping[str, str], body: bytes, now_wall: float) -> Outcome:
    """The outcome of an answer whose status is not 2xx. `now_wall` is Unix time in seconds."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    said = Said(sample(body)) if parsed is None else _said(parsed, now_wall)
    return _judged(status, headers, said, now_wall)


def error_inside(answer: Mapping[str, Any], now_wall: float) -> Outcome | None:
    """The outcome of an error that came with HTTP 200 in place of choices, or None if `answer` holds no error.

    A code or a known word in the error counts as the status. Without one, it is a server error.
    """
    if not any(answer.get(name) for name in _PLACES):
        code = answer.get("status") or answer.get("code")
        if _status(code) is None:
            return None
    said = _said(answer, now_wall)
    status = said.code
    if status is None:
        status = next((status for words, status in _WORDS if words.search(said.kinds)), None)
    if status is None:
        return Transient("server_error", said.message, 200, max_attempts=ANSWER_ATTEMPTS)
    return _judged(status, {}, said, now_wall)


def _judged(status: int, headers: Mapping[str, str], said: Said, now_wall: float) -> Outcome:
    message, kinds = said.message, said.kinds
    words = f"{kinds} {message}"
    wait = _wait(headers, said, now_wall)
    advice = headers.get("x-should-retry", "").strip().lower()
    final = advice == "false"
    if status in (400, 403) and _TOO_FAST.search(kinds) and not _SPENT.search(words):
        status = 429
    if status == 402 or (status in (400, 403, 412, 429) and _SPENT.search(words)) or (status == 429 and final):
        return Permanent("quota", _until(message, wait, now_wall), status, scope="server")
    if status in _OVERLOADED:
        is_quota = status == 429 and bool(_QUOTA.search(words))
        if is_quota and wait is None:
            return Permanent("quota", message, status, scope="server")
        return Overloaded(status, _until(message, wait, now_wall) if (wait or 0.0) > 120.0 else message, wait, is_quota)
    if status in (400, 413, 422, 500) and _CONTEXT.search(words):
        return Permanent("context_length", message, status)
    later = status in _RETRIED_4XX or (400 <= status < 500 and (advice == "true" or bool(_LOADING.search(message))))
    if status >= 500 or later:
        return Transient("server_error", message, status, wait, max_attempts=1 if final else None)
    if status in (400, 403, 422) and (_FILTERED.search(kinds) or _FILTER_WORDS.search(message)):
        return Permanent("content_filter", message, status)
    if status == 401:
        return Permanent("auth", message, status, scope="server")
    if status in (403, 451):
        return Permanent("refused", message, status, scope="server")
    if status in (404, 405):
        return Permanent("model_not_found", message, status, scope="server")
    if 300 <= status < 400:
        where = sample(headers.get("location", ""))
        said_where = f"redirected to {where}: set base_url to it" if where else "redirected, but no address is named"
        return Permanent("redirect", said_where, status, scope="server")
    return Permanent("too_large" if status == 413 else "bad_request", message, status)


# --- when to ask again ---------------------------------------------------------------------------


def retry_after(headers: Mapping[str, str], now_wall: float) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `retry-after` (seconds or HTTP-date); None if unreadable."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text, re.ASCII):
            return float(text) * scale
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, date.timestamp() - now_wall)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def _wait(headers: Mapping[str, str], said: Said, now_wall: float) -> float | None:
    """When to ask again, from the headers or else from the body."""
    wait = retry_after(headers, now_wall)
    if wait is None and (moment := headers.get("x-ratelimit-reset")):
        wait = _until_reset(moment, now_wall)
    if wait is None:
        wait = said.wait_s
    if wait is None and (found := _TRY_AGAIN.search(said.message)):
        hours, minutes, seconds, unit = found.group("hours", "minutes", "seconds", "unit")
        if hours or minutes or seconds:
            scale = 0.001 if unit in ("ms", "MS") else 1.0
            wait = 3600.0 * int(hours or 0) + 60.0 * int(minutes or 0) + scale * float(seconds or 0)
    return wait


def _until_reset(moment: Any, now_wall: float) -> float | None:
    """Seconds until a moment in Unix time, in seconds or milliseconds. Other numbers are ambiguous."""
    if not re.fullmatch(r"\d{10}(\d{3})?", str(moment), re.ASCII):
        return None
    at = float(moment) * (0.001 if len(str(moment)) == 13 else 1.0)
    return at - now_wall if at > now_wall else None


def _until(message: str, wait: float | None, now_wall: float) -> str:
    """The message, with how long the server asks to wait."""
    if wait is None:
        return message
    try:
        until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now_wall + wait))
    except (OverflowError, ValueError, OSError):
        return f"{message} (the server asks to wait {span(wait)})"
    return f"{message} (the server asks to wait {span(wait)}, until {until})"


# --- the content of an error body ---------------------------------------------------------------------


def _shown(value: Any) -> str:
    try:
        return sample(orjson.dumps(value))
    except TypeError:
        return "an error that is nested too deep to be shown"


def _said(parsed: Any, now_wall: float) -> Said:
    outer = parsed[0] if isinstance(parsed, list) and parsed else parsed
    if not isinstance(outer, dict):
        return Said(sample(parsed) if isinstance(parsed, str) else _shown(parsed))
    error = outer.get("error")
    inner = error if isinstance(error, dict) else outer
    message = _words(error) or _words(outer) or _shown(inner)
    kinds = " ".join(_kinds(outer, inner))
    codes = (place.get(name) for place in (inner, outer) for name in _CODES)
    code = next((code for given in codes if (code := _status(given)) is not None), None)
    return Said(printable(message[:_MESSAGE_CHARS]), kinds, code, _wait_in(inner, now_wall))


def _words(value: Any, depth: int = 0) -> str:
    """The readable text in an error of any shape; '' if there is none."""
    if isinstance(value, str):
        return value
    if depth > 4:
        return ""
    if isinstance(value, list):
        return "; ".join(words for item in value[:4] if (words := _words(item, depth + 1)))
    if not isinstance(value, dict):
        return ""
    found = (_words(value.get(name), depth + 1) for name in (*_TEXTS, *_PLACES))
    words = next((words for words in found if words), "")
    place = value.get("loc")
    if words and isinstance(place, list):  # FastAPI: which field it is about
        return f"{'.'.join(map(str, place))}: {words}"
    return words


def _kinds(outer: dict[str, Any], inner: dict[str, Any]) -> Iterator[str]:
    """Types and codes, from all the places where servers put them."""
    for place in (inner, outer):
        for name in ("type", "code", "status", "error_type"):
            if isinstance(kind := place.get(name), str):
                yield kind
    for name in ("innererror", "metadata"):
        if isinstance(more := inner.get(name), dict):
            yield from (str(key) for key in more)
            if isinstance(kind := more.get("code"), str):
                yield kind
    for detail in _details(inner):
        violations = detail.get("violations")
        for violation in violations if isinstance(violations, list) else ():
            if isinstance(violation, dict):
                yield str(violation.get("quotaId"))


def _details(inner: dict[str, Any]) -> Iterator[dict[str, Any]]:
    details = inner.get("details")
    return (one for one in details if isinstance(one, dict)) if isinstance(details, list) else iter(())


def _status(given: Any) -> int | None:
    """An HTTP status that reports an error, given as a number or as its digits."""
    if isinstance(given, str) and re.fullmatch(r"[45]\d\d", given, re.ASCII):
        return int(given)
    if type(given) is float and given.is_integer():
        given = int(given)
    return given if type(given) is int and 400 <= given < 600 else None


def _wait_in(inner: dict[str, Any], now_wall: float) -> float | None:
    """When to ask again: Gemini's `RetryInfo`, OpenRouter's headers of the provider."""
    for detail in _details(inner):
        if found := _DURATION.fullmatch(str(detail.get("retryDelay"))):
            return float(found[1])
    metadata = inner.get("metadata")
    headers = metadata.get("headers") if isinstance(metadata, dict) else None
    if isinstance(headers, dict):
        lower = {str(name).lower(): str(value) for name, value in headers.items()}
        if (wait := retry_after(lower, now_wall)) is not None:
            return wait
        return _until_reset(lower.get("x-ratelimit-reset"), now_wall)
    given = inner.get("retry_after")
    return float(given) if isinstance(given, int | float) and math.isfinite(given) and given >= 0 else None
