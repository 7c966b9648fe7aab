"""`FormSFT`: rows for supervised fine-tuning, in TRL's layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from asyncsynth.client.messages import Message
from asyncsynth.errors import PipelineError, RecordError
from asyncsynth.pipeline.chat_messages import SYSTEM_ROLES, for_templates, is_blank, text_in
from asyncsynth.pipeline.making import KNOWN, Makings
from asyncsynth.pipeline.step import ColumnOrigins, Dropped, RowCount, RowStep
from asyncsynth.records import Row
from asyncsynth.steps.arguments import one_of
from asyncsynth.steps.conversation import (
    CONTENT,
    LAYOUTS,
    SYSTEM_PROMPT,
    TRUNCATED,
    Content,
    Layout,
    SystemPrompt,
    Truncated,
    checked_messages,
    prompt_messages,
    system_of,
    text_of_message,
    text_of_prompt,
    with_content,
    with_system,
)


class FormSFT(RowStep):
    """A prompt and its answer as a training example.

    Args:
        layout: "conversational" writes `messages`; "standard" writes `prompt` and `completion` as text.
        truncated: "drop" rows whose answer (in a conversation: any of the model's turns) ended at max_tokens, and
            count them (`truncated`), or "keep" them.
        system_prompt: the system prompt that was sent to the model. "keep" writes it as the first message, or in the
            standard layout as text before the prompt, with a blank line between; "column" writes it to the column
            `system_prompt` instead; "drop" leaves it out.
        reasoning: the model's reasoning before its answer. "drop" leaves it out; "field" writes it to the
            message's `reasoning_content`, as chat templates read it, or in the standard layout to the column
            `reasoning`; "text" puts it before the answer as ``<think>`` text. Needs a column `reasoning`: a task
            writes it with ``provenance=["reasoning"]``.
        tool_calls: "keep" writes tool calls as they are in the row; "object" as chat templates and TRL read them:
            arguments as JSON objects instead of text, and an empty text beside the calls. Export such rows as JSON
            Lines: Parquet would give the arguments of every call all the names of any call.
        content: how messages hold their content. "keep": as in the row; "text": parts of text become one text, as
            templates of text models want it, and a message with an image or audio fails its row (`bad_prompt`);
            "parts": a text becomes a list of one part, as processors of vision models want it. Parquet has typed
            columns: rows of which some have text and others have parts fit into it only with one of these two.
        keep: other columns to keep; None keeps all.

    Columns: writes `messages`, or in the standard layout `prompt` and `completion`; depending on the settings, also
    `system_prompt` and `reasoning`.

    Reads `generation` and `instruction` or `messages`, or a whole `conversation`, as Magpie makes them. An answer may
    call tools (`tool_calls`). Rows without an answer are dropped and counted (`empty_generation`). Messages keep all
    their keys: tool calls, names, parts of a content.

    An answer is recognised by its text, whatever column it is in: a row that a task filled, even some steps
    earlier, is checked. A text from the input, or one that your own step rewrote, counts as whole, and
    its system prompt is the row's column `system_prompt`. Name that column in `input_mappings` to use it in any case.

    Example::

        row = {"instruction": "How much is 2 + 2?", "generation": "4", "topic": "sums", "id": 7}
        with Pipeline(name="example") as pipeline:
            LoadDataFromDicts([row]) >> FormSFT(layout="standard", keep=["id"])

    Result::

        {'id': 7, 'prompt': 'How much is 2 + 2?', 'completion': '4'}
    """

    learns = True
    content: Content = "keep"
    optional_inputs: tuple[str, ...] = (
        "instruction",
        "messages",
        "generation",
        "conversation",
        "system_prompt",
        "reasoning",
        "tool_calls",
    )

    def __init__(
        self,
        *,
        layout: Layout = "conversational",
        truncated: Truncated = "drop",
        system_prompt: SystemPrompt = "keep",
        reasoning: Literal["drop", "field", "text"] = "drop",
        tool_calls: Literal["keep", "object"] = "keep",
        content: Content = "keep",
        keep: Sequence[str] | None = None,
        name: str | None = None,
        input_mappings: Mapping[str, str] | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        one_of("FormSFT", "layout", layout, LAYOUTS)
        one_of("FormSFT", "truncated", truncated, TRUNCATED)
        one_of("FormSFT", "system_prompt", system_prompt, SYSTEM_PROMPT)
        one_of("FormSFT", "reasoning", reasoning, ("drop", "field", "text"))
        one_of("FormSFT", "tool_calls", tool_calls, ("keep", "object"))
        one_of("FormSFT", "content", content, CONTENT)
        self.layout = layout
        self.truncated = truncated
        self.system_prompt = system_prompt
        self.reasoning = reasoning
        self.tool_calls = tool_calls
        if content != "keep":  # the default is no setting of its own, so that older runs can be resumed
            self.content = content
        self.keep: tuple[str, ...] | None = None if keep is None else tuple(keep)
        outputs = ["messages"] if layout == "conversational" else ["prompt", "completion"]
        if system_prompt == "column":
            outputs.append("system_prompt")
        if reasoning == "field" and layout == "standard":
            outputs.append("reasoning")
        self.outputs: tuple[str, ...] = tuple(outputs)
        super().__init__(name=name, input_mappings=input_mappings, output_mappings=output_mappings)

    def row_count(self) -> RowCount:
        """One row, or none."""
        return 1

    def apply(self, row: Row) -> Row:
        """The row with the example's columns, or Dropped with the reason why it makes none."""
        makings = KNOWN.get()
        seen = self.view(row)
        turns = _turns(seen)
        answer = text_in(turns[-1].get("content"))
        if self.truncated == "drop":
            for turn in turns:
                if turn["role"] == "assistant" and makings.is_cut(text_in(turn.get("content"))):
                    raise Dropped("truncated")
        is_told = "system_prompt" in self.input_mappings
        system = None
        if self.system_prompt != "drop" and turns[0]["role"] not in SYSTEM_ROLES:
            system = system_of(seen, answer, makings, is_told=is_told)
        messages, column = with_system(turns, system, self.system_prompt)
        thought = self._thought(seen, messages[-1], makings)
        messages = [self._said(message, makings) for message in messages[:-1]] + [self._with(messages[-1], thought)]
        if self.tool_calls == "object":
            messages = [for_templates(message) for message in messages]
        if self.layout == "conversational":
            made: Row = {"messages": with_content(messages, self.content)}
        else:
            made = {"prompt": text_of_prompt(messages[:-1]), "completion": text_of_message(messages[-1])}
        made.update({"system_prompt": column, "reasoning": thought})
        made = {name: made[name] for name in self.outputs}
        kept = row if self.keep is None else {column: row[column] for column in self.keep}
        return self.merge(kept, made)

    def _said(self, message: Message, makings: Makings) -> Message:
        """An earlier message as it is written."""
        if message["role"] != "assistant":
            return message
        return self._with(message, self._thought({}, message, makings))

    def _thought(self, seen: Row, message: Message, makings: Makings) -> str | None:
        """The model's reasoning before a message: from the message, the results or the row."""
        if self.reasoning == "drop":
            return None
        own: Any = message.get("reasoning_content")
        if own is None:
            own = seen.get("reasoning")
            said = text_in(message.get("content"))
            thoughts = makings.thoughts(said)
            making = makings.of(said)
            if own not in thoughts and making is not None and not making.is_given:
                own = making.reasoning  # the column is another answer's
        return own if isinstance(own, str) and own.strip() else None

    def _with(self, message: Message, thought: str | None) -> Message:
        """A message of the model's, with its reasoning if that is wanted."""
        made: Any = {name: value for name, value in message.items() if name != "reasoning_content"}
        if thought is not None and self.reasoning == "text":
            before, content = f"<think>\n{thought.strip()}\n</think>\n\n", message.get("content")
            if isinstance(content, list):
                made["content"] = [{"type": "text", "text": before}, *content]
            else:
                made["content"] = before + (content or "")
        elif thought is not None and self.layout == "conversational":
            made["reasoning_content"] = thought
        return cast(Message, made)

    def flow(self, incoming: Sequence[ColumnOrigins]) -> ColumnOrigins:
        """The kept columns and the example's."""
        columns = incoming[0]
        self.check_mappings()
        if self.source_of("conversation") not in columns:
            self.require(columns, ("generation",))
            require_prompt(self, columns)
        holders = {self.source_of("reasoning"), self.source_of("conversation"), self.source_of("messages")}
        if self.reasoning != "drop" and not holders & columns.keys():
            raise PipelineError(
                f"step {self.name!r} must keep the reasoning, and nothing before it makes the column "
                f"{self.source_of('reasoning')!r}",
                step=self.name,
                column=self.source_of("reasoning"),
                hint='Let the task that answers write it: provenance=["reasoning"].',
            )
        return kept_and_made(self, columns, self.keep)


def _turns(seen: Row) -> list[Message]:
    """The conversation with the answer at its end. Raises Dropped if there is no answer, RecordError."""
    if seen.get("conversation") is not None:
        messages = checked_messages(seen["conversation"])
        if messages[-1]["role"] != "assistant" or is_blank(messages[-1]):
            raise Dropped("empty_generation")
        prompt_messages({"messages": messages[:-1]})
        return messages
    if calls := seen.get("tool_calls"):
        said = seen.get("generation") or None  # a text beside the calls stays
        answer = checked_messages([{"role": "assistant", "content": said, "tool_calls": calls}])[0]
    else:
        answer = Message(role="assistant", content=_answer(seen.get("generation")))
    return [*prompt_messages(seen), answer]


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
                f"step {step.name!r} must keep the column {missing[0]!r}, which nothing before it makes",
                step=step.name,
                column=missing[0],
                hint=f"Columns here: {', '.join(columns) or 'none'}.",
            )
    flowing = dict(columns) if keep is None else {column: columns[column] for column in keep}
    for output in step.outputs:
        step.add_column(flowing, output)
    return flowing
