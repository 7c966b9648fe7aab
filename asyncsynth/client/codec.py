"""Request -> bytes, answer -> Outcome. Pure: no I/O, no clock but the wall time passed in for HTTP dates.

What each answer comes to (what is *done* about an outcome stands in `asyncsynth.core.retry`):

| answer                                              | outcome                                            |
| --------------------------------------------------- | -------------------------------------------------- |
| 2xx, choices as asked                               | Ok(Completion); finish_reason kept, never judged   |
| 2xx, a choice null, empty or blank                  | Transient empty_content, at most 3 attempts        |
| 2xx, such a choice with finish_reason content_filter| Permanent content_filter                           |
| 2xx, fewer choices than `n`                         | Transient missing_choices, at most 3               |
| 2xx, not JSON / nested too deep / another shape     | Transient bad_json, at most 3, a sample kept       |
| 2xx, not UTF-8                                      | Transient bad_utf8, at most 3, a sample kept       |
| 2xx, an `error` object instead of choices           | Transient server_error, at most 3                  |
| 2xx, lone surrogates in the text                    | Ok; U+FFFD in their place, flag replaced_surrogates|
| 429, 503, 529                                       | Overloaded with Retry-After (s, ms or HTTP-date)   |
| 429 `insufficient_quota`, 402                       | Permanent quota, scope server: waiting is no cure  |
| 408, 409, 425, 500, 502, 504, other 5xx             | Transient server_error                             |
| 400, 413, 422 saying the context is too long        | Permanent context_length                           |
| 413                                                 | Permanent too_large                                |
| 400, 422, other 4xx                                 | Permanent bad_request                              |
| 401, 403                                            | Permanent auth, scope server                       |
| 404, 405                                            | Permanent model_not_found, scope server            |
| 3xx                                                 | Permanent redirect, scope server (never followed)  |

| no whole answer (`outcome_of`)                      | outcome                                            |
| --------------------------------------------------- | -------------------------------------------------- |
| connect, reset, timeout                             | Transient of that reason; `free` kept              |
| truncated, protocol                                 | Transient of that reason, at most 3                |
| too_large                                           | Permanent too_large                                |

Dialects are evened out here: `openai` is the OpenAI API as vLLM serves it, `llamacpp` is llama.cpp's server,
which ignores without an error what it does not know; such fields are translated, or refused before sending.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from typing import Any, Literal

import orjson

from asyncsynth.client.messages import (
    ChatRequest,
    Choice,
    Completion,
    ModelRequest,
    Usage,
)
from asyncsynth.client.transport import TransportFailure
from asyncsynth.core.outcomes import Ok, Outcome, Overloaded, Permanent, Transient
from asyncsynth.errors import RequestFailed

Dialect = Literal["openai", "llamacpp"]

DEFAULT_MAX_TOKENS = 1024  #: always sent: without it llama.cpp may generate for minutes
ANSWER_ATTEMPTS = 3  #: the cap for answers that tend to repeat themselves (bad JSON, empty content)
SAMPLE_CHARS = 200  #: how much of an unreadable answer an outcome's message keeps

CHAT_PATH = "/chat/completions"
COMPLETION_PATH = "/completions"

_OVERLOADED = frozenset({429, 503, 529})
_RETRIED_4XX = frozenset({408, 409, 425})

# Wordings of "the prompt is too long": vLLM's (three generations), llama.cpp's, OpenAI's code.
_CONTEXT = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|maximum model length|max_model_len"
    r"|exceeds? the (?:available )?context (?:size|length|window)|longer than the maximum",
    re.IGNORECASE,
)
# An escaped backslash | a surrogate pair | a lone surrogate. Only the third is replaced.
_SURROGATES = re.compile(
    rb"(\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)


# --- request -> bytes --------------------------------------------------------------------------


def encode(request: ModelRequest, *, dialect: Dialect = "openai") -> tuple[str, bytes]:
    """The path (below the base URL) and the JSON body of a request.

    Raises RequestFailed (reason "bad_request") for what the dialect would silently ignore or JSON lacks.
    """
    fields: dict[str, Any] = {"model": request.model}
    if isinstance(request, ChatRequest):
        path = CHAT_PATH
        fields["messages"] = messages = request.messages
        fields.update(request.params)
        if request.schema is not None:
            fields["response_format"] = _response_format(request.schema)
        if dialect == "openai" and messages and messages[-1]["role"] == "assistant":
            # vLLM starts a new turn after an assistant message unless told to go on with it.
            fields.setdefault("continue_final_message", True)
            fields.setdefault("add_generation_prompt", False)
    else:
        path = COMPLETION_PATH
        fields["prompt"] = request.prompt
        fields.update(request.params)
    if fields.get("max_tokens") is None and fields.get("max_completion_tokens") is None:
        fields["max_tokens"] = DEFAULT_MAX_TOKENS
    if fields.get("stream"):
        raise RequestFailed("streaming answers are not read; leave `stream` out", reason="bad_request")
    if dialect == "llamacpp":
        _to_llamacpp(fields, chat=path is CHAT_PATH)
    try:
        return path, orjson.dumps(fields)
    except TypeError as error:  # orjson.JSONEncodeError: lone surrogates, integers over 64 bits, foreign types
        raise RequestFailed(f"the request is not JSON: {error}", reason="bad_request") from error


def _response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", str(schema.get("title") or "answer"))[:64]
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


def _to_llamacpp(fields: dict[str, Any], *, chat: bool) -> None:
    """Translate what llama.cpp takes under another name; refuse what it would ignore with HTTP 200."""
    limit = fields.get("max_tokens") or fields.get("max_completion_tokens") or 0
    if limit < 1:
        raise RequestFailed(f"max_tokens must be at least 1, not {limit}", reason="bad_request")
    temperature = fields.get("temperature")
    if temperature is not None and temperature < 0:
        raise RequestFailed(f"temperature must not be negative, not {temperature}", reason="bad_request")
    if fields.pop("echo", False):
        raise RequestFailed("llama.cpp has no `echo`; add the prompt yourself", reason="bad_request")
    if "repetition_penalty" in fields:  # vLLM's name; llama.cpp ignores it under that one
        fields.setdefault("repeat_penalty", fields.pop("repetition_penalty"))
    constraint = fields.pop("structured_outputs", None)
    if constraint:
        _constrain_llamacpp(fields, constraint)
    if not chat:  # /completions ignores response_format, but knows the schema by another name
        wanted = fields.pop("response_format", None)
        if wanted and wanted.get("type") == "json_schema":
            fields["json_schema"] = wanted["json_schema"]["schema"]
        elif wanted and wanted.get("type") == "json_object":
            fields["json_schema"] = {"type": "object"}


def _constrain_llamacpp(fields: dict[str, Any], constraint: Mapping[str, Any]) -> None:
    if constraint.get("json") is not None:
        schema = constraint["json"]
        fields["response_format"] = _response_format(orjson.loads(schema) if isinstance(schema, str) else schema)
    elif constraint.get("choice"):
        # A JSON string literal is also a GBNF literal.
        options = " | ".join(orjson.dumps(str(option)).decode() for option in constraint["choice"])
        fields["grammar"] = f"root ::= {options}"
    elif constraint.get("grammar"):
        fields["grammar"] = constraint["grammar"]
    else:
        kinds = ", ".join(sorted(constraint))
        raise RequestFailed(f"llama.cpp has no structured_outputs of kind {kinds}", reason="bad_request")


# --- answer -> outcome -------------------------------------------------------------------------


def outcome_of(failure: TransportFailure) -> Outcome:
    """What an exchange without a whole answer came to (second table above)."""
    if failure.reason == "too_large":
        return Permanent("too_large", failure.message)
    cap = ANSWER_ATTEMPTS if failure.reason in ("truncated", "protocol") else None
    return Transient(failure.reason, failure.message, free=failure.free, max_attempts=cap)


def decode(
    request: ModelRequest,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    now_wall: float,
    *,
    dialect: Dialect = "openai",
) -> Outcome:
    """The outcome of a whole answer (first table above). Never raises.

    `headers` have lower-case names; `now_wall` is Unix time in seconds, for Retry-After given as a date.
    """
    if 200 <= status < 300:
        return _decode_success(request, status, body, dialect)
    return _decode_refusal(status, headers, body, now_wall)


def _decode_refusal(status: int, headers: Mapping[str, str], body: bytes, now_wall: float) -> Outcome:
    message, kinds = _error_text(body)
    if status == 402 or (status == 429 and "insufficient_quota" in kinds):
        return Permanent("quota", message, status, scope="server")
    if status in _OVERLOADED:
        return Overloaded(status, message, retry_after(headers, now_wall))
    if status >= 500 or status in _RETRIED_4XX:
        return Transient("server_error", message, status, retry_after(headers, now_wall))
    if status in (400, 413, 422) and _CONTEXT.search(f"{kinds} {message}"):
        return Permanent("context_length", message, status)
    if status in (401, 403):
        return Permanent("auth", message, status, scope="server")
    if status in (404, 405):
        return Permanent("model_not_found", message, status, scope="server")
    if 300 <= status < 400:
        where = headers.get("location", "")
        return Permanent("redirect", f"redirected to {_sample(where)}: set base_url to it", status, scope="server")
    return Permanent("too_large" if status == 413 else "bad_request", message, status)


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


def _error_text(body: bytes) -> tuple[str, str]:
    """The message, and type and code, in vLLM's, llama.cpp's, OpenAI's and FastAPI's error bodies."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _sample(body), ""
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
    if not isinstance(error, dict):
        return _sample(str(error)), ""
    message = error.get("message", error.get("detail", error))
    return _printable(str(message)[:2000]), f"{error.get('type')} {error.get('code')}"


def _sample(raw: bytes | str) -> str:
    """The beginning of an unreadable answer, with control characters escaped."""
    text = raw[: 4 * SAMPLE_CHARS].decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return _printable(text[:SAMPLE_CHARS])


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _decode_success(request: ModelRequest, status: int, body: bytes, dialect: Dialect) -> Outcome:
    flags: tuple[str, ...] = ()
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        mended = _SURROGATES.sub(lambda m: m.group(1) or rb"\ufffd", body) if rb"\u" in body else body
        try:
            answer = orjson.loads(mended)
            flags = ("replaced_surrogates",)
        except orjson.JSONDecodeError:
            return _unreadable(status, body, error)
    try:
        return _read_answer(request, status, answer, flags, dialect)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as shape:
        return Transient(
            "bad_json",
            f"not a completion ({type(shape).__name__}: {shape}): {_sample(body)}",
            status,
            max_attempts=ANSWER_ATTEMPTS,
        )


def _unreadable(status: int, body: bytes, error: Exception) -> Transient:
    try:
        body.decode()
        reason = "bad_json"
    except UnicodeDecodeError as bad:
        reason, error = "bad_utf8", bad
        body = body[max(0, bad.start - 40) :]
    text = f"{str(error)[:SAMPLE_CHARS]}: {_sample(body)}"
    return Transient(reason, text, status, max_attempts=ANSWER_ATTEMPTS)


def _read_answer(request: ModelRequest, status: int, answer: Any, flags: tuple[str, ...], dialect: Dialect) -> Outcome:
    if "choices" not in answer and answer.get("error"):
        message = _error_text(orjson.dumps(answer))[0]
        return Transient("server_error", message, status, max_attempts=ANSWER_ATTEMPTS)
    chat = isinstance(request, ChatRequest)
    choices = []
    for raw in answer["choices"]:
        text = raw["message"]["content"] if chat else raw["text"]
        if type(text) is not str:
            text = _text_of(text)
        finish = raw.get("finish_reason")
        if not text or text.isspace():
            return _empty(finish, status)
        if finish is not None and type(finish) is not str:
            finish = str(finish)[:SAMPLE_CHARS]
        choices.append(Choice(text, finish, raw.get("logprobs")))
    wanted = request.params.get("n") or 1
    if len(choices) < wanted:
        message = f"{len(choices)} choices where {wanted} were asked for"
        return Transient("missing_choices", message, status, max_attempts=ANSWER_ATTEMPTS)
    if dialect == "llamacpp":
        flags += _even_out_llamacpp(request, choices)
    counts = answer.get("usage") or {}
    prompt, completion = _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
    model = str(answer.get("model", request.model))[:SAMPLE_CHARS]
    return Ok(Completion(choices, model, Usage(prompt, completion), flags=flags), completion, prompt)


def _count(given: Any) -> int:
    """A number of tokens; 0 for one that no server can have counted (negative, or too large to be journaled)."""
    number = int(given or 0)
    return number if 0 <= number < 1 << 53 else 0


def _text_of(content: Any) -> str:
    """Of a content that is no text: nothing, or a list of parts, as some servers have it."""
    return "" if content is None else "".join(part.get("text", "") for part in content)


def _empty(finish: str | None, status: int) -> Outcome:
    if finish == "content_filter":
        return Permanent("content_filter", "the server filtered the whole answer", status)
    message = f"a choice without text (finish_reason {finish})"
    return Transient("empty_content", message, status, max_attempts=ANSWER_ATTEMPTS)


def _even_out_llamacpp(request: ModelRequest, choices: list[Choice]) -> tuple[str, ...]:
    """llama.cpp repeats a prefilled answer's beginning, and for `n` counts one choice's tokens."""
    if isinstance(request, ChatRequest) and request.messages and request.messages[-1]["role"] == "assistant":
        prefix = request.messages[-1]["content"]
        for choice in choices:
            choice.text = choice.text.removeprefix(prefix)
    return ("usage_of_first_choice",) if len(choices) > 1 else ()
