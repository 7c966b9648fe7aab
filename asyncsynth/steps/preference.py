"""`FormPreference`: rated answers become a chosen and a rejected one, in TRL's layouts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from asyncsynth.client.messages import Message
from asyncsynth.errors import PipelineError, RecordError
from asyncsynth.pipeline.chat_messages import system_text
from asyncsynth.pipeline.making import KNOWN, Makings
from asyncsynth.pipeline.step import ColumnOrigins, Dropped, RowCount, RowStep
from asyncsynth.records import Row, stable_seed
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
    prompt_messages,
    system_of,
    text_of_prompt,
    with_content,
    with_system,
)
from asyncsynth.steps.sft import kept_and_made, require_prompt
from asyncsynth.steps.similarity import similarity


class _Answer(NamedTuple):
    text: str
    rating: float
    model: str | None


class FormPreference(RowStep):
    """The best-rated answer as `chosen`, a worse one as `rejected`; never the same text as both.

    Args:
        layout: "standard" writes prompt, chosen and rejected as text; "conversational" as lists of messages.
        rejected: which of the worse answers: the "lowest" rated, or a "random" one (always the same for the
            same row).
        min_margin: the smallest allowed difference between the two ratings.
        ties: if all remaining answers have the rating of the chosen one: "drop" the row, or take the "first" as
            chosen and the next different one as rejected.
        max_similarity: answers more similar than this (0.0 to 1.0; see `steps.similarity`) make no pair.
        missing_ratings: "skip" answers without a rating, or "drop" the row.
        truncated: "drop" answers that ended at max_tokens: such an answer becomes neither chosen nor rejected, and a
            row that keeps fewer than two others is dropped (`truncated`); or "keep" them.
        system_prompt: the system prompt that was sent to the model for both answers. "keep" writes it as the first
            message of the prompt, or in the standard layout as text before the prompt, with a blank line between;
            "column" writes it to the column `system_prompt` instead; "drop" leaves it out. Where the two answers were
            made under different ones, none is written to the prompt; `chosen_system_prompt` and
            `rejected_system_prompt` have each answer's own, unless it is "drop".
        content: how messages hold their content. "keep": as in the row; "text": parts of text become one text, as
            templates of text models want it, and a message with an image or audio fails its row (`bad_prompt`);
            "parts": a text becomes a list of one part, as processors of vision models want it. Parquet has typed
            columns: rows of which some have text and others have parts fit into it only with one of these two.
        keep: other columns to keep; None keeps all.

    Reads `generations`, `ratings`, `instruction` or `messages`, and, if present, `generation_models`
    and `system_prompt`. Without `generation_models`, the models are those of `grouped_model_name` or `model_name`, if
    that is a list with one name for each answer, as GroupColumns and `group_generations=True` make it. Writes
    `prompt`, `chosen`, `rejected`, `score_chosen`, `score_rejected`, `chosen_model`, `rejected_model`,
    `chosen_system_prompt`, `rejected_system_prompt`. An answer that is blank has no
    rating. A row without a pair is dropped for a counted reason: `truncated`, `missing_rating`, `too_few_rated`,
    `identical`, `tie`, `margin` or `similar`; a row that is malformed fails (`unequal_lists`,
    `bad_ratings`, `bad_generation`, `bad_prompt`, `unknown_system_prompt`).

    Example::

        row = {
            "instruction": "How much is 2 + 2?",
            "generations": ["It is 5.", "It is 4.", "Perhaps."],
            "ratings": [1, 5, None],
        }
        with Pipeline(name="example") as pipeline:
            columns = KeepColumns(["prompt", "chosen", "rejected", "score_chosen"])
            LoadDataFromDicts([row]) >> FormPreference() >> columns

    Result::

        {'prompt': 'How much is 2 + 2?', 'chosen': 'It is 4.', 'rejected': 'It is 5.', 'score_chosen': 5}
    """

    learns = True
    content: Content = "keep"
    inputs: tuple[str, ...] = ("generations", "ratings")
    optional_inputs: tuple[str, ...] = (
        "instruction",
        "messages",
        "generation_models",
        "grouped_model_name",
        "model_name",
        "system_prompt",
    )
    outputs: tuple[str, ...] = (
        "prompt",
        "chosen",
        "rejected",
        "score_chosen",
        "score_rejected",
        "chosen_model",
        "rejected_model",
        "chosen_system_prompt",
        "rejected_system_prompt",
    )

    def __init__(
        self,
        *,
        layout: Layout = "standard",
        rejected: Literal["lowest", "random"] = "lowest",
        min_margin: float = 0.0,
        ties: Literal["drop", "first"] = "drop",
        max_similarity: float = 1.0,
        missing_ratings: Literal["skip", "drop"] = "skip",
        truncated: Truncated = "drop",
        system_prompt: SystemPrompt = "keep",
        content: Content = "keep",
        keep: Sequence[str] | None = None,
        name: str | None = None,
        input_mappings: Mapping[str, str] | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        one_of("FormPreference", "layout", layout, LAYOUTS)
        one_of("FormPreference", "rejected", rejected, ("lowest", "random"))
        one_of("FormPreference", "ties", ties, ("drop", "first"))
        one_of("FormPreference", "missing_ratings", missing_ratings, ("skip", "drop"))
        one_of("FormPreference", "truncated", truncated, TRUNCATED)
        one_of("FormPreference", "system_prompt", system_prompt, SYSTEM_PROMPT)
        one_of("FormPreference", "content", content, CONTENT)
        if not min_margin >= 0:
            raise PipelineError(f"FormPreference: min_margin is {min_margin}; 0 or more was expected")
        if not 0 <= max_similarity <= 1:
            raise PipelineError(f"FormPreference: max_similarity is {max_similarity}; 0.0 to 1.0 was expected")
        if ties == "first" and min_margin > 0:
            raise PipelineError(
                f'FormPreference: ties="first" keeps ties, min_margin={min_margin} drops them',
                hint="Leave out one of the two.",
            )
        self.layout = layout
        self.rejected = rejected
        self.min_margin = min_margin
        self.ties = ties
        self.max_similarity = max_similarity
        self.missing_ratings = missing_ratings
        self.truncated = truncated
        self.system_prompt = system_prompt
        if content != "keep":  # the default is no setting of its own, so that older runs can be resumed
            self.content = content
        if system_prompt == "column":
            self.outputs = (*type(self).outputs, "system_prompt")
        self.keep: tuple[str, ...] | None = None if keep is None else tuple(keep)
        super().__init__(name=name, input_mappings=input_mappings, output_mappings=output_mappings)

    def row_count(self) -> RowCount:
        """One row, or none."""
        return 1

    def apply(self, row: Row) -> Row:
        """The row with its pair, or Dropped with the reason why there is none."""
        makings = KNOWN.get()
        seen = self.view(row)
        standard = self.layout == "standard"
        messages = prompt_messages(seen)
        chosen, rejected = self._pair(self._answers(seen, makings))
        head = system_text(messages)
        is_told = "system_prompt" in self.input_mappings
        systems = [
            None if self.system_prompt == "drop" else head or system_of(seen, answer.text, makings, is_told=is_told)
            for answer in (chosen, rejected)
        ]
        shared = systems[0] if systems[0] == systems[1] else None
        messages, column = with_system(messages, shared, self.system_prompt)
        said = [
            with_content([Message(role="assistant", content=each.text)], self.content) for each in (chosen, rejected)
        ]
        made: Row = {
            "prompt": text_of_prompt(messages) if standard else with_content(messages, self.content),
            "chosen": chosen.text if standard else said[0],
            "rejected": rejected.text if standard else said[1],
            "score_chosen": chosen.rating,
            "score_rejected": rejected.rating,
            "chosen_model": chosen.model,
            "rejected_model": rejected.model,
            "chosen_system_prompt": systems[0],
            "rejected_system_prompt": systems[1],
        }
        if self.system_prompt == "column":
            made["system_prompt"] = column
        kept = row if self.keep is None else {column: row[column] for column in self.keep}
        return self.merge(kept, made)

    def flow(self, incoming: Sequence[ColumnOrigins]) -> ColumnOrigins:
        """The kept columns and the pair's."""
        self.check_mappings()
        self.require(incoming[0], self.inputs)
        require_prompt(self, incoming[0])
        return kept_and_made(self, incoming[0], self.keep)

    def _answers(self, seen: Row, makings: Makings) -> list[_Answer]:
        """The answers that have text and a rating."""
        generations, ratings = seen["generations"], seen["ratings"]
        models = _models(seen)
        lists = {"generations": generations, "ratings": ratings}
        if models is not None:
            lists["generation_models"] = models
        for name, value in lists.items():
            if not isinstance(value, list):
                raise RecordError(f"{name!r} is {type(value).__name__}; a list was expected", reason="not_a_list")
        lengths = {name: len(value) for name, value in lists.items()}
        if len(set(lengths.values())) > 1:
            raise RecordError(f"lists of unequal length: {lengths}", reason="unequal_lists")
        answers = []
        cut = 0
        for index, (text, rating) in enumerate(zip(generations, ratings, strict=True)):
            if text is not None and not isinstance(text, str):
                raise RecordError(
                    f"generations[{index}] is {type(text).__name__}; text was expected",
                    reason="bad_generation",
                )
            if self.truncated == "drop" and text is not None and makings.is_cut(text):
                cut += 1
            elif _is_rated(index, rating) and text is not None and text.strip():
                answers.append(_Answer(text, rating, models[index] if models is not None else None))
        if self.missing_ratings == "drop" and len(answers) < len(generations) - cut:
            raise Dropped("missing_rating")
        if len(answers) < 2 <= len(answers) + cut:
            raise Dropped("truncated")
        if len(answers) < 2:
            raise Dropped("too_few_rated")
        return answers

    def _pair(self, answers: list[_Answer]) -> tuple[_Answer, _Answer]:
        """(chosen, rejected). Dropped with what is wrong with the lowest-rated other answer."""
        chosen = max(answers, key=lambda answer: answer.rating)  # the first of equals
        others = sorted((answer for answer in answers if answer is not chosen), key=lambda answer: answer.rating)
        if all(_words(answer.text) == _words(chosen.text) for answer in others):
            raise Dropped("identical")
        others = [answer for answer in others if _words(answer.text) != _words(chosen.text)]
        obstacles = [self._obstacle(chosen, answer) for answer in others]
        fit = [answer for answer, obstacle in zip(others, obstacles, strict=True) if obstacle is None]
        if not fit:
            raise Dropped(next(obstacle for obstacle in obstacles if obstacle is not None))
        if self.rejected == "lowest" or len(fit) == 1:
            return chosen, fit[0]
        return chosen, fit[stable_seed(*(answer.text for answer in answers)) % len(fit)]

    def _obstacle(self, chosen: _Answer, other: _Answer) -> str | None:
        """Why the two make no pair, or None."""
        margin = chosen.rating - other.rating
        if margin == 0 and self.ties == "drop":
            return "tie"
        if margin < self.min_margin:
            return "margin"
        if self.max_similarity < 1 and similarity(chosen.text, other.text) > self.max_similarity:
            return "similar"
        return None


def _models(seen: Row) -> Any:
    """The models that wrote the generations, as the row names them; None where it does not."""
    if (models := seen.get("generation_models")) is not None:
        return models
    for name in ("grouped_model_name", "model_name"):
        models, generations = seen.get(name), seen["generations"]
        if isinstance(models, list) and isinstance(generations, list) and len(models) == len(generations):
            return models
    return None


def _is_rated(index: int, rating: Any) -> bool:
    """Whether there is a rating. None and NaN count as none; any other value that is not a number fails the row."""
    if rating is None:
        return False
    if isinstance(rating, bool) or not isinstance(rating, (int, float)):
        raise RecordError(f"ratings[{index}] is {rating!r:.60}; a number or None was expected", reason="bad_ratings")
    return not math.isnan(rating)


def _words(text: str) -> list[str]:
    """The text without its white space: answers that differ in nothing else are the same."""
    return text.split()
