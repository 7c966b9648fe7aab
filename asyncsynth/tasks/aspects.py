"""The aspects that UltraFeedback can judge: template data, one entry for each. The text is part of the fingerprint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Aspect:
    """One criterion: its name in the prompt, the judge's question, and what the ratings 1 to 5 mean."""

    title: str
    question: str
    scale: tuple[str, str, str, str, str]


ASPECTS: dict[str, Aspect] = {
    "overall-rating": Aspect(
        "overall quality",
        "is the answer correct, does it do what was asked, and would the person who asked be glad of it?",
        (
            "useless: wrong, off the point, or no answer at all",
            "weak: serious errors, or most of the request is not met",
            "fair: partly right or partly complete, with faults that matter",
            "good: right and to the point, with small faults only",
            "excellent: right, complete and clear; hard to improve",
        ),
    ),
    "helpfulness": Aspect(
        "helpfulness",
        "how far does the answer bring the person who asked?",
        (
            "no help at all",
            "a hint of help; the person must look elsewhere",
            "some help; important points are left open",
            "helpful; little is left open",
            "everything that is needed, ready for use",
        ),
    ),
    "relevance": Aspect(
        "relevance",
        "does the answer keep to what was asked?",
        (
            "about something else",
            "touches the question and strays",
            "on the subject, with much beside the point",
            "to the point, with little that is not needed",
            "every sentence serves the question",
        ),
    ),
    "deepening": Aspect(
        "depth",
        "does the answer go below the surface: reasons, conditions, consequences?",
        (
            "an assertion or less",
            "surface only",
            "some reasons or detail",
            "well reasoned, with the details that matter",
            "thorough: reasons, limits and consequences are worked out",
        ),
    ),
    "creativity": Aspect(
        "creativity",
        "does the answer bring a fresh idea, example or form that serves the request?",
        (
            "copied or formulaic",
            "mostly worn phrases",
            "ordinary, with a touch of its own",
            "original in thought or form",
            "surprising and apt",
        ),
    ),
    "honesty": Aspect(
        "honesty",
        "does the answer sound as sure as it has reason to be?",
        (
            "sure and wrong, or refuses what it could well answer",
            "mostly too sure, or hedges without reason",
            "sometimes as sure as it should be",
            "nearly always as sure as it should be",
            "says what it knows, what it does not, and how sure it is",
        ),
    ),
    "instruction-following": Aspect(
        "instruction following",
        "does the answer meet the goal and every restriction of the instruction (form, length, language)?",
        (
            "ignores the instruction",
            "misses the goal, or most restrictions",
            "meets the goal and misses some restrictions",
            "meets nearly all of it",
            "meets the goal and every restriction",
        ),
    ),
    "truthfulness": Aspect(
        "truthfulness",
        "are the statements true, free of inventions and of contradictions?",
        (
            "false or invented throughout",
            "several errors or inventions that matter",
            "one error that matters, or several small ones",
            "true but for a slip without weight",
            "all of it true and consistent",
        ),
    ),
}
