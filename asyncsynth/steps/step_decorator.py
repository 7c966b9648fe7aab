"""`@step`: a row step made of a plain function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from asyncsynth.calling import checked
from asyncsynth.errors import PipelineError, RecordError
from asyncsynth.pipeline.functions import checked_outputs, declared_columns
from asyncsynth.pipeline.seen import SeenRow
from asyncsynth.pipeline.step import RowStep
from asyncsynth.records import Row

StepFunction = Callable[[Row], Mapping[str, Any] | list[Any]]


class FunctionStep(RowStep):
    """A row step that calls a function; what `@step` makes.

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
            raise RecordError("the function returned an awaitable; write @task for what waits", reason="step_error")
        if isinstance(made, list):
            return [self.merge(row, checked_outputs(one, self.outputs, where=self.name)) for one in made]
        return self.merge(row, checked_outputs(made, self.outputs, where=self.name))


@checked
def step(
    inputs: Iterable[str], outputs: Iterable[str], *, optional_inputs: Iterable[str] = ()
) -> Callable[[StepFunction], type[FunctionStep]]:
    """Makes a row step of a plain function: ``row -> dict`` of its outputs.

    Args:
        inputs: columns that the function reads; the row that it is given holds these (and `optional_inputs`,
            where the row has them) and nothing else.
        outputs: columns that it returns; all of them, and no others.

    The function must be pure: it is called again on every resume. It may raise `Dropped(reason)` to leave a
    row out and `RecordError` for a row that cannot be done; any other exception fails its row only.

    Example::

        @step(inputs=["instruction"], outputs=["words"])
        def count_words(row):
            return {"words": len(row["instruction"].split())}

        with Pipeline() as pipeline:
            LoadJSONL("in.jsonl") >> count_words() >> Filter(lambda row: row["words"] > 3)

    ``{"instruction": "Name a river."}`` becomes ``{"instruction": "Name a river.", "words": 3}``.
    """
    columns = {
        "inputs": declared_columns("@step", "inputs", inputs),
        "outputs": declared_columns("@step", "outputs", outputs),
        "optional_inputs": declared_columns("@step", "optional_inputs", optional_inputs),
    }

    def decorate(function: StepFunction) -> type[FunctionStep]:
        if not inspect.isfunction(function):
            raise PipelineError(f"@step wants a function, got {function!r:.80}", hint="def count(row): ...")
        if inspect.iscoroutinefunction(function):
            raise PipelineError(
                f"@step: {function.__name__} is async; a plain function was expected",
                hint="What waits or asks a model is a task: use @task.",
            )
        members = {**columns, "function": staticmethod(function), "__doc__": function.__doc__}
        made = type(function.__name__, (FunctionStep,), members)
        made.__module__, made.__qualname__ = function.__module__, function.__qualname__
        return made

    return decorate
