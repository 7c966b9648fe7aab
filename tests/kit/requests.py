"""Requests and answers as bytes."""

from __future__ import annotations

import json
from typing import Any

import orjson

from asyncsynth.client.transport import Timeouts

CHAT = "/chat/completions"
QUICK = Timeouts(connect=5, idle=0.05, total=0.1)  #: with sweeps of 10 ms


def chat_body(text: str = "hello", **fields: Any) -> bytes:
    """The body of a chat request."""
    return orjson.dumps(
        {"model": "test-model", "messages": [{"role": "user", "content": text}], "max_tokens": 64, **fields}
    )


def chat_answer(text: str, model: str = "m") -> bytes:
    """The body of an answer to a chat request."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"model": model, "choices": [choice], "usage": {"completion_tokens": 1}}).encode()
