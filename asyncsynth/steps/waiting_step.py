"""`WaitingStep`: a row step that waits or computes for long, concurrently with the run's requests."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from asyncsynth.errors import ConfigurationError, PipelineError, RecordError
from asyncsynth.pipeline.context import Context
from asyncsynth.pipeline.function_process import FunctionPlace, place_of_function
from asyncsynth.pipeline.functions import checked_outputs, checked_timeout
from asyncsynth.pipeline.seen import SeenRow
from asyncsynth.pipeline.step import ModelStep
from asyncsynth.records import Row

if TYPE_CHECKING:
    from asyncsynth.client.llm import LLM

RunIn = Literal["loop", "thread", "process"]
RUN_IN = ("loop", "thread", "process")
_THREADS = 8


class WaitingStep(ModelStep):
    """A step that calls an async function, or a function in a thread or a process; what `@step` makes of these.

    Columns: the decorator's.

    Args:
        workers: calls at the same time; by default the decorator's.
        timeout: seconds for one call; by default the decorator's.
        name, input_mappings, output_mappings: see `Step`.
    """

    function: ClassVar[Any]
    run_in: ClassVar[RunIn] = "loop"
    place: ClassVar[FunctionPlace | None] = None  #: where a process finds the function
    default_workers: ClassVar[int | None] = None
    default_timeout: ClassVar[float | None] = None
    needs_work: ClassVar[bool] = True
    not_fingerprinted: ClassVar[frozenset[str]] = frozenset(
        {"workers", "timeout", "run_in", "place", "default_workers", "default_timeout", "journal"}
    )

    def __init__(
        self,
        *,
        workers: int | None = None,
        timeout: float | None = None,
        name: str | None = None,
        input_mappings: Mapping[str, str] | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        if not hasattr(type(self), "function"):
            raise PipelineError(
                "WaitingStep is made by @step", hint='@step(inputs=[...], outputs=[...], run_in="thread")'
            )
        kind = type(self).__name__
        self.workers = checked_workers(kind, workers) or self.default_workers
        self.timeout = self.default_timeout if timeout is None else checked_timeout(kind, timeout)
        super().__init__(name=name, input_mappings=input_mappings, output_mappings=output_mappings)

    def code_roots(self) -> dict[str, Any]:
        """The function, and the columns that it is declared with."""
        declared = {"inputs": self.inputs, "outputs": self.outputs, "optional_inputs": self.optional_inputs}
        return {"function": self.function, **{f"({name})": columns for name, columns in declared.items()}}

    def models(self) -> tuple[LLM, ...]:
        """None: it asks no model."""
        return ()

    async def generate(self, row: Row, ctx: Context) -> list[Row]:
        """The function's outputs, one dict for each row that it makes."""
        made = await self._called(row, ctx)
        if inspect.isawaitable(made):
            if inspect.iscoroutine(made):
                made.close()
            raise RecordError("the function returned an awaitable; declare it with `async def`", reason="step_error")
        several = made if isinstance(made, list) else [made]
        return [checked_outputs(one, self.outputs, where=self.name) for one in several]

    async def _called(self, row: Row, ctx: Context) -> Any:
        if self.run_in == "thread":
            workers = self.workers or _THREADS
            return await ctx.work.in_thread(self.name, workers, self.function, SeenRow(row), timeout=self.timeout)
        if self.run_in == "process":
            assert self.place is not None
            workers = self.workers or os.cpu_count() or 1
            return await ctx.work.in_process(self.name, workers, self.place, dict(row), timeout=self.timeout)

        async def call() -> Any:
            made = self.function(SeenRow(row))
            return await (made if self.timeout is None else ctx.in_time(self.timeout, made))

        return await ctx.work.in_loop(self.name, self.workers, call)


def checked_workers(where: str, workers: int | None) -> int | None:
    """Raises ConfigurationError for an invalid number of workers."""
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise ConfigurationError(f"{where}: workers={workers!r}; a whole number from 1 on was expected")
    return workers


def place_for(run_in: RunIn, function: Callable[..., Any]) -> FunctionPlace | None:
    """Where a worker process finds a function. Raises PipelineError if it cannot."""
    return place_of_function(function, where=f"@step: {function.__name__}") if run_in == "process" else None
