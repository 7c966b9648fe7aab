"""A jury: several models judge the same answers, and their ratings become one."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from asyncsynth.calling import checked_class
from asyncsynth.client.llm import LLM
from asyncsynth.errors import ConfigurationError
from asyncsynth.pipeline.step import nearest
from asyncsynth.records import Row

HOW = ("mean", "median", "majority")


@checked_class
@dataclass(frozen=True)
class Jury:
    """Several models that judge side by side, for `UltraFeedback(llm=Jury(...))`.

    Args:
        judges: two models or more; the same one may judge twice with other settings.
        how: how their ratings are combined: ``mean`` (default), ``median``, or ``majority`` (the rating given
            most often; of several, the one nearest to the mean, then the lower).
        quorum: how many of them must give a readable verdict, or the row fails; more than half by default.

    Models of different families make a jury that favours none of them.
    Paper: Replacing Judges with Juries, arXiv 2404.18796.
    """

    judges: Sequence[LLM]
    how: str = "mean"
    quorum: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "judges", tuple(self.judges))
        if len(self.judges) < 2 or not all(isinstance(judge, LLM) for judge in self.judges):
            raise ConfigurationError(
                "Jury(judges=...) wants two LLMs or more", hint="Jury([LLM(model=...), LLM(model=...)])"
            )
        if self.how not in HOW:
            raise ConfigurationError(f"Jury: no way {self.how!r}{nearest(self.how, HOW)}", hint=", ".join(HOW))
        if self.quorum is not None and not 1 <= self.quorum <= len(self.judges):
            raise ConfigurationError(f"Jury: quorum is {self.quorum}, with {len(self.judges)} judges")

    @property
    def least(self) -> int:
        """The number of verdicts that it needs."""
        return self.quorum if self.quorum is not None else len(self.judges) // 2 + 1

    def verdict(self, votes: Sequence[float | None]) -> float | None:
        """One rating from those of the judges; None if no judge gave one."""
        given = [vote for vote in votes if vote is not None]
        if not given:
            return None
        if self.how == "majority":
            times = Counter(given)
            mean = statistics.fmean(given)
            return min(given, key=lambda vote: (-times[vote], abs(vote - mean), vote))
        return round(statistics.fmean(given) if self.how == "mean" else float(statistics.median(given)), 4)


def as_jury(llm: object) -> Jury | None:
    """The jury in a task's argument `llm`; None for one model."""
    if isinstance(llm, Jury):
        return llm
    if isinstance(llm, list | tuple):
        return Jury(llm)
    return None


def merge_verdicts(jury: Jury, verdicts: Sequence[Row], count: int) -> Row:
    """The outputs of the judges (those that gave a verdict) as those of the jury, for `count` answers."""
    ratings: list[float | None] = []
    rationales: list[str] = []
    spreads: list[float | None] = []
    for place in range(count):
        votes = [verdict["ratings"][place] for verdict in verdicts]
        given = [vote for vote in votes if vote is not None]
        rating = jury.verdict(votes)
        ratings.append(rating)
        spreads.append(max(given) - min(given) if given else None)
        rationales.append(_spokesman(verdicts, votes, place, rating))
    merged: Row = {
        "ratings": ratings,
        "rationales": rationales,
        "rating_spreads": spreads,
        "jury_ratings": [verdict["ratings"] for verdict in verdicts],
        "jury_models": [verdict["judge_model"] for verdict in verdicts],
        "judge_model": " + ".join(verdict["judge_model"] for verdict in verdicts),
    }
    if "expected_ratings" in verdicts[0]:
        merged["expected_ratings"] = [
            _mean([verdict["expected_ratings"][place] for verdict in verdicts]) for place in range(count)
        ]
    return merged


def _spokesman(verdicts: Sequence[Row], votes: Sequence[float | None], place: int, rating: float | None) -> str:
    """The rationale of the judge whose rating is nearest to the jury's."""
    if rating is None:
        return str(verdicts[0]["rationales"][place])
    near = [(abs(vote - rating), index) for index, vote in enumerate(votes) if vote is not None]
    return str(verdicts[min(near)[1]]["rationales"][place])


def _mean(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return round(statistics.fmean(given), 4) if given else None
