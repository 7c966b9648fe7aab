"""The record: one row on its way through a pipeline, and how rows are hashed."""

from __future__ import annotations

import builtins
import enum
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

Row = dict[str, Any]  #: column name -> JSON value

MAX_DEPTH = 200  #: deeper than any real row; orjson's limits are 254 (dumps) and 1,024 (loads)
_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
_MIN_INT, _MAX_INT = -(1 << 63), (1 << 64) - 1


@dataclass(slots=True)
class Record:
    """One input row. `position` is its 0-based place in the source; `key` is unique in a run.

    `digest` is the `content_hash` of `data`, from when the run directory has claimed the record.
    """

    key: str
    position: int
    data: Row = field(default_factory=dict)
    digest: str = ""


class NotPlainJson(TypeError):
    """A value that JSON cannot carry unchanged.

    Attributes:
        place: its path in the value that was checked: `answer.notes[3].when`; "" for the value itself.
        what: a description: "an integer over 64 bits", "of type datetime".
        advice: what to write instead.
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice
        self._place = ""

    @property
    def place(self) -> str:
        """The path to the value."""
        return self._place.removeprefix(".")

    def __str__(self) -> str:
        return f"{self.place or 'the value'} is {self.what}"

    def below(self, part: str) -> None:
        """The value is at `part` of the container around it. For a value nested too deep, only the outermost part is
        kept."""
        self._place = part if self.what == _TOO_DEEP else part + self._place


def plain_json(value: Any, depth: int = 0) -> Any:
    """A copy of `value` that is made of JSON's own types: None, bool, int, float, str, list, and dict with str keys.

    The same rule holds for rows that are read and for what steps return. A value that is equal to one of these types is
    turned into it: a tuple into a list, another mapping into a dict, a subclass of str, int or float (numpy.float64)
    into its base. Raises NotPlainJson for everything else, and for an integer that does not fit 64 bits (from -2**63 to
    2**64 - 1), NaN, an infinity, text with a lone surrogate, and nesting deeper than `MAX_DEPTH`.
    """
    kind = type(value)
    if kind is str:
        if not value.isascii():
            _check_text(value)
        return value
    if kind is dict and depth <= MAX_DEPTH:
        return _plain_dict(value, depth)
    if (kind is list or kind is tuple) and depth <= MAX_DEPTH:
        return _plain_list(value, depth)
    if value is None or kind is bool:
        return value
    if kind is int:
        if not _MIN_INT <= value <= _MAX_INT:
            raise NotPlainJson("an integer over 64 bits", "Write it as text: str(value).")
        return value
    if kind is float:
        if not math.isfinite(value):
            raise NotPlainJson(str(value).replace("nan", "NaN"), "Write None, or leave the row out.")
        return value
    if depth > MAX_DEPTH:
        raise NotPlainJson(_TOO_DEEP, "Flatten it.")
    return _plain_other(value, depth)


def _plain_dict(mapping: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in mapping.items():
        if type(key) is not str or not key.isascii():
            key = _plain_key(key)
        if type(value) is str and value.isascii():
            made[key] = value
            continue
        try:
            made[key] = plain_json(value, depth + 1)
        except NotPlainJson as problem:
            problem.below(f".{key}")
            raise
    return made


def _plain_list(items: Sequence[Any], depth: int) -> list[Any]:
    made: list[Any] = []
    try:
        for item in items:
            # A comprehension could not tell at which item it failed.
            made.append(item if type(item) is str and item.isascii() else plain_json(item, depth + 1))  # noqa: PERF401
    except NotPlainJson as problem:
        problem.below(f"[{len(made)}]")
        raise
    return made


def _plain_other(value: Any, depth: int) -> Any:
    """All other values: subclasses of the plain types, and values that are not JSON."""
    if isinstance(value, enum.Enum):
        raise NotPlainJson(f"of type {type(value).__name__}, an enum", "Write value.value or value.name.")
    if isinstance(value, str):
        return plain_json(str.__str__(value))
    if isinstance(value, int):
        return plain_json(int(value))
    if isinstance(value, float):
        return plain_json(float(value))
    if isinstance(value, list):
        return _plain_list(value, depth)
    if isinstance(value, Mapping):
        return _plain_dict(value, depth)
    kind = type(value)
    # numpy's bool, for example, is not JSON's.
    name = f"{kind.__module__}.{kind.__name__}" if hasattr(builtins, kind.__name__) else kind.__name__
    raise NotPlainJson(f"of type {name.removeprefix('builtins.')}", _advice(value))


def _advice(value: Any) -> str:
    """How to write `value` as JSON, judged by its type."""
    if type(value).__name__ in ("NaTType", "NAType"):  # pandas' missing values: as text they would look like values
        return "Write None, or leave the row out."
    if isinstance(value, (set, frozenset)):
        return "Write sorted(value)."
    if isinstance(value, (bytes, bytearray)):
        return "Write value.decode()."
    if isinstance(value, tuple) or hasattr(value, "__next__"):
        return "Write list(value)."
    for method, call in (
        ("isoformat", "value.isoformat()"),
        ("tolist", "value.tolist()"),
        ("to_dict", "value.to_dict('records')"),
        ("model_dump", "value.model_dump(mode='json')"),
    ):
        if callable(getattr(value, method, None)):
            return f"Write {call}."
    if hasattr(value, "__dataclass_fields__"):
        return "Write dataclasses.asdict(value)."
    return "Write float(value) or str(value)." if hasattr(value, "__float__") else "Write str(value), a list or a dict."


def _plain_key(key: Any) -> str:
    if isinstance(key, str) and not isinstance(key, enum.Enum):
        text = str(str.__str__(key))
        try:
            text.encode()
        except UnicodeEncodeError:
            pass
        else:
            return text
    raise NotPlainJson(f"a mapping with the key {ascii(key)[:40]}, not a plain string", "Write str(key).")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        advice = 'Write value.encode("utf-8", "replace").decode().'
        raise NotPlainJson("text with a lone surrogate", advice) from None


def not_json(value: Any) -> tuple[str, str] | None:
    """(place, what it is) of the first value that JSON cannot carry unchanged; None if there is none.

    `place` is a path below `value` (`answer.notes[3]`), "" for `value` itself. See `plain_json` for the rule.
    """
    try:
        plain_json(value)
    except NotPlainJson as problem:
        return problem.place, problem.what
    return None


def canonical_json(value: Any) -> bytes:
    """Bytes that are equal when the JSON values are equal (keys sorted, no spaces).

    Raises TypeError for anything that is not JSON, including lone surrogates and integers over 64 bits.
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


def key_hash(key: str) -> int:
    """64 bits of a key. Two of a billion keys agree with a chance of 3 %, of a million with 3 in 10^8."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class Part:
    """The `number`-th (from 0) of `count` equal parts: of the records of an input, or of a server's limit."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ValueError(f"part {self.number} of {self.count}")

    def has(self, position: int) -> bool:
        """Whether the record at this position belongs to it, if records are known by position."""
        return position % self.count == self.number

    def has_key(self, key: str) -> bool:
        """Whether the record with this id belongs to it."""
        # The upper half: the index's table uses the lower bits, which would be alike within a shard.
        return (key_hash(key) >> 32) % self.count == self.number

    def of(self, total: int) -> int:
        """This part of `total`; the parts add up to it."""
        return total // self.count + (self.number < total % self.count)

    def least_one(self, total: int | None) -> int | None:
        """`of`, and 1 at least; None stays None."""
        return None if total is None else max(1, self.of(total))
