"""What a step sees beside its row. There is nothing ambient: all a step may use is handed to it here."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

from asyncsynth.client.messages import Completion, ModelRequest
from asyncsynth.records import stable_seed

Send = Callable[[ModelRequest], Awaitable[Completion]]


class Context:
    """One model step's work on one row.

    Random choices and request seeds come from (run seed, row key, step) alone, so that a resumed run makes
    the same ones.
    """

    __slots__ = ("_send", "_step_id", "completions", "key", "notes", "run_seed")

    def __init__(self, *, key: str, run_seed: int, step_id: str, send: Send) -> None:
        self.key = key
        self.run_seed = run_seed
        self._step_id = step_id
        self._send = send
        self.completions: list[Completion] = []  #: every answer got, in order; provenance is made of them
        self.notes: dict[str, Any] = {}  #: what the step itself wants kept with the result (small JSON)

    def seed(self, sample: int = 0) -> int:
        """The sampling seed for this row's `sample`-th request."""
        return stable_seed(self.run_seed, self.key, self._step_id, sample)

    def rng(self, purpose: str = "") -> random.Random:
        """A generator for this row's own choices (mutations, system prompts)."""
        return random.Random(stable_seed(self.run_seed, self.key, self._step_id, purpose))  # noqa: S311

    async def send(self, request: ModelRequest) -> Completion:
        """Asks the model. Raises RequestFailed when it ends without a completion."""
        completion = await self._send(request)
        self.completions.append(completion)
        return completion

    def provenance(self) -> dict[str, Any]:
        """Lean facts on how this row's result came about: model that answered, tokens, finish, attempts."""
        done = self.completions
        if not done:
            return dict(self.notes)
        return {
            "model": done[-1].model,
            "server": done[-1].server,
            "calls": len(done),
            "attempts": sum(completion.attempts for completion in done),
            "prompt_tokens": sum(completion.usage.prompt_tokens for completion in done),
            "completion_tokens": sum(completion.usage.completion_tokens for completion in done),
            "finish": done[-1].choices[0].finish_reason,
            "latency_s": round(sum(completion.latency_s for completion in done), 4),
            **self.notes,
        }
