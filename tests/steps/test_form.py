"""FormPreference and FormSFT: TRL's layouts, and a stated, counted policy for every row that gives no pair."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsynth.errors import PipelineError, RecordError
from asyncsynth.pipeline import Dropped
from asyncsynth.pipeline.making import KNOWN, NOTHING, Making, Makings, end_of
from asyncsynth.steps import FormPreference, FormSFT
from asyncsynth.steps.similarity import similarity

ROW: dict[str, Any] = {
    "instruction": "Why?",
    "generations": ["bad", "best", "middling"],
    "ratings": [1, 5, 3.5],
    "generation_models": ["m1", "m2", "m3"],
}
PAIR = FormPreference.outputs
#: Beside a pair whose answers were made without a system prompt.
NO_SYSTEM = {"chosen_system_prompt": None, "rejected_system_prompt": None}


def rated(ratings: list[Any], generations: list[Any] | None = None) -> dict[str, Any]:
    texts = generations or [f"answer {number} of its own" for number in range(len(ratings))]
    return {"instruction": "Why?", "generations": texts, "ratings": ratings}


def pair(step: FormPreference, row: dict[str, Any]) -> tuple[Any, Any]:
    made = step.apply(row)
    assert isinstance(made, dict)
    return made["chosen"], made["rejected"]


def reason(step: FormPreference | FormSFT, row: dict[str, Any]) -> str:
    with pytest.raises((Dropped, RecordError)) as caught:
        step.apply(row)
    found: str = caught.value.reason  # type: ignore[attr-defined]
    return found


# --- layouts ---------------------------------------------------------------------------------------


def test_standard() -> None:
    assert FormPreference(keep=()).apply(ROW) == {
        "prompt": "Why?",
        "chosen": "best",
        "rejected": "bad",
        "score_chosen": 5,
        "score_rejected": 1,
        "chosen_model": "m2",
        "rejected_model": "m1",
        **NO_SYSTEM,
    }


def test_conversational() -> None:
    row = {**ROW, "system_prompt": "Be brief."}
    made = FormPreference(layout="conversational").apply(row)
    assert made == {
        **row,
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        "chosen": [{"role": "assistant", "content": "best"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
        "score_chosen": 5,
        "score_rejected": 1,
        "chosen_model": "m2",
        "rejected_model": "m1",
        "chosen_system_prompt": "Be brief.",
        "rejected_system_prompt": "Be brief.",
    }


def test_messages_win_over_the_instruction() -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why?"},
    ]
    made = FormPreference(layout="conversational").apply({**ROW, "messages": turns})
    assert isinstance(made, dict)
    assert made["prompt"] == turns
    made["prompt"][0]["content"] = "changed"
    assert turns[0]["content"] == "Hi"
    assert reason(FormPreference(), {**ROW, "messages": turns}) == "bad_prompt"
    made = FormPreference().apply({**ROW, "messages": [{"role": "system", "content": "s"}, turns[2]]})
    assert isinstance(made, dict)
    assert made["prompt"] == "s\n\nWhy?"


@pytest.mark.parametrize("column", ["grouped_model_name", "model_name"])
def test_the_models_are_found_where_grouping_puts_them(column: str) -> None:
    row = {name: value for name, value in ROW.items() if name != "generation_models"}
    for models, expected in ((["m1", "m2", "m3"], ("m2", "m1")), (["m1"], (None, None)), ("m1", (None, None))):
        made = FormPreference(keep=()).apply({**row, column: models})
        assert isinstance(made, dict)
        assert (made["chosen_model"], made["rejected_model"]) == expected


PARTS = [{"type": "text", "text": "Look."}, {"type": "text", "text": "Why?"}]
IMAGE = {"type": "image_url", "image_url": {"url": "u"}}


def test_content_is_written_as_it_is_as_text_or_as_parts() -> None:
    row = {**ROW, "messages": [{"role": "user", "content": PARTS, "name": "Ann"}], "generation": "So."}
    for content, question, answer in (
        ("keep", PARTS, "So."),
        ("text", "Look.\nWhy?", "So."),
        ("parts", PARTS, [{"type": "text", "text": "So."}]),
    ):
        made = FormSFT(content=content, keep=()).apply(row)  # type: ignore[arg-type]
        assert made == {
            "messages": [
                {"role": "user", "content": question, "name": "Ann"},
                {"role": "assistant", "content": answer},
            ]
        }
        pair_made = FormPreference(content=content, layout="conversational", keep=()).apply(row)  # type: ignore[arg-type]
        assert isinstance(pair_made, dict)
        assert pair_made["prompt"] == [{"role": "user", "content": question, "name": "Ann"}]
        assert type(pair_made["chosen"][0]["content"]) is type(answer)
    seen = {**row, "messages": [{"role": "user", "content": [*PARTS, IMAGE]}]}
    with pytest.raises(RecordError, match=r'parts that are not text \(image_url\), which content="text" would lose'):
        FormSFT(content="text").apply(seen)
    assert FormSFT(content="parts", keep=()).apply(seen)["messages"][0] == seen["messages"][0]
    # Runs from before there was the option are resumed.
    assert "content" not in FormSFT().settings()
    assert FormSFT(content="text").settings() != FormSFT().settings()


def test_columns_can_be_renamed_and_models_left_out() -> None:
    step = FormPreference(
        input_mappings={"generations": "grouped_generation", "instruction": "question"},
        output_mappings={"prompt": "p", "chosen": "w"},
        keep=["question"],
    )
    row = {"question": "Why?", "grouped_generation": ["a", "b"], "ratings": [2, 1]}
    assert step.apply(row) == {
        "question": "Why?",
        "p": "Why?",
        "w": "a",
        "rejected": "b",
        "score_chosen": 2,
        "score_rejected": 1,
        "chosen_model": None,
        "rejected_model": None,
        **NO_SYSTEM,
    }
    assert set(step.flow([dict.fromkeys(row, "load")])) == set(step.apply(row))


# --- which pair ------------------------------------------------------------------------------------


def test_the_first_of_the_best_is_chosen_and_the_lowest_rejected() -> None:
    assert pair(FormPreference(), rated([5, 1, 5, 2])) == ("answer 0 of its own", "answer 1 of its own")


def test_a_random_worse_one_is_the_same_each_time() -> None:
    step = FormPreference(rejected="random")
    seen = set()
    for number in range(40):
        row = rated([5, 4, 3, 5], [f"{letter} {number}" for letter in "abcd"])
        chosen, rejected = pair(step, row)
        assert (chosen, rejected) == pair(step, row)
        assert chosen == f"a {number}"
        seen.add(rejected[0])
    assert seen == {"b", "c"}


@pytest.mark.parametrize(
    ("settings", "row", "expected"),
    [
        ({}, rated([3, 3, 3]), "tie"),
        ({"ties": "first"}, rated([3, 3]), ("answer 0 of its own", "answer 1 of its own")),
        ({"ties": "first"}, rated([3, 3], ["same", " same\n"]), "identical"),
        ({}, rated([5, 1], ["same  text", "same text"]), "identical"),
        ({}, rated([5, 1, 2], ["same", "same", "other"]), ("same", "other")),
        ({"min_margin": 2}, rated([5, 4]), "margin"),
        ({"min_margin": 2}, rated([5, 3]), ("answer 0 of its own", "answer 1 of its own")),
        ({"min_margin": 0.5}, rated([5, 5]), "tie"),
        ({"max_similarity": 0.5}, rated([5, 1], ["one two three four", "one two three four!"]), "similar"),
        ({"max_similarity": 0.5}, rated([5, 1, 2], ["a b c d e f", "a b c d e f!", "x"]), ("a b c d e f", "x")),
        ({}, rated([None, 5, 1]), ("answer 1 of its own", "answer 2 of its own")),
        ({}, rated([float("nan"), 5, 1]), ("answer 1 of its own", "answer 2 of its own")),
        ({"missing_ratings": "drop"}, rated([None, 5, 1]), "missing_rating"),
        ({}, rated([None, 5]), "too_few_rated"),
        ({}, rated([]), "too_few_rated"),
        ({}, rated([1, 5, 3], ["", None, " "]), "too_few_rated"),
        ({}, rated([1, 5, 3], ["a", None, "b"]), ("b", "a")),
        ({}, {**rated([5, 1]), "ratings": [5]}, "unequal_lists"),
        ({}, {**rated([5, 1]), "generation_models": ["m"]}, "unequal_lists"),
        ({}, {**rated([5, 1]), "ratings": None}, "not_a_list"),
        ({}, {**rated([5, 1]), "generations": "text"}, "not_a_list"),
        ({}, rated([5, "4"]), "bad_ratings"),
        ({}, rated([5, True]), "bad_ratings"),
        ({}, rated([5, 4], ["a", ["b"]]), "bad_generation"),
        ({}, {**rated([5, 1]), "instruction": None}, "bad_prompt"),
        ({}, {**rated([5, 1]), "instruction": "  "}, "bad_prompt"),
        ({}, {**rated([5, 1]), "messages": []}, "bad_prompt"),
        ({}, {**rated([5, 1]), "messages": [{"role": "user"}]}, "bad_prompt"),
        ({}, {**rated([5, 1]), "messages": [{"role": "assistant", "content": "x"}]}, "bad_prompt"),
    ],
)
def test_policy(settings: dict[str, Any], row: dict[str, Any], expected: Any) -> None:
    step = FormPreference(**settings)
    if isinstance(expected, str):
        assert reason(step, row) == expected
    else:
        assert pair(step, row) == expected


texts = st.sampled_from(["a", "b", " a ", "a b", "b a", "", "c c c", "c  c c"]) | st.none()
ratings = st.sampled_from([None, 1, 2, 2.0, 3, 5])


@given(
    st.lists(st.tuples(texts, ratings), max_size=6),
    st.sampled_from(["lowest", "random"]),
    st.sampled_from(["drop", "first"]),
    st.sampled_from([0.3, 0.8, 1.0]),
)
def test_a_pair_is_a_pair(
    answers: list[tuple[str | None, float | None]], rejected: Any, ties: Any, max_similarity: float
) -> None:
    step = FormPreference(rejected=rejected, ties=ties, max_similarity=max_similarity)
    row = rated([rating for _, rating in answers], [text for text, _ in answers])
    try:
        made = step.apply(row)
    except Dropped as dropped:
        assert dropped.reason in {"too_few_rated", "identical", "tie", "similar"}  # noqa: PT017
        return
    assert isinstance(made, dict)
    assert made["chosen"].split() != made["rejected"].split()
    assert made["score_chosen"] >= made["score_rejected"]
    assert made["score_chosen"] > made["score_rejected"] or ties == "first"
    assert similarity(made["chosen"], made["rejected"]) <= max_similarity
    assert (made["chosen"], made["score_chosen"]) in answers
    assert (made["rejected"], made["score_rejected"]) in answers


# --- the check before the run ----------------------------------------------------------------------


def test_flow() -> None:
    columns = dict.fromkeys(ROW, "load")
    assert set(FormPreference().flow([columns])) == {*ROW, *PAIR}
    assert set(FormPreference(keep=("instruction",)).flow([columns])) == {"instruction", *PAIR}
    with pytest.raises(PipelineError, match="needs the column 'ratings'"):
        FormPreference().flow([{"instruction": "x", "generations": "x"}])
    with pytest.raises(PipelineError, match="needs a prompt"):
        FormPreference().flow([{"ratings": "x", "generations": "x"}])
    with pytest.raises(PipelineError, match="must keep the column 'no'"):
        FormPreference(keep=["no"]).flow([columns])
    with pytest.raises(PipelineError, match="would overwrite the column 'chosen'"):
        FormPreference().flow([{**columns, "chosen": "load"}])


@pytest.mark.parametrize(
    "settings",
    [
        {"layout": "chat"},
        {"rejected": "worst"},
        {"ties": "keep"},
        {"missing_ratings": "zero"},
        {"min_margin": -1},
        {"min_margin": float("nan")},
        {"max_similarity": 1.5},
        {"ties": "first", "min_margin": 1},
    ],
)
def test_arguments(settings: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match="FormPreference"):
        FormPreference(**settings)


# --- similarity ------------------------------------------------------------------------------------


def test_similarity() -> None:
    assert similarity("A man, a plan.", "a man, A plan.") == 1.0
    assert similarity("", "") == 1.0
    assert similarity("a", "b") == 0.0
    assert similarity("A beats B", "B beats A") < 0.5
    long = " ".join(map(str, range(100)))
    assert 0.9 < similarity(long, long + "!") < 1.0
    assert 0.3 < similarity("今日は天気がいいです", "今日は天気が悪いです") < 1.0


@given(st.text(), st.text())
def test_similarity_is_symmetric_and_bounded(first: str, second: str) -> None:
    assert 0.0 <= similarity(first, second) == similarity(second, first) <= 1.0
    assert similarity(first, first) == 1.0


def test_similarity_of_long_texts_is_quick() -> None:
    # difflib needs minutes for these; the test would not end.
    first = " ".join(str(number % 977) for number in range(50_000))
    assert similarity(first, first[::-1]) < 1.0


# --- FormSFT ---------------------------------------------------------------------------------------


def test_sft_conversational() -> None:
    row = {"instruction": "Why?", "generation": "So.", "system_prompt": "Be brief."}
    assert FormSFT(keep=()).apply(row) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "So."},
        ]
    }


def test_sft_standard() -> None:
    made = FormSFT(layout="standard", input_mappings={"generation": "response"}).apply(
        {"instruction": "Why?", "response": "So."}
    )
    assert made == {"instruction": "Why?", "response": "So.", "prompt": "Why?", "completion": "So."}


def test_sft_of_a_conversation() -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    assert FormSFT(keep=()).apply({"conversation": turns}) == {"messages": turns}
    assert FormSFT(layout="standard", keep=()).apply({"conversation": turns}) == {
        "prompt": "Why?",
        "completion": "So.",
    }
    assert reason(FormSFT(), {"conversation": turns[:1]}) == "empty_generation"
    assert reason(FormSFT(), {"conversation": turns[1:]}) == "bad_prompt"
    assert reason(FormSFT(), {"conversation": "text"}) == "bad_prompt"


def test_sft_of_messages() -> None:
    turns = [{"role": "user", "content": "Why?"}]
    made = FormSFT().apply({"messages": turns, "generation": "So."})
    assert made == {"messages": [*turns, {"role": "assistant", "content": "So."}], "generation": "So."}
    assert len(turns) == 1
    assert set(FormSFT().flow([{"messages": "load", "generation": "gen"}])) == {"messages", "generation"}


@pytest.mark.parametrize(
    ("generation", "expected"),
    [(None, "empty_generation"), ("", "empty_generation"), (" \n", "empty_generation"), (["a"], "bad_generation")],
)
def test_sft_without_an_answer(generation: Any, expected: str) -> None:
    assert reason(FormSFT(), {"instruction": "Why?", "generation": generation}) == expected


def test_sft_flow() -> None:
    assert set(FormSFT(keep=()).flow([{"instruction": "x", "generation": "x"}])) == {"messages"}
    assert set(FormSFT(keep=()).flow([{"conversation": "magpie"}])) == {"messages"}
    with pytest.raises(PipelineError, match="needs the column 'generation'"):
        FormSFT().flow([{"instruction": "x"}])
    with pytest.raises(PipelineError, match="needs a prompt"):
        FormSFT().flow([{"generation": "x"}])
    with pytest.raises(PipelineError, match="layout is 'text'"):
        FormSFT(layout="text")  # type: ignore[arg-type]


# --- what is known of how texts were made ----------------------------------------------------------------------

CUT = "The moon pulls the sea, and so does the sun, which is why the tides are highest when both stand in"
WHOLE = "The moon pulls the sea."


def known(*texts: str, cut: tuple[str, ...] = (), **how: Any) -> Makings:
    """Makings of answers."""
    return Makings(Making(end_of(text), text in cut, True, **how) for text in texts)


def dropped(step: FormPreference | FormSFT, row: dict[str, Any], makings: Makings) -> str:
    with pytest.raises(Dropped) as caught:
        step.apply_knowing(row, makings)
    return caught.value.reason


@pytest.mark.row(33)
def test_a_cut_answer_is_no_target() -> None:
    makings = known(CUT, WHOLE, cut=(CUT,))
    row = {"instruction": "Tides?", "generation": CUT}
    assert dropped(FormSFT(), row, makings) == "truncated"
    assert FormSFT(truncated="keep", keep=()).apply_knowing(row, makings)["messages"][-1]["content"] == CUT
    assert FormSFT().apply_knowing({**row, "generation": WHOLE}, makings)
    assert FormSFT().apply(row)  # outside of a run nothing is known
    assert dropped(FormSFT(), {**row, "generation": f"Answer: {CUT} \n"}, makings) == "truncated"
    assert FormSFT().apply_knowing({**row, "generation": "The moon pulls the sea, and so does the sun."}, makings)
    # Any turn of the model's counts, and none of the user's.
    user, said = {"role": "user", "content": CUT}, {"role": "assistant", "content": WHOLE}
    cut = {"role": "assistant", "content": CUT}
    assert FormSFT().apply_knowing({"conversation": [user, said]}, makings)
    assert dropped(FormSFT(), {"conversation": [user, cut, user, said]}, makings) == "truncated"


@pytest.mark.row(33)
@pytest.mark.parametrize(
    ("texts", "settings", "expected"),
    [
        ([CUT, WHOLE], {}, "truncated"),
        ([CUT, WHOLE], {"truncated": "keep"}, (WHOLE, CUT)),
        ([CUT, WHOLE, "By chance."], {}, (WHOLE, "By chance.")),
        ([CUT, ""], {}, "too_few_rated"),
    ],
)
def test_a_cut_answer_is_neither_chosen_nor_rejected(texts: list[str], settings: Any, expected: Any) -> None:
    row = rated([1, 5, 3][: len(texts)], texts)
    makings = known(*texts, cut=(CUT,))
    if isinstance(expected, str):
        assert dropped(FormPreference(**settings), row, makings) == expected
    else:
        made = FormPreference(**settings).apply_knowing(row, makings)
        assert (made["chosen"], made["rejected"]) == expected


SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Why?"}


@pytest.mark.row(33)
def test_the_system_prompt_that_was_sent_is_written() -> None:
    row = {"instruction": "Why?", "generation": WHOLE}
    sent = known(WHOLE, system="Be brief.")
    assert FormSFT(keep=()).apply_knowing(row, sent)["messages"][:2] == [SYSTEM, USER]
    assert FormSFT(layout="standard", keep=()).apply_knowing(row, sent)["prompt"] == "Be brief.\n\nWhy?"
    assert FormSFT(system_prompt="drop", keep=()).apply_knowing(row, sent)["messages"][0] == USER
    for layout, prompt in (("standard", {"prompt": "Why?", "completion": WHOLE}), ("conversational", {})):
        made = FormSFT(layout=layout, system_prompt="column", keep=()).apply_knowing(row, sent)  # type: ignore[arg-type]
        assert {"system_prompt": "Be brief.", **prompt}.items() <= made.items()
        assert made.get("messages", [USER])[0] == USER
    # What was sent counts, unless the user names a column; a system message in the messages stays.
    own = {**row, "system_prompt": "Written later."}
    assert FormSFT().apply_knowing(own, sent)["messages"][0] == SYSTEM
    told = FormSFT(input_mappings={"system_prompt": "system_prompt"}).apply_knowing(own, sent)
    assert told["messages"][0]["content"] == "Written later."
    headed = {"messages": [{"role": "system", "content": "Mine."}, USER], "generation": WHOLE}
    assert [m["content"] for m in FormSFT().apply_knowing(headed, sent)["messages"]] == ["Mine.", "Why?", WHOLE]
    # Sent without one: the judge's column that came later is no part of it.
    assert FormSFT().apply_knowing(own, known(WHOLE))["messages"][0] == USER
    # A text that no task made: the row's column, or the one that all its answers share.
    mine = {**own, "generation": "A text of my own."}
    assert FormSFT().apply_knowing(mine, sent)["messages"][0]["content"] == "Written later."
    del mine["system_prompt"]
    assert FormSFT().apply_knowing(mine, sent)["messages"][0] == SYSTEM
    two = Makings([Making("a", False, True, "A."), Making("b", False, True, "B.")])
    with pytest.raises(RecordError, match="2 different system prompts") as caught:
        FormSFT().apply_knowing(mine, two)
    assert caught.value.reason == "unknown_system_prompt"


@pytest.mark.row(33)
def test_a_pair_under_two_system_prompts() -> None:
    row = rated([5, 1], ["first answer", "second answer"])
    one = known("first answer", "second answer", system="Be brief.")
    made = FormPreference(keep=()).apply_knowing(row, one)
    assert (made["prompt"], made["chosen_system_prompt"]) == ("Be brief.\n\nWhy?", "Be brief.")
    made = FormPreference(layout="conversational", keep=()).apply_knowing(row, one)
    assert made["prompt"] == [SYSTEM, USER]
    made = FormPreference(system_prompt="column", keep=()).apply_knowing(row, one)
    assert (made["prompt"], made["system_prompt"]) == ("Why?", "Be brief.")
    two = Makings([Making("first answer", False, True, "A."), Making("second answer", False, True, "B.")])
    made = FormPreference(keep=()).apply_knowing(row, two)
    assert made["prompt"] == "Why?"
    assert (made["chosen_system_prompt"], made["rejected_system_prompt"]) == ("A.", "B.")


@pytest.mark.parametrize("layout", ["conversational", "standard"])
def test_sft_keeps_the_reasoning(layout: Any) -> None:
    row = {"instruction": "Why?", "generation": WHOLE, "reasoning": "of another answer"}
    thought = known(WHOLE, reasoning="The moon, the sun.")
    made = FormSFT(layout=layout, keep=()).apply_knowing(row, thought)
    assert "moon, the sun" not in str(made)
    made = FormSFT(layout=layout, reasoning="field", keep=()).apply_knowing(row, thought)
    if layout == "standard":
        assert (made["completion"], made["reasoning"]) == (WHOLE, "The moon, the sun.")
    else:
        said = {"role": "assistant", "content": WHOLE, "reasoning_content": "The moon, the sun."}
        assert made["messages"][-1] == said
    made = FormSFT(layout=layout, reasoning="text", keep=()).apply_knowing(row, thought)
    text = made["completion"] if layout == "standard" else made["messages"][-1]["content"]
    assert text == f"<think>\nThe moon, the sun.\n</think>\n\n{WHOLE}"
    made = FormSFT(layout=layout, reasoning="text").apply(row)  # from the input: its column
    assert "<think>\nof another answer" in str(made.get("completion", made.get("messages"))).replace("\\n", "\n")


def test_sft_keeps_the_reasoning_of_every_turn_that_holds_it() -> None:
    turns = [USER, {"role": "assistant", "content": "So.", "reasoning_content": "t1"}, USER]
    turns.append({"role": "assistant", "content": "So!", "reasoning_content": "t2"})
    assert FormSFT(reasoning="field", keep=()).apply({"conversation": turns})["messages"] == turns
    bare = FormSFT(keep=()).apply({"conversation": turns})["messages"]
    assert [set(message) for message in bare] == [{"role", "content"}] * 4
    inline = FormSFT(reasoning="text", keep=()).apply({"conversation": turns})["messages"]
    assert inline[1]["content"] == "<think>\nt1\n</think>\n\nSo."
    assert turns[1]["content"] == "So."


def test_sft_options() -> None:
    with pytest.raises(PipelineError, match="must keep the reasoning") as caught:
        FormSFT(reasoning="field").flow([{"instruction": "x", "generation": "x"}])
    assert "provenance=" in str(caught.value.hint)
    for option in ("truncated", "reasoning", "system_prompt"):
        with pytest.raises(PipelineError, match=f"{option} is 'none'"):
            FormSFT(**{option: "none"})  # type: ignore[arg-type]
    flowing = FormSFT(layout="standard", system_prompt="column", reasoning="field", keep=()).flow(
        [{"instruction": "x", "generation": "x", "reasoning": "x"}]
    )
    assert set(flowing) == {"prompt", "completion", "system_prompt", "reasoning"}


@pytest.mark.row(33)
def test_a_subclass_that_overrides_apply_knows_as_much() -> None:
    class Shouted(FormSFT):
        def apply(self, row: dict[str, Any]) -> dict[str, Any]:
            return {**super().apply(row), "shouted": True}

    row = {"instruction": "Tides?", "generation": CUT}
    assert dropped(Shouted(), row, known(CUT, cut=(CUT,))) == "truncated"
    made = Shouted().apply_knowing({**row, "generation": WHOLE}, known(CUT, WHOLE, cut=(CUT,)))
    assert isinstance(made, dict)
    assert made["shouted"]
    assert KNOWN.get() is NOTHING
