"""What a checked graph compiles to: its steps in order, for the checks, the drawings and the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from asyncsynth.pipeline.step import ModelStep, SourceStep, Step


@dataclass(slots=True)
class Node:
    """A step in its place: indexes of its predecessors (in the order of `>>`) and successors."""

    index: int
    step: Step
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    depth: int = 0  #: longest way from the source
    fingerprint: str = ""  #: model steps: key of their journal entries
    seed_id: str = ""  #: model steps: the source of their random choices and request seeds; independent of their code
    depends: frozenset[str] = frozenset()  #: steps before it that decide its input, see `pipeline.depends`


@dataclass(slots=True)
class Plan:
    """A checked pipeline: nodes in topological order, the source first."""

    nodes: list[Node]
    leaves: dict[str, int]  #: name of the result ("default" when there is one leaf) -> node
    fields: dict[str, Any]  #: everything that is fingerprinted, for the manifest and its diff
    fingerprint: str
    answering: dict[str, str] = field(default_factory=dict)  #: model as the steps name it -> the model that answers
    notes: list[str] = field(default_factory=list)  #: parts of the user's code that cannot be followed, one a line
    packages: dict[str, str] = field(default_factory=dict)  #: installed packages that it uses -> version
    carries: bool = False  #: rows carry what is known of their texts, because a later stage needs it

    @property
    def source(self) -> SourceStep:
        """The only step that reads the input."""
        step = self.nodes[0].step
        if not isinstance(step, SourceStep):
            raise TypeError("a plan begins with its source")
        return step

    @property
    def model_steps(self) -> list[Node]:
        """The nodes whose results are journaled."""
        return [node for node in self.nodes if isinstance(node.step, ModelStep)]
