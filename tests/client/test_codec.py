"""The outcome table, line by line; and what the dialects make of a request."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsynth.client.codec import DEFAULT_MAX_TOKENS, Dialect, decode, encode, outcome_of, retry_after
from asyncsynth.client.messages import ChatRequest, CompletionRequest, ModelRequest
from asyncsynth.client.transport import TransportFailure
from asyncsynth.core.outcomes import Ok, Outcome, Overloaded, Permanent, Transient
from asyncsynth.errors import RequestFailed
from tests.matrix.plugin import Tried

CHAT = ChatRequest("m", [{"role": "user", "content": "hi"}])
RAW = CompletionRequest("m", "hi")
NOW = 1_700_000_000.0


def answered(*texts: Any, finish: str | None = "stop", **fields: Any) -> bytes:
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    return orjson.dumps({"model": "served", "choices": choices, "usage": usage, **fields})


def outcome(
    body: bytes, status: int = 200, request: ModelRequest = CHAT, dialect: Dialect = "openai", **headers: str
) -> Outcome:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return decode(request, status, named, body, NOW, dialect=dialect)


def sent(request: ModelRequest, dialect: Dialect = "openai") -> dict[str, Any]:
    fields: dict[str, Any] = orjson.loads(encode(request, dialect=dialect)[1])
    return fields


# --- requests ----------------------------------------------------------------------------------


def test_a_chat_request() -> None:
    path, body = encode(ChatRequest("m", [{"role": "user", "content": "hi"}], {"temperature": 0.5, "seed": 7}))
    assert path == "/chat/completions"
    assert orjson.loads(body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "seed": 7,
        "max_tokens": DEFAULT_MAX_TOKENS,
    }


def test_a_raw_completion_request() -> None:
    path, body = encode(CompletionRequest("m", "hi", {"max_tokens": 5}))
    assert path == "/completions"
    assert orjson.loads(body) == {"model": "m", "prompt": "hi", "max_tokens": 5}


def test_max_completion_tokens_counts_as_a_limit() -> None:
    assert "max_tokens" not in sent(ChatRequest("m", [], {"max_completion_tokens": 9}))


def test_a_schema_becomes_a_strict_response_format() -> None:
    schema = {"title": "Rating of a text!", "type": "object"}
    made = sent(ChatRequest("m", [], schema=schema))["response_format"]
    assert made == {
        "type": "json_schema",
        "json_schema": {"name": "Rating_of_a_text_", "schema": schema, "strict": True},
    }


def test_a_prefilled_answer_is_continued_on_both_dialects() -> None:
    request = ChatRequest("m", [{"role": "user", "content": "q"}, {"role": "assistant", "content": "1. "}])
    assert sent(request)["continue_final_message"] is True
    assert sent(request)["add_generation_prompt"] is False
    assert "continue_final_message" not in sent(request, "llamacpp")
    repeated = outcome(answered("1. one"), request=request, dialect="llamacpp")
    plain = outcome(answered("one"), request=request)
    assert isinstance(repeated, Ok)
    assert isinstance(plain, Ok)
    assert repeated.value.text == plain.value.text == "one"


@pytest.mark.parametrize(
    "params", [{"max_tokens": 0}, {"temperature": -1}, {"echo": True}, {"structured_outputs": {"regex": "a"}}]
)
def test_llamacpp_is_not_asked_for_what_it_would_ignore(params: dict[str, Any]) -> None:
    with pytest.raises(RequestFailed) as caught:
        encode(CompletionRequest("m", "p", params), dialect="llamacpp")
    assert caught.value.reason == "bad_request"


def test_llamacpp_gets_constraints_by_its_own_names() -> None:
    schema = {"type": "object"}
    chat = sent(ChatRequest("m", [], {"structured_outputs": {"json": schema}}), "llamacpp")
    assert chat["response_format"]["json_schema"]["schema"] == schema
    assert "structured_outputs" not in chat
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    raw = sent(CompletionRequest("m", "p", {"response_format": wanted}), "llamacpp")
    assert raw["json_schema"] == schema
    assert "response_format" not in raw
    choice = sent(CompletionRequest("m", "p", {"structured_outputs": {"choice": ["yes", 'a "b"']}}), "llamacpp")
    assert choice["grammar"] == r'root ::= "yes" | "a \"b\""'
    penalty = {"repetition_penalty": 1.2}
    assert sent(ChatRequest("m", [], penalty), "llamacpp")["repeat_penalty"] == 1.2
    assert sent(ChatRequest("m", [], penalty))["repetition_penalty"] == 1.2


@pytest.mark.parametrize("value", ["\ud83d", 1 << 70, object()])
def test_what_json_cannot_hold_is_refused_before_sending(value: Any) -> None:
    with pytest.raises(RequestFailed, match="not JSON"):
        encode(ChatRequest("m", [{"role": "user", "content": value}]))


def test_streaming_is_refused() -> None:
    with pytest.raises(RequestFailed, match="stream"):
        encode(ChatRequest("m", [], {"stream": True}))


# --- 2xx ---------------------------------------------------------------------------------------


def test_a_completion() -> None:
    made = outcome(answered("one", "two", finish="length"))
    assert isinstance(made, Ok)
    assert made.tokens == 5
    assert [choice.text for choice in made.value.choices] == ["one", "two"]
    assert made.value.choices[0].finish_reason == "length"
    assert (made.value.model, made.value.usage.prompt_tokens, made.value.flags) == ("served", 3, ())


def test_a_raw_completion_without_usage() -> None:
    body = orjson.dumps({"choices": [{"text": "x", "finish_reason": "stop", "logprobs": {"tokens": ["x"]}}]})
    made = outcome(body, request=RAW)
    assert isinstance(made, Ok)
    assert (made.value.text, made.value.model, made.tokens) == ("x", "m", 0)
    assert made.value.choices[0].logprobs == {"tokens": ["x"]}


def test_content_in_parts() -> None:
    made = outcome(answered([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]))
    assert isinstance(made, Ok)
    assert made.value.text == "ab"


@pytest.mark.parametrize("text", [None, "", " \n", []])
def test_empty_content_is_never_a_text(text: Any) -> None:
    made = outcome(answered("good", text))
    said = "a choice without text (finish_reason stop)"
    counts = {"paid": True, "tokens": 5, "prompt_tokens": 3}
    assert made == Transient("empty_content", said, 200, max_attempts=3, **counts)


def test_a_filtered_answer() -> None:
    made = outcome(answered(None, finish="content_filter"))
    assert isinstance(made, Permanent)
    assert made.reason == "content_filter"
    for finish in ("content_filter", "SAFETY", "PROHIBITED_CONTENT"):
        partial = outcome(answered("half an ans", finish=finish))
        assert isinstance(partial, Permanent)
        assert (partial.reason, partial.raw, partial.paid, partial.tokens) == ("content_filter", "half an ans", True, 5)


def test_fewer_choices_than_asked() -> None:
    made = outcome(answered("one"), request=ChatRequest("m", [], {"n": 2}))
    assert isinstance(made, Transient)
    assert (made.reason, made.max_attempts) == ("missing_choices", 3)
    assert isinstance(outcome(b'{"choices":[]}'), Transient)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"7",
        b"{}",
        b'{"choices":null}',
        b'{"choices":[{}]}',
        b'{"choices":[{"message":null}]}',
        b'{"choices":[{"message":{"content":7}}]}',
        b'{"choices":[{"message":{"content":Nan}}]}',
        b"1" * 5000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_other_shapes_are_bad_json_with_a_sample(body: bytes) -> None:
    made = outcome(body)
    assert isinstance(made, Transient)
    assert (made.reason, made.max_attempts, made.status) == ("bad_json", 3, 200)
    assert len(made.message) < 1000


def test_bad_utf8() -> None:
    made = outcome(answered("@@").replace(b"@@", b"\xff\xfe"))
    assert isinstance(made, Transient)
    assert (made.reason, made.max_attempts) == ("bad_utf8", 3)


def test_samples_hold_no_control_bytes() -> None:
    made = outcome(b"\x1b[2J\x07 no json")
    assert isinstance(made, Transient)
    assert made.message.isprintable()
    assert "no json" in made.message


#: An error of HTTP 200, and the outcome's type and reason (for `Overloaded`: the status).
ERRORS_INSIDE: list[tuple[Any, type[Outcome], Any]] = [
    ({"message": "engine died", "type": "x", "code": 500}, Transient, "server_error"),
    ({"message": "engine died"}, Transient, "server_error"),
    ("engine died", Transient, "server_error"),
    ({"message": "slow down", "code": 429}, Overloaded, 429),
    ({"message": "slow down", "code": "429"}, Overloaded, 429),
    ({"message": "slow down", "type": "rate_limit_error"}, Overloaded, 429),
    ({"message": "full", "type": "overloaded_error"}, Overloaded, 503),
    ({"message": "pay", "code": 402}, Permanent, "quota"),
    ({"message": "pay", "code": "insufficient_quota"}, Permanent, "quota"),
    ({"message": "wrong", "code": 400}, Permanent, "bad_request"),
    ({"message": "wrong", "type": "BadRequestError"}, Permanent, "bad_request"),
    ({"message": "prompt is too long: 9 > 8", "code": 400}, Permanent, "context_length"),
    ({"message": "flagged", "code": 403}, Permanent, "refused"),
    ({"message": "who?", "code": "invalid_api_key"}, Permanent, "auth"),
    ({"message": "filtered", "code": "content_filter"}, Permanent, "content_filter"),
]


@pytest.mark.row(42)
@pytest.mark.parametrize(("error", "kind", "reason"), ERRORS_INSIDE)
@pytest.mark.parametrize("place", ["alone", "null", "empty", "choice"])
def test_an_error_inside_a_200_counts_as_its_status(
    error: Any, kind: type[Outcome], reason: Any, place: str, tried: Tried
) -> None:
    choice = {"finish_reason": "error", "message": {"role": "assistant", "content": "This is a partial ans"}}
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    made = outcome(
        orjson.dumps(
            {
                "alone": {"error": error, "user_id": "u"},
                "null": {"error": error, "choices": None},
                "empty": {"error": error, "choices": []},
                "choice": {"choices": [{**choice, "error": error}], "usage": usage},
            }[place]
        )
    )
    assert type(made) is kind
    assert isinstance(made, Overloaded | Transient | Permanent)
    assert (made.status if isinstance(made, Overloaded) else made.reason) == reason
    assert made.message.startswith(error if isinstance(error, str) else error["message"])
    assert (made.paid, made.tokens) == ((True, 5) if place == "choice" else (False, 0))
    tried(1, "errors inside HTTP 200")


@pytest.mark.row(42)
@pytest.mark.parametrize("body", [{"detail": "gone wrong"}, {"message": "gone wrong"}, {"errors": ["gone wrong"]}])
def test_words_without_choices_are_shown(body: dict[str, Any]) -> None:
    made = outcome(orjson.dumps(body))
    assert isinstance(made, Transient)
    assert (made.reason, made.message, made.max_attempts) == ("server_error", "gone wrong", 3)


@pytest.mark.row(42)
@pytest.mark.parametrize("finish", ["abort", "error", "cancelled", "insufficient_system_resource"])
@pytest.mark.parametrize("text", ["This is a partial ans", None])
def test_an_answer_that_the_server_broke_off_is_none(finish: str, text: str | None) -> None:
    made = outcome(answered(text, finish=finish))
    assert isinstance(made, Transient)
    assert (made.reason, made.raw, made.paid, made.tokens) == ("server_error", text, True, 5)
    assert finish in made.message


# --- taken, not refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "flags"),
    [
        (b"\xef\xbb\xbf@", ("repaired_json",)),
        (b"@\x00", ("repaired_json",)),
        (b'{"tps":NaN,"low":-Infinity,"high":1e999,"inner":@}', ("repaired_json",)),
        (b'{"x":"\\ud83d","tps":NaN,"inner":@}', ("replaced_surrogates", "repaired_json")),
    ],
)
def test_what_python_servers_write_is_read(body: bytes, flags: tuple[str, ...]) -> None:
    whole = answered("good")
    sent = body.replace(b'"inner":@}', whole[1:]) if b"inner" in body else body.replace(b"@", whole)
    made = outcome(sent)
    assert isinstance(made, Ok)
    assert (made.value.text, made.tokens, made.value.flags) == ("good", 5, flags)


def test_numbers_that_are_none_are_null() -> None:
    choice = b'{"message":{"role":"assistant","content":"good"},"finish_reason":"stop","logprobs":{"p":-Infinity}}'
    made = outcome(b'{"choices":[' + choice + b"]}")
    assert isinstance(made, Ok)
    assert made.value.choices[0].logprobs == {"p": None}


@pytest.mark.parametrize(
    "usage", ["n/a", [1], 7, {"prompt_tokens": "n/a", "completion_tokens": [5]}, {"completion_tokens": {"n": 5}}, None]
)
def test_bookkeeping_never_fails_an_answer(usage: Any) -> None:
    made = outcome(answered("good", usage=usage, model=None))
    assert isinstance(made, Ok)
    assert (made.value.text, made.tokens, made.value.model) == ("good", 0, "m")


@pytest.mark.parametrize("given", [7.0, 7.5, "7"])
def test_counts_of_odd_types_count(given: Any) -> None:
    made = outcome(answered("good", usage={"completion_tokens": given}))
    assert isinstance(made, Ok)
    assert made.tokens == 7


def test_choices_are_in_the_order_of_their_index() -> None:
    choices: list[dict[str, Any]] = [
        {"index": i, "message": {"content": f"c{i}"}, "finish_reason": "stop"} for i in (2, 0, 1)
    ]
    request = ChatRequest("m", [], {"n": 3})
    made = outcome(orjson.dumps({"choices": choices}), request=request)
    assert isinstance(made, Ok)
    assert [choice.text for choice in made.value.choices] == ["c0", "c1", "c2"]
    del choices[1]["index"]
    made = outcome(orjson.dumps({"choices": choices}), request=request)
    assert isinstance(made, Ok)
    assert [choice.text for choice in made.value.choices] == ["c2", "c0", "c1"]


@pytest.mark.parametrize(
    "content", [["An", "swer"], [{"type": "text", "text": "Answer"}, {"type": "text", "text": None}], [None, "Answer"]]
)
def test_parts_of_every_shape(content: Any) -> None:
    made = outcome(answered(content))
    assert isinstance(made, Ok)
    assert made.value.text == "Answer"


def test_a_raw_completion_whose_text_is_null_is_empty() -> None:
    made = outcome(b'{"choices":[{"text":null,"finish_reason":"stop"}]}', request=RAW)
    assert isinstance(made, Transient)
    assert made.reason == "empty_content"


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (rb"a\ud83db", "a\ufffdb"),
        (rb"\uDE00", "\ufffd"),
        (rb"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (rb"\\ud83d \ud83d", "\\ud83d \ufffd"),
        (rb"\ud83d\\ude00", "\ufffd\\ude00"),
    ],
)
def test_lone_surrogates_are_replaced_and_flagged(escaped: bytes, text: str) -> None:
    made = outcome(answered("@@").replace(b"@@", escaped))
    assert isinstance(made, Ok)
    assert made.value.text == text
    assert made.value.flags == ("replaced_surrogates",)


def test_llamacpp_counts_one_choice() -> None:
    made = outcome(answered("a", "b"), dialect="llamacpp")
    assert isinstance(made, Ok)
    assert made.value.flags == ("usage_of_first_choice",)


# --- refusals ----------------------------------------------------------------------------------

ERROR = b'{"error":{"message":"no","type":"t","param":null,"code":null}}'


@pytest.mark.parametrize("status", [429, 498, 503, 529])
def test_overload(status: int) -> None:
    assert outcome(ERROR, status, retry_after="2") == Overloaded(status, "no", 2.0)


@pytest.mark.parametrize(
    "status", [408, 409, 421, 423, 424, 425, 444, 460, 499, 500, 501, 502, 504, 507, *range(520, 529), 530, 599]
)
def test_server_errors(status: int) -> None:
    assert outcome(ERROR, status) == Transient("server_error", "no", status)


@pytest.mark.parametrize(
    ("status", "reason", "scope"),
    [
        (400, "bad_request", "record"),
        (422, "bad_request", "record"),
        (418, "bad_request", "record"),
        (413, "too_large", "record"),
        (401, "auth", "server"),
        (403, "refused", "server"),
        (451, "refused", "server"),
        (402, "quota", "server"),
        (404, "model_not_found", "server"),
        (405, "model_not_found", "server"),
    ],
)
def test_refusals(status: int, reason: str, scope: str) -> None:
    assert outcome(ERROR, status) == Permanent(reason, "no", status, scope)


def test_a_spent_quota_is_no_overload() -> None:
    made = outcome(b'{"error":{"message":"pay","type":"insufficient_quota","code":"insufficient_quota"}}', 429)
    assert made == Permanent("quota", "pay", 429, "server")


GEMINI = {
    "code": 429,
    "message": "You exceeded your current quota, please check your plan and billing details.",
    "status": "RESOURCE_EXHAUSTED",
}


def gemini(quota: str, delay: str) -> bytes:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
    failure = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota}]}
    return orjson.dumps([{"error": {**GEMINI, "details": [failure, info]}}])


@pytest.mark.row(43)
@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (402, b'{"error":{"message":"no money"}}', {}),
        (429, b'{"error":{"message":"daily quota","code":"rate_limit_exceeded"}}', {"x_should_retry": "false"}),
        (429, b'{"error":{"message":"You exceeded your daily quota"}}', {}),
        (429, gemini("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "41s"), {}),
        (400, b'{"error":{"message":"Your credit balance is too low to access the API"}}', {}),
        (403, b'{"error":"Your team has either used all available credits or reached its monthly spending limit"}', {}),
    ],
)
def test_what_no_wait_brings_back_is_a_quota(status: int, body: bytes, headers: dict[str, str]) -> None:
    made = outcome(body, status, **headers)
    assert isinstance(made, Permanent)
    assert (made.reason, made.scope, made.status) == ("quota", "server", status)


@pytest.mark.row(43)
@pytest.mark.parametrize(
    ("body", "headers", "wait", "quota"),
    [
        (gemini("GenerateRequestsPerMinutePerProjectPerModel", "41s"), {}, 41.0, True),
        (b'{"error":{"message":"Rate limit reached. Please try again in 7m12.5s."}}', {}, 432.5, False),
        (b'{"error":{"message":"Rate limit reached. Please try again in 250ms."}}', {}, 0.25, False),
        (b'{"error":{"message":"on requests per day (RPD): Limit 9. Please try again in 1h2m."}}', {}, 3720.0, True),
        (b'{"error":{"message":"slow","metadata":{"headers":{"X-RateLimit-Reset":"1700000060000"}}}}', {}, 60.0, False),
        (b'{"error":{"message":"slow"}}', {"x_ratelimit_reset": "1700000060"}, 60.0, False),
        (b'{"error":{"message":"slow"}}', {"x_ratelimit_reset": "6"}, None, False),
        (b'{"error":{"message":"your daily quota"}}', {"retry_after": "43200"}, 43200.0, True),
    ],
)
def test_how_long_a_server_asks_to_wait(body: bytes, headers: dict[str, str], wait: float, quota: bool) -> None:
    made = outcome(body, 429, **headers)
    assert isinstance(made, Overloaded)
    assert (made.retry_after, made.quota) == (wait, quota)


@pytest.mark.row(43)
def test_until_when_is_told() -> None:
    made = outcome(b'{"error":{"message":"spent"}}', 429, x_should_retry="false", retry_after="43200")
    assert isinstance(made, Permanent)
    assert made.message == "spent (the server asks to wait 12 h, until 2023-11-15 10:13 UTC)"


def test_a_server_error_that_is_not_to_be_retried_is_tried_once() -> None:
    assert outcome(ERROR, 500, x_should_retry="false") == Transient("server_error", "no", 500, max_attempts=1)


@pytest.mark.parametrize(
    "error",
    [
        {"code": "content_filter", "message": "no", "status": 400},
        {"code": None, "message": "triggering Azure OpenAI's content management policy"},
        {"code": "400", "message": "no", "innererror": {"code": "ResponsibleAIPolicyViolation"}},
        {"code": "content_policy_violation", "message": "no"},
    ],
)
def test_filters_of_prompts(error: dict[str, Any]) -> None:
    made = outcome(orjson.dumps({"error": error}), 400)
    assert isinstance(made, Permanent)
    assert (made.reason, made.scope) == ("content_filter", "record")


def test_a_prompt_that_moderation_flags_is_filtered() -> None:
    metadata = {"reasons": ["violence"], "flagged_input": "the pro..."}
    made = outcome(orjson.dumps({"error": {"code": 403, "message": "flagged", "metadata": metadata}}), 403)
    assert isinstance(made, Permanent)
    assert (made.reason, made.scope) == ("content_filter", "record")


def test_redirects_are_not_followed() -> None:
    made = outcome(b"", 307, location="http://other/v1")
    assert isinstance(made, Permanent)
    assert (made.reason, made.scope) == ("redirect", "server")
    assert "http://other/v1" in made.message


@pytest.mark.parametrize(
    "error",
    [
        {"message": "This model's maximum context length is 2048 tokens. However, you requested 2100 tokens"},
        {"message": "The decoder prompt (length 3000) is longer than the maximum model length of 2048."},
        {"message": "the request exceeds the available context size (512 tokens), try increasing it"},
        {"message": "too long", "type": "exceed_context_size_error", "n_ctx": 512},
        {"message": "too long", "code": "context_length_exceeded"},
        {"message": "You passed 5000 input tokens. However, the model's context length is only 4096 tokens"},
        {"message": "The input (5000 tokens) is longer than the model's context length (4096 tokens)."},
        {"message": "Requested token count exceeds the model's maximum context length of 4096 tokens."},
        {"message": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000"},
        {"message": "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000"},
        {"message": "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."},
        {"message": "prompt is too long: 205000 tokens > 200000 maximum", "type": "invalid_request_error"},
        {"message": "input length and `max_tokens` exceed context limit: 190000 + 21333 > 200000"},
        {"message": "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded"},
        {"message": "Cannot truncate prompt with n_keep >= n_ctx"},
        {"message": "request (5000 tokens) exceeds the available context size (4096 tokens)"},
        {"message": "the input length exceeds the context length"},
        {"message": "Input is too long for requested model."},
        {"message": "This model's maximum prompt length is 131072 but the request contains 537812 tokens."},
        {"message": "Prompt contains 40000 tokens, too large for model with 32768 maximum context length"},
    ],
)
def test_too_long_prompts_of_every_wording(error: dict[str, Any]) -> None:
    made = outcome(orjson.dumps({"error": error}), 400)
    assert isinstance(made, Permanent)
    assert (made.reason, made.scope) == ("context_length", "record")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":"Unauthorized"}', "Unauthorized"),
        (b'{"error":null,"message":"bad thing"}', "bad thing"),
        (b'{"errors":[{"message":"bad thing"}],"success":false}', "bad thing"),
        (b'{"message":{"detail":[{"msg":"bad thing"}]},"object":"error"}', "bad thing"),
        (b'{"detail":[{"loc":["body","seed"],"msg":"Extra inputs"},{"msg":"no"}]}', "body.seed: Extra inputs; no"),
        (b'[{"error":{"code":400,"message":"Invalid value"}}]', "Invalid value"),
        (b'{"error":{"oops":1}}', '{"oops":1}'),
        (b"", ""),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b"<html>Bad Gateway\x1b</html>", "<html>Bad Gateway\\x1b</html>"),
        (b'{"object":"error","message":"old vLLM"}', "old vLLM"),
        (b"\xff", "\ufffd"),
        (b"null", "null"),
    ],
)
def test_error_bodies_of_every_server(body: bytes, message: str) -> None:
    made = outcome(body, 500)
    assert isinstance(made, Transient)
    assert made.message == message


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:30 GMT"}, 10.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:00:00 GMT"}, 0.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "\u0663"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


# --- failures, and everything at once ----------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("connect", Transient("connect", "why")),
        ("timeout", Transient("timeout", "why")),
        ("truncated", Transient("truncated", "why", max_attempts=3)),
        ("protocol", Transient("protocol", "why", max_attempts=3)),
        ("too_large", Permanent("too_large", "why")),
    ],
)
def test_failures(reason: str, expected: Outcome) -> None:
    assert outcome_of(TransportFailure(reason, "why")) == expected


def test_a_free_failure_stays_free() -> None:
    made = outcome_of(TransportFailure("reset", "why", free=True))
    assert made == Transient("reset", "why", free=True)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5) | st.just("choices"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "error", "usage", "text", "model", "detail"]), inner
        )
    ),
    max_leaves=12,
)


@given(
    body=st.binary(max_size=60) | _JSON.map(orjson.dumps),
    status=st.integers(200, 599),
    after=st.text(max_size=30),
    raw=st.booleans(),
)
def test_decode_never_raises(body: bytes, status: int, after: str, raw: bool) -> None:
    made = outcome(body, status, RAW if raw else CHAT, retry_after=after)
    assert isinstance(made, Ok | Overloaded | Transient | Permanent)
    assert not (isinstance(made, Ok) and not made.value.text.strip())
