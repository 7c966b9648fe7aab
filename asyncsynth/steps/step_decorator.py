"""`@step`: a step made of a function that asks no model."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, ClassVar

from asyncsynth.calling import checked, nearest
from asyncsynth.errors import ConfigurationError, PipelineError, RecordError
from asyncsynth.pipeline.functions import checked_outputs, checked_timeout, declared_columns
from asyncsynth.pipeline.seen import SeenRow
from asyncsynth.pipeline.step import RowStep
from asyncsynth.records import Row
from asyncsynth.steps.waiting_step import RUN_IN, RunIn, WaitingStep, checked_workers, place_for

Made = Mapping[str, Any] | list[Any]
StepFunction = Callable[[Row], Made | Awaitable[Made]]


class FunctionStep(RowStep):
    """A row step that calls a plain function in the event loop; what `@step` makes by default.

    Columns: the decorator's. The function sees the declared inputs by their own names (`input_mappings` are
    applied) and returns the outputs: a dict, or a list of dicts, one for each row that the row becomes.
    """

    function: ClassVar[Any]

    def __init__(
        self,
        *,
        name: str | None = None,
        input_mappings: Mapping[str, str] | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        if not hasattr(type(self), "function"):
            raise PipelineError("FunctionStep is made by @step", hint="@step(inputs=[...], outputs=[...])")
        super().__init__(name=name, input_mappings=input_mappings, output_mappings=output_mappings)

    def code_roots(self) -> dict[str, Any]:
        """The function, and the columns that it is declared with."""
        declared = {"inputs": self.inputs, "outputs": self.outputs, "optional_inputs": self.optional_inputs}
        return {"function": self.function, **{f"({name})": columns for name, columns in declared.items()}}

    def apply(self, row: Row) -> Row | list[Row]:
        """The row with the function's outputs."""
        made: Any = self.function(SeenRow(self.view(row)))
        if inspect.isawaitable(made):
            if inspect.iscoroutine(made):
                made.close()
            raise RecordError("the function returned an awaitable; declare it with `async def`", reason="step_error")
        if isinstance(made, list):
            return [self.merge(row, checked_outputs(one, self.outputs, where=self.name)) for one in made]
        return self.merge(row, checked_outputs(made, self.outputs, where=self.name))


@checked
def step(
    inputs: Iterable[str],
    outputs: Iterable[str],
    *,
    optional_inputs: Iterable[str] = (),
    run_in: RunIn = "loop",
    workers: int | None = None,
    timeout: float | None = None,
    journal: bool = False,
) -> Callable[[StepFunction], type[FunctionStep] | type[WaitingStep]]:
    """Makes a step of a function: ``row -> dict`` of its outputs. It asks no model.

    Args:
        inputs: columns that the function reads; its row holds these (and `optional_inputs`,
            if the row has them) and nothing else.
        outputs: columns that it returns; all of them, and no others.
        run_in: "loop" calls it in the event loop, between the requests of the run: right for calls that take
            milliseconds, and for an ``async def``. "thread" is for a function that waits (a subprocess, a database, an
            HTTP library that blocks); "process" for one that computes. A process imports the function's module, so the
            function must be at the top level of one.
        workers: calls at the same time. Default: 8 threads, one process for each core, any number of async calls.
        timeout: seconds for one call; a row whose call takes longer fails (`timeout`). A process is then ended, a
            thread cannot be: it continues until the function returns. Not for a plain function in the loop.
        journal: True keeps the outputs in the journal, so that a resumed run does not call the function again for a
            row whose inputs are the same. False calls it again for rows that had not ended.

    It may raise `Dropped(reason)` to leave a row out and `RecordError` for a row that cannot be done; any other
    exception fails its row only. It may return a list of dicts, one for each row that the row becomes.

    Example::

        @step(inputs=["instruction"], outputs=["words"])
        def count_words(row):
            return {"words": len(row["instruction"].split())}

        with Pipeline() as pipeline:
            LoadJSONL("in.jsonl") >> count_words() >> Filter(lambda row: row["words"] > 3)

    ``{"instruction": "Name a river."}`` becomes ``{"instruction": "Name a river.", "words": 3}``.

    A verifier that runs a program, at most four at the same time, beside the requests of the run::

        @step(inputs=["code"], outputs=["passed"], run_in="thread", workers=4, timeout=30, journal=True)
        def verify(row):
            done = subprocess.run([sys.executable, "-c", row["code"]], timeout=20)
            return {"passed": done.returncode == 0}
    """
    columns = {
        "inputs": declared_columns("@step", "inputs", inputs),
        "outputs": declared_columns("@step", "outputs", outputs),
        "optional_inputs": declared_columns("@step", "optional_inputs", optional_inputs),
    }
    if run_in not in RUN_IN:
        raise ConfigurationError(
            f"@step: run_in={run_in!r}{nearest(str(run_in), RUN_IN)}", hint=f"Known: {', '.join(RUN_IN)}."
        )
    checked_workers("@step", workers)
    checked_timeout("@step", timeout)

    def decorate(function: StepFunction) -> type[FunctionStep] | type[WaitingStep]:
        if not inspect.isfunction(function):
            raise PipelineError(f"@step wants a function, got {function!r:.80}", hint="def count(row): ...")
        is_async = inspect.iscoroutinefunction(function)
        if is_async and run_in != "loop":
            raise PipelineError(
                f"@step: {function.__name__} is async, and run_in={run_in!r} is for plain functions",
                hint="Leave run_in out: an async function waits beside the requests of the run.",
            )
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise PipelineError(
                f"@step: {function.__name__} is a generator; a function that returns was expected",
                hint="Return a list of dicts for a row that becomes several.",
            )
        is_plain = run_in == "loop" and not is_async
        if is_plain and (timeout is not None or workers is not None):
            given = "timeout" if timeout is not None else "workers"
            raise PipelineError(
                f"@step: {function.__name__} runs in the event loop, where {given} cannot hold",
                hint='Add run_in="thread" or run_in="process", or make it an `async def`.',
            )
        members: dict[str, Any] = {**columns, "function": staticmethod(function), "__doc__": function.__doc__}
        base: type[FunctionStep] | type[WaitingStep] = FunctionStep
        if not is_plain or journal:
            base = WaitingStep
            members.update(
                run_in=run_in,
                place=place_for(run_in, function),
                default_workers=workers,
                default_timeout=timeout,
                journal=journal,
            )
        made = type(function.__name__, (base,), members)
        made.__module__, made.__qualname__ = function.__module__, function.__qualname__
        return made

    return decorate
