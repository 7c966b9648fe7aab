"""What a result depends on, as JSON, and the short hashes that key the journal."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from asyncsynth.client.llm import LLM
from asyncsynth.errors import PipelineError
from asyncsynth.pipeline.classes import is_user_class
from asyncsynth.pipeline.constants import shown
from asyncsynth.pipeline.usercode import Collector
from asyncsynth.records import canonical_json


def jsonable(value: Any, *, where: str, code: Collector | None = None) -> Any:
    """`value` as JSON for a fingerprint.

    `code` follows the functions and the user's objects in it; without `code`, they are hashed in place.
    Raises PipelineError naming `where` for a value without a stable form.
    """
    if code is not None and is_user_class(value if isinstance(value, type) else type(value)):
        code.add(value if isinstance(value, type) else type(value), "")
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return _checked(value, where=where)
    if isinstance(value, LLM):
        # Only values that differ from the defaults: runs from before these settings have none of them.
        kept = {} if value.reasoning == "separate" else {"reasoning": value.reasoning}
        kept |= {} if value.system_role == "system" else {"system_role": value.system_role}
        return {"model": value.model, "embedded": value.is_embedded, **kept, **jsonable(value.params(), where=where)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item, where=where, code=code) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item, where=where, code=code) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((jsonable(item, where=where, code=code) for item in value), key=repr)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, re.Pattern):
        return {"pattern": str(value.pattern), "flags": value.flags}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: jsonable(getattr(value, field.name), where=where, code=code) for field in fields}
    if isinstance(value, type) and hasattr(value, "model_json_schema"):  # a pydantic model
        return value.model_json_schema()
    if code is not None and (callable(value) or is_user_class(type(value))):
        form = code.add(value, where.rpartition(" ")[2].strip("'"))
        return form["code"] if isinstance(form, dict) and form.keys() == {"code"} else shown(form)
    if callable(value):
        return function_identity(value, where=where)
    raise PipelineError(
        f"{where}: a {type(value).__name__} cannot be fingerprinted",
        hint="Use JSON values, or override settings() to say what decides the results.",
    )


def _checked(value: Any, *, where: str) -> Any:
    """A scalar that JSON can hold exactly."""
    try:
        canonical_json(value)
    except TypeError as error:  # a lone surrogate, an integer over 64 bits
        raise PipelineError(f"{where}: {error}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise PipelineError(f"{where}: {value} is not a JSON number")
    return value


def function_identity(function: Any, *, where: str) -> str:
    """Name and hash of a function, a class or an object with `__call__`: of its code and of all that this reads.

    An edited function means redone results, and so does one that closes over another value
    (``make_filter(3)``, ``make_filter(4)``), though their source is the same. `where` is for errors.
    """
    kind = function if hasattr(function, "__qualname__") else type(function)
    code = Collector(getattr(kind, "__module__", "") or "")
    form = code.add(function, "")
    return f"{getattr(kind, '__qualname__', 'function')}:{short_hash([form, code.code.parts])}"


def is_own(kind: type) -> bool:
    """Whether a class is asyncsynth's own: it has a `version` that says when it changes."""
    return kind.__module__.split(".")[0] == "asyncsynth"


def short_hash(value: Any) -> str:
    """12 hex digits (48 bits) of the canonical JSON of `value`."""
    return hashlib.blake2b(canonical_json(value), digest_size=6).hexdigest()
