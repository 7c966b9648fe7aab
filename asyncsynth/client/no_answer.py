"""Useless answers: what came in place of a text, and its cost in tokens. Pure; a part of the codec."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from asyncsynth.client.messages import Choice, ModelRequest
from asyncsynth.core.outcomes import Overloaded, Permanent, Transient

DEFAULT_MAX_TOKENS = 1024  #: always sent: without a limit llama.cpp may generate for minutes
ANSWER_ATTEMPTS = 3  #: the cap for answers that tend to repeat themselves (bad JSON, empty content)
MOST_TOKENS = 1 << 53  #: no server has counted more: it could not be journaled
SAMPLE_CHARS = 200  #: how much of an unreadable answer an outcome's message keeps
#: How servers say that max_tokens or the context ended an answer, in lower case: OpenAI; its Responses API; Anthropic,
#: Gemini and Bedrock behind gateways; Mistral; Cohere. The codec reads them all as "length".
_CUT = frozenset(
    {"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded", "error_limit"}
    | {"max_length", "length_exceeded", "token_limit"}
)
#: That a filter took the rest of the answer: OpenAI and Azure; Gemini, Bedrock, Anthropic and Cohere behind gateways;
#: Zhipu.
_FILTERED = re.compile(
    r"filter|safety|recitation|blocklist|prohibited|spii|sensitive|guardrail|moderat|flagged|toxic|^refusal$"
)
#: That the server broke off: vLLM and SGLang at shutdown, OpenRouter, DeepSeek, Cohere. What was written by then is no
#: answer.
_BROKEN_OFF = re.compile(
    r"abort|error|cancel|fail|interrupt|time_?out|preempt|overload|disconnect|exception|insufficient_system_resource"
    r"|malformed"
)
_MORE_ROOM = (
    "raise max_tokens, or turn thinking off (Qwen3 on vLLM: "
    "extra_body={'chat_template_kwargs': {'enable_thinking': False}})"
)
_REASON_CHARS = 2000  #: of a refusal, in an outcome's message


def no_answer(
    request: ModelRequest, message: Mapping[str, Any], choice: Choice, answer: Mapping[str, Any], status: int
) -> Transient | Permanent:
    """What came in place of an answer."""
    finish, thought = choice.finish_reason, choice.reasoning
    if (refusal := _refusal_in(message)).strip():
        said = f"the model refused: {printable(refusal[:_REASON_CHARS])}"
        return Permanent("refusal", said, status, raw=refusal)
    if finish is not None and _FILTERED.search(finish.lower()):
        return Permanent("content_filter", f"the server filtered the whole answer (finish_reason {finish})", status)
    if calls := message.get("tool_calls") or message.get("function_call"):
        return Permanent("tool_calls", f"the model called a tool in place of an answer: {_called(calls)}", status)
    limit = request.params.get("max_tokens") or request.params.get("max_completion_tokens") or DEFAULT_MAX_TOKENS
    usage = answer.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    details = counts.get("completion_tokens_details")
    hidden = count(details.get("reasoning_tokens")) if isinstance(details, dict) else 0
    cut = finish == "length" or count(counts.get("completion_tokens")) >= limit * (request.params.get("n") or 1)
    if cut and (thought is not None or hidden):
        said = f"the model's reasoning used all of max_tokens={limit}, and no answer came: {_MORE_ROOM}"
        return Permanent("reasoning_cut", said, status, raw=thought)
    if finish == "length" and not choice.text:
        said = f"max_tokens={limit} was used up and no text came. If the model thinks before it answers: {_MORE_ROOM}"
        return Permanent("empty_content", said, status)
    said = f"a choice without text (finish_reason {finish})"
    if finish == "length":
        said = f"only blanks came until max_tokens={limit} (finish_reason {finish})"
    elif thought is not None or hidden:
        said = f"the model thought, and ended without an answer (finish_reason {finish})"
    return Transient("empty_content", said, status, max_attempts=ANSWER_ATTEMPTS, raw=thought)


def _refusal_in(message: Mapping[str, Any]) -> str:
    """The text of a refusal, in its own field or as a part of the content; '' for none."""
    said = message.get("refusal")
    if isinstance(said, str):
        return said
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    texts = (part.get("refusal") for part in parts if isinstance(part, dict))
    return "".join(text for text in texts if isinstance(text, str))


def not_whole(choice: Choice, status: int) -> Transient | Permanent | None:
    """The outcome of a choice that the server broke off or a filter cut; None if neither did."""
    finish = (choice.finish_reason or "").lower()
    if finish in ("", "length", "tool_calls", "eos_token"):
        return None
    if _FILTERED.search(finish) and choice.text.strip():
        said = (
            f"the server filtered the answer after {len(choice.text)} characters (finish_reason {choice.finish_reason})"
        )
        return Permanent("content_filter", said, status, raw=choice.text)
    if _BROKEN_OFF.search(finish) and not _FILTERED.search(finish):
        said = f"the server broke off the answer (finish_reason {choice.finish_reason})"
        return Transient("server_error", said, status, raw=choice.text or None)
    return None


def is_cut(finish: str) -> bool:
    """Whether this finish_reason means that max_tokens or the context ended the answer."""
    return finish.lower() in _CUT


def _called(calls: Any) -> str:
    """The names of the tools, and what to do."""
    listed = calls if isinstance(calls, list) else [calls]
    names = [str((call.get("function") or call).get("name")) for call in listed if isinstance(call, dict)]
    return f"{sample(', '.join(names))}; take `tools` out of extra_body, or serve the model without them"


Failed = Transient | Permanent | Overloaded


def paid(outcome: Failed, answer: Mapping[str, Any]) -> Failed:
    """The outcome of a useless answer, with the tokens that it took."""
    usage = answer.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = (count(counts.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    # An error beside no choices at all was not generated.
    was_paid = bool(answer.get("choices")) or completion > 0
    return replace(outcome, paid=was_paid, tokens=completion, prompt_tokens=prompt)


def count(given: Any) -> int:
    """A number of tokens; 0 for anything but a number, and for a count that cannot be right (negative, or too large
    to be journaled)."""
    number = given
    if type(given) is not int:
        try:
            number = int(given or 0)
        except (TypeError, ValueError, OverflowError):
            return 0
    return number if 0 <= number < MOST_TOKENS else 0


def sample(raw: bytes | str) -> str:
    """The beginning of an unreadable answer, with control characters escaped."""
    text = raw[: 4 * SAMPLE_CHARS].decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return printable(text[:SAMPLE_CHARS])


def printable(text: str) -> str:
    """The text with its control characters escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
