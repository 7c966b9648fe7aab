"""What becomes of an answer that holds a thought, or no answer at all; and that what was paid is counted."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import orjson
import pytest
import tenacity

from asyncsynth.client.codec import decode
from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import ChatRequest, CompletionRequest, ModelRequest
from asyncsynth.client.server_pool import Server, ServerPool
from asyncsynth.client.transport import DEFAULT_TIMEOUTS, Timeouts, WireResponse
from asyncsynth.core.outcomes import Ok, Outcome, Permanent, Transient
from asyncsynth.core.rates import RateLimits
from asyncsynth.core.retry import RetryPolicy
from asyncsynth.errors import ConfigurationError, RequestFailed
from asyncsynth.pipeline.fingerprint import jsonable

USAGE = {"prompt_tokens": 3, "completion_tokens": 7}
CHAT = ChatRequest("m", [{"role": "user", "content": "hello"}], {"max_tokens": 50})


def body(message: Any, finish: str | None = "stop", *, choices: int = 1, **fields: Any) -> bytes:
    message = {"role": "assistant", **(message if isinstance(message, dict) else {"content": message})}
    choice = {"message": message, "finish_reason": finish}
    return orjson.dumps({"model": "m", "choices": [choice] * choices, "usage": USAGE, **fields})


def outcome(raw: bytes, request: ModelRequest = CHAT, status: int = 200, **options: Any) -> Outcome:
    return decode(request, status, {}, raw, 0.0, **options)


def told(made: Outcome) -> tuple[str, str | None]:
    assert isinstance(made, Ok)
    choice = made.value.choices[0]
    return choice.text, choice.reasoning


@pytest.mark.parametrize("said", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_an_answer_that_was_cut_is_known_by_one_word(said: str) -> None:
    made = outcome(body("The capital of", said))
    assert isinstance(made, Ok)
    assert made.value.choices[0].finish_reason == "length"


# --- the thought beside the answer -----------------------------------------------------------------


@pytest.mark.row(32)
@pytest.mark.parametrize(
    "message",
    [
        "<think>\nhm\n</think>\n\nParis.",
        "hm\n</think>\n\nParis.",
        "[THINK]hm[/THINK]Paris.",
        "analysishmassistantfinalParis.",
        {"content": "Paris.", "reasoning_content": "hm"},
        {"content": "Paris.", "reasoning": "hm", "refusal": None, "tool_calls": []},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, "Paris."]},
        {"content": "<think>hm</think>Paris.", "reasoning_content": "hm"},
    ],
)
def test_the_answer_is_the_text_and_the_thought_is_beside_it(message: Any) -> None:
    assert told(outcome(body(message))) == ("Paris.", "hm")


def test_an_answer_that_the_server_has_separated_keeps_its_closing_mark() -> None:
    text = "It ends so:\n</think>\nThat is all."
    assert told(outcome(body({"content": text, "reasoning_content": "hm"}))) == (text, "hm")


def test_each_choice_has_its_own_thought() -> None:
    choices = [
        {"message": {"role": "assistant", "content": f"<think>{n}</think>answer {n}"}, "finish_reason": "stop"}
        for n in range(3)
    ]
    made = outcome(orjson.dumps({"choices": choices}), ChatRequest("m", [], {"n": 3}))
    assert isinstance(made, Ok)
    assert [(choice.text, choice.reasoning) for choice in made.value.choices] == [
        (f"answer {n}", str(n)) for n in range(3)
    ]


def test_a_raw_completion_is_taken_apart_as_well() -> None:
    raw = orjson.dumps({"choices": [{"text": "<think>hm</think>Paris.", "finish_reason": "stop"}]})
    assert told(outcome(raw, CompletionRequest("m", "France:"))) == ("Paris.", "hm")


def test_a_prefilled_thought_is_no_part_of_the_answer() -> None:
    prefilled = ChatRequest("m", [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<think>\n"}])
    assert told(outcome(body("hm\n</think>\nParis."), prefilled)) == ("Paris.", "hm")
    repeated = body("<think>\nhm\n</think>\nParis.")
    assert told(outcome(repeated, prefilled, dialect="llamacpp")) == ("Paris.", "hm")


@pytest.mark.row(32)
@pytest.mark.parametrize(
    "opened",
    [
        ChatRequest("m", [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<think>\n"}]),
        CompletionRequest("m", "<|im_start|>assistant\n<think>\n"),
    ],
)
def test_a_thought_that_the_request_opened_is_known_without_its_end(opened: ModelRequest) -> None:
    def answered(text: str, finish: str) -> Outcome:
        choice = {"finish_reason": finish, "text": text, "message": {"role": "assistant", "content": text}}
        raw = orjson.dumps({"model": "m", "choices": [choice], "usage": {"completion_tokens": 9}})
        return decode(opened, 200, {}, raw, 0.0)

    cut = answered("Maybe 4, maybe 5", "length")
    assert isinstance(cut, Permanent)
    assert (cut.reason, cut.raw) == ("reasoning_cut", "Maybe 4, maybe 5")
    # The end is an end wherever it is, and a mark that the model writes again opens nothing anew.
    assert told(answered("a tag like </think> Paris.", "stop")) == ("Paris.", "a tag like")
    assert told(answered("<think>\nhm</think>Paris.", "stop")) == ("Paris.", "hm")


@pytest.mark.row(32)
def test_odd_messages_keep_their_thought_and_a_clean_answer() -> None:
    for message in (
        {"content": "Paris.", "reasoning_content": "hm"},  # no role
        {"role": "assistant", "content": "\n\nParis.", "reasoning": "hm"},
    ):
        raw = orjson.dumps({"model": "m", "choices": [{"finish_reason": "stop", "message": message}]})
        assert told(decode(ChatRequest("m", []), 200, {}, raw, 0.0)) == ("Paris.", "hm")


def test_a_prefilled_answer_goes_on_where_it_began() -> None:
    prefilled = ChatRequest("m", [{"role": "user", "content": "x"}, {"role": "assistant", "content": "zq-"}])
    assert told(outcome(body("17"), prefilled)) == ("17", None)
    assert told(outcome(body("zq-17"), prefilled, dialect="llamacpp")) == ("17", None)


def test_the_probabilities_are_those_of_the_answers_tokens() -> None:
    tokens = [{"token": token} for token in ("<think>", "4", "</think>", '{"rating": ', "5", "}")]
    choice = {"message": {"role": "assistant", "content": '<think>4</think>{"rating": 5}'}, "finish_reason": "stop"}
    for message in (choice["message"], {"role": "assistant", "content": '{"rating": 5}', "reasoning": "4"}):
        raw = {"choices": [{**choice, "message": message, "logprobs": {"content": tokens}}]}
        made = outcome(orjson.dumps(raw))
        assert isinstance(made, Ok)
        assert made.value.choices[0].logprobs == {"content": tokens[3:]}


def test_marks_stay_where_the_user_says_that_they_are_data() -> None:
    text = "<think>hm</think>Paris."
    request = LLM(model="m", reasoning="keep").chat([])
    assert told(outcome(body(text), request)) == (text, None)
    assert told(outcome(body(text), LLM(model="m").chat([]))) == ("Paris.", "hm")


def test_keeping_marks_is_part_of_the_fingerprint_and_the_default_is_not() -> None:
    assert jsonable(LLM(model="m"), where="x") == jsonable(LLM(model="m", reasoning="separate"), where="x")
    assert "reasoning" not in jsonable(LLM(model="m"), where="x")
    assert jsonable(LLM(model="m", reasoning="keep"), where="x")["reasoning"] == "keep"
    with pytest.raises(ConfigurationError, match="separate"):
        LLM(model="m", reasoning="drop")


# --- no answer ---------------------------------------------------------------------------------------


@pytest.mark.row(32)
@pytest.mark.parametrize(
    "message",
    [
        "<think>\nOkay, the user",
        "<think>",
        {"content": None, "reasoning_content": "Okay"},
        {"content": "", "reasoning": "Okay"},
        {"reasoning": "Okay"},  # mlx-lm leaves the content out
        "<|channel|>analysis<|message|>Okay",
    ],
)
def test_a_thought_that_used_up_max_tokens_is_its_own_reason_and_asked_for_once(message: Any) -> None:
    made = outcome(body(message, "length"))
    assert isinstance(made, Permanent)
    assert (made.reason, made.scope) == ("reasoning_cut", "record")
    assert (made.paid, made.tokens, made.prompt_tokens) == (True, 7, 3)
    assert "max_tokens=50" in made.message
    assert "enable_thinking" in made.message


def test_the_tokens_of_a_hidden_thought_tell_as_well() -> None:
    usage = {**USAGE, "completion_tokens_details": {"reasoning_tokens": 7}}
    made = outcome(body(None, "length", usage=usage))
    assert isinstance(made, Permanent)
    assert made.reason == "reasoning_cut"


def test_a_server_that_calls_a_cut_thought_ended_is_not_believed() -> None:
    made = outcome(body({"content": None, "reasoning": "Okay"}, "stop", usage={"completion_tokens": 50}))
    assert isinstance(made, Permanent)
    assert made.reason == "reasoning_cut"


@pytest.mark.parametrize("message", ["<think>Okay", {"content": None, "reasoning": "Okay"}])
def test_a_thought_that_ended_without_an_answer_may_be_asked_for_again(message: Any) -> None:
    made = outcome(body(message, "stop"))
    assert isinstance(made, Transient)
    assert (made.reason, made.max_attempts, made.raw) == ("empty_content", 3, "Okay")
    assert "ended without an answer" in made.message


def test_max_tokens_without_any_text_is_told_and_asked_for_once() -> None:
    for message in ({"content": ""}, {"content": None}, {}):
        made = outcome(body(message, "length"))
        assert isinstance(made, Permanent), message
        assert made.reason == "empty_content"
        assert "max_tokens=50 was used up" in made.message
    assert isinstance(outcome(body("  \n", "length")), Transient)


@pytest.mark.row(32)
def test_a_refusal_is_its_own_reason_and_its_text_is_kept() -> None:
    made = outcome(body({"content": None, "refusal": "I cannot help with that."}))
    assert isinstance(made, Permanent)
    assert (made.reason, made.raw, made.tokens) == ("refusal", "I cannot help with that.", 7)
    assert told(outcome(body({"content": "Yes.", "refusal": None}))) == ("Yes.", None)


def test_tool_calls_are_their_own_reason() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}]
    made = outcome(body({"content": None, "tool_calls": calls}, "tool_calls"))
    assert isinstance(made, Permanent)
    assert made.reason == "tool_calls"
    assert "search" in made.message


@pytest.mark.parametrize("status", [400, 403, 422])
def test_a_filtered_prompt_is_told_as_such(status: int) -> None:
    error = {"error": {"code": "content_filter", "message": "triggering the content management policy"}}
    made = outcome(orjson.dumps(error), status=status)
    assert isinstance(made, Permanent)
    assert (made.reason, made.scope, made.paid) == ("content_filter", "record", False)


@pytest.mark.row(32)
@pytest.mark.parametrize(
    "raw",
    [
        body(""),
        body("x", choices=0),
        body("x").replace(b'"content":"x"', b'"content":7'),
        body("x")[:-1],
        body("\x00\xff").replace(b"\\u0000", b"\xff"),
    ],
)
def test_the_tokens_of_an_answer_that_cannot_be_used_are_read(raw: bytes) -> None:
    made = outcome(raw)
    assert isinstance(made, Transient), made
    assert (made.paid, made.tokens, made.prompt_tokens) == (True, 7, 3)


@pytest.mark.parametrize("usage", [None, "n/a", [], {"completion_tokens": "many"}, {"completion_tokens": -1}])
def test_odd_counts_of_a_useless_answer_count_for_nothing(usage: Any) -> None:
    made = outcome(body("", usage=usage))
    assert isinstance(made, Transient)
    assert (made.reason, made.tokens, made.paid) == ("empty_content", 0, True)


def test_an_error_in_place_of_an_answer_was_not_paid() -> None:
    made = outcome(b'{"error": {"message": "no"}}')
    assert isinstance(made, Transient)
    assert not made.paid


# --- counted -----------------------------------------------------------------------------------------


class Scripted:
    """Answers by the number of the request."""

    base_url = "http://fake/v1"
    timeouts = DEFAULT_TIMEOUTS

    def __init__(self, *answers: bytes) -> None:
        self.answers = answers
        self.asked = 0

    async def post(self, path: str, body: bytes, timeout: Timeouts = DEFAULT_TIMEOUTS) -> WireResponse:
        self.asked += 1
        return WireResponse(200, {}, self.answers[min(self.asked, len(self.answers)) - 1])

    async def get(self, path: str, timeout: Timeouts = DEFAULT_TIMEOUTS, *, at_origin: bool = False) -> WireResponse:
        raise NotImplementedError

    async def aclose(self) -> None:
        pass


def sent(exchange: Scripted, **fields: Any) -> tuple[ServerPool, RequestFailed | None]:
    async def main() -> tuple[ServerPool, RequestFailed | None]:
        server = Server("s", exchange.base_url, frozenset({"m"}), exchange, **fields)
        pool = ServerPool([server], policy=RetryPolicy(wait=tenacity.wait_none()), rng=random.Random(0))
        failure = None
        try:
            await pool.send(CHAT)
        except RequestFailed as failed:
            failure = failed
        return pool, failure

    return asyncio.run(asyncio.wait_for(main(), 10))


@pytest.mark.row(32)
@pytest.mark.parametrize(
    ("answers", "requests", "reason"),
    [
        ((body(""), body("x")), 2, None),
        ((body(""),), 3, "empty_content"),
        ((body({"content": None, "reasoning": "hm"}, "length"),), 1, "reasoning_cut"),
        ((body({"content": None, "refusal": "No."}),), 1, "refusal"),
        ((body("")[:-1], body("x")), 2, None),
    ],
)
def test_a_pool_counts_every_paid_answer(answers: tuple[bytes, ...], requests: int, reason: str | None) -> None:
    exchange = Scripted(*answers)
    pool, failure = sent(exchange)
    now = pool.snapshot()
    assert exchange.asked == now.paid == requests
    assert (now.prompt_tokens, now.completion_tokens) == (3 * requests, 7 * requests)
    assert (failure.reason if failure is not None else None) == reason
    assert sum(now.answered_by.values()) == now.ok == (reason is None)
    if reason == "refusal" and failure is not None:
        assert failure.raw == "No."


def test_tokens_of_useless_answers_count_towards_a_rate_of_tokens() -> None:
    """An estimate of 51 tokens a request; each took 10, so the next one may go at once."""
    exchange = Scripted(body(""), body(""), body("x"))
    pool, failure = sent(exchange, rates=RateLimits(None, 120))
    assert failure is None
    assert pool.snapshot().paid == 3
