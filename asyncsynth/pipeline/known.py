"""The contents of well-known libraries' objects that decide results: Jinja's templates, pydantic's adapters.

They are recognised by the class's name, so that none of these libraries is imported.
"""

from __future__ import annotations

import sys
from typing import Any

from asyncsynth.pipeline.classes import vars_or_slots

_SCALARS = (str, int, bool)


def held_by(value: Any) -> dict[str, Any] | None:
    """Name -> what the object holds; None for an object of any other class."""
    names = {f"{kind.__module__.split('.')[0]}.{kind.__qualname__}" for kind in type(value).__mro__}
    held = vars_or_slots(value)
    if "jinja2.Template" in names:  # its text is not kept, only the compiled form
        return {"code": held["root_render_func"].__code__, "environment": held.get("environment")}
    if "jinja2.Environment" in names:
        return _environment(held)
    if "jinja2.DictLoader" in names:
        return {"mapping": held["mapping"]}
    if "jinja2.FunctionLoader" in names:
        return {"load_func": held["load_func"]}
    if names & {"jinja2.ChoiceLoader", "jinja2.PrefixLoader"}:
        return {"loaders": held.get("loaders", held.get("mapping"))}
    if "pydantic.TypeAdapter" in names:
        return {"type": held.get("_type")}
    return None


def _environment(held: dict[str, Any]) -> dict[str, Any]:
    """Jinja's options, its loader, and the additions to its own filters, tests and globals."""
    own = vars(sys.modules["jinja2.defaults"])
    found: dict[str, Any] = {name: value for name, value in sorted(held.items()) if isinstance(value, _SCALARS)}
    for name, given in (("filters", "DEFAULT_FILTERS"), ("tests", "DEFAULT_TESTS"), ("globals", "DEFAULT_NAMESPACE")):
        defaults = own.get(given, {})
        found[name] = {key: value for key, value in held[name].items() if defaults.get(key) is not value}
    for name in ("loader", "finalize"):
        if held.get(name) is not None:
            found[name] = held[name]
    return found
