"""What the fault server can and cannot do: servers differ, and many ignore fields that they do not know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from asyncsynth.testing.faults import error_response


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """How a server differs from one that can do everything.

    Args:
        ignored: request fields that it takes and does not follow (``response_format``, ``logprobs``, ``stop``).
        refused: request fields that it answers with 400.
        chat, completions: whether it has these paths at all.
        context: tokens of context, listed as ``max_model_len``; requests with this ``max_tokens`` or more get a 400.
        thinks: how its model thinks before each chat answer: "tags" (``<think>`` in the text), "template" (the opening
            tag is in the prompt), "field" (``reasoning_content``), '' (not at all). Requests with
            ``chat_template_kwargs: {"enable_thinking": false}`` are answered at once.
        thinking_tokens: what a thought takes of ``max_tokens``; the answer is empty if it takes all.
        version: what ``/version`` answers, as vLLM's does; '' for a server without this path.
    """

    ignored: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    chat: bool = True
    completions: bool = True
    context: int | None = None
    version: str = ""
    thinks: Literal["", "tags", "template", "field"] = ""
    thinking_tokens: int = 16

    def applied(self, path: str, request: Mapping[str, Any]) -> dict[str, Any] | bytes:
        """The request as this server sees it, or the response that refuses it."""
        if not (self.chat if path.endswith("/chat/completions") else self.completions):
            return error_response(404, "Not Found", "NotFoundError")
        if named := sorted(self.refused & request.keys()):
            return error_response(400, f"Unrecognized request argument supplied: {named[0]}", "BadRequestError")
        limit = request.get("max_tokens") or 0
        if self.context is not None and limit >= self.context:
            text = f"max_tokens={limit} is too large. This model's maximum context length is {self.context} tokens."
            return error_response(400, text, "BadRequestError")
        return {name: value for name, value in request.items() if name not in self.ignored}

    def think(self, request: Mapping[str, Any], made: dict[str, Any]) -> None:
        """Puts a thought before each choice of a chat answer."""
        if not self.thinks or (request.get("chat_template_kwargs") or {}).get("enable_thinking") is False:
            return
        limit = request.get("max_tokens") or request.get("max_completion_tokens") or 10**9
        is_cut = limit <= self.thinking_tokens
        words = " ".join(["Hmm,", *["perhaps"] * (min(limit, self.thinking_tokens) - 1)])
        for choice in made["choices"]:
            message, text = choice["message"], choice["message"]["content"] or ""
            if self.thinks == "field":
                message |= {"content": None if is_cut else text, "reasoning_content": words}
            else:
                begin = "<think>\n" if self.thinks == "tags" else ""
                message["content"] = begin + (words if is_cut else f"{words}\n</think>\n\n{text}")
            choice["finish_reason"] = "length" if is_cut else choice["finish_reason"]
        answered = 0 if is_cut else made["usage"]["completion_tokens"]
        made["usage"]["completion_tokens"] = answered + min(limit, self.thinking_tokens) * len(made["choices"])

    def listed(self, model: str) -> dict[str, Any]:
        """The model's entry in the list of models."""
        entry: dict[str, Any] = {"id": model, "object": "model", "owned_by": "vllm" if self.version else "asyncsynth"}
        return entry if self.context is None else {**entry, "max_model_len": self.context}
