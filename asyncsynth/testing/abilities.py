"""What the fault server can and cannot do: servers differ, and many ignore what they do not know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asyncsynth.testing.faults import error_response


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """How a server differs from one that does all.

    Args:
        ignored: request fields that it takes and does not follow (``response_format``, ``logprobs``, ``stop``).
        refused: request fields that it answers with 400.
        chat, completions: whether it has these paths at all.
        context: tokens of context: told as ``max_model_len``, and ``max_tokens`` from there on get a 400.
        version: told at ``/version``, as vLLM does; '' for a server that has no such path.
    """

    ignored: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    chat: bool = True
    completions: bool = True
    context: int | None = None
    version: str = ""

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

    def listed(self, model: str) -> dict[str, Any]:
        """The model's entry in the list of models."""
        entry: dict[str, Any] = {"id": model, "object": "model", "owned_by": "vllm" if self.version else "asyncsynth"}
        return entry if self.context is None else {**entry, "max_model_len": self.context}
