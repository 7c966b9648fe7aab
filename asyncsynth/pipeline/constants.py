"""Constants as JSON: the form of a value that is the same in every process, for fingerprints."""

from __future__ import annotations

import array
import asyncio
import collections
import datetime
import decimal
import enum
import fractions
import hashlib
import json
import logging
import math
import operator
import re
import string
import threading
import types
import typing
import uuid
import zoneinfo
from pathlib import PurePath
from typing import Any

import orjson

_SCALARS = frozenset({str, int, float, bool, type(None)})
_SHOWN = 400  #: characters of a constant that are kept; a longer one also has its hash
_MANY = 64  #: items from which a container of scalars is taken as a whole

#: Types whose `repr` shows everything that they hold.
_BY_REPR: tuple[type, ...] = (
    bool, complex, decimal.Decimal, fractions.Fraction, datetime.date, datetime.time, datetime.timedelta,
    datetime.tzinfo, uuid.UUID, range, slice, zoneinfo.ZoneInfo, operator.itemgetter, operator.attrgetter,
    operator.methodcaller, type(Ellipsis), type(NotImplemented),
)  # fmt: skip

#: Objects that decide no result: they order the work or report it.
SILENT: tuple[type, ...] = (
    logging.Logger, logging.LoggerAdapter, type(threading.Lock()), type(threading.RLock()), threading.Event,
    threading.Condition, threading.Semaphore, asyncio.Lock, asyncio.Event, asyncio.Semaphore, asyncio.Condition,
    asyncio.Queue,
)  # fmt: skip

#: Classes of Python's own, written in Python or not, whose objects hold nothing but their attributes.
_PLAIN = (
    types.SimpleNamespace, string.Template, collections.ChainMap, collections.UserDict, collections.UserList,
    collections.UserString,
)  # fmt: skip


def stable_form(value: Any) -> tuple[bool, Any]:
    """(True, the value as JSON), or (False, None) if its contents must be followed or it has no stable form."""
    kind: type = type(value)
    if kind in _SCALARS:
        return True, _scalar(value)
    if isinstance(value, enum.Enum):
        return False, None
    if kind in (bytes, bytearray, memoryview):
        return True, {"bytes": hashlib.blake2b(bytes(value), digest_size=8).hexdigest()}
    if kind is array.array:
        return True, {"array": [value.typecode, hashlib.blake2b(value.tobytes(), digest_size=8).hexdigest()]}
    if isinstance(value, PurePath):
        return True, {"path": str(value)}
    if isinstance(value, re.Pattern):
        return True, {"pattern": str(value.pattern), "flags": value.flags}
    if kind in _BY_REPR or isinstance(value, datetime.tzinfo):
        return True, {kind.__name__: repr(value)}
    if kind is object:
        return True, {"object": ""}
    # Its metaclasses are those of classes; the contents of types with arguments are followed.
    if kind.__module__ == "typing" and not issubclass(kind, type) and not parts_of_alias(value):
        return True, {"type": repr(value)}
    if kind in (list, dict, tuple) and len(value) >= _MANY:
        return _many(value)
    if kind.__module__.split(".")[0] == "numpy" and hasattr(value, "tobytes") and hasattr(value, "dtype"):
        if value.dtype.hasobject:
            return False, None
        data = hashlib.blake2b(value.tobytes(), digest_size=8).hexdigest()
        return True, {"array": [str(value.dtype), list(value.shape), data]}
    return False, None


def parts_of_alias(value: Any) -> tuple[Any, ...]:
    """What `list[X]`, `X | Y`, `Annotated[X, ...]` or `Box[X]` is made of; () for anything else."""
    if type(value).__module__ not in ("typing", "types"):
        return ()
    origin = typing.get_origin(value)
    return () if origin is None else (origin, *typing.get_args(value))


def _scalar(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return {"int": hex(value)}
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # a lone surrogate
            return {"str": ascii(value)}
    return value


def _many(value: Any) -> tuple[bool, Any]:
    """A long container of scalars, by its hash: nothing in it must be followed."""
    items = list(value.items()) if isinstance(value, dict) else value
    kinds = set(map(type, value.values() if isinstance(value, dict) else value))
    if isinstance(value, dict):
        kinds |= set(map(type, value))
    if not kinds <= _SCALARS:
        return False, None
    try:
        text = orjson.dumps(items)
    except TypeError:
        text = repr(items).encode("utf-8", "surrogatepass")
    name = type(value).__name__
    return True, {name: f"{len(value)} items, {hashlib.blake2b(text, digest_size=8).hexdigest()}"}


def is_plain(value: Any) -> dict[str, Any] | None:
    """The fields of an object of an installed class that only holds data; None for other objects."""
    kind = type(value)
    if isinstance(value, _PLAIN):
        return dict(vars(value))
    fields = getattr(kind, "__dataclass_fields__", None)
    if isinstance(fields, dict):
        return {name: getattr(value, name) for name in fields if hasattr(value, name)}
    return None


def _text(form: Any) -> str:
    try:
        return orjson.dumps(form).decode()
    except TypeError:  # nested deeper than orjson writes
        return json.dumps(form)


def shown(form: Any) -> Any:
    """The stored form: scalars and short texts unchanged, longer ones by their beginning and their hash."""
    if isinstance(form, (bool, int, float, type(None))):
        return form
    text = form if isinstance(form, str) else _text(form)
    if isinstance(form, str) and len(text) <= _SHOWN:
        return form
    if len(text) > _SHOWN:
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        text = f"{text[:_SHOWN]}… ({len(text)} characters, {digest})"
    return {type(form).__name__: text}
