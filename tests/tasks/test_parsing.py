"""Rewritten texts, refusals and loops, as models write them."""

import contextlib
import time

import pytest

from asyncsynth.errors import ParseFailure
from asyncsynth.tasks.parsing import is_looping, is_refusal, json_values, rewritten_text

TEXT = "Explain, in at most 100 words, why there are two tides a day."

REWRITTEN = {
    "plain": TEXT,
    "spaces": f"\n\n  {TEXT}  \n",
    "preamble": f"Sure! Here is the rewritten instruction:\n\n{TEXT}",
    "preamble on its line": f"Here's a more complex version of the instruction:\n{TEXT}",
    "label": f"Rewritten instruction: {TEXT}",
    "bold label": f"**Rewritten Instruction:** {TEXT}",
    "heading": f"### New instruction:\n{TEXT}",
    "hash label": f"#Rewritten Prompt#:\n{TEXT}",
    "short label": f"Here is the revised question: {TEXT}",
    "quotes": f'"{TEXT}"',
    "curly quotes": f"\u201c{TEXT}\u201d",
    "bold": f"**{TEXT}**",
    "fence": f"```\n{TEXT}\n```",
    "fence with a language": f"```text\n{TEXT}\n```",
    "tags": f"<instruction>\n{TEXT}\n</instruction>",
    "tags after a preamble": f"Here you are:\n<instruction>{TEXT}</instruction>",
    "an opening tag only": f"<instruction>\n{TEXT}",
    "json": f'{{"rewritten_instruction": "{TEXT}"}}',
    "json in a fence": f'```json\n{{"instruction": "{TEXT}"}}\n```',
    "epilogue": f"{TEXT}\n\nThis rewritten instruction adds a limit of words.",
    "note": f"{TEXT}\n\nNote: I added a constraint.",
    "offer": f"{TEXT}\n\nLet me know if you would like further changes!",
    "all of it": f"Certainly! Here is the new prompt:\n\n**{TEXT}**\n\nI have added a limit.\n\nFeel free to ask!",
    "windows lines": f"Sure, here it is:\r\n\r\n{TEXT}\r\n",
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_rewritten_text_comes_back_alone(name: str) -> None:
    assert rewritten_text(REWRITTEN[name]) == TEXT


@pytest.mark.parametrize(
    "text",
    [
        "Here is a list: a, b. Sort it.",
        "def f():\n    return 1\n\nSay what `f()` gives.",
        'Say "hello" and "goodbye" in French.',
        "First paragraph.\n\nSecond paragraph, which ends it.",
        "Write a **bold** claim about *tides*.",
        "Fix this:\n\n```python\nprint(1\n```",
    ],
)
def test_what_belongs_to_a_text_stays(text: str) -> None:
    assert rewritten_text(text) == text


@pytest.mark.parametrize("text", ["", "  \n", "``", "Here is the rewritten instruction:"])
def test_nothing_does_not_fail(text: str) -> None:
    assert len(rewritten_text(text)) <= len(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, I can\u2019t assist with this request.",
        "Sorry, I cannot do that",
        "I am very sorry, but no.",
        "I cannot provide instructions for this.",
        "I'm unable to assist with that.",
        "I am not able to help you here.",
        "I must apologize, but",
        "As an AI language model, I have no body.",
        "Unfortunately, I can't help you with that.",
        "申し訳ありませんが、お手伝いできません。",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Explain why people say they are sorry.",
        "I can't log in to my account. What should I try?",
        "I cannot find my keys; make me a checklist.",
        "Write an apology to a customer.",
        "As an engineer, explain bridges.",
        "",
    ],
)
def test_not_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_loops() -> None:
    assert is_looping("The tides are caused by the moon and the sun. " * 6)
    assert is_looping("Intro.\n" + "Write a poem about tides.\n" * 5)
    assert not is_looping("- [ ] \n" * 20)
    assert not is_looping("The tides are caused by the moon and the sun. " * 2)
    assert not is_looping("}\n" * 50)
    assert not is_looping(" ".join(f"word{i}" for i in range(2000)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"name": "Ana\tRuiz\x18", "tags": ["c"]}', {"name": "Ana\tRuiz\x18", "tags": ["c"]}),
        ('Here:\n```json\n{"poem": "one\ntwo",\n "n": 2}\n```', {"poem": "one\ntwo", "n": 2}),
        ('["a \\"quoted\\"\nline", "b"]', ['a "quoted"\nline', "b"]),
    ],
)
def test_bare_control_characters_in_json_strings(text: str, value: object) -> None:
    """vLLM's grammars let them pass: a schema that holds for an answer does not keep a tab out of its texts."""
    assert next(json_values(text)) == value


def test_a_text_of_its_own_is_still_strict_json() -> None:
    assert list(json_values('"one\ntwo"')) == []
    assert list(json_values('{"a": "b\\\nc"}')) == []


@pytest.mark.slow
def test_hostile_text_is_read_in_bounded_time() -> None:
    started = time.perf_counter()
    for text in (
        "[" * 20_000,
        "{" * 20_000 + "}" * 20_000,
        "**" * 20_000,
        "1. " * 20_000,
        "<a>" * 20_000,
        '"' * 20_000,
        "{" + '"\t' * 20_000,
        '["' + "\\\n" * 20_000 + "]" * 100,
    ):
        with contextlib.suppress(ParseFailure):
            list(json_values(text))
        rewritten_text(text)
        is_looping(text)
    assert time.perf_counter() - started < 5
