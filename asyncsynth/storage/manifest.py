"""MANIFEST.json: what a run directory was made from, and each state of the pipeline that made its records.

An epoch is one state of the pipeline. A run that is continued with a changed pipeline gets a further epoch;
results under earlier fingerprints stay usable.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson

from asyncsynth.errors import ConfigurationError, CorruptJournal, StorageError
from asyncsynth.storage import layout
from asyncsynth.storage.files import REAL, FileSystem, atomic_write, storage_error

MANIFEST_NAME = layout.MANIFEST
#: 1: the folders of stages are named `segment-k`, and a source that is a stage has the kind "segment".
FORMAT = 2
READ_FORMATS = (1, FORMAT)
#: For a source that reads an earlier stage's rows: its kind, and the key for that stage's folder.
STAGE_KIND, OLD_STAGE_KIND = "stage", "segment"
_SHOWN = 60  #: characters of a value shown in a difference


@dataclass(slots=True)
class Epoch:
    """One state of the pipeline."""

    fingerprint: str
    steps: dict[str, str]  #: name of a step that asks a model -> its fingerprint
    fields: dict[str, Any]  #: everything that was fingerprinted, nested, for `diff`
    leaves: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)  #: the models that really answered
    packages: dict[str, str] = field(default_factory=dict)  #: installed packages that the user's code uses -> version


@dataclass(slots=True)
class Manifest:
    """The run directory's description. `keys` is "position" or "id"; `source` is the reader's identity."""

    run_id: str
    pipeline: str
    run_seed: int
    keys: str
    source: dict[str, Any]
    epochs: list[Epoch]
    created: str  #: ISO 8601, UTC
    version: str = ""  #: of the asyncsynth that made the directory
    shards: int = 0  #: number of shard directories, see `storage.shard_directories`; 0: the run is not split
    stride: int = 1  #: of a shard that knows records by position: it has every `stride`-th
    format: int = FORMAT

    @property
    def rows_of(self) -> str:
        """The name of the folder of the stage that the rows come from; '' if they come from the input."""
        kind = self.source.get("kind")
        return str(self.source.get(kind, "")) if kind in (STAGE_KIND, OLD_STAGE_KIND) else ""

    @staticmethod
    def exists(directory: Path) -> bool:
        return (directory / MANIFEST_NAME).exists()

    @classmethod
    def load(cls, directory: Path) -> Manifest | None:
        """The directory's manifest, None if there is none. Raises StorageError."""
        path = directory / MANIFEST_NAME
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise storage_error(error, path, "read the manifest") from error
        try:
            values = orjson.loads(data)
            version = values["format"]
            if version in READ_FORMATS:
                values["epochs"] = [Epoch(**epoch) for epoch in values["epochs"]]
                return _checked(cls(**values))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptJournal(
                f"{path}: is not a manifest of asyncsynth: {error}", hint="Restore it from a copy, or start a new run."
            ) from error
        raise StorageError(
            f"{path}: has format {version}; this version of asyncsynth reads formats up to {FORMAT}",
            hint="Use the asyncsynth version that made the run, or start a new run directory.",
        )

    @classmethod
    def of_run(cls, directory: Path) -> Manifest:
        """As `load`, for a directory that must be a run. Raises ConfigurationError if it is not one, StorageError."""
        manifest = cls.load(directory)
        if manifest is None:
            raise ConfigurationError(
                f"{directory} is not a run directory: it has no {MANIFEST_NAME}",
                hint="Give the directory that `asyncsynth run` printed as its output.",
            )
        return manifest

    def save(self, directory: Path, *, fs: FileSystem = REAL) -> None:
        """Writes it atomically and durably. Raises StorageError."""
        self.version = self.version or _own_version()
        atomic_write(directory / MANIFEST_NAME, orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2) + b"\n", fs=fs)


def _checked(manifest: Manifest) -> Manifest:
    """The manifest, if every part that is read later has its kind. Raises ValueError, naming the part."""
    _require("", manifest, _MANIFEST_KINDS)
    if manifest.keys not in ("position", "id"):
        raise ValueError(f"keys is {manifest.keys!r:.{_SHOWN}}; position or id was expected")
    if not manifest.epochs:
        raise ValueError("epochs is empty")
    if manifest.shards < 0 or manifest.stride < 1:
        raise ValueError(f"shards is {manifest.shards} and stride is {manifest.stride}: neither may be negative")
    for name, kind in _SOURCE_KINDS.items():
        if not isinstance(manifest.source.get(name, kind()), kind):
            raise ValueError(_wrong(f"source.{name}", manifest.source[name], kind))
    for at, epoch in enumerate(manifest.epochs):
        _require(f"epochs[{at}].", epoch, _EPOCH_KINDS)
        _check_steps(f"epochs[{at}]", epoch)
    return manifest


def _check_steps(place: str, epoch: Epoch) -> None:
    texts = [
        (f"{place}.{field}.{name}", value)
        for field, values in (("steps", epoch.steps), ("packages", epoch.packages))
        for name, value in values.items()
    ]
    for where, value in texts:
        if not isinstance(value, str):
            raise ValueError(_wrong(where, value, str))
    steps = epoch.fields.get("steps", {})
    if not isinstance(steps, dict):
        raise ValueError(_wrong(f"{place}.fields.steps", steps, dict))
    for name, step in steps.items():
        where = f"{place}.fields.steps.{name}"
        if not isinstance(step, dict):
            raise ValueError(_wrong(where, step, dict))
        after = step.get("after", [])
        if not isinstance(after, list) or not all(isinstance(one, str) for one in after):
            raise ValueError(f"{where}.after is {after!r:.{_SHOWN}}; a list of names was expected")


def _require(place: str, part: object, kinds: dict[str, type]) -> None:
    for name, kind in kinds.items():
        value = getattr(part, name)
        if type(value) is not kind:
            raise ValueError(_wrong(place + name, value, kind))


def _wrong(where: str, value: object, kind: type) -> str:
    return f"{where} is {value!r:.{_SHOWN}}; {_WORDS[kind]} was expected"


_WORDS: dict[type, str] = {str: "a text", int: "a whole number", dict: "an object", list: "a list"}
_MANIFEST_KINDS: dict[str, type] = {
    "run_id": str, "pipeline": str, "run_seed": int, "keys": str, "source": dict, "epochs": list, "created": str,
    "version": str, "shards": int, "stride": int,
}  # fmt: skip
_EPOCH_KINDS: dict[str, type] = {
    "fingerprint": str, "steps": dict, "fields": dict, "leaves": list, "models": list, "packages": dict,
}  # fmt: skip
_SOURCE_KINDS: dict[str, type] = {
    "kind": str, "name": str, "head_bytes": int, "head_sha256": str, STAGE_KIND: str, OLD_STAGE_KIND: str,
}  # fmt: skip


def _own_version() -> str:
    try:
        return metadata.version("asyncsynth")
    except metadata.PackageNotFoundError:
        return "unknown"


def diff(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each field that differs, by its dotted path: `steps.gen.model: "a" -> "b"`."""
    lines: list[str] = []
    _compare("", _as_json(old), _as_json(new), lines)
    return lines


def _as_json(value: Any) -> Any:
    """The value as it will be read back: a tuple becomes a list."""
    return orjson.loads(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))


_ABSENT = object()


def _compare(path: str, old: Any, new: Any, lines: list[str]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            _compare(f"{path}.{name}" if path else str(name), old.get(name, _ABSENT), new.get(name, _ABSENT), lines)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for at, (one, other) in enumerate(zip(old, new, strict=True)):
            _compare(f"{path}[{at}]", one, other, lines)
    elif type(old) is not type(new) or old != new:
        if ".code." in path and (_is_hash(old) or _is_hash(new)):
            lines.append(f"{path}: {'added' if old is _ABSENT else 'removed' if new is _ABSENT else 'edited'}")
            return
        one, other = _text(old), _text(new)
        alike = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
        lines.append(f"{path}: {_cut(one, alike)} -> {_cut(other, alike)}")


def _is_hash(value: Any) -> bool:
    """Whether this is the hash of a piece of user code, which tells a reader nothing."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16}", value) is not None


def _text(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    text = orjson.dumps(value).decode()
    if isinstance(value, str) and '"' in value and "'" not in value:  # JSON in a text: read without its backslashes
        return "'" + text[1:-1].replace('\\"', '"') + "'"
    return text


def _cut(text: str, alike: int) -> str:
    """At most `_SHOWN` characters, including the place where two long texts begin to differ."""
    start = max(0, alike - 10) if len(text) > _SHOWN and alike > _SHOWN // 2 else 0
    part = text[start : start + _SHOWN]
    return ("…" if start else "") + part + ("…" if start + _SHOWN < len(text) else "")
