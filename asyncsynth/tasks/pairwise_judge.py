"""`PairwiseJudge`: which of two answers is better, asked in both orders (arXiv 2306.05685)."""

from __future__ import annotations

import re
from typing import Any, ClassVar, NamedTuple, Unpack

from asyncsynth.client.concurrency import all_or_error
from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Message
from asyncsynth.errors import ParseFailure, TaskFailure
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task, TaskSettings, text_of
from asyncsynth.tasks.parsing import TAKES_BACK, last_value, string_of, without_markdown
from asyncsynth.tasks.templates import prompt_source, render

#: Keeps the seeds of the two orders apart.
_ORDER_STRIDE = 10_000
_MAX_RATIONALE_CHARS = 600
CRITERION = "it does what was asked, what it says is true, and it is clear and complete without padding."

_WHAT = r"(?:answer|response|assistant|option|completion|output|model)[\s_]*"
_TIE = r"tie|draw|equal|neither|both"
_VALUE = rf"[\"'(\[]*(?:{_WHAT})?(?P<value>a|b|{_TIE})\b(?!['\u2019]|\s*(?:or|/)\s*(?:{_WHAT})?[ab]\b)"
_VERDICT = re.compile(
    rf"\b(?:final\s+)?(?:verdict|preference|preferred(?:\s+{_WHAT})?|winner|choice|better(?:\s+{_WHAT})?)"
    rf"[\"']?\s*(?:is|:|=|\u2013|\u2014|-)+\s*(?:the\s+)?{_VALUE}",
    re.IGNORECASE,
)
_BRACKETS = re.compile(rf"\[\[\s*(?P<value>a|b|c|{_TIE})\s*\]\]", re.IGNORECASE)
_BETTER = re.compile(
    rf"\b{_WHAT}\(?(?P<value>a|b)\)?\s+(?:wins\b|(?:is|was)\s+(?:(?:clearly|much|slightly|somewhat|overall|the|a|bit|far)\s+)*"
    r"(?:better|best|superior|preferable|stronger|winner)\b)",
    re.IGNORECASE,
)
_BARE = re.compile(rf"\W*{_VALUE}\W*", re.IGNORECASE)
#: after a verdict: "Actually, answer B is better." or "B" on a line of its own
_TAKEN_BACK = re.compile(rf"{TAKES_BACK}[^\n]{{0,30}}?\b{_WHAT}{_VALUE}", re.IGNORECASE)
_LINE = re.compile(rf"^[^\w\n]*{_VALUE}[^\w\n]*$", re.IGNORECASE | re.MULTILINE)


class Verdict(NamedTuple):
    """`winner`: 0 the first answer shown, 1 the second, None neither."""

    winner: int | None
    rationale: str = ""


class PairwiseJudge(Task):
    """Says which of two answers is better. Judges favour a place in the list, so it asks in both orders
    (arXiv 2306.05685): an answer is preferred only when it wins in both.

    Columns: ``instruction``, ``generations`` (list of two texts) -> ``preference`` (0 or 1, the place of the
    better one in ``generations``; None for a tie), ``position_bias`` ("first" or "second" when the judge chose
    that place in both orders, whichever answer was there; else None), ``ratings`` ([1.0, 0.0], [0.0, 1.0] or
    [0.5, 0.5], as `FormPreference` reads them), ``rationales`` (list of two, one for each order),
    ``judge_model``.

    A blank answer loses to one that is not, and two equal answers tie, without asking; their rationales
    are empty.

    Args:
        criterion: what makes an answer the better one, as the end of a sentence.
        rationales: ask for a reason before the verdict; otherwise a call costs only a few tokens.
        allow_ties: let the judge call a tie. If it may not, two orders that disagree still make one.
        Others: see `Task`.

    Example::

        judge = PairwiseJudge(llm=LLM(model="Qwen/Qwen2.5-7B-Instruct", temperature=0))

    ``{"instruction": "How much is 2 + 2?", "generations": ["4", "5"]}`` gives ``{"preference": 0,
    "position_bias": None, "ratings": [1.0, 0.0], "rationales": ["A is right, B is not.", "B is right."],
    "judge_model": ...}``.
    """

    version = 3  # the model is named in judge_model
    inputs: tuple[str, ...] = ("instruction", "generations")
    outputs: tuple[str, ...] = ("preference", "position_bias", "ratings", "rationales", "judge_model")
    prompt: ClassVar[str | None] = "pairwise_judge"

    def __init__(
        self,
        llm: LLM,
        *,
        criterion: str = CRITERION,
        rationales: bool = True,
        allow_ties: bool = True,
        **settings: Unpack[TaskSettings],
    ) -> None:
        self.criterion = criterion
        self.rationales = rationales
        self.allow_ties = allow_ties
        super().__init__(llm, **settings)

    def answers_prompt(self) -> bool:
        """False: its texts do not answer the prompt of the row."""
        return False

    async def sample(self, row: Row, ctx: Context, number: int) -> Row:
        """Both orders side by side, and the verdict of both together."""
        first, second = _two_texts(row["generations"])
        if not (first.strip() and second.strip()) or first.strip() == second.strip():
            winner = None if bool(first.strip()) == bool(second.strip()) else int(not first.strip())
            turned = None if winner is None else 1 - winner
            return {**preference_of(Verdict(winner), Verdict(turned)), "judge_model": self.llm.model}
        orders = ((first, second), (second, first))
        answers = await all_or_error(
            [
                self.ask(
                    ctx,
                    self.with_system(row, self._messages(row, *order)),
                    lambda choice: read_verdict(choice.text, allow_ties=self.allow_ties),
                    number=number + index * _ORDER_STRIDE,
                    schema=self.schema(row),
                )
                for index, order in enumerate(orders)
            ]
        )
        (straight, completion), (swapped, _) = answers
        made = preference_of(straight, swapped)
        if not self.rationales:
            made["rationales"] = ["", ""]
        return {**made, "judge_model": completion.model}

    def _messages(self, row: Row, first: str, second: str) -> list[Message]:
        values = {
            "criterion": self.criterion,
            "rationales": self.rationales,
            "ties": self.allow_ties,
            "instruction": text_of(row, "instruction"),
            "first": first,
            "second": second,
        }
        return [{"role": "user", "content": render(prompt_source("pairwise_judge"), values)}]

    def schema(self, row: Row) -> dict[str, Any]:
        """The reason before the verdict."""
        verdict = {"type": "string", "enum": ["A", "B", "tie"] if self.allow_ties else ["A", "B"]}
        why = {"rationale": {"type": "string", "maxLength": _MAX_RATIONALE_CHARS}} if self.rationales else {}
        return {
            "type": "object",
            "properties": {**why, "verdict": verdict},
            "required": [*why, "verdict"],
            "additionalProperties": False,
        }


def preference_of(straight: Verdict, swapped: Verdict) -> Row:
    """The verdict of both orders together; in `swapped` the second answer was shown first."""
    turned = None if swapped.winner is None else 1 - swapped.winner
    preference = straight.winner if straight.winner == turned else None
    biased = straight.winner is not None and straight.winner == swapped.winner
    return {
        "preference": preference,
        "position_bias": ("first", "second")[straight.winner] if biased and straight.winner is not None else None,
        "ratings": [0.5, 0.5] if preference is None else [float(preference == place) for place in (0, 1)],
        "rationales": [straight.rationale, swapped.rationale],
    }


def read_verdict(text: str, *, allow_ties: bool = True) -> Verdict:
    """The verdict in JSON, or in the judge's text on a server without schemas.

    Raises ParseFailure if it finds no verdict, or more than one.
    """
    if (last := last_value(text, _given)) is not None:
        (given, why), after = last
        if found := _BARE.fullmatch(given) or _VERDICT.match(f"verdict: {given}"):
            return _verdict({found["value"], *_said_after(after)}, why, text, allow_ties)
        raise ParseFailure(f"{given!r:.60} is no verdict", raw=text)
    plain = without_markdown(text)
    if found := _BARE.fullmatch(plain):
        return _verdict({found["value"]}, "", text, allow_ties)
    for pattern in (_BRACKETS, _VERDICT, _BETTER):
        if said := list(pattern.finditer(text if pattern is _BRACKETS else plain)):
            read = text if pattern is _BRACKETS else plain
            why = read[: said[0].start()].strip(' \n\t:-*["')
            values = {match["value"] for match in said} | _said_after(read[said[-1].end() :])
            return _verdict(values, why, text, allow_ties)
    raise ParseFailure("no verdict was found in the answer", raw=text)


def _said_after(after: str) -> set[str]:
    """The verdicts in the text after a verdict."""
    patterns = ((_BRACKETS, after), *((pattern, without_markdown(after)) for pattern in (_VERDICT, _TAKEN_BACK, _LINE)))
    return {match["value"] for pattern, text in patterns for match in pattern.finditer(text)}


def _given(value: Any) -> tuple[str, str] | None:
    """The verdict in a JSON object, as it is written, and the reason."""
    if not isinstance(value, dict):
        return None
    lowered = {str(key).lower(): item for key, item in value.items()}
    given = next((lowered[key] for key in ("verdict", "preference", "winner", "choice") if key in lowered), None)
    why = next((lowered[key] for key in ("rationale", "reason", "explanation") if key in lowered), "")
    return (given, string_of(why)) if isinstance(given, str) else None


def _verdict(values: set[str], rationale: str, text: str, allow_ties: bool) -> Verdict:
    """The verdict, if all that were given are the same."""
    winners = {{"a": 0, "b": 1}.get(value.lower()) for value in values}  # None: a tie
    if len(winners) != 1:  # two ties in different words are one verdict
        raise ParseFailure("the answer has several verdicts, or none", raw=text)
    [winner] = winners
    if winner is None and not allow_ties:
        raise ParseFailure("the answer calls a tie, which was not offered", raw=text)
    return Verdict(winner, rationale)


def _two_texts(generations: Any) -> tuple[str, str]:
    if not isinstance(generations, list) or len(generations) != 2 or any(not isinstance(g, str) for g in generations):
        raise TaskFailure("the input 'generations' is not a list of two texts", reason="bad_input")
    return generations[0], generations[1]
