"""Messages as the API has them: what is in a row is what is sent, with every key."""

import copy
import random
from typing import Any

import orjson
import pytest

from asyncsynth import LLM, ChatGeneration, FormPreference, FormSFT, TaskContext, TextGeneration, task
from asyncsynth.client.codec import decode, encode
from asyncsynth.client.messages import ChatRequest, Choice
from asyncsynth.core.outcomes import Ok, Permanent, Transient
from asyncsynth.errors import ConfigurationError, RecordError, RequestFailed, TaskFailure
from asyncsynth.pipeline.step import Dropped
from asyncsynth.records import Row
from tests.kit.models import Model, generate

M = LLM(model="m")
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def random_message(rng: random.Random, role: str) -> dict[str, Any]:
    """A valid message with some of all keys that a message may have."""
    text = f"text {rng.randrange(1000)}"
    parts = [
        {"type": "text", "text": text},
        rng.choice([IMAGE, {"type": "input_audio", "input_audio": {"data": "AA"}}]),
    ]
    message: dict[str, Any] = {"role": role, "content": rng.choice([text, parts])}
    if role == "assistant" and rng.random() < 0.5:
        message |= {"content": rng.choice([None, "", text]), "tool_calls": [{**CALL, "x": rng.random()}]}
        if message["content"] is None and rng.random() < 0.5:
            del message["content"]
    if role == "tool":
        message["tool_call_id"] = "c1"
    for key, value in (("name", "ann"), ("reasoning_content", "hm"), ("cache_control", {"type": "x"}), ("weight", 0)):
        if rng.random() < 0.3:
            message[key] = value
    return message


def random_conversation(rng: random.Random) -> list[dict[str, Any]]:
    roles = [*rng.choice([[], ["system"], ["developer"]]), "user"]
    for _ in range(rng.randrange(4)):
        roles += rng.choice([["assistant", "user"], ["assistant", "tool"], ["assistant", "tool", "tool"]])
    return [random_message(rng, role) for role in roles]


def test_every_conversation_goes_out_as_it_is_in_the_row() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(200):
        messages = random_conversation(rng)
        before = copy.deepcopy(messages)
        model = Model("ok")
        generate(ChatGeneration(llm=M), {"messages": messages}, model)
        path, body = encode(model.requests[0])
        assert path == "/chat/completions"
        assert orjson.loads(body)["messages"] == before
        assert messages == before


def test_every_conversation_is_a_training_example_as_it_is() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(200):
        prompt = random_conversation(rng)
        answer = random_message(rng, "assistant")
        whole = [*prompt, answer]
        before = copy.deepcopy(whole)
        made = FormSFT(reasoning="field").apply({"conversation": whole, "reasoning": None})["messages"]
        assert made == before == whole
        made = FormSFT().apply({"messages": prompt, "generation": "ok"})["messages"]
        plain = [{key: value for key, value in each.items() if key != "reasoning_content"} for each in prompt]
        assert [
            {key: value for key, value in each.items() if key != "reasoning_content"} for each in made[:-1]
        ] == plain
        assert made[-1] == {"role": "assistant", "content": "ok"}
        pair = {"messages": prompt, "generations": ["good", "bad"], "ratings": [2, 1]}
        assert FormPreference(layout="conversational").apply(pair)["prompt"] == before[:-1]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("text", "not a list of messages"),
        ([], "not a list of messages"),
        ([{"role": "usr", "content": "x"}], "did you mean 'user'"),
        ([{"role": "user"}], "the content must be text or a list of parts"),
        ([{"role": "user", "content": None, "tool_calls": [CALL]}], "in an assistant message"),
        ([{"role": "assistant", "tool_calls": "weather"}], "must be a list of mappings"),
        ([{"role": "user", "content": ["x"]}], 'must be a mapping with a "type"'),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "message 1 .* can only be the first"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "the user's or a tool's"),
        ([{"role": "user", "content": " "}], "blank"),
        ([{"role": "user", "content": [{"type": "text", "text": " "}]}], "blank"),
    ],
)
def test_what_is_no_conversation_fails_its_row_and_says_where(messages: Any, said: str) -> None:
    with pytest.raises(TaskFailure, match=said) as caught:
        generate(ChatGeneration(llm=M), {"messages": messages}, Model())
    assert caught.value.reason == "bad_input"


def answered(message: dict[str, Any], **params: Any) -> Any:
    request = ChatRequest("m", [{"role": "user", "content": "x"}], params)
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "model": "m", "usage": {}}
    return decode(request, 200, {}, orjson.dumps(body), 0.0)


def test_an_answer_that_only_calls_tools_is_an_answer() -> None:
    for content in (None, "", " \n"):
        made = answered({"role": "assistant", "content": content, "tool_calls": [CALL]}, tools=TOOLS)
        assert isinstance(made, Ok)
        [choice] = made.value.choices
        assert (choice.tool_calls, choice.text.strip()) == ([CALL], "")
    made = answered({"role": "assistant", "content": "And:", "tool_calls": [CALL]}, tools=TOOLS)
    assert made.value.choices[0].message() == {"role": "assistant", "content": "And:", "tool_calls": [CALL]}
    made = answered({"role": "assistant", "content": "Hi.", "tool_calls": []}, tools=TOOLS)
    assert made.value.choices[0].tool_calls is None
    assert made.value.choices[0].message() == {"role": "assistant", "content": "Hi."}
    # The request offers none, so nobody can have a use for the calls.
    assert isinstance(answered({"content": None, "tool_calls": [CALL]}), Permanent)
    odd = answered({"role": "assistant", "content": None, "tool_calls": {"name": "f"}}, tools=TOOLS)
    assert isinstance(odd, Transient)
    assert odd.reason == "bad_json"


def calls(_: Any) -> Choice:
    return Choice("", "tool_calls", tool_calls=[CALL])


def test_tools_are_a_setting_and_their_calls_a_column() -> None:
    for make, row in (
        (TextGeneration, {"instruction": "Weather?"}),
        (ChatGeneration, {"messages": [{"role": "user", "content": "Weather?"}]}),
    ):
        made = make(llm=M, tools=TOOLS, tool_choice="auto")
        assert made.outputs == ("generation", "tool_calls", "model_name")
        model = Model(by=calls)
        [row_out] = generate(made, row, model)
        assert (row_out["generation"], row_out["tool_calls"]) == ("", [CALL])
        assert model.requests[0].params["tools"] == TOOLS
        assert model.requests[0].params["tool_choice"] == "auto"
        assert generate(made, row, Model("Sunny."))[0]["tool_calls"] is None
        assert make(llm=M, tools=TOOLS).settings() != make(llm=M).settings()
        assert "tools" not in make(llm=M).settings()
    in_model = TextGeneration(llm=LLM(model="m", extra_body={"tools": TOOLS}))
    assert generate(in_model, {"instruction": "x"}, Model(by=calls))[0]["tool_calls"] == [CALL]


def test_a_task_without_use_for_tool_calls_fails_and_says_so() -> None:
    with pytest.raises(RequestFailed, match=r"called a tool instead of answering: weather") as caught:
        generate(TextGeneration(llm=M), {"instruction": "x"}, Model(by=calls))
    assert caught.value.reason == "tool_calls"


def lookup(city: str, days: int = 1) -> str:
    """The weather in a city.

    Args:
        city: its name.
        days: how many
            to look ahead.
    """
    return city


def test_a_task_function_offers_tools_and_reads_the_calls() -> None:
    @task(llm=M, inputs=["q"], outputs=["called"])
    async def ask(row: Row, ctx: TaskContext) -> Row:
        completion = await ctx.chat(row["q"], tools=[lookup], tool_choice="required")
        again = await ctx.chat(
            [
                {"role": "user", "content": row["q"]},
                completion.choices[0].message(),
                {"role": "tool", "tool_call_id": "c1", "content": "sun"},
            ]
        )
        return {"called": [completion.choices[0].tool_calls, again.text]}

    answers = iter([Choice("", "tool_calls", tool_calls=[CALL]), Choice("Sun.")])
    model = Model(by=lambda _: next(answers))
    assert generate(ask(), {"q": "Weather?"}, model) == [{"called": [[CALL], "Sun."]}]
    assert model.requests[0].params["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "lookup",
                "description": "The weather in a city.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {"type": "string", "description": "its name."},
                        "days": {"type": "integer", "description": "how many to look ahead.", "default": 1},
                    },
                    "required": ["city"],
                    "additionalProperties": False,
                },
            },
        }
    ]
    assert model.requests[0].params["tool_choice"] == "required"
    assert model.requests[1].messages[1] == {"role": "assistant", "content": None, "tool_calls": [CALL]}


def test_tools_that_are_none_are_refused_where_the_task_is_made() -> None:
    for tools, said in (
        ("x", "a list of functions or of tool schemas"),
        ([1], r"tools\[0\] is 1; a function or a schema"),
        ([{"name": "f"}], r"tools\[0\] .* a schema of the OpenAI API"),
        ([*TOOLS, *TOOLS], "two tools have the name 'weather'"),
        ([lambda x: x], "no name that a model can call"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            TextGeneration(llm=M, tools=tools)  # type: ignore[arg-type]


def test_training_examples_hold_tool_calls() -> None:
    row = {"instruction": "Weather?", "generation": "", "tool_calls": [CALL]}
    assert FormSFT().apply(row)["messages"] == [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
    ]
    formed = FormSFT(tool_calls="object").apply(row)["messages"][1]
    assert formed["content"] == ""
    assert formed["tool_calls"] == [{**CALL, "function": {"name": "weather", "arguments": {"city": "Rome"}}}]
    odd = {**row, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}, {"type": "custom"}]}
    assert FormSFT(tool_calls="object").apply(odd)["messages"][1]["tool_calls"] == odd["tool_calls"]
    with pytest.raises(Dropped, match="empty_generation"):
        FormSFT().apply({**row, "tool_calls": None})
    for wrong in ({**row, "tool_calls": "f"}, {"messages": [{"role": "user", "content": [IMAGE]}], "generation": "x"}):
        with pytest.raises(RecordError, match=r"must be a list of mappings|no standard layout") as caught:
            FormSFT(layout="standard").apply(wrong)
        assert caught.value.reason == "bad_prompt"
