"""How a server that is described by a vLLM file is started: its flags, its GPUs, its environment.

vLLM's own files hold vLLM's flags and nothing else, so everything else is in the entry of a fleet file:
``servers: [{config: qwen.yaml, gpus: [0], env: {VLLM_X: 1}, flags: {port: 8001}}]``, or in the option ``--gpus``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from asyncsynth.errors import ConfigurationError
from asyncsynth.servers.problems import Problems
from asyncsynth.servers.yaml_mapping import YamlMapping

LAUNCH_KEYS = ("gpus", "env", "flags")
GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY)$", re.IGNORECASE)
_GPU = re.compile(r"\d+|(GPU|MIG)-[A-Za-z0-9/-]+")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of a vLLM file, as YAML gave it."""

    value: Any
    place: str  #: ``file:line``
    spelled: str  #: the key as it was written


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to start one server.

    Args:
        file: for ``vllm serve --config``.
        flags: all that apply, by name with dashes: those of the file, overridden by those of the fleet.
        overrides: the names of those that the fleet gives; the command line carries them.
        gpus: indices or UUIDs for CUDA_VISIBLE_DEVICES; None leaves that variable as it is.
        env: further environment variables of the process.
        key_env: the variable whose value becomes the server's API key, or ''.
        place: ``file:line`` of the GPUs.
    """

    file: Path
    flags: Mapping[str, Flag] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    gpus: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    key_env: str = ""
    place: str = ""

    def number(self, name: str, default: float) -> float:
        """The value of a numeric flag; the default too where it is no number (`vllm.flags` tells that)."""
        flag = self.flags.get(name)
        if flag is None or isinstance(flag.value, bool):
            return default
        try:
            return float(flag.value)
        except (TypeError, ValueError):
            return default

    def place_of(self, name: str) -> str:
        """``file:line`` of a flag, or of the whole."""
        flag = self.flags.get(name)
        return flag.place if flag is not None else self.place


def read_launch(settings: YamlMapping, entry: YamlMapping | None = None) -> Launch:
    """The launch of a vLLM file; `entry` is its entry in a fleet file, if it has one.

    The fleet's flags are laid over `settings`. Raises InputError, with file and line.
    """
    problems = Problems()
    file = settings.path
    overrides: tuple[str, ...] = ()
    if entry is not None and (over := entry.mapping("flags")) is not None:
        for name in [name for name in _NOT_HERE if name in over.values]:
            problems.tried(
                over.fail, f"{name} cannot be among a fleet's flags", over.values[name], hint=_NOT_HERE[name]
            )
        settings.overlay(over)
        overrides = tuple(over.values)
    flags = {
        name: Flag(settings.value(name), settings.place(node), settings.spelled[name])
        for name, node in settings.values.items()
    }
    if entry is None:
        return Launch(file=file, flags=flags, place=settings.place())
    gpus = problems.tried(_entry_gpus, entry)
    env = problems.tried(_entry_env, entry) or {}
    if gpus is not None and GPU_VARIABLE in env:
        problems.tried(
            entry.fail, f"gpus and {GPU_VARIABLE} both say where it runs", entry.values["env"], hint="Keep gpus."
        )
    problems.require_none()
    return Launch(
        file=file,
        flags=flags,
        overrides=overrides,
        gpus=gpus,
        env=env,
        key_env=entry.get("api_key_env", str, ""),
        place=entry.place(entry.values.get("gpus")),
    )


_NOT_HERE = {
    "api-key": "Everyone on the machine can read a command line: name an environment variable as api_key_env.",
    "config": "The entry's own config is that file.",
    "model": "A file describes one model: write another one.",
}


def _entry_gpus(entry: YamlMapping) -> tuple[str, ...] | None:
    value = entry.get("gpus", (str, int, list))
    if value is None:
        return None
    try:
        return parse_gpus(value)
    except ValueError as error:
        entry.fail(f"gpus: {error}", entry.values["gpus"], hint="They look like 0, [0, 1], '0,1' or GPU-8932f937.")


def parse_gpus(value: object) -> tuple[str, ...]:
    """`0`, `"0,1"` or `[0, 1]` as names for CUDA_VISIBLE_DEVICES. Raises ValueError."""
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    names = [parts] if isinstance(parts, int) else parts
    if not isinstance(names, list) or not names:
        raise ValueError("no GPU is named")
    for name in names:
        if isinstance(name, bool) or not isinstance(name, int | str) or not _GPU.fullmatch(str(name)):
            raise ValueError(f"{name!r} is no index or UUID of a GPU")
    gpus = tuple(map(str, names))
    if len(set(gpus)) != len(gpus):
        raise ValueError(f"{','.join(gpus)} names one twice")
    return gpus


def _entry_env(entry: YamlMapping) -> dict[str, str]:
    given = entry.mapping("env")
    if given is None:
        return {}
    found: dict[str, str] = {}
    for name, node in given.values.items():
        variable = given.spelled[name]
        if not isinstance(node, yaml.ScalarNode):
            given.fail(f"env: {variable} must be one value", node)
        if _SECRET.search(variable):
            given.fail(
                f"env: {variable} looks like a secret, which does not belong into a file",
                node,
                hint="Export it before the start: servers inherit the environment.",
            )
        found[variable] = str(node.value)
    return found


S = TypeVar("S")


def place_on_gpus(launches: Mapping[S, Launch], options: Sequence[str], names: Mapping[S, str]) -> dict[S, Launch]:
    """The launches with the GPUs of the options ``--gpus FILE=0,1`` (or ``NAME=…``), which win over the fleet's.

    Raises:
        ConfigurationError: an option that fits no server, or more than one.
    """
    placed = dict(launches)
    for option in options:
        target, sign, value = option.partition("=")
        try:
            gpus = parse_gpus(value)
        except ValueError as error:
            raise ConfigurationError(
                f"--gpus {option}: {error}", hint="It looks like --gpus qwen2.5-1.5b.yaml=0,1 (or GPU-8932f937)"
            ) from None
        fits = [key for key, launch in launches.items() if names[key] == target or _is_named(launch.file, target)]
        if not sign or len(fits) != 1:
            files = ", ".join(sorted({launch.file.name for launch in launches.values()})) or "none"
            raise ConfigurationError(
                f"--gpus {option}: {'several servers are' if len(fits) > 1 else 'no server is'} meant by {target!r}",
                hint=f"Name one by its file or by host:port; files: {files}",
            )
        placed[fits[0]] = replace(placed[fits[0]], gpus=gpus, place=f"--gpus {option}")
    return placed


def _is_named(file: Path, target: str) -> bool:
    wanted = Path(target).parts
    return bool(wanted) and (file.parts[-len(wanted) :] == wanted or target == file.stem)
