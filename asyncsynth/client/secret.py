"""A string that does not print: API keys on their way from the environment to one header."""

from __future__ import annotations

import os
from typing import NoReturn

from asyncsynth.errors import ConfigurationError


class Secret:
    """Holds a string that no repr, str, format, pickle or traceback of ours shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The string itself; call it where it is used, and keep the result in no attribute."""
        return self._value

    @classmethod
    def from_env(cls, name: str) -> Secret:
        """The value of an environment variable. Raises ConfigurationError, naming it, when it is unset."""
        value = os.environ.get(name, "").strip()
        if not value:
            raise ConfigurationError(
                f"the environment variable {name} is not set", hint=f"export {name}=<the server's API key>"
            )
        return cls(value)

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled: pass the name of its environment variable instead")
