"""`FormSFT`: rows for supervised fine-tuning, in TRL's layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncsynth.errors import PipelineError, RecordError
from asyncsynth.pipeline.step import ColumnOrigins, Dropped, RowCount, RowStep
from asyncsynth.records import Row
from asyncsynth.steps.arguments import one_of
from asyncsynth.steps.conversation import LAYOUTS, Layout, checked_messages, prompt_messages, prompt_text


class FormSFT(RowStep):
    """A prompt and its answer as a training example.

    Args:
        layout: "conversational" writes `messages`; "standard" writes `prompt` and `completion` as text.
        keep: other columns to keep; None keeps all.

    Reads `generation` and `instruction` or `messages` (with `system_prompt`, where there is one), or a whole
    `conversation`, as Magpie makes them. Rows without an answer are dropped and counted (`empty_generation`).
    """

    optional_inputs = ("instruction", "messages", "generation", "conversation", "system_prompt")

    def __init__(
        self,
        *,
        layout: Layout = "conversational",
        keep: Sequence[str] | None = None,
        name: str | None = None,
        input_mappings: Mapping[str, str] | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        one_of("FormSFT", "layout", layout, LAYOUTS)
        self.layout = layout
        self.keep = None if keep is None else tuple(keep)
        self.outputs = ("messages",) if layout == "conversational" else ("prompt", "completion")
        super().__init__(name=name, input_mappings=input_mappings, output_mappings=output_mappings)

    def row_count(self) -> RowCount:
        """1, or none."""
        return 1

    def apply(self, row: Row) -> Row:
        """The row with the example's columns."""
        seen = self.view(row)
        if seen.get("conversation") is not None:
            messages = checked_messages(seen["conversation"])
            if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
                raise Dropped("empty_generation")
            seen = {"messages": list(messages[:-1]), "system_prompt": seen.get("system_prompt")}
            answer = messages[-1]["content"]
        else:
            answer = _answer(seen.get("generation"))
        if self.layout == "standard":
            made: Row = {"prompt": prompt_text(seen), "completion": answer}
        else:
            made = {"messages": [*prompt_messages(seen), {"role": "assistant", "content": answer}]}
        kept = row if self.keep is None else {column: row[column] for column in self.keep}
        return self.merge(kept, made)

    def flow(self, incoming: Sequence[ColumnOrigins]) -> ColumnOrigins:
        """The kept columns and the example's."""
        columns = incoming[0]
        self.check_mappings()
        if self.source_of("conversation") not in columns:
            self.require(columns, ("generation",))
            require_prompt(self, columns)
        return kept_and_made(self, columns, self.keep)


def _answer(generation: object) -> str:
    if generation is None or generation == "":
        raise Dropped("empty_generation")
    if not isinstance(generation, str):
        raise RecordError(
            f"the generation is {type(generation).__name__}; text was expected (ExpandColumns makes a row of "
            "each of several)",
            reason="bad_generation",
        )
    if not generation.strip():
        raise Dropped("empty_generation")
    return generation


def require_prompt(step: RowStep, columns: ColumnOrigins) -> None:
    """Raises PipelineError unless the step finds `messages` or `instruction`."""
    found = [name for name in ("messages", "instruction") if step.source_of(name) in columns]
    if not found:
        raise PipelineError(
            f"step {step.name!r} needs a prompt: the column {step.source_of('instruction')!r} or "
            f"{step.source_of('messages')!r}; nothing before it makes either",
            step=step.name,
            column=step.source_of("instruction"),
            hint=f"Columns here: {', '.join(columns) or 'none'}. Map one with "
            "input_mappings={'instruction': '<column>'}.",
        )


def kept_and_made(step: RowStep, columns: ColumnOrigins, keep: Sequence[str] | None) -> ColumnOrigins:
    """The columns that leave a step which keeps some and makes its outputs."""
    if keep is not None:
        missing = [column for column in keep if column not in columns]
        if missing:
            raise PipelineError(
                f"step {step.name!r} is to keep the column {missing[0]!r}, which nothing before it makes",
                step=step.name,
                column=missing[0],
                hint=f"Columns here: {', '.join(columns) or 'none'}.",
            )
    flowing = dict(columns) if keep is None else {column: columns[column] for column in keep}
    for output in step.outputs:
        step.add_column(flowing, output)
    return flowing
