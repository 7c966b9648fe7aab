"""Behaviours at the start: lists of models, health checks, and fields that a server refuses."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.conformance.server import MODEL, Asked, Reply, Server, at, completion, in_list, models, normal, refuses
from tests.conformance.table import Behaviour, Complete, Told

NAMED = {"models": [MODEL]}  #: in a fleet file: the user says which models a server has
_NOT_FOUND = {"error": {"message": "Not Found", "type": "invalid_request_error"}}
_OLLAMA = "https://docs.ollama.com/api/openai-compatibility"
_OPENROUTER = "https://openrouter.ai/docs/api/reference/overview"
_HEALTH = "https://docs.litellm.ai/docs/proxy/health"


def _paged(asked: Asked) -> Reply:
    after = "after=last" in asked.query or "after_id=last" in asked.query
    page = models(MODEL) if after else models("other", "last")
    return Reply({**page, "has_more": not after, "last_id": MODEL if after else "last"})


def _any_name(server: Server, asked: Asked) -> Reply:
    if asked.is_list:
        return Reply({"object": "list", "data": []})
    return Reply(completion(asked)) if asked.is_chat else normal(asked)


LISTS = [
    Behaviour("list_404", "has no /v1/models", ("gateways", "MLC", "FastChat"), in_list(lambda asked: Reply(_NOT_FOUND, 404)), Complete()),
    Behaviour("list_405", "has no GET at /v1/models", ("gateways",), in_list(lambda asked: Reply(_NOT_FOUND, 405)), Complete()),
    Behaviour("list_501", "has not implemented /v1/models", ("gateways",), in_list(lambda asked: Reply(_NOT_FOUND, 501)), Complete()),
    Behaviour("list_500", "answers 500 at /v1/models", ("vLLM router", "gateways"), in_list(lambda asked: Reply({"error": "boom"}, 500)), Complete()),
    Behaviour("list_html", "answers /v1/models with a web page", ("gateways", "Cloudflare"), in_list(lambda asked: Reply("<html>hello</html>", kind="text/html")), Complete()),
    Behaviour("list_bare", "sends the list without the object around it", ("Together",), in_list(lambda asked: Reply(models(MODEL)["data"])), Complete(), "https://github.com/helixml/helix/issues/386"),
    Behaviour("list_null", "sends `data: null`, with nothing loaded yet", ("Ollama", "LM Studio", "vLLM router"), in_list(lambda asked: Reply({"object": "list", "data": None})), Complete(), _OLLAMA),
    Behaviour("list_empty_any_name", "sends an empty list, and answers to any name", ("vLLM router", "gateways"), _any_name, Complete()),
    Behaviour("list_empty", "sends an empty list", ("LM Studio", "vLLM router", "llama-swap"), in_list(lambda asked: Reply(models())), Complete()),
    Behaviour("list_other_shape", "sends `models` with names instead of `data` with ids", ("Ollama", "Gemini"), in_list(lambda asked: Reply({"models": [{"name": MODEL}]})), Complete()),
    Behaviour("list_restricted_key", "refuses the list to keys of restricted scope, not the chat", ("OpenAI",), in_list(lambda asked: Reply({"error": {"message": "You have insufficient permissions. Missing scopes: api.model.read.", "type": "invalid_request_error"}}, 403)), Complete(), "https://platform.openai.com/docs/guides/production-best-practices"),
    Behaviour("list_401_alone", "refuses the list with 401, not the chat", ("gateways",), in_list(lambda asked: Reply({"error": {"message": "unauthorized"}}, 401)), Complete(), fleet=NAMED),
    Behaviour("list_prefixed", "lists `models/NAME` and takes `NAME`", ("Gemini",), in_list(lambda asked: Reply(models(f"models/{MODEL}", "models/other"))), Complete(), "https://ai.google.dev/gemini-api/docs/openai", fleet=NAMED),
    Behaviour("list_tagged", "lists `NAME:latest` and takes `NAME`", ("Ollama",), in_list(lambda asked: Reply(models(f"{MODEL}:latest"))), Complete(), _OLLAMA, fleet=NAMED),
    Behaviour("list_other_file", "lists the path of its weights and takes any name", ("llama.cpp", "mlx-lm"), in_list(lambda asked: Reply(models("/models/weights.gguf"))), Complete(), "https://github.com/ggml-org/llama.cpp/tree/master/tools/server", fleet=NAMED),
    Behaviour("list_unlisted_name", "serves deployments, LoRA names, suffixes and wildcards that it does not list", ("Azure", "OpenRouter", "LiteLLM", "vLLM"), in_list(lambda asked: Reply(models("org/another-model", "openai/*"))), Complete(), _OPENROUTER, fleet=NAMED),
    Behaviour("list_paged", "sends the list in pages (`has_more`, `last_id`)", ("Anthropic", "gateways"), in_list(_paged), Complete(), "https://platform.claude.com/docs/en/api/models-list", fleet=NAMED),
    Behaviour("list_300", "lists hundreds of models", ("OpenRouter", "LiteLLM"), in_list(lambda asked: Reply(models(*(f"org/model-{n}:free" for n in range(300)), MODEL))), Complete(), _OPENROUTER),
    Behaviour("list_extra_fields", "lists prices, owners and null fields with each model", ("OpenRouter", "Together", "Groq"), in_list(lambda asked: Reply({"data": [{"id": MODEL, "pricing": {"prompt": "0"}, "created": None, "active": True}]})), Complete(), _OPENROUTER),
    Behaviour("list_without_the_model", "lists models, but not the one that is asked for, and refuses it", ("vLLM", "SGLang", "TGI"), lambda server, asked: Reply(models("another-model")) if asked.is_list else (Reply({"error": {"message": f"The model `{MODEL}` does not exist.", "type": "NotFoundError", "code": 404}}, 404) if asked.is_chat else normal(asked)), Told((MODEL, "another-model"))),
]  # fmt: skip


async def _slow_health(asked: Asked) -> Reply:
    await asyncio.sleep(25)
    return Reply({"healthy_count": 3})


HEALTH = [
    Behaviour("health_404", "has no /health", ("hosted APIs", "Ollama"), at("/health", lambda asked: Reply(_NOT_FOUND, 404)), Complete()),
    Behaviour("health_401", "wants a key for /health", ("LiteLLM", "gateways"), at("/health", lambda asked: Reply({"error": "no key"}, 401)), Complete(), _HEALTH),
    Behaviour("health_500", "answers 500 at /health and serves", ("LiteLLM", "gateways"), at("/health", lambda asked: Reply("error", 500, kind="text/plain")), Complete(), _HEALTH),
    Behaviour("health_503", "has no route for /health and answers 503", ("gateways", "nginx"), at("/health", lambda asked: Reply("no upstream", 503, kind="text/plain")), Complete()),
    Behaviour("health_slow", "asks every model before it answers /health", ("LiteLLM",), at("/health", _slow_health), Complete(), _HEALTH),
    Behaviour("metrics_401", "wants a key for /metrics", ("gateways",), at("/metrics", lambda asked: Reply({"error": "no key"}, 401)), Complete()),
    Behaviour("metrics_html", "answers every unknown path with a web page", ("gateways", "Open WebUI"), lambda server, asked: normal(asked) if asked.is_list or asked.is_chat else Reply("<html></html>", kind="text/html"), Complete()),
]  # fmt: skip


def _error(message: str, code: str | None = "unsupported_parameter", param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


_MAX_TOKENS = refuses(
    lambda sent: sent.get("max_tokens") is not None,
    _error("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", param="max_tokens"),
)  # fmt: skip
_TEMPERATURE = refuses(
    lambda sent: sent.get("temperature") not in (None, 1),
    _error("Unsupported value: 'temperature' does not support this value. Only the default (1) value is supported.", "unsupported_value", "temperature"),
)  # fmt: skip
_TOP_P = refuses(
    lambda sent: sent.get("top_p") == 1.0,
    {"error": "Input validation error: `top_p` must be > 0.0 and < 1.0", "error_type": "validation"}, 422,
)  # fmt: skip
_BOTH = refuses(
    lambda sent: sent.get("temperature") is not None and sent.get("top_p") is not None,
    _error("`temperature` and `top_p` cannot both be specified for this model. Please use only one.", None),
)
_SEED = refuses(
    lambda sent: "seed" in sent,
    {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}, "type": "invalid_request_error"}, 422,
)  # fmt: skip
_SYSTEM = refuses(
    lambda sent: any(message["role"] == "system" for message in sent["messages"]),
    {"object": "error", "message": "System role not supported", "type": "BadRequestError", "code": 400},
)
_BRIEF = {"system_prompt": "Be brief."}
_GOLLM = "https://github.com/teilomillet/gollm/issues/33"
_TGI = "https://github.com/huggingface/text-generation-inference/issues/2222"
_CLAUDE = "https://github.com/anomalyco/opencode/issues/1644"
_MISTRAL = "https://github.com/langchain-ai/langchain-azure/issues/82"
_GEMMA = "https://github.com/huggingface/chat-ui/issues/1386"
_SMALL = "Could not finish the message because max_tokens or model output limit was reached. Please try again with higher max_tokens."

FIELDS = [
    Behaviour("max_tokens_refused", "refuses `max_tokens`", ("OpenAI", "Azure"), _MAX_TOKENS, Told(("max_tokens", "max_completion_tokens")), _GOLLM),
    Behaviour("max_completion_tokens", "refuses `max_tokens`; the user sets `max_tokens_field`", ("OpenAI", "Azure"), _MAX_TOKENS, Complete(), _GOLLM, {"max_tokens_field": "max_completion_tokens"}),
    Behaviour("temperature_refused", "refuses every `temperature` but 1", ("OpenAI", "Azure"), _TEMPERATURE, Told(("temperature",)), "https://github.com/microsoft/vscode-copilot-release/issues/8012"),
    Behaviour("temperature_left_out", "refuses every `temperature` but 1; the user sets it to None", ("OpenAI", "Azure"), _TEMPERATURE, Complete(), "https://github.com/microsoft/vscode-copilot-release/issues/8012", {"temperature": None}),
    Behaviour("temperature_1", "refuses every `temperature` but 1; the user sets it to 1", ("OpenAI", "Azure"), _TEMPERATURE, Complete(), llm={"temperature": 1.0}),
    Behaviour("top_p_refused", "refuses `top_p: 1.0`", ("TGI",), _TOP_P, Told(("top_p",)), _TGI),
    Behaviour("top_p_left_out", "refuses `top_p: 1.0`; the user sets it to None", ("TGI",), _TOP_P, Complete(), _TGI, {"top_p": None}),
    Behaviour("temperature_and_top_p", "refuses `temperature` and `top_p` together", ("Anthropic", "Bedrock", "LiteLLM"), _BOTH, Told(("top_p",)), _CLAUDE),
    Behaviour("temperature_without_top_p", "refuses `temperature` and `top_p` together; the user leaves one out", ("Anthropic", "Bedrock", "LiteLLM"), _BOTH, Complete(), _CLAUDE, {"top_p": None}),
    Behaviour("seed_refused", "refuses `seed`", ("Mistral", "Azure"), _SEED, Told(("seed",)), _MISTRAL),
    Behaviour("seed_left_out", "refuses `seed`; the user sets it to None", ("Mistral", "Azure"), _SEED, Complete(), _MISTRAL, {"seed": None}),
    Behaviour("seed_int32", "refuses seeds over 31 bits", ("Gemini",), refuses(lambda sent: (sent.get("seed") or 0) >= 1 << 31, {"error": {"code": 400, "message": "Invalid value at 'generation_config.seed' (TYPE_INT32)", "status": "INVALID_ARGUMENT"}}), Complete(), "https://github.com/FuzzAnything/PromptFuzz/issues/42"),
    Behaviour("system_refused", "refuses the system role", ("vLLM", "SGLang", "llama.cpp"), _SYSTEM, Told(("system",)), _GEMMA, task=_BRIEF),
    Behaviour("system_as_user", "refuses the system role; the user sets `system_role` to \"user\"", ("vLLM", "SGLang", "llama.cpp"), _SYSTEM, Complete(), _GEMMA, {"system_role": "user"}, task=_BRIEF),
    Behaviour("small_max_tokens_refused", "refuses `max_tokens` under 16", ("OpenAI", "Azure"), refuses(lambda sent: (sent.get("max_tokens") or 99) < 16, _error("Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16", "integer_below_min_value")), Complete()),
    Behaviour("reasoning_needs_tokens", "fails requests whose few tokens end inside a thought", ("OpenAI", "Azure"), refuses(lambda sent: (sent.get("max_tokens") or 99) < 16, _error(_SMALL, None)), Complete()),
    Behaviour("null_fields_refused", "refuses fields that are null", ("Mistral", "Gemini"), refuses(lambda sent: any(value is None for value in sent.values()), _error("Input should be a valid value, not null")), Complete(), "https://github.com/zeroclaw-labs/zeroclaw/issues/2693"),
    Behaviour("unknown_fields_refused", "refuses fields that the OpenAI API does not have", ("Gemini", "Mistral", "OpenAI"), refuses(lambda sent: bool(sent.keys() - {"model", "messages", "temperature", "top_p", "max_tokens", "seed", "n", "stop"}), {"error": {"code": 400, "message": 'Invalid JSON payload received. Unknown name "x": Cannot find field.', "status": "INVALID_ARGUMENT"}}), Complete(), "https://github.com/liliMozi/openhanako/issues/394"),
]  # fmt: skip
