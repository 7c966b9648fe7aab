"""The record: one row on its way through a pipeline, and how rows are hashed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import orjson

Row = dict[str, Any]  #: column name -> JSON value


@dataclass(slots=True)
class Record:
    """One input row. `position` is its 0-based place in the source; `key` is unique in a run.

    `digest` is the `content_hash` of `data`, from when the run directory has claimed the record.
    """

    key: str
    position: int
    data: Row = field(default_factory=dict)
    digest: str = ""


def canonical_json(value: Any) -> bytes:
    """Bytes that are equal when the JSON values are equal (keys sorted, no spaces).

    Raises TypeError for what is not JSON, lone surrogates and integers over 64 bits included.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def content_hash(value: Any) -> str:
    """16 hex digits (64 bits of BLAKE2b) of the canonical JSON of `value`."""
    return hashlib.blake2b(canonical_json(value), digest_size=8).hexdigest()


def stable_seed(*parts: object) -> int:
    """A seed in [0, 2**31) that depends on `parts` alone: the same on every machine and after a resume."""
    return seed_of("\x1f".join(map(str, parts)))


def seed_of(text: str) -> int:
    """A seed in [0, 2**31) that depends on `text` alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") & 0x7FFFFFFF
