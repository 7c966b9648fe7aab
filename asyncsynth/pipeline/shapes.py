"""Whether the branches of a join can deliver the same rows, by how often each multiplies them.

The engine gives every row that a step makes of one row a key below that row's (`17.0`, `17.1`), and a join matches
rows by key. So the path of a row is a list of levels, one for each step that multiplies. Branches whose levels are
known and differ can never match all their rows, and may lose all rows of a record. If a step's number of rows is known
only during the run, so is whether the rows match; the engine then counts those that do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from asyncsynth.errors import PipelineError
from asyncsynth.pipeline.plan import Node
from asyncsynth.pipeline.step import JoinStep, RowCount, Step


class _Level(NamedTuple):
    """A step that makes several rows of one."""

    step: str
    number: int | None  #: number of rows; None: one for each item of a list

    def __str__(self) -> str:
        return f"{self.number} rows of each" if self.number else "a row of each item of a list"


_Shape = tuple[_Level, ...]


def check_joins(nodes: Sequence[Node]) -> None:
    """Raises PipelineError for a join of branches that are known to multiply rows differently."""
    shapes: list[_Shape | None] = []  # by node; None: known only in the run
    for node in nodes:
        before = [shapes[index] for index in node.before]
        if isinstance(node.step, JoinStep):
            shape = _joined(node, nodes, before)
        else:
            shape = before[0] if before else ()
            count = _count(node.step) if before else 1
            if count == "unknown":
                shape = None
            elif shape is not None and count != 1:
                shape = (*shape, _Level(node.step.name, None if count == "list" else count))
        shapes.append(shape)


def _count(step: Step) -> RowCount:
    """The checked declaration of a step: a user's class may return anything. Raises PipelineError."""
    count = step.row_count()
    if count not in ("list", "unknown") and (type(count) is not int or count < 1):
        raise PipelineError(
            f"step {step.name!r}: {type(step).__name__}.row_count() returned {count!r}",
            step=step.name,
            hint='It must return a whole number from 1 on, "list" or "unknown".',
        )
    return count


def _joined(node: Node, nodes: Sequence[Node], before: list[_Shape | None]) -> _Shape | None:
    """The shape that leaves a join."""
    step = node.step
    if isinstance(step, JoinStep) and step.missing not in ("drop", "none"):
        raise PipelineError(
            f'step {step.name!r}: {type(step).__name__}.missing is {step.missing!r}; "drop" or "none" was expected',
            step=step.name,
        )
    names = [nodes[index].step.name for index in node.before]
    known = [(name, shape) for name, shape in zip(names, before, strict=True) if shape is not None]
    if isinstance(step, JoinStep) and step.whichever:
        distinct = {tuple(level.number for level in shape) for _, shape in known}
        return known[0][1] if len(known) == len(before) and len(distinct) == 1 else None
    for (name, shape), (other_name, other) in combinations(known, 2):
        if not _may_match(shape, other):
            raise PipelineError(
                f"step {step.name!r} joins branches that make different numbers of rows, so that rows would have no "
                f"partner: the branch of {name!r} makes {_told(shape)}, that of {other_name!r} {_told(other)}",
                step=step.name,
                hint="Give all branches the same num_generations, or group_generations=True; expand a list after the "
                "join, or before the branches part. MergeBranches takes the rows of whichever branch has them.",
            )
    if len(known) < len(before):
        return None
    # A list that matches n rows has n items.
    levels = zip(*(shape for _, shape in known), strict=True)
    return tuple(max(level, key=lambda one: one.number or 0) for level in levels)


def _may_match(one: _Shape, other: _Shape) -> bool:
    """Two lists may be the same list, and a list may have just n items; n and m rows never match."""
    return len(one) == len(other) and all(
        a.number is None or b.number is None or a.number == b.number for a, b in zip(one, other, strict=True)
    )


def _told(shape: _Shape) -> str:
    if not shape:
        return "one row of each"
    return ", then ".join(f"{level} ({level.step!r})" for level in shape)
