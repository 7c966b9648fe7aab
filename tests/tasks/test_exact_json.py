"""Values of an answer are what was written, or the answer is refused with the value and its place."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsynth.tasks.exact_json import InexactJson, NoJson, exact_json
from asyncsynth.tasks.parsing import json_values, rewritten_text

pytestmark = pytest.mark.row(31)

texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20
)


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types, at every depth."""
    return repr(left) == repr(right)


@given(values)
def test_what_a_row_can_hold_is_read_as_it_was_written(value: Any) -> None:
    assert same(exact_json(orjson.dumps(value).decode()), value)
    assert same(exact_json(json.dumps(value)), value)


@given(values, st.integers(2**64) | st.integers(max_value=-(2**63) - 1), st.booleans())
def test_an_integer_beyond_64_bits_is_refused_wherever_it_is(value: Any, number: int, flat: bool) -> None:
    text = str(number) if flat else json.dumps({"a": [value, {"deep": number}]})
    with pytest.raises(InexactJson) as caught:
        exact_json(text)
    assert str(number)[:30] in str(caught.value)
    if not flat:
        assert str(caught.value).startswith("a[1].deep: ")
    assert list(json_values(f"Here you are: {text if not flat else [number]}.")) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"n": 1e400}', "n: 1e400 is beyond the range of a float"),
        ("[-1E+999]", "[0]: -1E+999 is beyond"),
        ("[1e-400]", "[0]: 1e-400 is beyond"),
        ("1e400", "1e400 is beyond"),
        ('{"a": {"b": NaN}}', "a.b: NaN is not a JSON number"),
        ("[-Infinity]", "[0]: -Infinity is not a JSON number"),
        ("NaN", "NaN is not a JSON number"),
        ('{"a": 1, "a": 2}', "a: the key 'a' comes twice, with two values"),
        ('{"x": [{"a": true, "a": 1}]}', "x[0].a: the key 'a' comes twice"),
        ('{"a": {"big": 99999999999999999999}, "a": 1}', "comes twice"),
        ('["\\ud83d"]', "[0]: half of a surrogate pair"),
        ('{"\\udc00": 1}', "the answer: half of a surrogate pair is in a key"),
        ("[" + "9" * 5000 + "]", "[0]: 9999999999999999999999999999999999999... is an integer beyond 64 bits"),
    ],
)
def test_what_a_row_cannot_hold(text: str, words: str) -> None:
    with pytest.raises(InexactJson) as caught:
        exact_json(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[5.0, 1E2, -0.0, 0e-999]", [5.0, 100.0, -0.0, 0.0]),
        ("[18446744073709551615, -9223372036854775808]", [2**64 - 1, -(2**63)]),
        ('{"a": 1, "a": 1}', {"a": 1}),
        ('["\\ud83d\\ude00"]', ["😀"]),
        ('{"a":"1\n2\t3"}', {"a": "1\n2\t3"}),
        ("7", 7),
        ('"a"', "a"),
    ],
)
def test_what_stays(text: str, value: Any) -> None:
    assert same(exact_json(text), value)


@pytest.mark.parametrize("text", ["", "I think", "-", "1, 2", "1] [2", "{", "[" * 100_000, "[" * 400 + "]" * 400])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(NoJson):
        exact_json(text)


def test_a_refused_value_is_passed_over_with_all_that_is_in_it() -> None:
    refused: list[str] = []
    text = 'First {"a": {"x": 1}, "n": NaN}, then {"a": 2} and [99999999999999999999].'
    assert list(json_values(text, refused)) == [{"a": 2}]
    assert refused == ["n: NaN is not a JSON number", "[0]: 99999999999999999999 is an integer beyond 64 bits"]


def test_a_text_that_is_code_is_still_a_text() -> None:
    code = '```json\n{"id": 123456789012345678901234567890}\n```'
    assert rewritten_text(code) == '{"id": 123456789012345678901234567890}'
