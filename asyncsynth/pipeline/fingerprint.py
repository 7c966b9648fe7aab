"""What a result depends on, as JSON, and the short hashes that key the journal."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from asyncsynth.client.llm import LLM
from asyncsynth.errors import PipelineError
from asyncsynth.records import canonical_json


def jsonable(value: Any, *, where: str) -> Any:
    """`value` as JSON for a fingerprint. Raises PipelineError naming `where` for what has no stable form."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, LLM):
        return {"model": value.model, "embedded": value.is_embedded, **value.params()}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item, where=where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item, where=where) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(item) for item in value)
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: jsonable(getattr(value, field.name), where=where) for field in fields}
    if isinstance(value, type) and hasattr(value, "model_json_schema"):  # a pydantic model
        return value.model_json_schema()
    if callable(value):
        return function_identity(value, where=where)
    raise PipelineError(
        f"{where}: a {type(value).__name__} cannot be fingerprinted",
        hint="Use JSON values, or override settings() to say what decides the results.",
    )


def function_identity(function: Any, *, where: str) -> str:
    """Name and source hash of a function: an edited function means redone results."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        if code is None:
            raise PipelineError(
                f"{where}: the source of {function!r} cannot be read, so its results could not be told apart",
                hint="Define it in a file.",
            ) from None
        source = code.co_code.hex() + repr(code.co_consts)
    digest = hashlib.blake2b(source.encode(), digest_size=8).hexdigest()
    return f"{getattr(function, '__qualname__', type(function).__name__)}:{digest}"


def short_hash(value: Any) -> str:
    """12 hex digits (48 bits) of the canonical JSON of `value`."""
    return hashlib.blake2b(canonical_json(value), digest_size=6).hexdigest()
