"""How a text was made is known by its end, wherever it is and whatever precedes it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsynth.pipeline.making import (
    CARRIED,
    NOTHING,
    Making,
    Makings,
    carried_makings,
    end_of,
    given_makings,
    makings_of,
    same_end,
    texts_in,
    with_carried,
    without_carried,
)

CUT = "The moon pulls the sea, and so does the sun, which is why the tides are highest when both stand in"
long_texts = st.text(st.characters(codec="utf-8"), min_size=1).map(
    lambda text: text + " with an end of its own, no doubt"
)


def found(samples: list[dict[str, Any]], meta: dict[str, Any], **how: Any) -> Makings:
    settings = {"is_answer": True, "prompt_of": lambda _: None, **how}
    return Makings(makings_of(samples, meta, **settings))


@given(long_texts, st.text(), st.sampled_from(["", " ", "\n\n"]))
def test_a_text_is_known_behind_any_prefix(text: str, prefix: str, after: str) -> None:
    makings = found([{"generation": text}], {"cut": [end_of(text)]})
    assert makings.is_cut(text)
    assert makings.is_cut(f"{prefix} {text}{after}")
    assert makings.is_cut(f"{text}.<|im_end|>")  # something put behind it makes no whole answer of it
    assert not makings.is_cut(text[: -len("no doubt")])
    assert not makings.is_cut("")


def test_short_texts_are_known_whole() -> None:
    makings = found([{"generation": "The moon"}], {"cut": ["The moon"]})
    assert makings.is_cut(" The  moon\n")
    assert not makings.is_cut("I walk on The moon")
    assert not same_end("4", "24")
    assert same_end(end_of(CUT), end_of("when both stand in " * 0 + CUT[-40:]))


def test_which_of_several_answers_was_cut() -> None:
    samples = [{"generation": "A whole answer."}, {"generation": CUT}]
    makings = found(samples, {"finish": "stop", "calls": 2, "cut": [end_of(CUT)]})
    assert [makings.is_cut(sample["generation"]) for sample in samples] == [False, True]
    # A judge's words that were cut are no answer: an equal short answer of a model is whole.
    assert not found([{"ratings": [4]}], {"cut": ["4"]}).is_cut("4")


def test_results_of_older_versions_say_it_by_finish() -> None:
    old = {"finish": "length", "calls": 1}
    assert found([{"generation": CUT, "model_name": "m"}], old).is_cut(CUT)
    assert not found([{"generation": CUT, "model_name": "m"}], old).is_cut("m")
    assert not found([{"generation": CUT}], {"finish": "stop", "calls": 1}).is_cut(CUT)
    assert not found([{"generation": CUT}], {"finish": "length", "calls": 2}).is_cut(CUT)  # which of the two?


def test_a_rewrite_that_changed_nothing_leaves_what_is_known() -> None:
    first = makings_of([{"generation": CUT}], {"cut": [end_of(CUT)]}, is_answer=True, prompt_of=lambda _: "Answer.")
    second = makings_of(
        [{"evolved_response": CUT}], {"finish": "stop"}, is_answer=False, prompt_of=lambda _: "Rewrite."
    )
    making = Makings([*first, *second]).of(CUT)
    assert making is not None
    assert (making.is_cut, making.system) == (True, "Answer.")
    assert Makings([*first, *second]).systems() == ["Answer."]


def test_reasoning_belongs_to_the_answer_beside_it() -> None:
    samples = [{"generation": "A whole answer.", "reasoning": "Easy."}, {"generation": CUT, "reasoning": None}]
    makings = found(samples, {"calls": 2})
    told = [makings.of(text) for text in ("A whole answer.", CUT, "Easy.")]
    assert [making and making.reasoning for making in told] == ["Easy.", None, None]


def test_answers_that_end_alike_keep_what_is_theirs() -> None:
    politely = " I hope this helps! Let me know if you have any further questions about the matter."
    samples = [
        {"generation": f"Yes.{politely}", "reasoning": "For."},
        {"generation": f"No.{politely}", "reasoning": "Not."},
    ]
    makings = found(samples, {"calls": 2}, prompt_of=lambda number: f"Prompt {number}.")
    for number, sample in enumerate(samples):
        assert makings.systems(sample["generation"]) == [f"Prompt {number}."]
        assert makings.thoughts(f" {sample['generation']}\n") == [sample["reasoning"]]
    assert makings.systems(f"Maybe.{politely}") == ["Prompt 0.", "Prompt 1."]  # none of them: it cannot be told


def test_a_text_of_the_input_has_no_tasks_prompt() -> None:
    judged = makings_of([{"note": "A fine answer."}], {}, is_answer=True, prompt_of=lambda _: "You judge.")
    makings = Makings([*given_makings({"generation": CUT}), *judged])
    told = makings.of(f"A: {CUT}")
    assert told is not None
    assert (told.is_given, told.is_answer, makings.systems(CUT)) == (True, False, [])
    after = Makings(carried_makings(makings.carried({"generation": CUT})))
    assert (after.systems(CUT), after.systems()) == ([], ["You judge."])


def test_texts_of_messages_are_the_models_only() -> None:
    conversation = [{"role": "user", "content": "Hi, you there"}, {"role": "assistant", "content": "Hello, you here"}]
    assert list(texts_in({"a": [conversation, "t", 1, None, {"b": "u"}]})) == [
        ("user", "Hi, you there"),
        ("assistant", "Hello, you here"),
        ("", "t"),
        ("", "u"),
    ]
    makings = found([{"conversation": conversation}], {"cut": ["Hi, you there", "Hello, you here"]})
    assert (makings.is_cut("Hello, you here"), makings.is_cut("Hi, you there")) == (True, False)


making = st.builds(
    Making,
    end=st.sampled_from(["one text", "another text", end_of(CUT)]),
    is_cut=st.booleans(),
    is_answer=st.booleans(),
    system=st.none() | st.just("Be brief."),
    reasoning=st.none() | st.just("Hm."),
    whole=st.sampled_from([0, 7]),
    is_given=st.booleans(),
)


@given(st.lists(making, max_size=5))
def test_what_is_known_survives_a_barrier(makings: list[Making]) -> None:
    row = {"a": "one text", "b": [{"c": CUT}]}
    before = Makings(makings)
    after = Makings(carried_makings(orjson.loads(orjson.dumps(before.carried(row)))))
    for text in ("one text", CUT):
        old, new = before.of(text), after.of(text)
        assert (old is not None and old.is_cut) == (new is not None and new.is_cut)
        if old is not None and old.reasoning:
            assert new is not None
            assert new.reasoning == old.reasoning
        if after.systems():  # what says nothing is not carried
            assert new is not None or old is None
            assert after.systems(text) == before.systems(text)
            assert after.systems() in (before.systems(), before.systems()[::-1])
    assert after.of("another text") is None  # the row does not hold it


@pytest.mark.parametrize("own", [None, [], "text", [[1]], {"a": 1}, {"asyncsynth makings": []}, {"own": 2}])
def test_a_users_column_of_the_carriers_name_comes_through(own: Any) -> None:
    row = {CARRIED: own, "text": "t"}
    told = [list(Making("end", True, True, "system"))]
    for made in (told, []):
        assert without_carried(with_carried(row, made)) == (row, carried_makings(made))
        assert without_carried(with_carried({"text": "t"}, made)) == ({"text": "t"}, carried_makings(made))
    if not isinstance(own, dict) or "asyncsynth makings" not in own:
        assert without_carried(row) == (row, [])  # where nothing is carried at all
    assert without_carried({"text": "t", CARRIED: told}) == ({"text": "t"}, carried_makings(told))  # an earlier version


@pytest.mark.parametrize("value", [None, [], ()])
def test_nothing_is_known(value: Any) -> None:
    assert carried_makings(value) == []
    assert NOTHING.of("text") is None
    assert NOTHING.systems() == []
