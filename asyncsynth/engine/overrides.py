"""Settings given beside the pipeline file: `STEP.SETTING=VALUE`, for sweeps over prompts and sampling.

A step is created again with the changed settings, so that its own checks run and its columns follow. The fingerprint
covers them as if the file had them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import types
import typing
from collections.abc import Sequence
from typing import Any, get_args, get_origin, get_type_hints

import orjson

from asyncsynth.client.llm import LLM
from asyncsynth.errors import ConfigurationError
from asyncsynth.pipeline import Graph, SourceStep, Step
from asyncsynth.pipeline.graph import find_step
from asyncsynth.pipeline.step import nearest

_SCALARS = (bool, int, float, str)
#: Fields of an LLM that say where it runs; `--servers` is for that.
_PLACE = frozenset({"base_url", "api_key_env", "http_client", "is_embedded"})


def apply_settings(graph: Graph, settings: Sequence[str]) -> None:
    """Changes steps of a graph: `gen.system_prompt=Be brief.`, `gen.llm.temperature=0.2`.

    Raises ConfigurationError, PipelineError, naming the setting and the nearest match.
    """
    changes: dict[Step, list[tuple[str, list[str], str]]] = {}
    for text in settings:
        path, equals, value = text.partition("=")
        if not equals or "." not in path:
            raise ConfigurationError(
                f"--set {text}: STEP.SETTING=VALUE was expected", hint="For example: --set gen.llm.temperature=0.2"
            )
        step = _step(graph, path)
        changes.setdefault(step, []).append((text, path[len(step.name) + 1 :].split("."), value))
    for step, changed in changes.items():
        graph.replace(step, _changed(step, changed))


def _step(graph: Graph, path: str) -> Step:
    """The step that a path begins with; names may have dots in them."""
    found = [step for step in graph.steps if path.startswith(f"{step.name}.")]
    return max(found, key=lambda step: len(step.name)) if found else find_step(graph, path.partition(".")[0])


def _changed(step: Step, changes: Sequence[tuple[str, list[str], str]]) -> Step:
    """The step created again, with all its changes at once."""
    arguments, hints = _arguments(step)
    if not _same(step, _make(step, arguments)):
        raise ConfigurationError(
            f"--set {changes[0][0]}: step {step.name!r} ({type(step).__name__}) cannot be changed by --set",
            hint="It does not keep all its settings as they were given; write the value in the pipeline file.",
        )
    for text, path, value in changes:
        name = path[0]
        known = [known for known in arguments if known not in ("name", "input_mappings", "output_mappings")]
        if name not in known:
            raise _unknown(text, f"step {step.name!r} has no setting {name!r}", name, known)
        if len(path) == 1:
            arguments[name] = _value(text, value, hints.get(name, Any))
            continue
        llm = arguments[name]
        if len(path) > 2 or not isinstance(llm, LLM):
            raise ConfigurationError(f"--set {text}: {name!r} of step {step.name!r} is no single LLM with such fields")
        fields = [field.name for field in dataclasses.fields(LLM) if field.name not in _PLACE]
        if path[1] not in fields:
            raise _unknown(text, f"an LLM has no field {path[1]!r}", path[1], fields)
        new = _value(text, value, get_type_hints(LLM)[path[1]])
        arguments[name] = dataclasses.replace(llm, **{path[1]: new})
    made = _make(step, arguments)
    if made is None:
        raise AssertionError("the same step could be created before")
    return made


def _unknown(text: str, what: str, name: str, known: Sequence[str]) -> ConfigurationError:
    return ConfigurationError(
        f"--set {text}: {what}{nearest(name, known)}", hint=f"It has {', '.join(known) or 'none'}."
    )


def _arguments(step: Step) -> tuple[dict[str, Any], dict[str, Any]]:
    """The step's arguments, as far as it keeps them under their names, and their types."""
    arguments: dict[str, Any] = {}
    hints: dict[str, Any] = {}
    for base in type(step).__mro__:
        init = base.__dict__.get("__init__")
        if init is None or not issubclass(base, Step):
            continue
        for parameter in list(inspect.signature(init).parameters.values())[1:]:
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            with contextlib.suppress(AttributeError):
                arguments.setdefault(parameter.name, step.argument(parameter.name))
                hints.setdefault(parameter.name, _hint(init, parameter.name))
    return arguments, hints


def _hint(init: Any, name: str) -> Any:
    try:
        return get_type_hints(init).get(name, Any)
    except NameError:  # a type that is imported for the type checker only
        return Any


def _make(step: Step, arguments: dict[str, Any]) -> Step | None:
    """A step of the same class, outside of any graph; None if the arguments do not fit its constructor."""
    if isinstance(step, SourceStep):
        return None
    try:
        return type(step)(**arguments)
    except TypeError:  # CallError is one
        return None


def _same(step: Step, copy: Step | None) -> bool:
    return (
        copy is not None
        and copy.settings() == step.settings()
        and (copy.inputs, copy.optional_inputs, copy.outputs) == (step.inputs, step.optional_inputs, step.outputs)
        and vars(copy).keys() == vars(step).keys()
    )


def _value(text: str, raw: str, hint: Any) -> Any:
    """The text as a value of a type: for a string the text itself, else its JSON value."""
    options = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        value = raw
    if value is None and types.NoneType in options:
        return None
    if isinstance(value, (bool, int, float)) and type(value) in options:
        return value
    if type(value) is int and float in options:
        return float(value)
    if str in options:
        return value if raw.startswith('"') and isinstance(value, str) else raw
    if any(option not in (*_SCALARS, types.NoneType) for option in options) and (
        isinstance(value, (list, dict)) or Any in options
    ):
        return value
    wanted = " or ".join(
        "null" if option is types.NoneType else getattr(option, "__name__", str(option)) for option in options
    )
    raise ConfigurationError(
        f"--set {text}: {wanted} was expected", hint="Write text without quotes, and other values as JSON."
    )
