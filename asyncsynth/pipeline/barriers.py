"""Where steps over all rows are allowed: at a cut of the graph, and nowhere else.

A `GlobalStep` waits for every row before it. A branch beside it, or a connection that leads around it, would
mix rows that have waited with rows that have not; such graphs are refused before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from asyncsynth.errors import PipelineError
from asyncsynth.pipeline.plan import Node
from asyncsynth.pipeline.step import GlobalStep

_HINT = (
    "Everything before such a step must flow into it and everything after must come out of it: "
    "join the branches before it (GroupColumns, CombineOutputs), or begin them after it."
)


def check_barriers(nodes: Sequence[Node]) -> None:
    """Raises PipelineError unless each GlobalStep cuts the graph in two. `nodes` in topological order."""
    for node in nodes:
        if isinstance(node.step, GlobalStep):
            _check_cut(nodes, node)


def _check_cut(nodes: Sequence[Node], barrier: Node) -> None:
    name = barrier.step.name
    before = _reached(barrier, [node.before for node in nodes])
    after = _reached(barrier, [node.after for node in nodes])
    for node in nodes:
        if node is not barrier and node.index not in before and node.index not in after:
            raise PipelineError(
                f"step {node.step.name!r} is beside {name!r}, which waits for all rows",
                step=node.step.name,
                hint=_HINT,
            )
        if node.index in before and (around := after.intersection(node.after)):
            past = nodes[min(around)].step.name
            raise PipelineError(
                f"{node.step.name!r} >> {past!r} leads around {name!r}, which waits for all rows",
                step=past,
                hint=_HINT,
            )


def _reached(start: Node, neighbours: Sequence[Sequence[int]]) -> set[int]:
    """All nodes that can be reached from `start` in one direction, without itself."""
    reached: set[int] = set()
    waiting = list(neighbours[start.index])
    while waiting:
        index = waiting.pop()
        if index not in reached:
            reached.add(index)
            waiting.extend(neighbours[index])
    return reached
