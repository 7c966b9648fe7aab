"""Several values in one answer: the last complete one counts, or none does; never the first. For every reader."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice
from asyncsynth.errors import ParseFailure
from asyncsynth.tasks.evol_instruct import read_same
from asyncsynth.tasks.lists import read_list
from asyncsynth.tasks.pairwise_judge import read_verdict
from asyncsynth.tasks.parsing import last_value, rewritten_text
from asyncsynth.tasks.ratings import Evaluation, read_ratings
from asyncsynth.tasks.revision import read_revision
from asyncsynth.tasks.sentence_pair import read_pair
from asyncsynth.tasks.structured_generation import StructuredGeneration
from asyncsynth.tasks.text_classification import read_labels
from asyncsynth.tasks.ultra_feedback import expected_ratings

FAILS = object()
PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def ratings(count: int) -> Any:
    return lambda text: [evaluation.rating for evaluation in read_ratings(text, count)]


def structured(text: str) -> Any:
    task = StructuredGeneration(llm=LLM(model="m"), schema=PERSON)
    return task.parse(Choice(text), {})["generation"]


READERS: dict[str, Any] = {
    "one rating": ratings(1),
    "ratings": ratings(2),
    "labels": lambda text: read_labels(text, ["praise", "complaint"]),
    "verdict": lambda text: read_verdict(text).winner,
    "structured": structured,
    "pair": read_pair,
    "revision": lambda text: read_revision(text)[1],
    "list": read_list,
    "same": lambda text: read_same(Choice(text)),
    "rewritten": rewritten_text,
}

CORPUS: list[tuple[str, str, Any]] = [
    # --- JSON: a draft, then another value
    ("ratings", 'Draft {"ratings": [1, 2]}. No: {"ratings": [5, 4]}', [5, 4]),
    ("ratings", '{"ratings": [1, 2]} or rather\n```json\n{"ratings": [5, 4]}\n```\nAs [1] says.', [5, 4]),
    ("ratings", '{"ratings": [1, 2]} {"ratings": [5]}', FAILS),
    ("ratings", '{"ratings": [1, 2]} {"ratings": [5, 9]}', FAILS),
    ("ratings", '{"ratings": [1, 2]} {"ratings": [5,', FAILS),
    ("ratings", '{"ratings": [1, 2]}\nFinal: Rating: 5, Rating: 4', FAILS),
    ("ratings", f'{{"ratings": [1, 2]}} {"[x] " * 3000} {{"ratings": [5, 4]}}', [5, 4]),
    ("ratings", 'As in [1, 2], {"ratings": [5, 4]}', [5, 4]),
    ("ratings", '{"ratings": [5, 4]}, as in [1, 2].', [5, 4]),
    ("one rating", '{"rating": 2}? No. {"rating": 4}', [4]),
    ("one rating", '{"rating": 2}\nFinal rating: 4', FAILS),
    ("one rating", '{"rating": 4}\nThe rating is 4.', [4]),
    ("labels", '{"label": "praise"}, no: {"label": "complaint"}', ["complaint"]),
    ("labels", '{"label": "praise"} {"label": "neither of them"}', FAILS),
    ("labels", '{"label": "praise"}\nFinal label: complaint', FAILS),
    ("labels", '{"label": "praise"} for ["complaint"]', ["praise"]),
    ("verdict", '{"verdict": "A"}? {"verdict": "B"}', 1),
    ("verdict", '{"verdict": "A"}\nFinal verdict: B', FAILS),
    ("verdict", '{"verdict": "A"}\nFinal verdict: A', 0),
    ("structured", '{"age": 1} {"age": 2}', {"age": 2}),
    ("structured", '{"age": 1} is how it looks. See [1].', {"age": 1}),
    ("structured", '{"age": 1} {"age": "two"}', {"age": 1}),
    ("structured", '{"age": 1} {"age": 2, "name": "An', FAILS),
    ("structured", '[{"age": 1}, {"age": 2', FAILS),
    ("pair", '{"positive": "a", "negative": "b"} {"positive": "c", "negative": "d"}',
     {"positive": "c", "negative": "d"}),
    ("revision", '{"revision": "draft"} {"revision": "final"}', "final"),
    ("list", '["Explain tides.", "Name a sea."]\nBetter:\n["Why are there tides?", "Name an ocean."]',
     ["Why are there tides?", "Name an ocean."]),
    ("same", '{"same": true} {"same": false}', False),
    ("rewritten", '{"text": "draft"} {"text": "final"}', "final"),
    # --- JSON, and then another value that is none, or is said in words
    ("ratings", '{"ratings": [1, 2]}\n{"ratings": [5, 4],}', FAILS),
    ("ratings", '{"ratings": [1, 2]}\n{\'ratings\': [5, 4]}', FAILS),
    ("ratings", '{"ratings": [1, 2]}\n{"ratings": "5, 4"}', FAILS),
    ("ratings", '{"ratings": [1, 2]}\n**Final ratings:** [5, 4]', FAILS),
    ("ratings", '{"ratings": [1, 2]}\nFinal: 5, 4.', FAILS),
    ("ratings", '{"ratings": [5, 4]}\nFinal ratings: 5 and 4.', [5, 4]),
    ("ratings", '{"ratings": [5, 4]}, for {x: 1} and {"a set"}', [5, 4]),
    ("ratings", '{"ratings": [1, 2], "final_ratings": [5, 4]}', FAILS),
    ("one rating", '{"rating": 2, "score": 4}', FAILS),
    ("one rating", '{"rating": 2}\nOn reflection, it deserves a 4.', FAILS),
    ("one rating", '{"rating": 4}\nActually, the answer names 3 rivers.', [4]),
    ("labels", '{"label": "praise"}\nOn second thought, it is a complaint.', FAILS),
    ("labels", '{"label": "praise"}\nFinal label: neither', FAILS),
    ("labels", '{"label": "praise"}\nIt is no complaint.', ["praise"]),
    ("verdict", '{"verdict": "A"} {"verdict": "C"}', FAILS),
    ("verdict", '{"verdict": "A"}\n**Final verdict:** B', FAILS),
    ("verdict", '{"verdict": "A"}\nActually, answer B is better.', FAILS),
    ("verdict", '{"verdict": "A"}\n\nB', FAILS),
    ("verdict", '{"verdict": "Answer A"}\nAnswer B is shorter.', 0),
    ("structured", '{"age": 1} {"age": 2,}', FAILS),
    ("structured", '{"age": 1}, as in f"{age}".', {"age": 1}),
    ("pair", '{"positive": "a", "negative": "b"}\nPositive: c\nNegative: d', FAILS),
    ("revision", '{"revision": "draft"}\nRevision: final', FAILS),
    ("list", '["Explain tides.", "Name a sea."]\nFinal list:\n1. Why are there tides?\n2. Name an ocean.',
     ["Why are there tides?", "Name an ocean."]),
    # --- words: several values, or none that can be told
    ("one rating", "Rating: 3 or 4", FAILS),
    ("one rating", "Rating: 4-5", FAILS),
    ("one rating", "Score: 1-5", FAILS),
    ("one rating", "Rating: 3, maybe 4", FAILS),
    ("one rating", "Rating: 3 (or 4)", FAILS),
    ("one rating", "Rating: 3 to 4.", FAILS),
    ("one rating", "3 or 4", FAILS),
    ("one rating", "4-5", FAILS),
    ("one rating", "Rating: 2? Hm. Rating: 4", FAILS),
    ("one rating", "Rating: 2\nFinal rating: 4", [4]),
    ("one rating", "Rating: 4 - it names 3 rivers", [4]),
    ("one rating", "Rating: 4, or very good", [4]),
    ("one rating", "Rating (1-5): 4", [4]),
    ("one rating", "Rating (1-10): 4", FAILS),
    ("one rating", "Score out of 5: 4", [4]),
    ("one rating", "1. The answer is complete, five out of five.", FAILS),
    ("one rating", "2 - the number of rivers\nThe answer is great, 5.", FAILS),
    ("one rating", "Rating: 2\nActually, 4.", FAILS),
    ("one rating", "Rating: 2. No, 4.", FAILS),
    ("one rating", "Rating: 2 -> 4", FAILS),
    ("one rating", "Rating: 2\n\nFinal: 4", FAILS),
    ("one rating", "Rating: 5\nIt says rightly that the final answer is 4.", [5]),
    ("ratings", "1, 2\n5, 4", FAILS),
    ("ratings", "Ratings: 1, 2\nRatings: 5, 4", FAILS),
    ("ratings", "1. The first is right.\n2. The second is wrong.", FAILS),
    ("ratings", "1. Excellent: 5 stars.\n2. Poor: 1 star.", FAILS),
    ("ratings", "1 - right\n2 - wrong", FAILS),
    ("ratings", "1. 评分：5\n2. 评分：1", FAILS),
    ("ratings", "1. 4점 - 정확합니다\n2. 2점 - 부정확합니다", [4, 2]),
    ("ratings", "1. Score out of 5: 4\n2. Score out of 5: 2", [4, 2]),
    ("ratings", "1. 1 - wrong\n2. 2 - weak", [1, 2]),
    ("labels", "Label: praise? No.\nLabel: complaint", ["complaint"]),
    ("labels", "It may be praise.\nFinal answer: complaint", ["complaint"]),
    ("verdict", "[[A]] at first. [[B]]", FAILS),
    ("verdict", "[[A]]\nFinal verdict: B", FAILS),
    ("verdict", "Final verdict: A or B", FAILS),
    ("verdict", "[[A]]\nNo, wait: answer B.", FAILS),
    ("verdict", "Verdict: A. On reflection, verdict: B", FAILS),
    ("pair", "Positive: a\nNegative: b\n\nPositive: c\nNegative: d", {"positive": "c", "negative": "d"}),
    ("pair", "Positive: a\nNegative: b\nPositive: c", {"positive": "c"}),
    ("revision", "<revision>draft</revision> <revision>final</revision>", "final"),
    ("revision", "Revision: draft\n\nRevision: final", "final"),
    ("revision", "Revision: It costs 8.\nFinal answer: 8 euros", "It costs 8.\nFinal answer: 8 euros"),
    ("rewritten", "<answer>draft text</answer>\n<answer>final text</answer>", "final text"),
    ("list", "1. Explain tides.\n2. Name a sea.\n\nFinal list:\n1. Why are there tides?\n2. Name an ocean.",
     ["Why are there tides?", "Name an ocean."]),
    ("list", "1. Explain tides.\n2. Name a sea.\n\nLet me improve them:\n1. Why are there tides?\n2. Name an ocean.",
     ["Why are there tides?", "Name an ocean."]),
    ("rewritten", "#Rewritten Prompt#: a first draft\n\n#Rewritten Prompt#: Explain tides.", "Explain tides."),
    ("rewritten", "Draft: about tides.\n\nRewritten instruction: Explain tides.", "Explain tides."),
    ("rewritten", "Final answer: 8\n\nRevised text: none", "8\n\nRevised text: none"),
    ("same", "No. The second asks for more, on the same subject.", False),
    ("same", "They are the same. Or: they are different.", FAILS),
]  # fmt: skip


@pytest.mark.row(32)
@pytest.mark.parametrize(("reader", "text", "wanted"), CORPUS)
def test_the_last_complete_value_counts_or_none(reader: str, text: str, wanted: Any) -> None:
    if wanted is FAILS:
        with pytest.raises(ParseFailure):
            READERS[reader](text)
    else:
        assert READERS[reader](text) == wanted


@pytest.mark.row(32)
@given(
    st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=2), min_size=1, max_size=4),
    st.text(alphabet=st.characters(exclude_characters='{}[]"', exclude_categories=("Cs",)), max_size=30),
)
def test_of_any_drafts_the_last_is_read(drafts: list[list[int]], between: str) -> None:
    text = between.join(json.dumps({"ratings": draft}) for draft in drafts)
    assert ratings(2)(text) == drafts[-1]


nested = st.recursive(st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))


@given(st.lists(nested, max_size=3))
def test_values_between_prose_are_found(values: list[Any]) -> None:
    wrapped = [[value] for value in values]
    text = "prose " + " and then ".join(json.dumps(value) for value in wrapped) + " end."
    found = last_value(text, lambda value: value if isinstance(value, list) else None)
    small = all(abs(number) < 2**63 for number in _numbers(wrapped))
    if wrapped and small:
        assert found == (wrapped[-1], " end.")


def _numbers(value: Any) -> list[int]:
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int) else []


def test_expected_ratings_are_those_of_the_last_verdict() -> None:
    def token(text: str, **others: float) -> dict[str, Any]:
        top = [{"token": other, "logprob": value} for other, value in others.items()]
        return {"token": text, "logprob": -0.0001, "top_logprobs": top}

    texts = ['{"ratings": [', "1", ", ", "2", "]} no ", '{"ratings": [', "5", ", ", "4", "]}"]
    choice = Choice("".join(texts), logprobs={"content": [token(text) for text in texts]})
    assert expected_ratings(choice, [Evaluation(5), Evaluation(4)]) == [5.0, 4.0]
    assert expected_ratings(choice, [Evaluation(1), Evaluation(2)]) == [None, None]


@pytest.mark.parametrize("before", ["", "Rating: 2", '{"ratings": [1, 2]}'])
def test_thousands_of_line_breaks_are_read_at_once(before: str) -> None:
    """Weak models fill an answer with them until max_tokens; patterns that looked at each run again took minutes."""
    with pytest.raises(ParseFailure):
        ratings(3)(before + "\n" * 20_000)
