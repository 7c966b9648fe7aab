"""The name of a pipeline without a given one: that of the file that makes it.

The name decides the run directory, so an edited pipeline finds its earlier results. The first ``Pipeline()`` of a file
is named as the file; a later one is also named after its variable. A notebook's cell and a prompt have no file.
"""

from __future__ import annotations

import ast
import os
import sys
from dataclasses import dataclass
from types import FrameType

from asyncsynth.pipeline.codetext import source_file

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a pipeline was made: the file, and the line of the call in it."""

    file: str
    line: int
    name: str


def origin() -> Origin | None:
    """The place outside this package from which the current call came; None if that is not a file."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and os.path.abspath(frame.f_code.co_filename).startswith(_PACKAGE):
        frame = frame.f_back
    if frame is None or not os.path.isfile(frame.f_code.co_filename):
        return None
    file, line = frame.f_code.co_filename, frame.f_lineno
    stem = os.path.splitext(os.path.basename(file))[0].strip().lstrip(".")
    if stem in ("__main__", "__init__"):  # of a package: its folder says more
        stem = os.path.basename(os.path.dirname(os.path.abspath(file))).lstrip(".") or stem
    return Origin(os.path.abspath(file), line, stem + _suffix(file, line)) if stem else None


def _suffix(file: str, line: int) -> str:
    """'' for the first unnamed pipeline of a file; '-' and the variable (or its number) for another."""
    source = source_file(file)
    if source is None:
        return ""
    names: dict[int, str] = {}  # of the call nodes that are given a variable
    calls: list[ast.Call] = []
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.With, ast.AsyncWith)):
            names.update((id(item.context_expr), _variable(item.optional_vars)) for item in node.items)
        elif isinstance(node, ast.Assign):
            names[id(node.value)] = _variable(node.targets[0])
        elif isinstance(node, ast.Call):
            calls.append(node)
    here = [call for call in calls if call.lineno <= line <= (call.end_lineno or call.lineno)]
    # The call of the class itself: the innermost one without its own name.
    made = [call for call in here if _makes_unnamed(call)]
    if not made:
        return ""
    chosen = max(made, key=lambda call: (call.lineno, call.col_offset))
    maker = ast.unparse(chosen.func)
    alike = [call for call in calls if _makes_unnamed(call) and ast.unparse(call.func) == maker]
    alike.sort(key=lambda call: (call.lineno, call.col_offset))
    number = next(at for at, call in enumerate(alike) if call is chosen)
    if not number:
        return ""
    variable = names.get(id(chosen), "")
    taken = [names.get(id(call), "") for call in alike[1:number]]
    return f"-{variable}" if variable and variable not in taken else f"-{number + 1}"


def _makes_unnamed(call: ast.Call) -> bool:
    named = any(keyword.arg == "name" for keyword in call.keywords)
    return not call.args and not named and isinstance(call.func, (ast.Name, ast.Attribute))


def _variable(target: ast.expr | None) -> str:
    return target.id if isinstance(target, ast.Name) else ""


#: Origin of pipelines -> the fingerprints of those that ran in this process, in the order of their first runs.
_ran: dict[Origin, list[str]] = {}


def number_of(place: Origin, fingerprint: str, *, update: bool) -> int:
    """The number, from 1, of this pipeline among those that one place made in this process: a loop may make several.

    With `update` it is the first one, changed.
    """
    fingerprints = _ran.setdefault(place, [])
    if fingerprint in fingerprints:
        return fingerprints.index(fingerprint) + 1
    if update and fingerprints:
        fingerprints[0] = fingerprint
        return 1
    fingerprints.append(fingerprint)
    return len(fingerprints)
