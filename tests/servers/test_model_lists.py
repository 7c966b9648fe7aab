"""Lists of models in the shapes that servers have, and the names that mean the same: pure."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsynth.client.transport import WireResponse
from asyncsynth.servers.model_lists import is_listed, next_page, read_page

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "models", "id", "name", "x"]), inner)
    ),
    max_leaves=8,
)


def answer(body: Any, status: int = 200) -> WireResponse:
    return WireResponse(status, {}, body if isinstance(body, bytes) else orjson.dumps(body))


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}]}, ["a", "b"]),
        ([{"id": "a"}], ["a"]),
        (["a", "b"], ["a", "b"]),
        ({"models": [{"name": "a", "model": "x"}]}, ["a"]),
        ({"data": None}, []),
        ({"data": []}, []),
        ([], []),
        ({"data": [{"id": "a"}, {"id": None}, 3]}, ["a"]),
        ({"data": {}}, None),
        ({"data": [1, 2]}, None),
        ({"hello": 1}, None),
        ("a", None),
        (b"<html>", None),
        (b"", None),
    ],
)
def test_what_is_read(body: Any, names: list[str] | None) -> None:
    assert read_page(answer(body)) == names
    assert read_page(answer(body, 500)) is None


@given(JSON)
def test_no_answer_breaks_the_reader(body: Any) -> None:
    names = read_page(answer(body))
    assert names is None or all(isinstance(name, str) and name for name in names)
    page = next_page(answer(body))
    assert page is None or page.startswith("/models?after_id=")


@pytest.mark.parametrize(
    ("model", "names", "listed"),
    [
        ("m", ["m"], True),
        ("m", ["m:latest"], True),
        ("m:latest", ["m"], True),
        ("m", ["models/m"], True),
        ("models/m", ["m"], True),
        ("owner/m:nitro", ["owner/m"], True),
        ("openai/gpt-x", ["openai/*"], True),
        ("m", ["*"], True),
        ("m", ["m2", "mm", "M"], False),
        ("llama3:8b", ["llama3:70b", "llama3:latest"], False),
        ("llama3:8b", ["llama3"], False),  # a tag of Ollama is another model
        ("gpt-x", ["openai/*"], False),
        ("a[b]", ["a[b]*"], True),
        ("m", [], False),
    ],
)
def test_names_that_mean_the_same(model: str, names: list[str], listed: bool) -> None:
    assert is_listed(model, frozenset(names)) is listed


def test_pages() -> None:
    assert next_page(answer({"data": [{"id": "a b"}], "has_more": True})) == "/models?after_id=a%20b&after=a%20b"
    assert next_page(answer({"data": [{"id": "a"}], "has_more": True, "last_id": "z"})) == "/models?after_id=z&after=z"
    assert next_page(answer({"data": [{"id": "a"}], "has_more": False, "last_id": "a"})) is None
    assert next_page(answer({"data": [], "has_more": True})) is None
    assert next_page(answer([])) is None
