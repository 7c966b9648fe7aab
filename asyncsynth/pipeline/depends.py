"""What a model step's input depends on: the other steps whose changes may invalidate its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncsynth.pipeline.fingerprint import is_own
from asyncsynth.pipeline.step import ColumnOrigins, GlobalStep, ModelStep, SourceStep, Step


def dependencies(
    steps: Sequence[Step], before: Sequence[Sequence[int]], flows: Sequence[ColumnOrigins | None]
) -> list[frozenset[str]]:
    """For each step, the names of the steps before it that decide its input columns or the keys of its rows.

    Args:
        steps: in topological order.
        before: indexes of each step's predecessors.
        flows: the columns that leave each step, with the step that made each; None if they are not known.
    """
    names = [step.name for step in steps]
    place = {name: index for index, name in enumerate(names)}
    ancestors: list[set[int]] = []
    for left in before:
        ancestors.append(set(left).union(*(ancestors[index] for index in left)))
    found: list[frozenset[str]] = []
    for index, step in enumerate(steps):
        reads = _reads(step)
        incoming = [flows[left] for left in before[index]]
        if reads is None or any(flow is None for flow in incoming):
            found.append(frozenset(names[each] for each in ancestors[index] if not isinstance(steps[each], SourceStep)))
            continue
        origins: dict[str, str] = {}
        for flow in incoming:
            origins.update(flow or {})
        reached: set[str] = set()
        for column in reads:
            if (maker := origins.get(column)) is not None and not isinstance(steps[place[maker]], SourceStep):
                reached |= {maker, *found[place[maker]]}
        reached |= {names[each] for each in ancestors[index] if _may_change_any_row(steps[each])}
        found.append(frozenset(reached))
    return found


def _reads(step: Step) -> list[str] | None:
    """The columns that a step reads; None if it may read any."""
    if not isinstance(step, ModelStep) and not step.inputs:
        return None
    return [step.input_mappings.get(name, name) for name in (*step.inputs, *step.optional_inputs)]


def _may_change_any_row(step: Step) -> bool:
    """Whether it may change columns that it does not declare, or make several rows of one."""
    if isinstance(step, ModelStep):
        many: Any = getattr(step, "num_generations", 2)
        grouped = getattr(step, "group_generations", False)
        own_generate = any("generate" in vars(kind) for kind in type(step).__mro__ if not is_own(kind))
        return own_generate or (many > 1 and not grouped)
    # A filter and a step over all rows only leave rows out; they change no key.
    return not isinstance(step, (SourceStep, GlobalStep)) and type(step).__name__ != "Filter"
