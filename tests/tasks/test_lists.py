"""Lists of instructions as models write them, read without the text around them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsynth.tasks.lists import distinct, read_list

A, B, C = "Explain why the sea rises and falls.", "List three uses of tides", "What is a neap tide?"

LISTS = {
    "json": json.dumps({"instructions": [A, B, C]}),
    "json, a bare list": json.dumps([A, B, C], indent=2),
    "json in a fence": f"```json\n{json.dumps({'instructions': [A, B, C]})}\n```",
    "json after a preamble": f"Sure! Here are three instructions:\n\n{json.dumps([A, B, C])}\n\nHope this helps!",
    "json, a list of objects": json.dumps([{"id": 1, "instruction": A}, {"id": 2, "instruction": B}, {"query": C}]),
    "json, keys by number": json.dumps({"1": A, "2": B, "3": C}),
    "json, another key": json.dumps({"output": {"queries": [A, B, C]}} | {"topic": None}),
    "json, numbered inside": json.dumps({"instructions": [f"1. {A}", f"2. {B}", f"3. {C}"]}),
    "json, with blanks and doubles": json.dumps({"instructions": [A, "", B, "  ", A.upper(), C]}),
    "json, cut short": '{"instructions": ["' + '", "'.join([A, B, C]) + '", "And a fourth that is not fini',
    "numbered": f"1. {A}\n2. {B}\n3. {C}",
    "brackets": f"1) {A}\n2) {B}\n3) {C}",
    "square brackets": f"[1] {A}\n[2] {B}\n[3] {C}",
    "numbered, blank lines": f"1. {A}\n\n2. {B}\n\n\n3. {C}\n\n",
    "preamble and epilogue": (
        f"Certainly! Here are 3 instructions for your assistant:\n\n1. {A}\n2. {B}\n3. {C}\n\n"
        "These instructions cover a range of verbs and forms."
    ),
    "bold": f"**1.** **{A}**\n**2.** **{B}**\n**3.** **{C}**",
    "bold titles": f"1. **Science:** {A}\n2. **Listing** - {B}\n3. **Facts**: {C}",
    "bold around number and title": f"**1. Science:** {A}\n**2. Listing:** {B}\n**3. Facts:** {C}",
    "headings": f"### Instruction 1\n\n{A}\n\n### Instruction 2\n\n{B}\n\n### Instruction 3\n\n{C}",
    "headings, bold text": f"### Instruction 1\n\n**{A}**\n\n### Instruction 2\n**{B}**\n\n### Instruction 3\n{C}",
    "labels": f"Instruction 1: {A}\nInstruction 2: {B}\nInstruction 3: {C}",
    "bold labels": f"**Instruction 1:** {A}\n\n**Instruction 2:** {B}\n\n**Instruction 3:** {C}",
    "query labels": f"Query #1: {A}\nQuery #2: {B}\nQuery #3: {C}",
    "labels without numbers": f"Instruction: {A}\nInstruction: {B}\nInstruction: {C}",
    "bullets": f"- {A}\n- {B}\n- {C}",
    "stars": f"* {A}\n* {B}\n* {C}",
    "dots": f"\u2022 {A}\n\u2022 {B}\n\u2022 {C}",
    "bullets, indented": f"Here you go:\n   - {A}\n   - {B}\n   - {C}",
    "quoted": f'1. "{A}"\n2. "{B}"\n3. \u201c{C}\u201d',
    "plain lines": f"{A}\n{B}\n{C}",
    "plain lines with talk": f"Here are the instructions:\n\n{A}\n\n{B}\n\n{C}\n\nLet me know if you need more!",
    "plain lines under an odd line": f"\U0001f4d0 Questions about the subject of your text:\n{A}\n{B}\n{C}",
    "answered as well": f"- {A}\n- The answer is: the moon\n- {B}\n- Answer: many uses\n- {C}",
    "one line": f"1. {A} 2. {B}. 3. {C}",
    "windows lines": f"1. {A}\r\n2. {B}\r\n3. {C}\r\n",
    "doubles": f"1. {A}\n2. {B}\n3. {A}\n4. {C}\n5. {B.lower()}.",
    "looping": f"1. {A}\n2. {B}\n3. {C}\n" + "\n".join(f"{n}. {C}" for n in range(4, 60)),
    "in a fence": f"```\n1. {A}\n2. {B}\n3. {C}\n```",
    "placeholders": f"1. {A}\n2. ...\n3. {B}\n4. Instruction 4\n5. {C}\n6. [instruction]",
    "groups": f"**Easy ones:**\n- {A}\n\n**Hard ones:**\n- {B}\n- {C}",
    "headings between": f"## Reading\n1. {A}\n## Writing\n2. {B}\n## Counting\n3. {C}",
    "a refusal among them": f"1. {A}\n2. I'm sorry, but I cannot assist with that.\n3. {B}\n4. {C}",
    "prose after": f"1. {A}\n2. {B}\n3. {C}\n\nI made these so that they differ in length.",
}


def plain(items: list[str]) -> list[str]:
    return [item.rstrip(".") for item in items]


@pytest.mark.parametrize("name", LISTS)
def test_sloppy_lists_come_back_clean(name: str) -> None:
    assert plain(read_list(LISTS[name])) == plain([A, B, C])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "I'm sorry, but I can't help with that.",
        "As an AI language model, I cannot write instructions.",
        "{}",
        '{"instructions": []}',
        '{"instructions": ["", "..."]}',
        "1.\n2.\n3.",
        "- \n- ",
        "Here are the instructions:",
        "12345",
        "[1, 2, 3]",
    ],
)
def test_what_holds_no_instruction_gives_none(text: str) -> None:
    assert read_list(text) == []


def test_an_unfinished_last_item_is_left_out() -> None:
    text = f"1. {A}\n2. {B}.\n3. Describe how the moon pulls at the"
    assert plain(read_list(text, cut=True)) == plain([A, B])
    assert len(read_list(text)) == 3
    assert plain(read_list(f"1. {A}\n2. {C}", cut=True)) == plain([A, C])  # it was finished after all


def test_what_belongs_to_an_item_stays_with_it() -> None:
    text = f"1. Say what this prints:\n   for i in [1, 2]:\n     print(i)\n\n2. {B}"
    assert read_list(text) == ["Say what this prints:\nfor i in [1, 2]:\nprint(i)", B]
    assert read_list(f'1. Turn ["a", "b"] into a set.\n2. {B}') == ['Turn ["a", "b"] into a set.', B]
    assert read_list(f"1. Use `snake_case` and **bold** where it helps.\n2. {B}")[0].startswith("Use `snake_case`")


def test_other_scripts() -> None:
    assert read_list("1. 潮の満ち引きを説明してください。\n2. 大潮とは何ですか?") == [
        "潮の満ち引きを説明してください。",
        "大潮とは何ですか?",
    ]
    assert read_list("1. Qu'est-ce qu'une marée ?\n2. Où sont les plus hautes ?") == [
        "Qu'est-ce qu'une marée ?",
        "Où sont les plus hautes ?",
    ]


def test_distinct_looks_at_words_only() -> None:
    assert distinct(["What is it?", "what is  it", "What is that?"], seen=["WHAT IS THAT"]) == ["What is it?"]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from('12. )-*[]{}":,\n#abc Instruction'), max_size=200), st.booleans())
def test_any_text_gives_clean_items(text: str, cut: bool) -> None:
    items = read_list(text, cut=cut)
    assert items == [item.strip() for item in items]
    assert len(distinct(items)) == len(items)
    assert all(any(char.isalpha() for char in item) for item in items)
