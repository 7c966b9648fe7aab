"""Behaviours of errors: inside HTTP 200, by status, for one prompt, for all of them."""

from __future__ import annotations

from typing import Any

from tests.conformance.server import (
    MODEL,
    Answer,
    Asked,
    Reply,
    Server,
    at_first,
    chats,
    choice,
    completion,
    every_record,
    normal,
    record_3,
)
from tests.conformance.table import Behaviour, Complete, Expected, OneFails, Told

_OPENROUTER = "https://openrouter.ai/docs/api/reference/errors-and-debugging"
_ABORT = "https://github.com/vllm-project/vllm/issues/57082"
_AZURE = "https://github.com/compl-ai/compl-ai/issues/20"
_GEMINI = "https://github.com/google-gemini/gemini-cli/issues/4701"
_GROQ = "https://console.groq.com/docs/errors"
_CLOUDFLARE = "https://developers.cloudflare.com/support/troubleshooting/http-status-codes/cloudflare-5xx-errors/"
_BUSY = "Rate limit exceeded: the provider is busy"


def _inside(code: Any, message: str, **more: Any) -> Reply:
    return Reply({"error": {"message": message, "code": code, **more}, "user_id": "u"})


def _partial(asked: Asked, finish: str, **more: Any) -> Reply:
    return Reply(choice(asked, finish=finish, message={"content": "This is a partial ans"}, **more))


INSIDE_200 = [
    Behaviour("inside_429", "puts a rate limit (429) inside HTTP 200", ("OpenRouter",), at_first(lambda asked: _inside(429, _BUSY)), Complete(), _OPENROUTER),
    Behaviour("inside_502", "puts a provider's failure (502) inside HTTP 200", ("OpenRouter",), at_first(lambda asked: _inside(502, "Provider returned error")), Complete(), _OPENROUTER),
    Behaviour("inside_503_text", "puts a code as text inside HTTP 200", ("gateways",), at_first(lambda asked: _inside("503", "no provider is available")), Complete(), _OPENROUTER),
    Behaviour("inside_402", "puts a spent balance (402) inside HTTP 200", ("OpenRouter",), every_record(lambda asked: _inside(402, "Insufficient credits. Add more and retry.")), Told(("Insufficient credits",)), _OPENROUTER),
    Behaviour("inside_400", "puts a refused prompt (400) inside HTTP 200", ("OpenRouter",), record_3(lambda asked: _inside(400, "this prompt is malformed")), OneFails(("bad_request",), "this prompt is malformed"), _OPENROUTER),
    Behaviour("inside_context", "puts a prompt that is too long inside HTTP 200", ("OpenRouter",), record_3(lambda asked: _inside(400, "This endpoint's maximum context length is 8192 tokens.")), OneFails(("context_length",)), _OPENROUTER),
    Behaviour("inside_choices_null", "sends `choices: null` beside an error", ("OpenRouter", "gateways"), at_first(lambda asked: Reply(completion(asked, choices=None, error={"message": "Upstream overloaded", "code": 502}))), Complete(), _OPENROUTER),
    Behaviour("inside_choices_empty", "sends `choices: []` beside an error", ("OpenRouter", "gateways"), at_first(lambda asked: Reply(completion(asked, choices=[], error={"message": "Upstream overloaded", "code": 502}))), Complete(), _OPENROUTER),
    Behaviour("inside_detail", "sends `detail` in place of choices, with HTTP 200", ("FastAPI gateways",), record_3(lambda asked: Reply({"detail": "the prompt has no user message"})), OneFails(("server_error", "bad_json", "bad_request"), "the prompt has no user message")),
    Behaviour("inside_message", "sends `message` in place of choices, with HTTP 200", ("gateways",), record_3(lambda asked: Reply({"message": "the prompt has no user message", "object": "error"})), OneFails(("server_error", "bad_json", "bad_request"), "the prompt has no user message")),
    Behaviour("error_in_choice", "puts the error into the choice, after a part of the text", ("OpenRouter",), at_first(lambda asked: _partial(asked, "error", error={"code": 502, "message": "Provider disconnected"})), Complete(), _OPENROUTER),
    Behaviour("finish_error", "ends a part of the text with `finish_reason: error`", ("OpenRouter", "vLLM"), at_first(lambda asked: _partial(asked, "error")), Complete(), _OPENROUTER),
    Behaviour("finish_abort", "ends a part of the text with `finish_reason: abort` when it shuts down", ("vLLM", "SGLang"), at_first(lambda asked: _partial(asked, "abort")), Complete(), _ABORT),
    Behaviour("finish_timeout", "ends a part of the text with `finish_reason: timeout`", ("Cohere", "gateways"), at_first(lambda asked: _partial(asked, "timeout")), Complete()),
    Behaviour("finish_guardrail", "ends a part of the text with `finish_reason: guardrail_intervened`", ("Bedrock",), record_3(lambda asked: _partial(asked, "guardrail_intervened")), OneFails(("content_filter",))),
    Behaviour("inside_status_alone", "sends `status: 429` and a title with HTTP 200, at first", ("gateways",), at_first(lambda asked: Reply({"status": 429, "title": "Too many requests"})), Complete()),
    Behaviour("inside_error_message", "sends `errorMessage` with HTTP 200 for one prompt", ("AWS Lambda",), record_3(lambda asked: Reply({"errorMessage": "Task timed out"})), OneFails(("server_error",), "Task timed out")),
    Behaviour("finish_content_filter", "ends a part of the text with `finish_reason: content_filter`", ("Azure", "OpenAI", "Gemini"), record_3(lambda asked: _partial(asked, "content_filter")), OneFails(("content_filter",)), "https://learn.microsoft.com/azure/ai-services/openai/concepts/content-filter"),
]  # fmt: skip


def _busy_once(status: int, body: Any = None, headers: list[tuple[str, str]] | None = None) -> Answer:
    said = {"error": {"message": "try again", "type": "server_error"}} if body is None else body
    return at_first(lambda asked: Reply(said, status, list(headers or [])))


def _later(status: int, does: str, *who: str, source: str = "", body: Any = None) -> Behaviour:
    return Behaviour(f"once_{status}", f"answers {status}: {does}; later it answers", who, _busy_once(status, body), Complete(), *([source] if source else []))  # fmt: skip


LATER = [
    Behaviour("once_418_retry", "answers 418 with `x-should-retry: true`; later it answers", ("OpenAI", "gateways"), at_first(lambda asked: Reply({"error": {"message": "later"}}, 418, [("x-should-retry", "true")])), Complete()),
    Behaviour("once_403_rate", "answers 403 with the code `rate_limit_exceeded`; later it answers", ("gateways",), at_first(lambda asked: Reply({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, 403)), Complete()),
    Behaviour("once_404_loading", "answers 404: the model is loading; later it answers", ("gateways",), at_first(lambda asked: Reply({"error": {"message": "model-a is loading"}}, 404)), Complete()),
    _later(408, "the request timed out", "OpenRouter", "Azure", source=_OPENROUTER),
    _later(409, "a conflict with another request", "OpenAI", "gateways"),
    _later(421, "the wrong connection", "Envoy", "HTTP/2 gateways"),
    _later(423, "the model is locked while it loads", "gateways"),
    _later(424, "the generation failed", "TGI", "Hugging Face", "Bedrock", source="https://github.com/huggingface/text-generation-inference/blob/main/router/src/server.rs"),
    _later(425, "too early", "gateways"),
    _later(429, "a rate limit", "OpenAI", "Groq", "Mistral", source="https://platform.openai.com/docs/guides/rate-limits"),
    _later(444, "closed without an answer", "nginx"),
    _later(460, "the client closed the connection", "AWS load balancers", source="https://docs.aws.amazon.com/elasticloadbalancing/latest/application/load-balancer-troubleshooting.html"),
    _later(498, "no capacity in the flex tier", "Groq", source=_GROQ),
    _later(499, "cancelled upstream", "Groq", "nginx", source=_GROQ),
    _later(500, "a fault inside", "vLLM", "Ollama", body={"error": "model runner has unexpectedly stopped"}),
    _later(502, "a bad gateway", "nginx", "OpenRouter", source=_OPENROUTER, body="<html><h1>502 Bad Gateway</h1></html>"),
    _later(503, "loading or overloaded", "llama.cpp", "vLLM", "TGI", body={"error": {"message": "Loading model", "code": 503, "type": "unavailable_error"}}),
    _later(504, "a gateway's timeout", "nginx", "AWS load balancers", body=b""),
    _later(507, "out of memory", "gateways"),
    _later(520, "an unknown error of the origin", "Cloudflare", source=_CLOUDFLARE),
    _later(522, "no connection to the origin", "Cloudflare", source=_CLOUDFLARE),
    _later(524, "the origin took over 100 s", "Cloudflare", source=_CLOUDFLARE),
    _later(529, "overloaded", "Anthropic", source="https://platform.claude.com/docs/en/api/errors"),
    _later(530, "the origin is not found", "Cloudflare", source=_CLOUDFLARE),
    *(
        Behaviour(f"retry_after_{name}", f"answers 429 with `Retry-After{'-Ms' if 'ms' in name else ''}` {does}", who, _busy_once(429, headers=headers), Complete())
        for name, does, headers, who in [
            ("fraction", "as a fraction of a second", [("Retry-After", "0.05")], ("gateways",)),
            ("zero", "of 0", [("Retry-After", "0")], ("gateways",)),
            ("negative", "that is negative", [("Retry-After", "-5")], ("gateways",)),
            ("past", "as a date in the past", [("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT")], ("Azure", "proxies")),
            ("words", "in words", [("Retry-After", "soon")], ("gateways",)),
            ("ms", "beside a longer one in seconds", [("Retry-After-Ms", "50"), ("Retry-After", "20")], ("Azure", "OpenAI")),
        ]
    ),
]  # fmt: skip


def _refused(
    name: str,
    does: str,
    who: tuple[str, ...],
    status: int,
    body: Any,
    reasons: tuple[str, ...],
    words: str = "",
    source: str = "",
) -> Behaviour:
    kind = "text/html" if isinstance(body, str) and body.startswith("<") else "application/json"
    return Behaviour(name, does, who, record_3(lambda asked: Reply(body, status, kind=kind)), OneFails(reasons, words), *([source] if source else []))  # fmt: skip


_REFUSED = ("refused", "content_filter", "bad_request")
_CONTEXT = [
    ("vllm", "vLLM", 400, {"error": {"message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.", "type": "BadRequestError", "code": 400}}, ""),
    ("sglang", "SGLang", 400, {"object": "error", "message": "The input (61709 tokens) is longer than the model's context length (40960 tokens).", "type": "BadRequestError", "code": 400}, "https://github.com/QwenLM/Qwen3/issues/1321"),
    ("tgi", "TGI", 422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 1024 `max_new_tokens`", "error_type": "validation"}, ""),
    ("llamacpp", "llama.cpp", 400, {"error": {"code": 400, "message": "the request exceeds the available context size, try increasing it", "type": "exceed_context_size_error"}}, ""),
    ("openai", "OpenAI", 400, {"error": {"message": "too many tokens", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}}, ""),
    ("anthropic", "Anthropic", 400, {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"}}, ""),
    ("gemini", "Gemini", 400, [{"error": {"code": 400, "message": "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).", "status": "INVALID_ARGUMENT"}}], ""),
    ("lm_studio", "LM Studio", 400, {"error": "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens, which is not enough."}, ""),
    ("ollama", "Ollama", 400, {"error": {"message": "the input length exceeds the context length", "type": "invalid_request_error"}}, ""),
]  # fmt: skip

ONE_REFUSED = [
    _refused("refused_string", "refuses a prompt with `error` as a text", ("Ollama", "TGI"), 400, {"error": "bad thing happened"}, ("bad_request",), "bad thing"),
    _refused("refused_list", "refuses a prompt with a list around the error", ("Gemini",), 400, [{"error": {"code": 400, "message": "bad thing happened", "status": "INVALID_ARGUMENT"}}], ("bad_request",), "bad thing", _GEMINI),
    _refused("refused_detail", "refuses a prompt with `detail`, a list of places", ("FastAPI", "vLLM"), 422, {"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "bad thing happened"}]}, ("bad_request",), "bad thing"),
    _refused("refused_object", "refuses a prompt with `object: error` and the message beside it", ("vLLM", "SGLang", "FastChat"), 400, {"object": "error", "message": "bad thing happened", "type": "BadRequestError", "code": 400}, ("bad_request",), "bad thing"),
    _refused("refused_null", "refuses a prompt with `error: null` beside the message", ("gateways",), 400, {"error": None, "message": "bad thing happened"}, ("bad_request",), "bad thing"),
    _refused("refused_errors", "refuses a prompt with `errors`, a list", ("Cloudflare",), 400, {"errors": [{"message": "bad thing happened"}], "success": False}, ("bad_request",), "bad thing"),
    _refused("refused_nested", "refuses a prompt with the message inside `message`", ("Mistral",), 422, {"message": {"detail": [{"msg": "bad thing happened"}]}, "object": "error"}, ("bad_request",), "bad thing"),
    _refused("refused_html", "refuses a prompt with a web page", ("nginx", "gateways"), 400, "<html><body><h1>400 bad thing</h1></body></html>", ("bad_request",), "bad thing"),
    _refused("refused_empty", "refuses a prompt without a body", ("gateways",), 400, b"", ("bad_request",)),
    _refused("refused_azure", "refuses a prompt with 400 and the code `content_filter`", ("Azure",), 400, {"error": {"message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.", "type": None, "param": "prompt", "code": "content_filter", "status": 400, "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, ("content_filter",), "content management policy", _AZURE),
    _refused("refused_403", "refuses a flagged prompt with 403", ("OpenRouter",), 403, {"error": {"code": 403, "message": "Your input was flagged", "metadata": {"reasons": ["violence"]}}}, _REFUSED, "flagged", _OPENROUTER),
    _refused("refused_403_firewall", "blocks a prompt that looks like an attack, with 403", ("Cloudflare", "firewalls"), 403, "<html><title>Attention Required!</title>Sorry, you have been blocked</html>", _REFUSED, "blocked"),
    _refused("refused_404", "finds no endpoint for one prompt, with 404", ("OpenRouter",), 404, {"error": {"code": 404, "message": "No endpoints found that can handle the requested parameters"}}, (*_REFUSED, "model_not_found"), "No endpoints", _OPENROUTER),
    _refused("refused_451", "refuses a prompt for legal reasons, with 451", ("gateways",), 451, {"error": {"message": "not available here"}}, _REFUSED, "not available"),
    _refused("refused_413", "refuses a prompt as too large", ("nginx", "gateways"), 413, {"error": {"message": "Request Entity Too Large"}}, ("too_large",)),
    _refused("failed_500", "fails one prompt with 500, each time", ("vLLM", "SGLang"), 500, {"error": {"message": "boom", "type": "InternalServerError"}}, ("server_error",), "boom"),
    *(_refused(f"context_{name}", "refuses a prompt that is too long in its own words", (who,), status, body, ("context_length",), source=source) for name, who, status, body, source in _CONTEXT),
]  # fmt: skip


def _after_6(server: Server, asked: Asked) -> Any:
    expired = asked.is_chat and sum(server.records.values()) > 6
    return Reply({"error": {"message": "the token has expired"}}, 401) if expired else normal(asked)


def _always(
    name: str, does: str, who: tuple[str, ...], answer: Answer, words: tuple[str, ...], source: str = ""
) -> Behaviour:
    expected: Expected = Told(words)
    return Behaviour(name, does, who, answer, expected, *([source] if source else []))


def _all(status: int, body: Any, headers: list[tuple[str, str]] | None = None) -> Answer:
    return every_record(lambda asked: Reply(body, status, list(headers or [])))


ALL_REFUSED = [
    _always("all_401", "wants a key", ("vLLM", "hosted APIs"), chats(lambda asked: Reply({"error": "Unauthorized"}, 401)), ("key",)),
    _always("all_401_later", "no longer takes the key after six answers", ("Azure", "Vertex AI"), _after_6, ("the token has expired",)),
    _always("all_402", "has no balance left", ("DeepSeek", "OpenRouter"), _all(402, {"error": {"message": "Insufficient Balance", "type": "unknown_error"}}), ("Insufficient Balance",), "https://api-docs.deepseek.com/quick_start/error_codes"),
    _always("all_403", "refuses the key for this model", ("OpenAI", "gateways"), _all(403, {"error": {"message": "This project does not have access to the model"}}), ("does not have access",)),
    _always("all_404", "does not know the model when it is asked", ("Azure", "Ollama"), _all(404, {"error": {"message": f"The API deployment {MODEL} does not exist", "code": "DeploymentNotFound"}}), ("does not exist",)),
    _always("all_400", "refuses every prompt in the same words", ("vLLM",), _all(400, {"error": {"message": "this model only supports completions"}}), ("only supports completions",)),
    _always("quota_spent", "has no quota left (`insufficient_quota`)", ("OpenAI",), _all(429, {"error": {"message": "You exceeded your current quota, please check your plan.", "type": "insufficient_quota", "code": "insufficient_quota"}}), ("exceeded your current quota",), "https://platform.openai.com/docs/guides/error-codes"),
    _always("quota_of_the_day", "forbids repeats until tomorrow (`x-should-retry: false`, `Retry-After: 43200`)", ("OpenAI", "gateways"), _all(429, {"error": {"message": "You exceeded your daily quota", "type": "daily_quota"}}, [("x-should-retry", "false"), ("Retry-After", "43200")]), ("exceeded your daily quota",)),
]  # fmt: skip
