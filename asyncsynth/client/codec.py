"""Request -> bytes, answer -> Outcome. Pure: no I/O, no clock except the wall time passed in for HTTP dates.

The outcome of each answer (`asyncsynth.core.retry` decides what to do about it):

| answer                                              | outcome                                            |
| --------------------------------------------------- | -------------------------------------------------- |
| 2xx, choices as asked                               | Ok(Completion); reasoning beside the answer        |
|                                                     | (client.reasoning); choices in order of `index`    |
| 2xx, a choice null, empty, blank or without content | Transient empty_content, at most 3 attempts        |
| 2xx, such a choice with a `refusal`                 | Permanent refusal, its text kept                   |
| 2xx, such a choice with `tool_calls`                | Ok if the request offered tools; else Permanent    |
|                                                     | tool_calls                                         |
| 2xx, such a choice that thought until max_tokens    | Permanent reasoning_cut, the thought kept          |
| 2xx, such a choice, max_tokens used up, no thought  | Permanent empty_content                            |
| 2xx, finish_reason content_filter and the like      | Permanent content_filter, a partial text kept      |
| 2xx, finish_reason abort, error and the like        | Transient server_error, a partial text kept        |
| 2xx, fewer choices than `n`                         | Transient missing_choices, at most 3               |
| 2xx, not JSON / nested too deep / another shape     | Transient bad_json, at most 3, a sample kept       |
| 2xx, not UTF-8                                      | Transient bad_utf8, at most 3, a sample kept       |
| 2xx, an error in place of choices, or in a choice   | as the status in its code or its words below;      |
|                                                     | without one Transient server_error, at most 3      |
| 2xx, lone surrogates in the text                    | Ok; U+FFFD in their place, flag replaced_surrogates|
| 2xx, NaN, Infinity, a byte order mark, trailing NULs| Ok; null in their place, flag repaired_json        |
| 2xx, `usage`, `model` or `logprobs` of odd shapes   | Ok; counts that cannot be read are 0               |
| 402; 400, 403, 412, 429 of a spent balance or quota;| Permanent quota, scope server                      |
| 429 `x-should-retry: false`, or of a quota without  |                                                    |
| a time to wait                                      |                                                    |
| 429, 498, 503, 529                                  | Overloaded with the wait that headers or body ask  |
|                                                     | for (s, ms, HTTP-date, RetryInfo, "try again in")  |
| 400, 413, 422, 500 saying the context is too long   | Permanent context_length                           |
| 408, 409, 421, 423, 424, 425, 444, 460, 499, 5xx    | Transient server_error                             |
| 400, 403, 422 of a content filter                   | Permanent content_filter                           |
| 413                                                 | Permanent too_large                                |
| 401                                                 | Permanent auth, scope server                       |
| 403, 451                                            | Permanent refused, scope server                    |
| 404, 405                                            | Permanent model_not_found, scope server            |
| 3xx                                                 | Permanent redirect, scope server                   |
| 400, 422, other 4xx                                 | Permanent bad_request                              |

| no whole answer (`outcome_of`)                      | outcome                                            |
| --------------------------------------------------- | -------------------------------------------------- |
| connect, reset, timeout                             | Transient of that reason; `free` kept              |
| truncated, protocol                                 | Transient of that reason, at most 3                |
| too_large                                           | Permanent too_large                                |

Scope server is a suspicion: `core.refusals` finds out whether the server refuses every request or only this one.
Every 2xx above except a bare error is `paid`: its tokens are read from `usage`, and the receiver of the outcome counts
them, whether the answer is useful or not. `client.server_errors` reads refusals, `client.no_answer` useless answers.

Differences of dialect are removed here: `openai` is the OpenAI API as vLLM serves it, `llamacpp` is llama.cpp's server,
which silently ignores unknown fields; these are translated, or refused before sending.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from asyncsynth.client.messages import (
    ChatRequest,
    Choice,
    Completion,
    ModelRequest,
    Usage,
)
from asyncsynth.client.no_answer import (
    ANSWER_ATTEMPTS,
    DEFAULT_MAX_TOKENS,
    MOST_TOKENS,
    SAMPLE_CHARS,
    count,
    is_cut,
    no_answer,
    not_whole,
    paid,
    sample,
)
from asyncsynth.client.reasoning import answer_logprobs, is_thought, opened_in, reasoning_in, separate
from asyncsynth.client.server_errors import error_inside, refusal, retry_after
from asyncsynth.client.transport import TransportFailure
from asyncsynth.core.outcomes import Ok, Outcome, Permanent, Transient
from asyncsynth.errors import RequestFailed

__all__ = [
    "ANSWER_ATTEMPTS", "CHAT_PATH", "COMPLETION_PATH", "DEFAULT_MAX_TOKENS", "SAMPLE_CHARS", "Dialect", "decode",
    "encode", "outcome_of", "read_again", "retry_after",
]  # fmt: skip

Dialect = Literal["openai", "llamacpp"]


CHAT_PATH = "/chat/completions"
COMPLETION_PATH = "/completions"

#: The last counts in a body that is no JSON.
_USAGE = re.compile(rb'"(prompt|completion)_tokens"\s*:\s*(\d{1,12})\b')
# An escaped backslash | a surrogate pair | a lone surrogate. Only the third is replaced.
_SURROGATES = re.compile(
    rb"(\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)


# --- request -> bytes --------------------------------------------------------------------------


def encode(request: ModelRequest, *, dialect: Dialect = "openai") -> tuple[str, bytes]:
    """The path (below the base URL) and the JSON body of a request.

    Raises RequestFailed (reason "bad_request") for fields that the dialect would silently ignore and values that JSON
    cannot hold.
    """
    fields: dict[str, Any]
    if isinstance(request, ChatRequest):
        path, messages = CHAT_PATH, request.messages
        fields = {"model": request.model, "messages": messages, **request.params}
        if request.schema is not None:
            fields["response_format"] = _response_format(request.schema)
        if dialect == "openai" and messages and messages[-1]["role"] == "assistant":
            # vLLM starts a new turn after an assistant message unless told to continue that one.
            fields.setdefault("continue_final_message", True)
            fields.setdefault("add_generation_prompt", False)
    else:
        path = COMPLETION_PATH
        fields = {"model": request.model, "prompt": request.prompt, **request.params}
    if fields.get("max_tokens") is None and fields.get("max_completion_tokens") is None:
        if "max_tokens" in fields:  # `LLM(max_tokens=None)`: the user leaves it out
            del fields["max_tokens"]
        else:
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
    """Translate fields that llama.cpp takes under another name; refuse those that it would ignore with HTTP 200."""
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
    """The outcome of an exchange without a whole answer (second table above)."""
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
    if not 200 <= status < 300:
        return refusal(status, headers, body, now_wall)
    flags: tuple[str, ...] = ()
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        try:
            answer, flags = read_again(body)
        except (ValueError, RecursionError):
            return _unreadable(status, body, error)
    try:
        return _read_answer(request, status, answer, flags, dialect, now_wall)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as shape:
        said = f"not a completion ({type(shape).__name__}: {shape}): {sample(body)}"
        bad = Transient("bad_json", said, status, max_attempts=ANSWER_ATTEMPTS)
        return paid(bad, answer) if isinstance(answer, dict) and "choices" in answer else bad


def read_again(body: bytes) -> tuple[Any, tuple[str, ...]]:
    """A body that orjson refuses, and what had to be mended in it: lone surrogates; what Python's own JSON writes and
    reads, and JSON has not (NaN, Infinity, raw control characters in a text). Raises ValueError or RecursionError."""
    mended = _SURROGATES.sub(lambda m: m.group(1) or rb"\ufffd", body) if rb"\u" in body else body
    flags = ("replaced_surrogates",) if mended != body else ()
    try:
        return orjson.loads(mended), flags
    except orjson.JSONDecodeError:
        # A byte order mark, UTF-16 and UTF-32 are found as `json` finds them.
        text = mended.decode(json.detect_encoding(mended)).rstrip("\0 \t\r\n")
        read = json.loads(text, parse_constant=lambda name: None, parse_float=_finite, strict=False)
        return read, (*flags, "repaired_json")


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _unreadable(status: int, body: bytes, error: Exception) -> Transient:
    whole = body
    try:
        body.decode()
        reason = "bad_json"
    except UnicodeDecodeError as bad:
        reason, error = "bad_utf8", bad
        body = body[max(0, bad.start - 40) :]
    counts = {name: count(number) for name, number in _USAGE.findall(whole)}
    return Transient(
        reason,
        f"{str(error)[:SAMPLE_CHARS]}: {sample(body)}",
        status,
        max_attempts=ANSWER_ATTEMPTS,
        paid=b"completion" in counts,
        tokens=counts.get(b"completion", 0),
        prompt_tokens=counts.get(b"prompt", 0),
    )


def _read_answer(
    request: ModelRequest, status: int, answer: Any, flags: tuple[str, ...], dialect: Dialect, now_wall: float
) -> Outcome:
    sent = answer.get("choices")
    if not sent:
        error = error_inside(answer, now_wall)
        if error is not None:
            return error if isinstance(error, Ok) else paid(error, answer)
        sent = answer["choices"]
        if not isinstance(sent, list):
            raise TypeError("`choices` is no list")
    opened = ""  # the mark of thinking that ends the request: the answer begins inside the thought
    if isinstance(request, ChatRequest):
        chat, messages = True, request.messages
        if messages and messages[-1]["role"] == "assistant":
            opened = opened_in(_prefix(request))
    else:
        chat, opened = False, opened_in(request.prompt)
    choices = []
    for raw in sent if len(sent) == 1 else _in_order(sent):
        message = raw["message"] if chat else raw
        text = message.get("content") if chat else raw["text"]
        is_bare = len(message) == 2 and "role" in message  # and content
        if type(text) is not str:
            text, is_bare = _text_of(text, message), False
        finish = raw.get("finish_reason")
        is_whole = finish == "stop"
        if not is_whole and finish is not None:
            finish = str(finish)[:SAMPLE_CHARS]
            finish = "length" if is_cut(finish) else finish
        choice = Choice(text, finish, raw.get("logprobs"))
        if not is_bare:
            choice.reasoning = reasoning_in(message)
            if choice.reasoning is not None and not request.keep_reasoning:
                choice.text = text = text.lstrip()  # between the thought and the answer
            if calls := message.get("tool_calls"):
                choice.tool_calls = _calls_in(calls)
        # Marks of thinking are rare, and these tests cost next to nothing.
        if "<" in text or "[" in text or "\u25c1" in text or opened or "analysis" in text[:16]:
            _separate(request, choice, opened)
        elif not is_bare and choice.reasoning is not None and choice.logprobs is not None:
            choice.logprobs = answer_logprobs(choice.logprobs, text)
        if not is_whole and (broken := _broken_off(choice, raw, answer, status, now_wall)) is not None:
            return broken
        if (not choice.text or choice.text.isspace()) and not (choice.tool_calls and request.params.get("tools")):
            return paid(no_answer(request, message, choice, answer, status), answer)
        choices.append(choice)
    wanted = request.params.get("n") or 1
    if len(choices) < wanted:
        few = f"{len(choices)} choices where {wanted} were asked for"
        return paid(Transient("missing_choices", few, status, max_attempts=ANSWER_ATTEMPTS), answer)
    if dialect == "llamacpp":
        flags += _even_out_llamacpp(request, choices)
    counts = answer.get("usage")
    if type(counts) is not dict:
        counts = {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int or not (0 < prompt < MOST_TOKENS > completion > 0):
        prompt, completion = count(prompt), count(completion)
    model = answer.get("model")
    if type(model) is not str or not model:
        model = str(model or request.model)
    made = Completion(choices, model[:SAMPLE_CHARS], Usage(prompt, completion))
    if flags:
        made.flags = flags
    return Ok(made, completion, prompt)


def _in_order(sent: Sequence[Any]) -> Sequence[Any]:
    """The choices by their `index`; as they came if some have none."""
    if all(isinstance(raw, dict) and type(raw.get("index")) is int for raw in sent):
        return sorted(sent, key=lambda raw: int(raw["index"]))
    return sent


def _broken_off(
    choice: Choice, raw: Mapping[str, Any], answer: Mapping[str, Any], status: int, now_wall: float
) -> Outcome | None:
    """The outcome of a choice that holds an error, or that the server or a filter ended early; None for others."""
    error = raw.get("error") or answer.get("error")
    made = error_inside({"error": error}, now_wall) if error else not_whole(choice, status)
    return made if made is None or isinstance(made, Ok) else paid(made, answer)


def _calls_in(calls: Any) -> list[dict[str, Any]]:
    """The tool calls of a message, unchanged. Raises TypeError for another shape."""
    if not isinstance(calls, list) or not all(
        isinstance(call, dict) and isinstance(call.get("function", {}), dict) for call in calls
    ):
        raise TypeError("tool_calls is no list of calls")
    return calls


def _text_of(content: Any, message: Mapping[str, Any]) -> str:
    """The text of a content that is no string: nothing, or a list of parts, as some servers send it."""
    if content is None:
        # mlx-lm leaves the key out if a thought used up max_tokens; without a role it is no message at all.
        if not {"content", "role", "text"} & message.keys():
            raise KeyError("content")
        return ""
    if isinstance(content, dict):  # one part, without a list around it
        content = [content]
    return "".join(_part_of(part) for part in content)


def _part_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    if part is None or is_thought(part):
        return ""
    text = part.get("text")
    if text is None:
        text = part.get("content")
    if isinstance(text, dict):  # as in the Assistants API
        text = text.get("value")
    return text if isinstance(text, str) else ""


def _prefix(request: ChatRequest) -> str:
    """The text of the last message, an assistant's, which the answer continues."""
    text = request.messages[-1].get("content")
    return text if isinstance(text, str) else ""


def _separate(request: ModelRequest, choice: Choice, opened: str) -> None:
    """Separate the thought, if any, from a choice's text. `opened`: a mark that comes before the text."""
    if request.keep_reasoning:
        return
    beside, text = choice.reasoning, choice.text
    if opened and beside is None and not text.lstrip().startswith(opened.strip()):
        text = opened + text
    answer, thought, unfinished = separate(text, cut=choice.finish_reason == "length", lone=beside is None)
    if unfinished and thought is None:
        choice.reasoning = beside or ""  # it had only begun
    elif thought is not None and thought != beside:
        choice.reasoning = thought if beside is None else f"{beside}\n\n{thought}"
    if choice.logprobs is not None and (unfinished or beside is not None or answer != choice.text):
        choice.logprobs = answer_logprobs(choice.logprobs, answer)
    choice.text = answer


def _even_out_llamacpp(request: ModelRequest, choices: list[Choice]) -> tuple[str, ...]:
    """llama.cpp repeats the beginning of a prefilled answer, and counts the tokens of one choice only for `n`."""
    if isinstance(request, ChatRequest) and request.messages and request.messages[-1]["role"] == "assistant":
        prefix = _prefix(request)
        for choice in choices:
            choice.text = choice.text.removeprefix(prefix)
    return ("usage_of_first_choice",) if len(choices) > 1 else ()
