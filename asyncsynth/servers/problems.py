"""Collects what is wrong with several files, entries or options, so that one error reports all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from asyncsynth.errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")


class Problems:
    """Errors in what the user wrote, in the order they were met; each is reported once."""

    def __init__(self) -> None:
        self._found: dict[str, ConfigurationError] = {}

    def add(self, error: ConfigurationError) -> None:
        """Keep an error for `require_none`."""
        self._found.setdefault(str(error), error)

    def tried(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `read` returns; None if it raised a ConfigurationError, which is kept."""
        try:
            return read(*args, **kwargs)
        except ConfigurationError as error:
            self.add(error)
            return None

    def require_none(self) -> None:
        """Raises the error where there is one, as it is; where there are several, a ConfigurationError of them all."""
        if len(self._found) == 1:
            raise next(iter(self._found.values()))
        if self._found:
            raise ConfigurationError("\n".join(self._found))
