"""Which pipeline's `with` block we are in. Separate from graph.py, so that step.py does not import that."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

AnyStep = TypeVar("AnyStep", contravariant=True)  # `Step`, which is defined on top of this module


class StepRegistry(Protocol[AnyStep]):
    """What a step needs of its graph."""

    name: str

    def add(self, step: AnyStep) -> None:
        """Adds a step and names it."""

    def connect(self, left: AnyStep, right: AnyStep) -> None:
        """`left >> right`."""


CURRENT: ContextVar[StepRegistry[Any] | None] = ContextVar("asyncsynth_graph", default=None)


def current_graph() -> StepRegistry[Any] | None:
    """The graph whose `with` block we are in, or None."""
    return CURRENT.get()
