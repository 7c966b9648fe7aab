"""Which pipeline's `with` block we are in. Apart from graph.py so that step.py need not import it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from asyncsynth.pipeline.step import Step


class StepRegistry(Protocol):
    """What a step needs of its graph."""

    name: str

    def add(self, step: Step) -> None:
        """Takes a step in and names it."""

    def connect(self, left: Step, right: Step) -> None:
        """`left >> right`."""


CURRENT: ContextVar[StepRegistry | None] = ContextVar("asyncsynth_graph", default=None)


def current_graph() -> StepRegistry | None:
    """The graph whose `with` block we are in, or None."""
    return CURRENT.get()
