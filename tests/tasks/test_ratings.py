"""What judges write when nothing holds them to a schema: read rightly, or refused with the text kept."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsynth.errors import ParseFailure
from asyncsynth.tasks.ratings import read_ratings

READABLE = {
    "json": ('{"evaluations": [{"rationale": "a", "rating": 4}, {"rationale": "b", "rating": 5}]}', [4, 5], "ab"),
    "json in a fence": ('Sure!\n```json\n{"ratings": [4, 2]}\n```\nHope it helps {really}.', [4, 2], None),
    "two lists": ('{"ratings": [1, 5], "rationales": ["a", "b"]}', [1, 5], "ab"),
    "a bare list": ("[3, 3]", [3, 3], None),
    "a list of objects": ('[{"score": "4/5", "reason": "a"}, {"score": "2", "reason": "b"}]', [4, 2], "ab"),
    "keys by answer": ('{"answer 1": {"rating": 2}, "answer 2": {"rating": 4}}', [2, 4], None),
    "whole floats": ('{"ratings": [4.0, 5.0]}', [4, 5], None),
    "declined": ('{"ratings": [null, 5]}', [None, 5], None),
    "brackets in prose first": ('As [1] shows: {"ratings": [4, 2]}', [4, 2], None),
    "broken json": ('{"rating": 4, "rationale": "a "quoted" b"}, {"rating": 2}', [4, 2], None),
    "score - reason": ("4 - a\n5 - b", [4, 5], "ab"),
    "en dash, blank lines": ("4 \u2013 a\n\n\n5 \u2014 b\n", [4, 5], "ab"),
    "numbered lines": ("1. 4 - a\n2. 2 - b", [4, 2], "ab"),
    "bullets": ("- 4/5: a\n- 2/5: b", [4, 2], "ab"),
    "bold labels": ("**Rating:** 4\n**Rationale:** a\n\n**Rating:** 1\n**Rationale:** b", [4, 1], "ab"),
    "headings": (
        "#### Answer 1\n\nRating: 3\nRationale: a\n\n#### Answer 2\n\nRating: 5\nRationale: b",
        [3, 5],
        "ab",
    ),
    "out of": ("Rating: 4 out of 5\na\nRating: 3 out of 5\nb", [4, 3], "ab"),
    "rationale first": ("Rationale: a\nRating: 4\n\nRationale: b\nRating: 2", [4, 2], "ab"),
    "answers out of order": ("Response 2: 2 - b\nResponse 1: 5 - a", [5, 2], "ab"),
    "labels with numbers": ("Score for Response 1: 4\nScore for Response 2: 2", [4, 2], None),
    "labels with numbers, swapped": ("Rating 2: 4\nRating 1: 2", [2, 4], None),
    "prose around": (
        "Here are my ratings.\n\nAnswer 1:\nRating: 4/5. a\n\nAnswer 2:\nRating: 2/5. b",
        [4, 2],
        "ab",
    ),
    "numbers only": ("4, 5", [4, 5], None),
    "numbers only, lines": ("4\n5\n", [4, 5], None),
    "windows lines": ("Rating: 4\r\nRating: 5\r\n", [4, 5], None),
    "declined in words": ("Answer 1: Rating: N/A\nAnswer 2: Rating: 5", [None, 5], None),
    "overall among others": (
        "Answer 1\nOverall rating: 4\nAnswer 2\nHelpfulness score: 2\nOverall score: 3",
        [4, 3],
        None,
    ),
    "a number inside the reason": ("Rating: 4\nIt lists 3 of 7 planets.\nRating: 2\nb", [4, 2], None),
    "is": ("The rating is 4.\nThe rating is 5.", [4, 5], None),
}

REFUSED = {
    "empty": "",
    "prose": "Both answers are quite good, I like the second.",
    "one of two": "Rating: 4",
    "three for two": "4 - a\n5 - b\n3 - c",
    "too many in json": '{"ratings": [1, 2, 3]}',
    "out of range": "Rating: 7\nRating: 4",
    "out of range in json": '{"ratings": [0, 4]}',
    "below": "-2 - a\n4 - b",
    "another scale": "Rating: 8/10\nRating: 5/10",
    "a half": "Rating: 4.5\nRating: 3",
    "truth values": '{"ratings": [true, false]}',
    "cut short": '{"evaluations": [{"rationale": "a", "rating": 4}, {"rationale": "b',
    "the format said back": '{"ratings": [1 to 5, ...]}',
    "words": "Rating: good\nRating: bad",
    "brackets": "[" * 5000,
}


@pytest.mark.parametrize("name", READABLE)
def test_sloppy_answers_are_read(name: str) -> None:
    text, ratings, reasons = READABLE[name]
    found = read_ratings(text, 2)
    assert [evaluation.rating for evaluation in found] == ratings
    if reasons is not None:
        assert [evaluation.rationale for evaluation in found] == list(reasons)


@pytest.mark.row(11)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_refused_with_its_text(name: str) -> None:
    with pytest.raises(ParseFailure) as caught:
        read_ratings(REFUSED[name], 2)
    assert caught.value.raw == REFUSED[name]
    assert caught.value.reason == "parse_failure"


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ('{"rating": 3, "rationale": "a"}', 3),
        ("3", 3),
        ("**3/5**", 3),
        ("4 - could be more specific", 4),
        ("Rating: 2. Again, my rating is 2", 2),
        ("I would give it a score of 4 out of 5.", 4),
    ],
)
def test_one_answer(text: str, rating: int) -> None:
    assert [evaluation.rating for evaluation in read_ratings(text, 1)] == [rating]


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet=st.sampled_from('0123456789[]{}",:/-.# \nrating Answer\u2013*'), max_size=200),
    st.integers(1, 4),
)
def test_any_text_gives_as_many_valid_ratings_as_answers_or_a_parse_failure(text: str, count: int) -> None:
    try:
        found = read_ratings(text, count)
    except ParseFailure:
        return
    assert len(found) == count
    assert all(evaluation.rating in (None, 1, 2, 3, 4, 5) for evaluation in found)
