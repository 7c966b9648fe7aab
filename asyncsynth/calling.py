"""Checks calls of the public API, and raises our own errors for arguments that do not fit: `checked`, `checked_class`.

Python's own TypeError names neither the nearest right name nor the others. For a name that a constructor passes on, it
names a base class that the user never wrote. The check costs some microseconds per call, so it is for calls that build
or start something, never for calls made for each row.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from types import FunctionType
from typing import Any, TypeVar, Unpack, cast, get_args, get_origin, is_typeddict

from asyncsynth.errors import CallError

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type[Any])

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def checked(function: F) -> F:
    """`function`, which raises CallError for arguments that do not fit; errors from its body are not changed.

    Names given to ``**settings: Unpack[SomeTypedDict]`` must be keys of the TypedDict, if `function` is part of
    asyncsynth. A user's own function may take more than it declares.
    """
    wrapper: Any
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            _refuse_misfits(wrapper, function, args, kwargs)
            return await function(*args, **kwargs)
    else:

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            _refuse_misfits(wrapper, function, args, kwargs)
            return function(*args, **kwargs)

    wrapper._checks = function
    return cast(F, wrapper)


def checked_class(kind: C) -> C:
    """A class decorator, above ``@dataclass``: calls of the class are `checked`."""
    kind.__init__ = checked(kind.__init__)
    return kind


def unchecked(value: Any) -> Any:
    """The function that `checked` was given; any other value unchanged."""
    return inspect.unwrap(value, stop=_is_bare) if isinstance(value, FunctionType) else value


def _is_bare(function: Any) -> bool:
    # A user's `functools.wraps` copies the mark, and then wraps something other than the mark names.
    return "_checks" not in vars(function) or vars(function)["_checks"] is not function.__wrapped__


def nearest(name: str, known: Iterable[str]) -> str:
    """'' or ' (did you mean ...?)'."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


# --- what a function takes -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Shape:
    """The parameters of a function.

    Attributes:
        hidden: 1 if the first one is `self` or `cls`, which callers do not pass.
        names: parameters that can be given by name, without those that only a base class knows.
        passes_on: whether other names are accepted and checked by a base class's constructor.
        typed: whether all names that are passed on are among `names`.
    """

    signature: inspect.Signature
    hidden: int
    names: tuple[str, ...]
    passes_on: bool
    typed: bool


@functools.lru_cache(maxsize=1024)
def _shape(function: Callable[..., Any]) -> _Shape:
    # The function that a user's decorator names as wrapped may take other arguments.
    signature = inspect.signature(function, follow_wrapped=False)
    parameters = list(signature.parameters.values())
    rest = next((each for each in parameters if each.kind is Parameter.VAR_KEYWORD), None)
    typed = None if rest is None else _typed_names(function, rest.annotation)
    hidden = int(function.__name__ == "__init__" or [each.name for each in parameters[:1]] in (["self"], ["cls"]))
    names = [each.name for each in parameters[hidden:] if each.kind in _NAMED]
    is_ours = _scope(function)["__name__"].partition(".")[0] == __name__.partition(".")[0]
    passes_on = rest is not None and not (typed is not None and is_ours)
    return _Shape(signature, hidden, (*names, *(typed or ())), passes_on, rest is None or typed is not None)


def _scope(function: Any) -> dict[str, Any]:
    scope: dict[str, Any] = function.__globals__
    return scope


def _typed_names(function: Any, annotation: Any) -> tuple[str, ...] | None:
    """The keys of T in ``Unpack[T]``, which is a text in modules with postponed annotations."""
    kind: Any = None
    if isinstance(annotation, str):
        if found := re.fullmatch(r"(?:\w+\.)?Unpack\[(\w+)\]", annotation):
            kind = _scope(function).get(found[1])
    elif get_origin(annotation) is Unpack:
        kind = get_args(annotation)[0]
    return tuple(kind.__annotations__) if is_typeddict(kind) else None


def _all_names(kind: type, function: Callable[..., Any]) -> list[str]:
    """The names that a class takes: of each constructor, as long as it passes others on to the next one's."""
    names: list[str] = []
    for base in kind.__mro__:
        init = unchecked(vars(base).get("__init__"))
        if isinstance(init, FunctionType):
            shape = _shape(init)
            names += shape.names
            if shape.typed:
                break
    return list(dict.fromkeys([*names, *_shape(function).names]))


# --- what does not fit -------------------------------------------------------------------------------


def _refuse_misfits(wrapper: Any, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    shape, problem = _shape(function), ""
    try:
        shape.signature.bind(*args, **kwargs)
    except TypeError as error:
        problem = str(error)
    if problem or not (shape.passes_on or kwargs.keys() <= set(shape.names)):
        raise _misfit(wrapper, function, args, kwargs, problem)


def _misfit(wrapper: Any, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], problem: str) -> CallError:
    """The error for a call that does not fit; `problem` is Python's own message."""
    shape = _shape(function)
    called = _Called.of(wrapper, function, args)
    takes = f"It takes {', '.join(called.known) or 'no arguments'}."
    parameters = shape.signature.parameters
    wrong = [name for name in kwargs if not shape.passes_on and name not in shape.names]
    if wrong:
        shown = ", ".join(f"{name!r}{nearest(name, called.known)}" for name in wrong)
        if called.place == called.name:
            return CallError(f"{called.name} has no keyword {shown}", hint=takes)
        return CallError(f"{called.name} passes {shown} on to {called.short}(), which has no such keyword", hint=takes)
    by_position = [each.name for each in parameters.values() if each.kind in _POSITIONAL][shape.hidden :]
    given = len(args) - shape.hidden
    if given > len(by_position) and not any(each.kind is Parameter.VAR_POSITIONAL for each in parameters.values()):
        most = (
            f"at most {len(by_position)} by position ({', '.join(by_position)})" if by_position else "none by position"
        )
        return CallError(
            f"{called.place} takes arguments by name, {most}; {given} {'was' if given == 1 else 'were'} given",
            hint=f"Write each as name=value. {takes}",
        )
    if twice := [name for name in by_position[: max(given, 0)] if name in kwargs]:
        return CallError(f"{called.place} is given {twice[0]!r} twice, by position and by name", hint=takes)
    missing = [
        each.name
        for each in list(parameters.values())[max(len(args), shape.hidden) :]
        if each.default is each.empty and each.kind in _NAMED and each.name not in kwargs
    ]
    if missing:
        wanted = ", ".join(f"{name}=..." for name in missing)
        return CallError(
            f"{called.place} needs {' and '.join(map(repr, missing))}", hint=f"Write {called.short}({wanted}). {takes}"
        )
    return CallError(f"{called.place}: {problem}", hint=takes)


@dataclass(frozen=True)
class _Called:
    """The called function or class, in the caller's words.

    Attributes:
        name: the class or function, as the user wrote it: "TextGeneration()", "Pipeline.run()".
        place: the same; of a base class's constructor with the class that called it.
        short: what to write before the brackets.
        known: all parameters that can be given by name.
    """

    name: str
    place: str
    short: str
    known: Sequence[str]

    @classmethod
    def of(cls, wrapper: Any, function: Any, args: tuple[Any, ...]) -> _Called:
        """A call of `function` as the user wrote it."""
        if function.__name__ != "__init__":
            short = function.__qualname__.rpartition("<locals>.")[2]
            return cls(f"{short}()", f"{short}()", short, _shape(function).names)
        kind = type(args[0])
        name = f"{kind.__name__}()"
        known = _all_names(kind, function)
        if kind.__init__ is wrapper:
            return cls(name, name, kind.__name__, known)
        base = f"{function.__qualname__.split('.')[-2]}.__init__" if "." in function.__qualname__ else "__init__"
        return cls(name, f"{name}: {base}()", base, known)


__all__ = ["checked", "checked_class", "nearest", "unchecked"]
