"""What `LLM` sends, and what it leaves out: pure."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsynth.client.codec import encode
from asyncsynth.client.llm import LLM, without_system
from asyncsynth.client.messages import Message, ModelRequest
from asyncsynth.errors import ConfigurationError

CONVERSATION: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
USUAL = {"model", "messages", "temperature", "top_p", "max_tokens", "seed"}


def sent(request: ModelRequest) -> dict[str, Any]:
    """The body as it goes out."""
    body: dict[str, Any] = orjson.loads(encode(request)[1])
    return body


@pytest.mark.parametrize("how", ["setting", "extra_body"])
@pytest.mark.parametrize("name", ["temperature", "top_p", "max_tokens", "seed"])
def test_none_leaves_any_field_out(name: str, how: str) -> None:
    settings: dict[str, Any] = {name: None} if how == "setting" else {"extra_body": {name: None}}
    llm = LLM(model="m", **settings)
    assert sent(llm.chat(CONVERSATION, seed=7)).keys() == USUAL - {name}
    assert sent(llm.complete("Once", seed=7)).keys() == USUAL - {name, "messages"} | {"prompt"}


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 50, "max_tokens_field": "max_completion_tokens"},
        {"extra_body": {"max_completion_tokens": 50}},
        {"extra_body": {"max_completion_tokens": 50, "max_tokens": None}},
    ],
)
def test_the_limit_of_chats_has_the_name_that_the_server_wants(settings: dict[str, Any]) -> None:
    llm = LLM(model="m", **settings)
    body = sent(llm.chat(CONVERSATION, seed=7))
    assert body["max_completion_tokens"] == 50
    assert body.keys() == USUAL - {"max_tokens"} | {"max_completion_tokens"}
    assert sent(llm.chat(CONVERSATION, max_tokens=9))["max_completion_tokens"] == 9  # of one request
    assert sent(llm.complete("Once"))["max_tokens"] == 50  # raw completions know no other name


def test_both_limits_are_sent_to_who_names_both() -> None:
    body = sent(LLM(model="m", extra_body={"max_completion_tokens": 50, "max_tokens": 60}).chat(CONVERSATION))
    assert (body["max_completion_tokens"], body["max_tokens"]) == (50, 60)


def test_system_prompts_for_models_without_a_system_role() -> None:
    folded = LLM(model="m", system_role="user").chat(CONVERSATION).messages
    assert folded == [{"role": "user", "content": "Be brief.\n\nHello?"}]
    renamed = LLM(model="m", system_role="developer").chat(CONVERSATION).messages
    assert [message["role"] for message in renamed] == ["developer", "user"]
    assert CONVERSATION[0]["role"] == "system"  # what was given stays as it was
    parts: Any = [CONVERSATION[0], {"role": "user", "content": [{"type": "image_url"}]}]
    [message] = without_system(parts, "user")
    assert message["content"] == [{"type": "text", "text": "Be brief."}, {"type": "image_url"}]


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(min_size=1, max_size=5)), max_size=8)
)
def test_folding_loses_no_text_and_keeps_the_order(turns: list[tuple[str, str]]) -> None:
    messages: Any = [{"role": role, "content": text} for role, text in turns]
    folded = without_system(messages, "user")
    assert "system" not in {message["role"] for message in folded}
    assert "\n\n".join(message["content"] for message in folded) == "\n\n".join(text for _, text in turns)
    assert [m["content"] for m in folded if m["role"] == "assistant"] == [t for r, t in turns if r == "assistant"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": 7}, r'LLM\(seed=7\): "derived" or None was expected(.|\n)*--seed'),
        ({"max_tokens_field": "max_length"}, r'"max_tokens" or "max_completion_tokens" was expected'),
        ({"system_role": "none"}, r'"system" or "developer" or "user" was expected'),
        ({"extra_body": {"seed": 7}}, "each request has a seed of its own"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_can(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        LLM(model="m", **settings)
