"""The scorers of DEITA, backtranslation, revision: sloppy answers read, everything else refused with its text."""

import json
from typing import Any

import pytest

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice
from asyncsynth.errors import ParseFailure, TaskFailure
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task
from asyncsynth.tasks.complexity_scorer import ComplexityScorer
from asyncsynth.tasks.instruction_backtranslation import InstructionBacktranslation
from asyncsynth.tasks.quality_scorer import QualityScorer
from asyncsynth.tasks.revision import Revision, read_revision
from tests.kit.models import Model, generate

M = LLM(model="judge")
INSTRUCTIONS: Row = {"instructions": ["Name a colour.", "Prove that primes never end.", "Explain tides."]}
RESPONSES: Row = {"instruction": "What are tides?", "responses": ["Water.", "The sea's rise and fall.", "Waves."]}
SCORERS: list[tuple[type[Task], Row]] = [(ComplexityScorer, INSTRUCTIONS), (QualityScorer, RESPONSES)]

SCORES = {
    "json": '{"scores": [1, 6, 3]}',
    "json in a fence": 'Here are the scores:\n```json\n{"scores": [1, 6, 3]}\n```',
    "another key": '{"ratings": [1, 6, 3]}',
    "a bare list": "[1, 6, 3]",
    "objects": '[{"instruction": 1, "score": 1}, {"instruction": 2, "score": 6}, {"instruction": 3, "score": 3}]',
    "texts": '{"scores": ["1", "6/6", "3/6"]}',
    "deita's own lines": "[1] Score: 1\n[2] Score: 6\n[3] Score: 3",
    "labels": "Instruction 1: Score: 1\nInstruction 2: Score: 6\nInstruction 3: Score: 3",
    "bold labels": "**Instruction 1:** 1\n\n**Instruction 2:** 6\n\n**Instruction 3:** 3",
    "out of order": "Answer 2: 6 - great\nAnswer 1: 1 - poor\nAnswer 3: 3 - fair",
    "lines": "1. 1\n2. 6\n3. 3",
    "lines with reasons": "1/6 - easy\n6/6 - hard\n3/6 - in between",
    "numbers": "1, 6, 3",
    "out of": "Score: 1 out of 6\nScore: 6 out of 6\nScore: 3 out of 6",
}
NO_SCORES = {
    "empty": "",
    "refusal": "I'm sorry, but I can't judge these.",
    "one is missing": '{"scores": [1, 6]}',
    "one too many": "[1, 2, 3, 4]",
    "above the scale": '{"scores": [1, 7, 3]}',
    "below it": "0\n1\n2",
    "another scale": "Score: 1/10\nScore: 6/10\nScore: 3/10",
    "halves": "1.5, 2.5, 3.5",
    "words": "low, high, medium",
    "a loop": "Score: 1\n" * 40,
}


@pytest.mark.parametrize(("kind", "row"), SCORERS)
@pytest.mark.parametrize("name", SCORES)
def test_scores_are_read(kind: type[Task], row: Row, name: str) -> None:
    assert generate(kind(M), row, Model(SCORES[name])) == [{"scores": [1, 6, 3], "judge_model": "model-that-answered"}]


@pytest.mark.parametrize(("kind", "row"), SCORERS)
@pytest.mark.parametrize("name", NO_SCORES)
def test_what_holds_no_scores_is_refused_with_its_text(kind: type[Task], row: Row, name: str) -> None:
    with pytest.raises(ParseFailure) as caught:
        generate(kind(M, max_reasks=0), row, Model(NO_SCORES[name]))
    assert caught.value.raw == NO_SCORES[name]


@pytest.mark.parametrize(("kind", "row"), SCORERS)
def test_the_prompt_holds_all_texts_and_the_schema_their_number(kind: type[Task], row: Row) -> None:
    model = Model('{"scores": [1, 6, 3]}')
    generate(kind(M), row, model)
    [prompt] = model.prompts()
    for value in row.values():
        assert all(text in prompt for text in ([value] if isinstance(value, str) else value))
    scores = model.requests[0].schema["properties"]["scores"]  # type: ignore[index]
    assert scores["minItems"] == scores["maxItems"] == 3
    assert scores["items"]["enum"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("kind", "row"), SCORERS)
def test_blank_texts_keep_their_place_and_are_not_sent(kind: type[Task], row: Row) -> None:
    subject = list(row)[-1]
    model = Model("[2, 4]")
    [scored] = generate(kind(M), {**row, subject: ["", "a text", None, "another"]}, model)
    assert scored["scores"] == [None, 2, None, 4]
    assert "None" not in model.prompts()[0]
    for texts in ([], [" ", None]):
        model = Model()
        [scored] = generate(kind(M), {**row, subject: texts}, model)
        assert scored["scores"] == [None] * len(texts)
    bad: Any
    for bad in (None, "text", [1], {"a": "b"}):
        with pytest.raises(TaskFailure, match=subject):
            generate(kind(M), {**row, subject: bad}, Model())


def test_several_judgements_of_a_row() -> None:
    task = ComplexityScorer(M, num_generations=2, group_generations=True)
    assert generate(task, INSTRUCTIONS, Model("[1, 2, 3]", "[2, 2, 2]"))[0]["scores"] == [[1, 2, 3], [2, 2, 2]]


# --- backtranslation -----------------------------------------------------------------------------

PAIR: Row = {"instruction": "How do I boil an egg?", "generation": "Eggs are eaten worldwide."}


@pytest.mark.parametrize(
    "text",
    [
        '{"reason": "It does not say how.", "score": 2}',
        '```json\n{"reason": "It does not say how.", "score": "2/5"}\n```',
        "It does not say how.\n\nScore: 2",
        "**Reason:** It does not say how.\n**Score:** 2",
        "Score: 2\nReason: It does not say how.",
        "Rating: 2/5. It does not say how.",
        "2 - It does not say how.",
        "Reasoning: It does not say how.\n\nScore: 2 out of 5",
    ],
)
def test_backtranslation(text: str) -> None:
    [row] = generate(InstructionBacktranslation(M), PAIR, Model(text))
    assert row == {"score": 2, "reason": "It does not say how.", "judge_model": "model-that-answered"}


@pytest.mark.parametrize(
    "text", ["", "Good.", "Score: 9", '{"reason": "a", "score": null}', "Score: N/A", "2 or 3", "Score: 2\nScore: 5"]
)
def test_no_score_is_a_parse_failure(text: str) -> None:
    with pytest.raises(ParseFailure) as caught:
        generate(InstructionBacktranslation(M, max_reasks=1), PAIR, Model(text, text))
    assert (caught.value.raw, caught.value.attempts) == (text, 2)


# --- revision ------------------------------------------------------------------------------------

DRAFT: Row = {"instruction": "Who wrote Emma?", "response": "Emma was written by Emily Bronte in 1815."}
WHY, RIGHT = "The author was wrong.", "Emma was written by Jane Austen in 1815."


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"rationale": WHY, "revision": RIGHT}),
        f"```json\n{json.dumps({'revision': RIGHT, 'rationale': WHY})}\n```",
        f"Here it is: {json.dumps({'explanation': WHY, 'corrected_response': RIGHT})}",
        f"<rationale>{WHY}</rationale>\n<revision>\n{RIGHT}\n</revision>",
        f"Rationale: {WHY}\n\nRevision: {RIGHT}",
        f"**Rationale:** {WHY}\n\n**Revised answer:**\n{RIGHT}",
        f"### Rationale\n{WHY}\n\n### Revision\n{RIGHT}",
        f'Revision: "{RIGHT}"\n\nRationale: {WHY}',
        f"Sure!\n\nReason: {WHY}\nImproved response: {RIGHT}\n\nLet me know if you need more changes.",
    ],
)
def test_revisions_are_read(text: str) -> None:
    assert generate(Revision(M), DRAFT, Model(text)) == [
        {"revision": RIGHT, "rationale": WHY, "model_name": "model-that-answered"}
    ]


@pytest.mark.parametrize(
    "choice",
    [
        Choice("", "stop"),
        Choice(RIGHT, "stop"),
        Choice('{"rationale": "a", "revision": ""}', "stop"),
        Choice('{"rationale": "a", "revision": "Emma was', "length"),
        Choice("Revision: Emma was written by", "length"),
        Choice("I'm sorry, but I can't revise this.", "stop"),
        Choice(json.dumps({"rationale": "a", "revision": "I'm sorry, but I can't help with that."}), "stop"),
        Choice(json.dumps({"rationale": "a", "revision": f"{RIGHT} " * 9}), "stop"),
    ],
)
def test_what_is_no_revision_is_refused_with_its_text(choice: Choice) -> None:
    with pytest.raises(ParseFailure, match="revision") as caught:
        generate(Revision(M, max_reasks=0), DRAFT, Model(by=lambda request: choice))
    assert caught.value.raw == choice.text


def test_a_revision_keeps_its_paragraphs_and_code() -> None:
    revised = "Do this:\n\n```python\nprint(1)\n```\n\nIt prints 1."
    assert read_revision(json.dumps({"rationale": "", "revision": revised})) == ("", revised)
    assert read_revision(f"Rationale: none\nRevision:\n{revised}") == ("none", revised)
