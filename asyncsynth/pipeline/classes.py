"""Inspects a user's class without calling any of its code: its origin, its declarations, its attributes."""

from __future__ import annotations

import contextlib
import enum
import inspect
import sys
import types
from typing import Any

from asyncsynth.calling import unchecked
from asyncsynth.pipeline.codetext import is_users
from asyncsynth.pipeline.reads import Reads

#: Names of the module that a pipeline file is run as.
MAIN = frozenset({"__main__", "__mp_main__", "asyncsynth_pipeline"})
_MADE_BY_A_STATEMENT = 1 << 9  #: flag of a class that is not built into an interpreter's or an extension's C code
#: Methods that make an object; the attributes that they set hold its arguments.
_MAKERS = frozenset({"__init__", "__post_init__", "__new__", "__setstate__", "model_post_init"})
#: Attributes of a field that decide values, checks or schemas.
_OF_A_FIELD = (
    "type", "annotation", "default", "default_factory", "metadata", "validator", "converter", "title", "description",
    "alias", "examples", "json_schema_extra", "discriminator",
)  # fmt: skip


def is_user_class(kind: type) -> bool:
    """Whether the user wrote a class: it belongs to no installed package."""
    made = kind.__flags__ & _MADE_BY_A_STATEMENT
    if not made or kind.__module__ in ("builtins", "abc", "typing") or is_own_class(kind):
        return False
    if kind.__module__ in MAIN:
        return True
    file = file_of(kind)
    if file == "<unknown>":
        return kind.__module__.split(".")[0] not in sys.stdlib_module_names
    return is_users(file)


def file_of(kind: type) -> str:
    """The file of a class: of its module, or of one of its functions if that module is not loaded."""
    try:
        return inspect.getfile(kind)
    except (OSError, TypeError):
        for value in map(unchecked, vars(kind).values()):
            function = getattr(value, "__func__", value)
            if isinstance(function, types.FunctionType) and not function.__code__.co_filename.startswith("<"):
                return function.__code__.co_filename
    return "<unknown>"


def is_own_class(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "asyncsynth"


def left_out(kind: type) -> frozenset[str]:
    """Attributes that, according to the class, decide no result."""
    return frozenset[str]().union(*(vars(each).get("not_fingerprinted", ()) for each in kind.__mro__))


def stored_attributes_of(kind: type) -> frozenset[str]:
    """Attributes that the methods of a user's class set, once its objects are made."""
    found: set[str] = set()
    for each in kind.__mro__:
        for name, value in vars(each).items() if is_user_class(each) else ():
            function = getattr(value, "__func__", value)
            if name not in _MAKERS and isinstance(function, types.FunctionType):
                found |= Reads(function.__code__).stored_attributes
    return frozenset(found)


def is_written_attribute(kind: type, name: str, value: Any, *, generated: bool) -> bool:
    """Whether a class attribute was written by the user."""
    if isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
        return False
    function = getattr(value, "__func__", value) if isinstance(value, (staticmethod, classmethod)) else value
    if isinstance(function, types.FunctionType):
        made = function.__code__.co_filename.startswith("<") and (generated or name == "__new__")
        return not made and is_users(function.__code__.co_filename)
    if name.startswith("__") or name == "_abc_impl":
        return False
    if issubclass(kind, enum.Enum):
        return not name.startswith("_") and name not in kind.__members__
    return not (name.startswith(("model_", "_tuplegetter")) or type(value).__name__ == "_tuplegetter")


def fields_of(kind: type) -> dict[str, dict[str, Any]]:
    """The declarations of the fields of a dataclass, a pydantic or an attrs class: field -> attribute -> value.

    Their values are not in the class's text if they come from a name: ``Field(ge=LIMIT)``.
    """
    own = vars(kind)
    fields: Any = own.get("__dataclass_fields__") or own.get("__pydantic_fields__") or own.get("model_fields")
    if (made := own.get("__attrs_attrs__")) is not None:
        fields = {field.name: field for field in made}
    found = {}
    for name, field in fields.items() if isinstance(fields, dict) else ():
        held = vars_or_slots(field)
        found[name] = {key: held[key] for key in _OF_A_FIELD if not _is_unset(held.get(key))}
    return found


def _is_unset(value: Any) -> bool:
    """Whether an attribute of a field was not given."""
    return value is None or type(value).__name__ in ("_MISSING_TYPE", "PydanticUndefinedType", "_Nothing")


def vars_or_slots(value: Any) -> dict[str, Any]:
    """An object's attributes, without calling code of its class."""
    found: dict[str, Any] = {}
    for kind in type(value).__mro__:
        for name, member in vars(kind).items():
            if isinstance(member, types.MemberDescriptorType):
                try:
                    found[name] = member.__get__(value)
                except AttributeError:  # not set
                    continue
    with contextlib.suppress(AttributeError):
        found.update(object.__getattribute__(value, "__dict__"))
    return found
