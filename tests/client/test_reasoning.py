"""Thinking is taken out of an answer, and nothing else is."""

import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from asyncsynth.client.reasoning import answer_logprobs, reasoning_in, separate, where_it_thinks

THOUGHT = 'The user wants X.\n\nMaybe {"ratings": [2, 3]}? No.'
ANSWER = "Paris.\n\n  It lies on the Seine: a < b, [1], </b>.\n"

THINKS = {
    "tags": f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}",
    "on one line": f"<think>{THOUGHT}</think>{ANSWER}",
    "blanks between": f"<think> {THOUGHT} </think>  {ANSWER}",
    "white space before": f"\n \t<think>{THOUGHT}</think>\n{ANSWER}",
    "upper case": f"<THINK>{THOUGHT}</THINK>{ANSWER}",
    "mixed case": f"<Think>{THOUGHT}</think>{ANSWER}",
    "thinking": f"<thinking>{THOUGHT}</thinking>\n{ANSWER}",
    "seed": f"<seed:think>{THOUGHT}</seed:think>{ANSWER}",
    "magistral": f"[THINK]{THOUGHT}[/THINK]{ANSWER}",
    "kimi": f"◁think▷{THOUGHT}◁/think▷{ANSWER}",
    "sky": f"<|begin_of_thought|>{THOUGHT}<|end_of_thought|>\n<|begin_of_solution|>{ANSWER}",
    "command": f"<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>{ANSWER.rstrip()}<|END_RESPONSE|>",
    "no opening tag": f"{THOUGHT}\n</think>\n\n{ANSWER}",
    "no opening tag, on one line": f"{THOUGHT}</think>{ANSWER}",
    "no opening tag, blanks around": f"{THOUGHT} </think> {ANSWER}",
    "no opening tag, magistral": f"{THOUGHT}[/THINK]{ANSWER}",
    "no opening tag, thinking": f"{THOUGHT}\n</thinking>\n{ANSWER}",
    "gpt-oss": f"<|channel|>analysis<|message|>{THOUGHT}<|end|>"
    f"<|start|>assistant<|channel|>final<|message|>{ANSWER.strip()}<|return|>",
    "gpt-oss, started": f"<|start|>assistant<|channel|>analysis<|message|>{THOUGHT}<|end|>"
    f"<|start|>assistant<|channel|>final<|message|>{ANSWER.strip()}",
    "gpt-oss, held to JSON": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final "
    f"<|constrain|>json<|message|>{ANSWER.strip()}",
    "gpt-oss, without special tokens": f"analysis{THOUGHT}assistantfinal{ANSWER.strip()}",
}


@pytest.mark.row(32)
@pytest.mark.parametrize("name", THINKS)
def test_a_thought_and_its_answer_come_apart(name: str) -> None:
    found = separate(THINKS[name])
    assert found.answer.strip() == ANSWER.strip()
    assert found.reasoning == THOUGHT
    assert not found.unfinished


SEVERAL = {
    "two blocks": ("<think>a</think>\n<think>b</think>\nParis.", "a\n\nb"),
    "nested": ("<think>a<think>b</think>c</think>Paris.", "a<think>b</think>c"),
    "opened twice": ("<think>\n<think>a\n</think>\nParis.", "<think>a"),
    "an empty one": ("<think>\n\n</think>\n\nParis.", None),
    "marks quoted in a thought without its opening tag": (
        "Say `<think>` or `</think>`.\n</think>\n\nParis.",
        "Say `<think>` or `</think>`.",
    ),
    "marks quoted in the thought": ("<think>Say `</think>`, or not.</think>Paris.", "Say `</think>`, or not."),
    "channels": (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Paris.",
        "a\n\nb",
    ),
    "bare channels": ("analysisaassistantanalysisbassistantfinalParis.", "aassistantanalysisb"),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_thoughts_are_one(name: str) -> None:
    text, thought = SEVERAL[name]
    assert separate(text) == ("Paris.", thought, False)


KEPT = [
    "Use <think> to open a thought, and </think> to close it.",
    "A model writes `<think>` first.\n\n```\n<think>\nhm\n</think>\n```\n",
    "```\n<think>hm</think>\n```",
    "`<think>` is a tag.",
    "The parser looks for `</think>` and cuts there.",
    'It ends with "</think>" (without a <think>).',
    "A missing </think> tag makes the parser fail.",
    "The closing tag is </think>.",
    "The tag is called </think>",
    "Close it so:\n\n```html\n</think>\n```\n\nThat is all.",
    "Paris. <think>Was that right?</think> Yes.",
    "Magistral writes [THINK] and [/THINK].",
    "analysis of the data shows that assistants help.",
    "Say <|channel|> in gpt-oss.",
    "analysis of the model's text: it writes assistantfinal before the answer.",
    "It opens with `<think>`.\n\nIt closes with a </think> tag, on a line of its own.",
    "\n  indented answer\n",
    "<thinker>no</thinker>",
    "[1, 2]",
    "",
]


@pytest.mark.row(32)
@pytest.mark.parametrize("text", KEPT)
def test_an_answer_that_mentions_marks_keeps_every_byte(text: str) -> None:
    assert separate(text) == (text, None, False)


def test_an_answer_after_a_thought_may_mention_marks() -> None:
    answer = "Models write `<think>`, then </think> ends it.\n\n```\n</think>\n```"
    assert separate(f"<think>They ask about <think> tags.</think>\n\n{answer}").answer == answer
    assert separate(f"They ask about tags.\n</think>\n\n{answer}").answer == answer
    channels = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>"
    answer = "A message goes between `<|message|>` and `<|end|>`; `<|return|>` ends the answer."
    assert separate(channels + answer) == separate(f"{channels}{answer}<|return|>") == (answer, "hm", False)


@pytest.mark.parametrize(
    ("text", "cut", "thought"),
    [
        ("<think>\nOkay, the user", False, "Okay, the user"),
        ("<think>", True, None),
        ("[THINK]Okay", True, "Okay"),
        ("<think>a</think><think>b", True, "a\n\nb"),
        ("<|channel|>analysis<|message|>Okay", True, "Okay"),
        ("analysisWe need to say", True, "We need to say"),
    ],
)
def test_a_thought_without_an_end_leaves_no_answer(text: str, cut: bool, thought: str | None) -> None:
    assert separate(text, cut=cut) == ("", thought, True)


def test_what_only_looks_like_a_thought_is_an_answer_where_it_was_not_cut() -> None:
    assert separate("analysisWe = 3").answer == "analysisWe = 3"
    assert separate("analysisResults = 3", cut=True).answer == "analysisResults = 3"


# --- properties ------------------------------------------------------------------------------------

_MARKS = re.compile(r"think|thought|<\||analysis|assistantfinal", re.IGNORECASE)
texts = st.text(max_size=200)


@pytest.mark.row(32)
@given(texts)
@example("a < b and [c] / d > e")
@example("</b>\n[/x]")
def test_text_without_marks_comes_back_byte_for_byte(text: str) -> None:
    assume(not _MARKS.search(text))
    for cut in (False, True):
        assert separate(text, cut=cut) == (text, None, False)


PAIRS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<seed:think>", "</seed:think>"),
]


@pytest.mark.row(32)
@given(st.sampled_from(PAIRS), texts, texts, st.sampled_from(["", " ", "\n", "\n\n"]))
@example(PAIRS[0], '{"a": 1}', "```\ncode\n```", "\n\n")
def test_thought_and_answer_come_back_byte_for_byte(
    marks: tuple[str, str], thought: str, answer: str, between: str
) -> None:
    assume(not _MARKS.search(thought) and not _MARKS.search(answer))
    opening, closing = marks
    # A mark in quotes of its own is talk about marks.
    assume(not (thought[-1:] in "`\"'(“‘«「" and thought))
    found = separate(f"{opening}{thought}{closing}{between}{answer}")
    assert found == (answer.lstrip(), thought.strip() or None, False)


@given(st.text(alphabet=st.sampled_from(list("<>/[]|`\n think")), max_size=80))
def test_any_text_comes_apart_without_an_error(text: str) -> None:
    found = separate(text)
    assert found.answer in text
    if found.answer == text:
        assert found.reasoning is None


def test_hostile_texts_take_bounded_time() -> None:
    for text in ("<think>" * 50_000, "</think>" * 50_000, "`" * 100_000 + "</think>", "<|channel|>" * 30_000):
        separate(text)


# --- fields, parts, tokens -------------------------------------------------------------------------


@pytest.mark.row(32)
@pytest.mark.parametrize(
    "message",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm", "reasoning_content": None},
        {"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
        {"reasoning": {"content": "hm"}},
        {"reasoning_details": [{"type": "reasoning.text", "text": "h"}, {"type": "reasoning.summary", "summary": "m"}]},
        {"thinking": "hm"},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, "x"]},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "x"}]},
        {"content": [{"type": "reasoning", "text": "hm"}, "x"]},
    ],
)
def test_thoughts_in_fields_and_parts(message: dict[str, object]) -> None:
    assert reasoning_in({"role": "assistant", "content": "x", **message}) == "hm"


@pytest.mark.parametrize("value", [None, "", " \n", [], {}, 7, [{"type": "reasoning.encrypted", "data": "abc"}]])
def test_fields_without_a_thought(value: object) -> None:
    assert reasoning_in({"content": "x", "reasoning": value}) is None


def test_where_a_model_thinks() -> None:
    assert where_it_thinks({"message": {"content": "<think>hm</think>x"}}) == "text"
    assert where_it_thinks({"message": {"content": "<think>"}, "finish_reason": "length"}) == "text"
    assert where_it_thinks({"message": {"content": None, "reasoning": "hm"}}) == "field"
    assert where_it_thinks({"message": {"content": "x"}}) == where_it_thinks({"text": "x"}) == ""
    assert where_it_thinks({"message": None}) == ""


def test_the_tokens_of_the_answer_are_the_last_that_spell_it() -> None:
    tokens = [{"token": piece} for piece in ("<think>", "4", "</think>", "\n\n", " 4", "!", "<|im_end|>")]
    assert answer_logprobs({"content": tokens}, "4!") == {"content": tokens[4:]}
    assert answer_logprobs({"content": tokens}, "5") is None
    assert answer_logprobs({"tokens": ["4"]}, "4") is None
