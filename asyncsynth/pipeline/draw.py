"""Drawings of a pipeline: Mermaid for pages and notebooks, plain text for a terminal. Made offline.

Both show every step with its class and model, the columns it reads and writes, and the mappings. A pipeline
that is not valid yet can be drawn too, since a drawing helps to correct it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from asyncsynth.errors import PipelineError
from asyncsynth.pipeline.step import ColumnOrigins, GlobalStep, JoinStep, ModelStep, SourceStep, Step


class Drawable(Protocol):
    """What a drawing needs of a graph."""

    name: str
    steps: list[Step]

    @property
    def edges(self) -> Sequence[tuple[Step, Step]]:
        """The connections."""

    def columns(self) -> Mapping[Step, ColumnOrigins]:
        """Columns after each step, where they are known."""


#: Mermaid's shapes: a stadium for the source, a hexagon for a join, a box for a model step,
#: a framed box for a step over all rows, rounded else.
_SHAPES: tuple[tuple[type[Step], str, str], ...] = (
    (SourceStep, "([", "])"),
    (JoinStep, "{{", "}}"),
    (ModelStep, "[", "]"),
    (GlobalStep, "[[", "]]"),
    (Step, "(", ")"),
)
_ESCAPES = str.maketrans({'"': "#quot;", "<": "#lt;", ">": "#gt;", "#": "#35;", "`": "#96;"})


def mermaid(graph: Drawable) -> str:
    """A Mermaid flowchart: ``flowchart TD`` and a line for each step and connection."""
    lines = ["---", f"title: {_title(graph.name)}", "---", "flowchart TD"]
    ids = {step: f"s{number}" for number, step in enumerate(graph.steps)}
    flows = graph.columns()
    for step in graph.steps:
        label = "<br/>".join(_escape(line) for line in _label(step, flows.get(step, {})))
        opening, closing = next((left, right) for kind, left, right in _SHAPES if isinstance(step, kind))
        lines.append(f'    {ids[step]}{opening}"{label}"{closing}')
    for left, right in graph.edges:
        reads = "<br/>".join(_escape(text) for text in _reads(right))
        arrow = f'-- "{reads}" -->' if reads else "-->"
        lines.append(f"    {ids[left]} {arrow} {ids[right]}")
    return "\n".join(lines) + "\n"


def plain_text(graph: Drawable) -> str:
    """One paragraph for each step, in the order of the flow."""
    lines = [_clean(graph.name)]
    flows = graph.columns()
    for step in _ordered(graph):
        before = [left.name for left, right in graph.edges if right is step]
        arrow = f"{' + '.join(before)} → " if before else ""
        lines += ["", f"  {_clean(arrow)}{_clean(step.name)}  ({', '.join(map(_clean, _about(step)))})"]
        for word, columns in (("reads", _reads(step)), ("writes", _writes(step, flows.get(step, {})))):
            if columns:
                lines.append(f"      {word:6} {_clean(', '.join(columns))}")
    return "\n".join(lines) + "\n"


def _about(step: Step) -> list[str]:
    """The class and the models' names."""
    models = [llm.model for llm in step.models()] if isinstance(step, ModelStep) else []
    return [type(step).__name__, *dict.fromkeys(models)]


def _label(step: Step, flow: ColumnOrigins) -> list[str]:
    writes = _writes(step, flow)
    return [step.name, *_about(step), *(["writes " + ", ".join(writes)] if writes else [])]


def _reads(step: Step) -> list[str]:
    """Columns read, as `column` or `column → input`; optional ones only when they are mapped."""
    if not step.inputs:  # steps whose columns are an argument
        return list(getattr(step, "columns", ()))
    names = [*step.inputs, *(name for name in step.optional_inputs if name in step.input_mappings)]
    return [name if step.source_of(name) == name else f"{step.source_of(name)} → {name}" for name in names]


def _writes(step: Step, flow: ColumnOrigins) -> list[str]:
    """Columns written, as `column` or `output → column`; of a step that does not declare them, those of
    `flow` that are its own."""
    if not step.outputs and flow:
        return [column for column, maker in flow.items() if maker == step.name]
    if isinstance(step, SourceStep):
        try:
            return list(step.known_columns() or ())
        except (OSError, PipelineError):  # the file is not there yet
            return []
    return [name if step.target_of(name) == name else f"{name} → {step.target_of(name)}" for name in step.outputs]


def _ordered(graph: Drawable) -> list[Step]:
    """Predecessors first; the steps of a cycle come last, in the order in which they were made."""
    order: list[Step] = []
    waiting = list(graph.steps)
    while waiting:
        ready = [
            step for step in waiting if all(left in order for left, right in graph.edges if right is step)
        ] or waiting
        order += ready
        waiting = [step for step in waiting if step not in ready]
    return order


def _clean(text: str) -> str:
    """Printable characters only: names and models come from files, and terminals obey control characters."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _escape(text: str) -> str:
    return _clean(text).translate(_ESCAPES)


def _title(text: str) -> str:
    """As a YAML string in single quotes."""
    return "'" + _clean(text).replace("'", "''") + "'"
