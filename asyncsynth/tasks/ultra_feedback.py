"""`UltraFeedback`: ratings of several answers to one instruction (arXiv 2310.01377)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Unpack, cast

from asyncsynth.client.concurrency import all_or_error
from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice, Message
from asyncsynth.errors import ConfigurationError, ParseFailure, RecordError, RequestFailed, TaskFailure
from asyncsynth.pipeline.context import Context
from asyncsynth.pipeline.fingerprint import jsonable
from asyncsynth.pipeline.step import nearest
from asyncsynth.records import Row
from asyncsynth.tasks.aspects import ASPECTS
from asyncsynth.tasks.base import Task, TaskSettings, text_of
from asyncsynth.tasks.jury import Jury, as_jury, merge_verdicts
from asyncsynth.tasks.ratings import HIGHEST, LOWEST, Evaluation, read_ratings
from asyncsynth.tasks.schemas import array_of, object_of, text_up_to, whole_number
from asyncsynth.tasks.templates import prompt_source, render

#: Keeps the seeds of a row's calls apart where every answer is judged in a call of its own.
_ANSWER_STRIDE = 10_000
#: Keeps the seeds of a jury's judges apart: one model may sit twice. Odd, so as to meet no other number of a row.
_JUDGE_STRIDE = 7_000_003
_MAX_RATIONALE_CHARS = 600
#: What OpenAI and vLLM allow at most.
_TOP_LOGPROBS = 20


class UltraFeedback(Task):
    """Rates each of several answers from 1 to 5.

    Columns: ``instruction``, ``generations`` (list of texts) -> ``ratings`` (list of int, None for an answer
    that is blank or that the judge declined), ``rationales`` (list of str), ``judge_model``. Both lists are
    always as long as ``generations``. With `expected_rating` also ``expected_ratings`` (list of float or None).

    An overall rating without rationales is the cheapest: a few tokens per row instead of some sentences.

    Several models may judge: ``llm=[LLM(...), LLM(...)]`` or ``llm=Jury([...], how="median")``. ``ratings`` are
    then the jury's (with ``mean`` and ``median`` floats), ``rationales`` those of the judge whose rating is
    nearest to it, and these columns are added: ``rating_spreads`` (highest rating minus lowest, for each
    answer), ``jury_ratings`` (one list of ratings per judge) and ``jury_models``. ``judge_model`` names all judges.
    A judge without a readable verdict (a parse failure, a failed request) abstains, which is noted as
    ``abstained`` in the row's provenance; the row fails if fewer than `Jury.quorum` are left.

    Args:
        llm: one model, several, or a `Jury`.
        aspect: what is judged: ``overall-rating`` (default), ``helpfulness``, ``relevance``, ``deepening``,
            ``creativity``, ``honesty``, ``instruction-following`` or ``truthfulness``.
        rationales: ask for a reason before each rating; otherwise ``rationales`` holds empty texts.
        one_call: judge all answers of a row in one call (cheaper, and the judge can compare), or each in a
            call of its own (ratings do not depend on the neighbours or on the order).
        expected_rating: also the mean rating under the judge's token probabilities (needs a server that
            returns ``logprobs``): finer than whole numbers, so fewer ties.
        Others: see `Task`.

    Example:
        ``{"instruction": "Who wrote Emma?", "generations": ["Jane Austen.", "I like books."]}`` ->
        ``{"ratings": [5, 1], "rationales": ["Right and brief.", "It does not answer."], "judge_model": "..."}``

    Paper: UltraFeedback, arXiv 2310.01377.
    """

    version = 3  # the model is named in judge_model
    inputs: tuple[str, ...] = ("instruction", "generations")
    outputs: tuple[str, ...] = ("ratings", "rationales", "judge_model")
    prompt: ClassVar[str | None] = "ultra_feedback"

    def __init__(
        self,
        llm: LLM | Sequence[LLM] | Jury,
        *,
        aspect: str = "overall-rating",
        rationales: bool = True,
        one_call: bool = True,
        expected_rating: bool = False,
        **settings: Unpack[TaskSettings],
    ) -> None:
        if aspect not in ASPECTS:
            raise ConfigurationError(
                f"UltraFeedback: no aspect {aspect!r}{nearest(aspect, ASPECTS)}", hint=", ".join(ASPECTS)
            )
        self.aspect = aspect
        self.rationales = rationales
        self.one_call = one_call
        self.expected_rating = expected_rating
        self._jury = as_jury(llm)
        self.outputs = (
            "ratings",
            "rationales",
            *(("expected_ratings",) if expected_rating else ()),
            *(("rating_spreads", "jury_ratings", "jury_models") if self._jury is not None else ()),
            "judge_model",
        )
        one = self._jury.judges[0] if self._jury is not None else llm
        super().__init__(cast(LLM, one), **settings)  # what is no model either is refused there

    def settings(self) -> dict[str, Any]:
        """The task's settings, the prompt's text and the aspect's."""
        settings = {**super().settings(), "aspect_text": jsonable(ASPECTS[self.aspect], where="aspect")}
        if self._jury is not None:
            settings["jury"] = jsonable(self._jury, where="jury")
        return settings

    def answers_prompt(self) -> bool:
        """False: its texts do not answer the prompt of the row."""
        return False

    def models(self) -> tuple[LLM, ...]:
        """The judges."""
        return tuple(self._jury.judges) if self._jury is not None else super().models()

    def request_fields(self) -> dict[str, Any]:
        """Token probabilities, if they are wanted."""
        return {"logprobs": True, "top_logprobs": _TOP_LOGPROBS} if self.expected_rating else {}

    async def sample(self, row: Row, ctx: Context, number: int) -> Row:
        """One judgement of all answers of a row, by the model or by the jury."""
        if (jury := self._jury) is None:
            return await self._judge(row, ctx, number, self.llm)
        votes = await all_or_error(
            [self._vote(row, ctx, number + place * _JUDGE_STRIDE, judge) for place, judge in enumerate(jury.judges)]
        )
        verdicts = [vote for vote in votes if not isinstance(vote, RecordError)]
        failures = {place: vote for place, vote in enumerate(votes) if isinstance(vote, RecordError)}
        if len(verdicts) < jury.least:
            raise next(iter(failures.values()))
        for place, failure in failures.items():
            absent = {"judge": place, "model": jury.judges[place].model, "reason": failure.reason}
            ctx.notes.setdefault("abstained", []).append(absent)
        merged = merge_verdicts(jury, verdicts, len(row["generations"]))
        return {name: merged[name] for name in self.own_outputs}

    async def _vote(self, row: Row, ctx: Context, number: int, judge: LLM) -> Row | RecordError:
        """A judge's verdict, or why there is none."""
        try:
            return await self._judge(row, ctx, number, judge)
        except (ParseFailure, RequestFailed) as failure:
            return failure

    async def _judge(self, row: Row, ctx: Context, number: int, llm: LLM) -> Row:
        """One model's ratings of all answers. Blank answers are not sent; their rating is None."""
        generations = row["generations"]
        if not isinstance(generations, list) or any(not isinstance(g, str | None) for g in generations):
            raise TaskFailure("the input 'generations' is not a list of texts", reason="bad_input")
        places = [place for place, text in enumerate(generations) if text and text.strip()]
        groups = [places] if self.one_call else [[place] for place in places]
        answers = await all_or_error(
            [
                self.answer(
                    {**row, "generations": [generations[place] for place in group]},
                    ctx,
                    number + index * _ANSWER_STRIDE,
                    llm=llm,
                )
                for index, group in enumerate(groups)
                if group
            ]
        )
        lists: dict[str, list[Any]] = {"ratings": [None] * len(generations), "rationales": [""] * len(generations)}
        if self.expected_rating:
            lists["expected_ratings"] = [None] * len(generations)
        for group, answer in zip(groups, answers, strict=False):
            for index, place in enumerate(group):
                for name, values in lists.items():
                    values[place] = answer[name][index]
        return {**lists, "judge_model": answers[-1]["judge_model"] if answers else llm.model}

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
        rating = whole_number(LOWEST, HIGHEST)
        if not self.rationales:
            return object_of({"ratings": array_of(rating, count)})
        why = text_up_to(_MAX_RATIONALE_CHARS)
        return object_of({"evaluations": array_of(object_of({"rationale": why, "rating": rating}), count)})

    def parse(self, choice: Choice, row: Row) -> Row:
        """Ratings from JSON, or from the model's text on a server without schemas."""
        evaluations = read_ratings(choice.text, len(row["generations"]))
        outputs: Row = {
            "ratings": [evaluation.rating for evaluation in evaluations],
            "rationales": [evaluation.rationale if self.rationales else "" for evaluation in evaluations],
        }
        if self.expected_rating:
            outputs["expected_ratings"] = expected_ratings(choice, evaluations)
        return outputs


def expected_ratings(choice: Choice, evaluations: list[Evaluation]) -> list[float | None]:
    """The mean of each rating under the probabilities of the token that gave it, over the tokens 1 to 5.

    None if the server sent no probabilities or the rating's tokens were not found.
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
    if not places:
        for array in re.finditer(r'"ratings"\s*:\s*\[([^\]]*)\]', text):  # the last one counts
            places = [array.start(1) + found.start() for found in re.finditer(r"\b[1-5]\b", array[1])]
    places = places[-len(evaluations) :]
    if [int(text[place]) for place in places] != [evaluation.rating for evaluation in evaluations]:
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
