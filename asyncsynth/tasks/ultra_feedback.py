"""`UltraFeedback`: ratings of several answers to one instruction (arXiv 2310.01377)."""

from __future__ import annotations

import math
import re
from typing import Any

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice, Message
from asyncsynth.errors import ConfigurationError, TaskFailure
from asyncsynth.pipeline.context import Context
from asyncsynth.pipeline.fingerprint import jsonable
from asyncsynth.pipeline.step import nearest
from asyncsynth.records import Row
from asyncsynth.tasks.aspects import ASPECTS
from asyncsynth.tasks.base import Task, all_or_error, text_of
from asyncsynth.tasks.ratings import HIGHEST, LOWEST, Evaluation, read_ratings
from asyncsynth.tasks.templates import prompt_source, render

#: Keeps the seeds of a row's calls apart where every answer is judged in a call of its own.
_ANSWER_STRIDE = 10_000
#: Bounds a rationale under a schema: an endless one would run into max_tokens and leave broken JSON.
_MAX_RATIONALE_CHARS = 600
#: What OpenAI and vLLM allow at most.
_TOP_LOGPROBS = 20


class UltraFeedback(Task):
    """Rates each of several answers from 1 to 5.

    Columns: ``instruction``, ``generations`` (list of texts) -> ``ratings`` (list of int, None for an answer
    that is blank or that the judge declined), ``rationales`` (list of str), ``model_name``. Both lists are
    always as long as ``generations``. With `expected_rating` also ``expected_ratings`` (list of float or None).

    An overall rating without rationales is the cheapest: a few tokens a row instead of some sentences.

    Args:
        aspect: what is judged: ``overall-rating`` (default), ``helpfulness``, ``relevance``, ``deepening``,
            ``creativity``, ``honesty``, ``instruction-following`` or ``truthfulness``.
        rationales: ask for a reason before each rating; without, ``rationales`` holds empty texts.
        one_call: judge all answers of a row in one call (cheaper, and the judge can compare), or each in a
            call of its own (ratings do not depend on the neighbours or on the order).
        expected_rating: also the mean rating under the judge's token probabilities (needs a server that
            returns ``logprobs``): finer than whole numbers, so fewer ties.
        Others: see `Task`.
    """

    inputs = ("instruction", "generations")
    outputs: tuple[str, ...] = ("ratings", "rationales", "model_name")
    prompt = "ultra_feedback"

    def __init__(
        self,
        llm: LLM,
        *,
        aspect: str = "overall-rating",
        rationales: bool = True,
        one_call: bool = True,
        expected_rating: bool = False,
        **settings: Any,
    ) -> None:
        if aspect not in ASPECTS:
            raise ConfigurationError(
                f"UltraFeedback: no aspect {aspect!r}{nearest(aspect, ASPECTS)}", hint=", ".join(ASPECTS)
            )
        self.aspect = aspect
        self.rationales = rationales
        self.one_call = one_call
        self.expected_rating = expected_rating
        if expected_rating:
            self.outputs = ("ratings", "rationales", "expected_ratings", "model_name")
        super().__init__(llm, **settings)

    def settings(self) -> dict[str, Any]:
        """The task's settings, the prompt's text and the aspect's."""
        return {**super().settings(), "aspect_text": jsonable(ASPECTS[self.aspect], where="aspect")}

    def request_fields(self) -> dict[str, Any]:
        """Token probabilities, where they are wanted."""
        return {"logprobs": True, "top_logprobs": _TOP_LOGPROBS} if self.expected_rating else {}

    async def sample(self, row: Row, ctx: Context, number: int) -> Row:
        """One judgement of all answers of a row. Blank answers are not sent; their rating is None."""
        generations = row["generations"]
        if not isinstance(generations, list) or any(not isinstance(g, str | None) for g in generations):
            raise TaskFailure("the input 'generations' is not a list of texts", reason="bad_input")
        places = [place for place, text in enumerate(generations) if text and text.strip()]
        groups = [places] if self.one_call else [[place] for place in places]
        answers = await all_or_error(
            [
                super(UltraFeedback, self).sample(
                    {**row, "generations": [generations[place] for place in group]},
                    ctx,
                    number + index * _ANSWER_STRIDE,
                )
                for index, group in enumerate(groups)
                if group
            ]
        )
        merged: Row = {name: [None] * len(generations) for name in self.outputs if name != "model_name"}
        merged["rationales"] = [""] * len(generations)
        merged["model_name"] = answers[-1]["model_name"] if answers else self.llm.model
        for group, answer in zip(groups, answers, strict=False):
            for index, place in enumerate(group):
                for name in merged.keys() - {"model_name"}:
                    merged[name][place] = answer[name][index]
        return {name: merged[name] for name in self.outputs}

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """The rubric first (servers cache a common prefix), then the instruction and the answers."""
        values = {
            "aspect": ASPECTS[self.aspect],
            "rationales": self.rationales,
            "instruction": text_of(row, "instruction"),
            "generations": row["generations"],
        }
        return [{"role": "user", "content": render(prompt_source("ultra_feedback"), values)}]

    def schema(self, row: Row) -> dict[str, Any]:
        """As many ratings as there are answers, each 1 to 5; the rationale before its rating."""
        count = len(row["generations"])
        rating = {"type": "integer", "enum": list(range(LOWEST, HIGHEST + 1))}
        if not self.rationales:
            return _object({"ratings": _array(rating, count)})
        why = {"type": "string", "maxLength": _MAX_RATIONALE_CHARS}
        return _object({"evaluations": _array(_object({"rationale": why, "rating": rating}), count)})

    def parse(self, choice: Choice, row: Row) -> Row:
        """Ratings from JSON, or from what a server without schemas lets the model write."""
        evaluations = read_ratings(choice.text, len(row["generations"]))
        outputs: Row = {
            "ratings": [evaluation.rating for evaluation in evaluations],
            "rationales": [evaluation.rationale if self.rationales else "" for evaluation in evaluations],
        }
        if self.expected_rating:
            outputs["expected_ratings"] = expected_ratings(choice, evaluations)
        return outputs


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _array(items: dict[str, Any], count: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": count, "maxItems": count}


def expected_ratings(choice: Choice, evaluations: list[Evaluation]) -> list[float | None]:
    """The mean of each rating under the probabilities of the token that gave it, over the tokens 1 to 5.

    None where the server sent no probabilities or the rating's tokens cannot be told.
    """
    nothing: list[float | None] = [None] * len(evaluations)
    tokens = choice.logprobs.get("content") if isinstance(choice.logprobs, dict) else None
    if not tokens:
        return nothing
    text, starts = "", []
    for token in tokens:
        starts.append(len(text))
        text += str(token.get("token", ""))
    places = [found.start(1) for found in re.finditer(r'"rating"\s*:\s*([1-5])\b', text)]
    if not places and (array := re.search(r'"ratings"\s*:\s*\[([^\]]*)\]', text)):
        places = [array.start(1) + found.start() for found in re.finditer(r"\b[1-5]\b", array[1])]
    if len(places) != len(evaluations):
        return nothing
    return [
        None if evaluation.rating is None else _mean(_token_at(tokens, starts, place))
        for evaluation, place in zip(evaluations, places, strict=True)
    ]


def _token_at(tokens: list[dict[str, Any]], starts: list[int], place: int) -> dict[str, Any]:
    return tokens[max(index for index, start in enumerate(starts) if start <= place)]


def _mean(token: dict[str, Any]) -> float | None:
    # Alternatives are compared by the text around the digit: for `: 4`, `: 3` counts and `3` does not.
    shape = re.sub(r"[1-5]", "#", str(token.get("token", "")), count=1)
    weights: dict[int, float] = {}
    for other in [token, *(token.get("top_logprobs") or [])]:
        text = str(other.get("token", ""))
        digit = re.search(r"[1-5]", text)
        if digit and re.sub(r"[1-5]", "#", text, count=1) == shape:
            weights[int(digit[0])] = math.exp(float(other.get("logprob", -math.inf)))
    total = sum(weights.values())
    if not total:
        return None
    return round(sum(rating * weight for rating, weight in weights.items()) / total, 4)
