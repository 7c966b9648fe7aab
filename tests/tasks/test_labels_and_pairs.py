"""TextClassification, GenerateSentencePair and ChatGeneration: prompts, sloppy answers, refusals."""

import json
from typing import Any

import pytest

from asyncsynth import LLM, ChatGeneration, GenerateSentencePair, TextClassification
from asyncsynth.client.messages import Choice
from asyncsynth.errors import ConfigurationError, ParseFailure, TaskFailure
from asyncsynth.tasks.sentence_pair import read_pair
from asyncsynth.tasks.text_classification import read_labels
from tests.kit.models import Model, generate

M = LLM(model="m")
LABELS = ["spam", "not spam", "Unclear"]


# --- labels --------------------------------------------------------------------------------------


def test_one_label_of_those_given() -> None:
    model = Model('{"label": "not spam"}')
    task = TextClassification(M, labels={"spam": "an advertisement", "not spam": ""}, context="The texts are mails.")
    assert generate(task, {"text": "Hello Ana"}, model) == [{"label": "not spam", "judge_model": "model-that-answered"}]
    [request] = model.requests
    assert request.schema is not None
    assert request.schema["properties"]["label"]["enum"] == ["spam", "not spam"]
    for part in ("- spam: an advertisement\n- not spam\n", "The texts are mails.", "Hello Ana"):
        assert part in request.messages[0]["content"]


def test_several_labels_or_none() -> None:
    task = TextClassification(M, labels=["a", "b", "c"], multi_label=True)
    assert task.outputs == ("labels", "judge_model")
    model = Model('{"labels": ["c", "a", "c"]}', '{"labels": []}', "None.")
    made = [generate(task, {"text": "x"}, model)[0]["labels"] for _ in range(3)]
    assert made == [["a", "c"], [], []]


def test_two_labels_where_one_was_asked_for() -> None:
    task = TextClassification(M, labels=LABELS)
    [made] = generate(task, {"text": "x"}, Model("spam or unclear", '{"label": null}', "spam"))
    assert made["label"] == "spam"
    with pytest.raises(ParseFailure, match="2 labels"):
        generate(TextClassification(M, labels=LABELS, max_reasks=0), {"text": "x"}, Model("spam or unclear"))


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('{"label": "SPAM"}', ["spam"]),
        ('```json\n{"Label": "unclear."}\n```', ["Unclear"]),
        ('["unclear", "spam"]', ["spam", "Unclear"]),
        ('"not  spam"', ["not spam"]),
        ("not spam", ["not spam"]),
        ("**Not spam**", ["not spam"]),
        ("The label is: Unclear", ["Unclear"]),
        ("This is not about spam filters.\nLabel: not spam", ["not spam"]),
        ("Label: none", []),
    ],
)
def test_labels_in_sloppy_answers(text: str, labels: list[str]) -> None:
    assert read_labels(text, LABELS) == labels


@pytest.mark.parametrize("text", ["", "ham", '{"label": "ham"}', '{"labels": [1]}', "spammer", "notspam"])
def test_no_label(text: str) -> None:
    with pytest.raises(ParseFailure):
        read_labels(text, LABELS)


@pytest.mark.parametrize("labels", [["one"], ["a", "A"], ["a", "a."], "ab", [], ["a", ""], ["a", 1]])
def test_labels_that_are_none(labels: Any) -> None:
    with pytest.raises(ConfigurationError, match="TextClassification"):
        TextClassification(M, labels=labels)


# --- pairs ---------------------------------------------------------------------------------------

PAIR = {"positive": "It rained a lot.", "negative": "The sun shone."}


def test_a_pair() -> None:
    model = Model(json.dumps(PAIR))
    task = GenerateSentencePair(M, hard_negative=True, context="Weather reports.")
    [made] = generate(task, {"anchor": "There was much rain."}, model)
    assert made == {**PAIR, "model_name": "model-that-answered"}
    assert "keeps most of the anchor's words" in model.prompts()[0]
    assert "Weather reports." in model.prompts()[0]


def test_without_a_negative() -> None:
    model = Model('{"positive": "how much rain fell"}')
    task = GenerateSentencePair(M, triplet=False, action="query")
    [made] = generate(task, {"anchor": "There was much rain."}, model)
    assert made == {"positive": "how much rain fell", "model_name": "model-that-answered"}
    assert "negative" not in model.prompts()[0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"positive": "there was much RAIN", "negative": "x"}, "repeats the anchor"),
        ({"positive": "x", "negative": "X."}, "negative repeats"),
        ({"positive": "x", "negative": "There was much rain"}, "negative repeats"),
        ({"positive": "x", "negative": " "}, "no negative"),
        ({"negative": "x"}, "no positive"),
        ({"positive": "Positive.", "negative": "Negative."}, "says nothing"),
        ({"positive": "It rained all week and all day long. " * 9, "negative": "x"}, "says nothing"),
    ],
)
def test_pairs_that_teach_nothing(answer: dict[str, str], message: str) -> None:
    with pytest.raises(ParseFailure, match=message):
        generate(GenerateSentencePair(M, max_reasks=0), {"anchor": "There was much rain."}, Model(json.dumps(answer)))


def test_a_pair_that_was_cut_is_none() -> None:
    model = Model(by=lambda _: Choice("Positive: It rained a lot.\nNegative: The sun sh", "length"))
    with pytest.raises(ParseFailure, match="cut off at max_tokens"):
        generate(GenerateSentencePair(M, max_reasks=0), {"anchor": "There was much rain."}, model)


@pytest.mark.parametrize(
    "text",
    [
        'Sure: {"Positive": "It rained a lot.", "Negative": " The sun shone."}',
        "Positive: It rained a lot.\nNegative: The sun shone.",
        "## Positive\n\nIt rained a lot.\n\n## Negative\n\nThe sun shone.",
        '**Positive sentence:** "It rained a lot."\n**Negative sentence:** "The sun shone."',
        "1. Positive: It rained a lot.\n2. Negative: The sun shone.",
    ],
)
def test_pairs_in_sloppy_answers(text: str) -> None:
    assert read_pair(text) == PAIR


def test_pair_settings_that_cannot_work() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'paraphrase'"):
        GenerateSentencePair(M, action="paraphrases")
    with pytest.raises(ConfigurationError, match="triplet"):
        GenerateSentencePair(M, triplet=False, hard_negative=True)


# --- chat ----------------------------------------------------------------------------------------

USER, ASSISTANT, SYSTEM = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))


def test_a_conversation_is_answered() -> None:
    model = Model(" 4. ")
    task = ChatGeneration(M, system_prompt="task's")
    [made] = generate(task, {"messages": [USER, ASSISTANT, USER]}, model)
    assert made == {"generation": "4.", "model_name": "model-that-answered"}
    assert model.requests[0].messages == [{"role": "system", "content": "task's"}, USER, ASSISTANT, USER]


def test_a_conversations_own_system_message_wins() -> None:
    model = Model("4", "5")
    task = ChatGeneration(M, system_prompt="task's")
    generate(task, {"messages": [SYSTEM, USER], "system_prompt": "row's"}, model)
    generate(task, {"messages": [USER], "system_prompt": "row's"}, model)
    assert [request.messages[0]["content"] for request in model.requests] == ["s", "row's"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "not a list"),
        ("hello", "not a list"),
        ([USER, ASSISTANT], "the last message is the assistant's"),
        ([SYSTEM], "the last message is the system's"),
        ([USER, SYSTEM, USER], "only be the first"),
        ([{"role": "user", "content": " "}], "blank"),
        ([{"role": "user"}], "message 0"),
        ([{"role": "bot", "content": "x"}, USER], "message 0"),
        ([USER, "x"], "message 1"),
    ],
)
def test_conversations_that_cannot_be_answered(messages: Any, message: str) -> None:
    with pytest.raises(TaskFailure, match=message) as caught:
        generate(ChatGeneration(M), {"messages": messages}, Model())
    assert caught.value.reason == "bad_input"
