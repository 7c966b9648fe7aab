"""Behaviours of answers: shapes of choices, thoughts, bookkeeping, and JSON that is hardly JSON."""

from __future__ import annotations

import json
from typing import Any

from tests.conformance.server import Asked, Reply, chats, choice, completion, every_record, record_3, text_of
from tests.conformance.table import AllFail, Behaviour, Complete, OneFails

_THOUGHT = "Let me think about this for a while. " * 20
_MLX = "https://github.com/ml-explore/mlx-lm/issues/1738"
_VLLM_REASONING = "https://docs.vllm.ai/en/latest/features/reasoning_outputs.html"
_REFUSALS = "https://platform.openai.com/docs/guides/structured-outputs#refusals"
_DEEPSEEK = "https://api-docs.deepseek.com/quick_start/rate_limit"


def _said(asked: Asked, **message: Any) -> dict[str, Any]:
    return choice(asked, message=message)


def _cut_in_thought(asked: Asked, **message: Any) -> dict[str, Any]:
    """Ends inside the thought where few tokens are allowed, as the requests of the start may."""
    limit = asked.json.get("max_tokens") or asked.json.get("max_completion_tokens") or 99
    if asked.record is None and limit <= 64:
        return choice(asked, finish="length", message=message)
    return completion(asked)


def _parts(asked: Asked) -> list[Any]:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    text = text_of(asked)
    return [thinking, {"type": "text", "text": text[:3]}, {"type": "text", "text": text[3:]}]


SHAPES = [
    Behaviour("content_parts", "sends `content` as a list of parts, a thought among them", ("Mistral",), chats(lambda asked: Reply(_said(asked, content=_parts(asked)))), Complete(), "https://docs.mistral.ai/capabilities/reasoning/"),
    Behaviour("content_strings", "sends `content` as a list of strings", ("gateways",), chats(lambda asked: Reply(_said(asked, content=[text_of(asked)[:3], text_of(asked)[3:]]))), Complete()),
    Behaviour("content_part_null", "sends parts with a null text", ("gateways",), chats(lambda asked: Reply(_said(asked, content=[{"type": "text", "text": None}, {"type": "text", "text": text_of(asked)}]))), Complete()),
    Behaviour("content_part_alone", "sends `content` as one part, without a list around it", ("gateways",), chats(lambda asked: Reply(_said(asked, content={"type": "text", "text": text_of(asked)}))), Complete()),
    Behaviour("content_part_refusal", "sends a refusal as a part of the content", ("OpenAI",), record_3(lambda asked: Reply(_said(asked, content=[{"type": "refusal", "refusal": "I cannot help with that."}]))), OneFails(("refusal",), "I cannot help")),
    Behaviour("content_key_missing", "leaves the key `content` out when the tokens end inside a thought", ("mlx-lm", "Gemini"), chats(lambda asked: Reply(_cut_in_thought(asked, reasoning=_THOUGHT))), Complete(), _MLX),
    Behaviour("content_null_in_thought", "sends `content: null` when the tokens end inside a thought", ("vLLM", "SGLang"), chats(lambda asked: Reply(_cut_in_thought(asked, content=None, reasoning_content=_THOUGHT))), Complete(), _VLLM_REASONING),
    Behaviour("content_empty_at_start", "answers a request for few tokens with an empty text", ("Ollama", "llama.cpp"), chats(lambda asked: Reply(_cut_in_thought(asked, content=""))), Complete()),
    Behaviour("reasoning_content", "sends the thought as `reasoning_content`", ("vLLM", "SGLang", "DeepSeek"), chats(lambda asked: Reply(_said(asked, content=text_of(asked), reasoning_content=_THOUGHT))), Complete(), _VLLM_REASONING),
    Behaviour("reasoning_field", "sends the thought as `reasoning`", ("vLLM", "OpenRouter", "Ollama", "Groq"), chats(lambda asked: Reply(_said(asked, content=text_of(asked), reasoning=_THOUGHT))), Complete(), "https://openrouter.ai/docs/use-cases/reasoning-tokens"),
    Behaviour("think_tags", "sends the thought in the text, between <think> tags", ("vLLM", "llama.cpp", "Ollama"), chats(lambda asked: Reply(_said(asked, content=f"<think>\n{_THOUGHT}\n</think>\n\n{text_of(asked)}"))), Complete(), _VLLM_REASONING),
    Behaviour("reasoning_ate_the_budget", "uses all of max_tokens to think, and sends no answer", ("vLLM", "SGLang", "DeepSeek"), every_record(lambda asked: Reply(choice(asked, finish="length", message={"content": None, "reasoning_content": _THOUGHT}))), AllFail("reasoning_cut"), _VLLM_REASONING),
    Behaviour("refusal_field", "sends a refusal in its own field", ("OpenAI", "Azure"), every_record(lambda asked: Reply(_said(asked, content=None, refusal="I cannot help with that."))), AllFail("refusal"), _REFUSALS),
    Behaviour("one_refusal", "refuses one prompt in the field `refusal`", ("OpenAI", "Azure"), record_3(lambda asked: Reply(_said(asked, content=None, refusal="I cannot help with that."))), OneFails(("refusal",), "I cannot help"), _REFUSALS),
    Behaviour("tool_call", "calls a tool where a text was asked for", ("OpenAI", "vLLM"), record_3(lambda asked: Reply(choice(asked, finish="tool_calls", message={"content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}]}))), OneFails(("tool_calls",), "search")),
    Behaviour("empty_tool_calls", "sends `tool_calls: []`, `function_call: null` and `audio: null` with every text", ("vLLM", "SGLang", "OpenAI"), chats(lambda asked: Reply(_said(asked, content=text_of(asked), tool_calls=[], function_call=None, refusal=None, audio=None))), Complete()),
    Behaviour("finish_missing", "leaves `finish_reason` out", ("gateways", "LMDeploy"), chats(lambda asked: Reply(completion(asked, choices=[{"index": 0, "message": {"content": text_of(asked)}}]))), Complete(), "https://github.com/InternLM/xtuner/pull/1755"),
    Behaviour("finish_null", "sends `finish_reason: null`", ("gateways",), chats(lambda asked: Reply(choice(asked, finish=None))), Complete()),
    Behaviour("finish_empty", "sends an empty `finish_reason`", ("Gemini",), chats(lambda asked: Reply(choice(asked, finish=""))), Complete()),
    Behaviour("finish_eos", "sends words of its own as `finish_reason`", ("TGI", "Together"), chats(lambda asked: Reply(choice(asked, finish="eos_token"))), Complete()),
    Behaviour("finish_number", "sends a number as `finish_reason`", ("gateways",), chats(lambda asked: Reply(choice(asked, finish=1))), Complete()),
    Behaviour("finish_length", "ends at max_tokens", ("vLLM", "OpenAI"), chats(lambda asked: Reply(choice(asked, finish="length"))), Complete()),
    Behaviour("role_missing", "leaves `role` and `index` out", ("gateways",), chats(lambda asked: Reply(completion(asked, choices=[{"message": {"content": text_of(asked)}, "finish_reason": "stop"}]))), Complete()),
    Behaviour("one_empty", "sends an empty text for one prompt, each time", ("vLLM", "Ollama"), record_3(lambda asked: Reply(_said(asked, content=""))), OneFails(("empty_content",))),
    Behaviour("one_without_choices", "sends no choices for one prompt, each time", ("Azure", "gateways"), record_3(lambda asked: Reply(completion(asked, choices=[]))), OneFails(("missing_choices", "bad_json", "empty_content"))),
    Behaviour("lone_surrogate", "sends half of a surrogate pair", ("vLLM", "llama.cpp"), chats(lambda asked: Reply(json.dumps(_said(asked, content="half \ud83d")))), Complete("half \ufffd")),
    Behaviour("escaped_slashes", "escapes slashes and all that is not ASCII", ("PHP gateways",), chats(lambda asked: Reply(json.dumps(_said(asked, content="a/b é")).replace("/", "\\/"))), Complete("a/b é")),
    Behaviour("large_answer", "sends an answer of 1 MB", ("vLLM",), chats(lambda asked: Reply(_said(asked, content="x" * (1 << 20)))), Complete("x" * (1 << 20))),
    Behaviour("too_large_answer", "sends 17 MB for one prompt", ("gateways",), record_3(lambda asked: Reply(_said(asked, content="x" * (17 << 20)))), OneFails(("too_large",))),
]  # fmt: skip


def _usage(value: Any) -> Any:
    return chats(lambda asked: Reply(completion(asked, usage=value)))


def _raw(before: str = "", after: str = "") -> Any:
    return chats(lambda asked: Reply(f"{before}{json.dumps(completion(asked))}{after}"))


def _without(*names: str) -> Any:
    return chats(lambda asked: Reply({name: value for name, value in completion(asked).items() if name not in names}))


_NAN = "https://github.com/sgl-project/sglang/pull/20323"

BOOKKEEPING = [
    Behaviour("usage_missing", "leaves `usage` out", ("Ollama", "gateways"), _without("usage"), Complete()),
    Behaviour("usage_null", "sends `usage: null`", ("gateways",), _usage(None), Complete()),
    Behaviour("usage_floats", "sends tokens as floats", ("gateways",), _usage({"prompt_tokens": 5.0, "completion_tokens": 7.5}), Complete()),
    Behaviour("usage_strings", "sends tokens as text", ("gateways",), _usage({"prompt_tokens": "5", "completion_tokens": "n/a"}), Complete()),
    Behaviour("usage_text", "sends `usage` as a text", ("gateways",), _usage("n/a"), Complete()),
    Behaviour("usage_list", "sends `usage` as a list", ("gateways",), _usage([{"prompt_tokens": 5}]), Complete()),
    Behaviour("usage_nested", "sends tokens as objects", ("gateways",), _usage({"prompt_tokens": {"text": 5}, "completion_tokens": {"text": 7}}), Complete()),
    Behaviour("usage_negative", "sends negative and huge tokens", ("gateways",), _usage({"prompt_tokens": -5, "completion_tokens": 1 << 70}), Complete()),
    Behaviour("usage_details", "sends details, costs and nulls beside the tokens", ("OpenRouter", "OpenAI", "DeepSeek"), _usage({"prompt_tokens": 5, "completion_tokens": 7, "cost": 0.001, "prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": None}}), Complete()),
    Behaviour("usage_infinity", "sends Infinity in `usage`", ("Python servers",), chats(lambda asked: Reply(json.dumps(completion(asked, usage={"completion_tokens": 7, "tokens_per_second": float("inf")})))), Complete(), _NAN),
    Behaviour("logprob_infinity", "sends -Infinity as a logprob", ("SGLang", "Aphrodite"), chats(lambda asked: Reply(json.dumps(choice(asked, logprobs={"content": [{"token": "a", "logprob": float("-inf"), "top_logprobs": []}]})))), Complete(), _NAN),
    Behaviour("timings_nan", "sends NaN among its timings", ("llama.cpp", "Python servers"), chats(lambda asked: Reply(json.dumps(completion(asked, timings={"predicted_ms": float("nan")})))), Complete()),
    Behaviour("model_null", "sends `model: null`", ("gateways",), chats(lambda asked: Reply(completion(asked, model=None))), Complete()),
    Behaviour("model_missing", "leaves `model`, `id`, `object` and `created` out", ("gateways",), _without("model", "id", "object", "created"), Complete()),
    Behaviour("model_other", "answers under the name of a snapshot", ("OpenAI", "Azure", "OpenRouter"), chats(lambda asked: Reply(completion(asked, model="model-a-2026-01-01"))), Complete()),
    Behaviour("created_text", "sends `created` as a text and `id` as null", ("gateways",), chats(lambda asked: Reply(completion(asked, created="2026-01-01T00:00:00Z", id=None))), Complete()),
    Behaviour("error_null", "sends `error: null` beside the choices", ("gateways", "Together"), chats(lambda asked: Reply(completion(asked, error=None))), Complete()),
    Behaviour("extra_fields", "sends fields of its own", ("vLLM", "Azure", "Perplexity"), chats(lambda asked: Reply(completion(asked, prompt_logprobs=None, kv_transfer_params=None, citations=[], prompt_filter_results=[]))), Complete()),
    Behaviour("blank_lines", "sends blank lines before the JSON to keep the connection", ("DeepSeek",), _raw("\n\n\n\n"), Complete(), _DEEPSEEK),
    Behaviour("trailing_blanks", "sends line ends after the JSON", ("gateways",), _raw("", "\r\n\r\n"), Complete()),
    Behaviour("byte_order_mark", "begins the JSON with a byte order mark", (".NET gateways",), _raw("\ufeff"), Complete()),
    Behaviour("trailing_nul", "ends the JSON with a NUL", ("C servers",), _raw("", "\x00"), Complete()),
    Behaviour("utf_16", "sends the JSON in UTF-16", (".NET gateways",), chats(lambda asked: Reply(json.dumps(completion(asked)).encode("utf-16"))), Complete()),
    Behaviour("line_end_in_text", "leaves line ends in texts unescaped", ("gateways",), chats(lambda asked: Reply(json.dumps(_said(asked, content="a b")).replace("a b", "a\nb"))), Complete("a\nb")),
    Behaviour("one_not_json", "sends a web page with status 200 for one prompt", ("gateways", "Cloudflare"), record_3(lambda asked: Reply("<html>Please wait</html>", kind="text/html")), OneFails(("bad_json",), "Please wait")),
    Behaviour("one_json_in_a_string", "sends the JSON inside a JSON string for one prompt", ("AWS API Gateway",), record_3(lambda asked: Reply(json.dumps(json.dumps(completion(asked))))), OneFails(("bad_json",))),
    Behaviour("one_not_utf8", "sends bytes that are no UTF-8 for one prompt", ("gateways",), record_3(lambda asked: Reply(b'{"choices":[{"message":{"content":"\xff\xfe"}}]}')), OneFails(("bad_utf8",))),
]  # fmt: skip
