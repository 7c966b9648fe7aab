"""SelfInstruct: as many clean instructions as were asked for, or a note of what is missing."""

import json

import pytest

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import ChatRequest, Choice
from asyncsynth.errors import ConfigurationError, ParseFailure, TaskFailure
from asyncsynth.tasks.self_instruct import SelfInstruct
from tests.kit.models import Model, generate

M = LLM(model="m")
ROW = {"input": "Tides come from the pull of the moon."}


def said(*items: str) -> str:
    return json.dumps({"instructions": items})


def test_a_list_and_the_prompt_behind_it() -> None:
    model = Model(said("Explain tides.", "Name two tides."))
    task = SelfInstruct(
        M,
        num_instructions=2,
        criteria_for_query_generation="Ask like a sailor.",
        application_description="a harbour master's assistant",
        structured=True,
    )
    assert generate(task, ROW, model) == [
        {"instructions": ["Explain tides.", "Name two tides."], "model_name": "model-that-answered"}
    ]
    [prompt] = model.prompts()
    for text in (
        ROW["input"],
        "Ask like a sailor.",
        "a harbour master's assistant",
        "2 different questions and requests",
    ):
        assert text in prompt
    listed = model.requests[0].schema["properties"]["instructions"]  # type: ignore[index]
    assert listed["minItems"] == listed["maxItems"] == 2


def test_missing_instructions_are_asked_for_again_with_those_that_are_there() -> None:
    model = Model(said("Explain tides.", "explain tides"), said("Explain tides!", "Name two tides."))
    ctx = model.ctx()
    [row] = generate(SelfInstruct(M, num_instructions=2), ROW, model, ctx)
    assert row["instructions"] == ["Explain tides.", "Name two tides."]
    assert "- Explain tides." in model.prompts()[1]
    assert "Write 1 question or request about" in model.prompts()[1]
    assert "missing_instructions" not in ctx.notes
    assert len({request.params["seed"] for request in model.requests}) == 2


def test_what_is_missing_in_the_end_is_noted() -> None:
    model = Model(by=lambda request: "1. Explain tides.\n2. Explain tides.")
    ctx = model.ctx()
    [row] = generate(SelfInstruct(M, num_instructions=4, max_reasks=1), ROW, model, ctx)
    assert row["instructions"] == ["Explain tides."]
    assert ctx.notes["missing_instructions"] == 3
    assert len(model.requests) == 2


def test_too_many_are_cut_to_the_number() -> None:
    model = Model("1. Say one thing\n2. Say two things\n3. Say three things")
    [row] = generate(SelfInstruct(M, num_instructions=2), ROW, model)
    assert row["instructions"] == ["Say one thing", "Say two things"]


def test_a_failure_after_the_first_round_keeps_what_is_there() -> None:
    model = Model("1. Explain tides.", *["I'm sorry, but I can't."] * 3)
    [row] = generate(SelfInstruct(M, num_instructions=3), ROW, model)
    assert row["instructions"] == ["Explain tides."]


def test_a_list_cut_at_max_tokens_loses_its_unfinished_item() -> None:
    model = Model(by=lambda request: Choice("1. Explain tides.\n2. Name two of the", "length"))
    [row] = generate(SelfInstruct(M, num_instructions=2, max_reasks=0), ROW, model)
    assert row["instructions"] == ["Explain tides."]


def test_no_instruction_at_all_fails_the_row_with_the_text() -> None:
    model = Model(by=lambda request: "I'm sorry, but I can't help with that.")
    with pytest.raises(ParseFailure) as caught:
        generate(SelfInstruct(M), ROW, model)
    assert caught.value.raw == "I'm sorry, but I can't help with that."
    assert caught.value.attempts == 3


def test_plain_lines_are_asked_for_unless_told_otherwise() -> None:
    model = Model("- Explain tides.\n- Name two tides.")
    [row] = generate(SelfInstruct(M, num_instructions=2), ROW, model)
    assert row["instructions"] == ["Explain tides.", "Name two tides."]
    assert model.requests[0].schema is None
    assert "JSON" not in model.prompts()[0]


def test_samples_have_seeds_of_their_own() -> None:
    def by(request: ChatRequest) -> str:
        return said(f"Explain tide number {request.params['seed']}.", "Name two tides.")

    model = Model(by=by)
    [row] = generate(SelfInstruct(M, num_instructions=2, num_generations=2, group_generations=True), ROW, model)
    assert len(row["instructions"]) == 2
    assert row["instructions"][0] != row["instructions"][1]


def test_bad_settings_and_inputs() -> None:
    with pytest.raises(ConfigurationError, match="num_instructions"):
        SelfInstruct(M, num_instructions=0)
    with pytest.raises(TaskFailure, match="input"):
        generate(SelfInstruct(M), {"input": " "}, Model())


def test_copies_of_the_text_and_of_the_prompt_are_left_out() -> None:
    copied = "Tides come from the pull of the moon."
    prompt = "Tell me about the sea. Write them about the subject of this text that people could send."
    looping = "Tell me why the moon pulls at the sea. Tell me why the moon pulls at the sea."
    model = Model(by=lambda request: said(copied, prompt, looping, "Why does the moon pull at the sea?"))
    [row] = generate(SelfInstruct(M, num_instructions=4, max_reasks=0), ROW, model)
    assert row["instructions"] == ["Why does the moon pull at the sea?"]
