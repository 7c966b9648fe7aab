"""A model without a server: `send` for a Context answers what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from asyncsynth.client.messages import ChatRequest, Choice, Completion, ModelRequest, Usage
from asyncsynth.pipeline import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task


class Model:
    """Answers with a function of the request, or with the given texts in order."""

    def __init__(self, *texts: str, by: Callable[[ChatRequest], str | Choice] | None = None) -> None:
        self._texts = iter(texts)
        self._by = by
        self.requests: list[ChatRequest] = []

    async def send(self, request: ModelRequest) -> Completion:
        assert isinstance(request, ChatRequest)
        self.requests.append(request)
        said = self._by(request) if self._by is not None else next(self._texts)
        await asyncio.sleep(0)
        choice = said if isinstance(said, Choice) else Choice(said, "stop")
        return Completion([choice], model="model-that-answered", usage=Usage(3, 5), server="s")

    def prompts(self) -> list[str]:
        """The last message of every request."""
        return [request.messages[-1]["content"] for request in self.requests]

    def ctx(self, key: str = "0", run_seed: int = 0) -> Context:
        return Context(key=key, run_seed=run_seed, step_id="step", send=self.send)


def generate(task: Task, row: Row, model: Model, ctx: Context | None = None) -> list[Row]:
    """The task's outputs for a row."""
    return asyncio.run(task.generate(row, ctx or model.ctx()))
