"""The flags of `vllm serve`: does a configuration file hold any that vLLM would not take?

vLLM tells a wrong flag too, but only after half a minute of imports, and without the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from asyncsynth.servers.launch_settings import Flag

#: "25.6k" is 25,600 and "1K" is 1,024 where a flag takes such sizes.
_SIZE = re.compile(r"(\d+(\.\d+)?[kmgt]|\d+[KMGT])")
_INT = re.compile(r"-?\d+")
_FLOAT = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|-?inf|nan")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to tell about a configuration before anything starts."""

    place: str  #: ``file:line``, or an option
    message: str
    hint: str = ""
    is_error: bool = True

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" + (f"\n  {self.hint}" if self.hint else "")


@dataclass(frozen=True)
class FlagTable:
    """What one version of vLLM takes: flag -> its description in `flags.json`."""

    version: str
    flags: Mapping[str, Mapping[str, Any]]

    def negated(self) -> Mapping[str, str]:
        """Switches that turn others off: ``no-enable-prefix-caching`` -> ``enable-prefix-caching``."""
        return {off: name for name, flag in self.flags.items() for off in flag.get("negations", ())}


@cache
def load_table(path: Path | None = None) -> FlagTable:
    """The shipped table of the version that the `vllm` extra pins, or one of the tests."""
    source = files("asyncsynth.serving.vllm").joinpath("flags.json") if path is None else path
    loaded = json.loads(source.read_text(encoding="utf-8"))
    return FlagTable(loaded["version"], loaded["flags"])


def check_flags(flags: Mapping[str, Flag], table: FlagTable, *, installed: str | None = None) -> list[Finding]:
    """What is wrong with the flags of one file.

    Args:
        installed: the version that will run. Where it is not the table's, findings are warnings only.
    """
    strict = installed is None or installed == table.version
    found = [finding for name, flag in flags.items() for finding in _check_one(name, flag, table)]
    if strict:
        return found
    return [Finding(f.place, f"{f.message} (the installed is {installed})", f.hint, False) for f in found]


def _check_one(name: str, flag: Flag, table: FlagTable) -> Iterator[Finding]:
    head, dot, _ = name.partition(".")
    negated = table.negated()
    if name in negated:
        if not isinstance(flag.value, bool):
            yield Finding(flag.place, f"{flag.spelled} must be true, not {_shown(flag.value)}")
        return
    known = table.flags.get(head if dot else name)
    if known is None or (dot and known["type"] != "json"):
        yield _unknown(name, flag, table, negated)
        return
    if "deprecated" in known:
        yield Finding(flag.place, f"{flag.spelled} is deprecated in vLLM {table.version}", is_error=False)
    if dot:
        return  # one entry of a JSON flag: any value
    if flag.value is None:
        yield Finding(flag.place, f"{flag.spelled} has no value", "Give one, or leave the line out: vLLM reads 'None'.")
        return
    if known["type"] == "bool":
        yield from _check_switch(flag, known)
    elif problem := _problem(flag.value, known):
        yield Finding(flag.place, f"{flag.spelled} {problem}")


def _unknown(name: str, flag: Flag, table: FlagTable, negated: Mapping[str, str]) -> Finding:
    near = get_close_matches(name, [*table.flags, *negated], n=1, cutoff=0.7)
    meant = f"Did you mean {near[0]}?" if near else "`vllm serve --help=all` lists the flags."
    if name in ("gpus", "env"):
        meant = f"vLLM's files hold vLLM's flags only: {name} belongs in a fleet file, or use --gpus."
    return Finding(flag.place, f"vLLM {table.version} has no flag {flag.spelled}", meant)


def _check_switch(flag: Flag, known: Mapping[str, Any]) -> Iterator[Finding]:
    if not isinstance(flag.value, bool):
        yield Finding(flag.place, f"{flag.spelled} must be true or false, not {_shown(flag.value)}")
    elif not flag.value and "_" in flag.spelled and known.get("negations"):
        # vLLM looks for "--no-<key>" with the key as it is written, finds none, and drops the line.
        yield Finding(
            flag.place,
            f"vLLM ignores `{flag.spelled}: false` when it is written with underscores",
            f"Write {flag.spelled.replace('_', '-')}: false",
        )


def _problem(value: Any, known: Mapping[str, Any]) -> str:
    """What is wrong with the value of a flag, to print after its name; '' if nothing is."""
    kind = known["type"]
    if kind == "json":
        if known.get("text") or isinstance(value, dict | list):
            return ""
        return "" if isinstance(value, str) and _is_json(value) else f"must be a mapping, not {_shown(value)}"
    if isinstance(value, list):
        if not known.get("list"):
            return f"must be one value, not a list of {len(value)}"
        return next((problem for item in value if (problem := _problem(item, {**known, "list": False}))), "")
    if isinstance(value, bool | dict):
        return f"must be {_wanted(known)}, not {_shown(value)}"
    text = str(value)
    if choices := known.get("choices"):
        if text in choices:
            return ""
        near = get_close_matches(text, choices, n=1)
        return f"must be one of {', '.join(choices)}, not {text}" + (f"; did you mean {near[0]}?" if near else "")
    fits = {
        "int": bool(_INT.fullmatch(text) or (known.get("suffixes") and (text == "auto" or _SIZE.fullmatch(text)))),
        "float": bool(_FLOAT.fullmatch(text)),
    }
    return "" if fits.get(kind, True) else f"must be {_wanted(known)}, not {_shown(value)}"


def _wanted(known: Mapping[str, Any]) -> str:
    if known["type"] == "int":
        return "a whole number, such as 4096 or 4k" if known.get("suffixes") else "a whole number"
    return {"float": "a number", "str": "a text"}.get(known["type"], "a value")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _shown(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def as_arguments(flags: Mapping[str, Flag], names: Sequence[str]) -> list[str]:
    """Flags as `vllm serve` takes them on its command line, where they win over the file's."""
    arguments: list[str] = []
    for name in names:
        value = flags[name].value
        if value is None:
            continue
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, dict):
            arguments += [f"--{name}", json.dumps(value)]
        elif isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        else:
            arguments.append(f"--{name}={value}")
    return arguments
