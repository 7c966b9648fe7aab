"""The pages of docs/steps: one for each public step that asks no model, from its docstring and signature.

An example in a docstring is a pipeline; the page makes a program of it, which a test runs.
"""

from __future__ import annotations

import ast
import inspect
import textwrap

import asyncsynth
from asyncsynth import Step
from asyncsynth.pipeline.step import GlobalStep, JoinStep, SourceStep, snake_case
from docs.markdown import COMMAND, NOTE, cell, fence, names, settings_table, tidy
from docs.reading import Doc, code_of, doc_of, plain

#: Kind of step -> what the index calls it; the first that fits.
KINDS = {
    SourceStep: "loads rows",
    JoinStep: "joins branches",
    GlobalStep: "sees all rows",
    Step: "works row by row",
}
#: Modules of the standard library and of extras that examples use.
_IMPORTS = {"Path": "from pathlib import Path"}
#: What the program of a page ends with.
SHOW = 'for row in pipeline.run()["default"]["train"]:\n    print(row)'


def public_steps() -> list[type[Step]]:
    """The steps and loaders that the package exports, by name."""
    found = [getattr(asyncsynth, name) for name in asyncsynth.__all__]
    return sorted(
        {
            kind
            for kind in found
            if inspect.isclass(kind) and issubclass(kind, Step) and kind.__module__.startswith("asyncsynth.steps.")
        },
        key=lambda kind: kind.__name__,
    )


def pages() -> dict[str, str]:
    """File name in docs/steps -> text."""
    steps = public_steps()
    return {"README.md": _index(steps), **{f"{snake_case(kind.__name__)}.md": page(kind) for kind in steps}}


def kind_of(kind: type[Step]) -> str:
    """What the step does with rows, in a few words."""
    return next(words for base, words in KINDS.items() if issubclass(kind, base))


def _index(steps: list[type[Step]]) -> str:
    lines = [
        NOTE,
        "# Steps and loaders\n",
        "Steps that ask no model. Each page has the step's settings and an example that runs without a server. "
        "A resumed run computes them again; they cost no request.\n",
        "| step | kind | what it does |",
        "| --- | --- | --- |",
    ]
    order = list(KINDS.values())
    for kind in sorted(steps, key=lambda kind: (order.index(kind_of(kind)), kind.__name__)):
        link = f"[{kind.__name__}]({snake_case(kind.__name__)}.md)"
        lines.append(f"| {link} | {kind_of(kind)} | {cell(doc_of(kind).summary)} |")
    lines.append("\nSteps that ask a model are [tasks](../tasks/README.md). To write a step of your own, see")
    lines.append(f"[custom steps](../guides/custom-steps.md).\n\nWritten from the code by `{COMMAND}`.")
    return "\n".join(lines) + "\n"


def page(kind: type[Step]) -> str:
    """A step's page."""
    doc = Doc.of(kind)
    program = program_of(kind)
    parts = [NOTE, f"# {kind.__name__}\n", f"{plain(doc.summary)}\n", f"Kind: {kind_of(kind)}.\n"]
    for text in doc.body:
        shown = fence(textwrap.dedent(text), "python") if text.startswith("    ") else plain(text)
        parts.append(f"{shown.removesuffix(':') if shown.endswith('::') else shown}\n")
    if columns := _columns(kind, doc):
        parts.append(f"## Columns\n\n{columns}")
    parts.append(f"## Settings\n\n{settings_table(kind)}")
    parts.append(f"## Example\n\n{fence(program, 'python')}\n")
    parts.append(f"It prints:\n\n{fence(result_of(kind), 'text')}\n")
    return tidy(parts)


def _columns(kind: type[Step], doc: Doc) -> str:
    """Only of steps whose columns are no matter of their settings."""
    text = plain(doc.section("Columns"))
    inputs, optional, outputs = (
        value if isinstance(value, tuple) else () for value in (kind.inputs, kind.optional_inputs, kind.outputs)
    )
    if not (inputs or optional or outputs):
        return f"{text}\n" if text else ""
    lines = [f"- in: {names(inputs)}", f"- optional: {names(optional)}", f"- out: {names(outputs)}"]
    if not outputs:
        lines.pop()
    return "\n".join([*lines, *([f"\n{text}"] if text else [])]) + "\n"


def program_of(kind: type[Step]) -> str:
    """The docstring's example as a program: with its imports, and its rows printed. LookupError without one."""
    lines = "\n\n".join(code_of(Doc.of(kind).section("Example"))).splitlines()
    if not lines:
        raise LookupError(f"{kind.__name__}: its docstring has no example: write Example:: and Result::")
    others = [line for line in lines if line.startswith("import ")]
    code = "\n".join(line for line in lines if line not in others).strip()
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    known = [line for name, line in _IMPORTS.items() if name in used]
    ours = f"from asyncsynth import {', '.join(sorted(used & set(asyncsynth.__all__)))}"
    imports = ["\n".join(group) for group in (known, others, [ours]) if group]
    return "\n\n".join([*imports, code, SHOW])


def result_of(kind: type[Step]) -> str:
    """What the docstring says that the example prints."""
    return "\n".join(code_of(Doc.of(kind).section("Result")))
