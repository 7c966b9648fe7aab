"""Who writes what: in `core`, each attribute of a call or a replica has one writer beside its own class."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from asyncsynth import core
from asyncsynth.core.breaker import Breaker
from asyncsynth.core.calls import Call
from asyncsynth.core.replica_state import Health, Replica
from asyncsynth.core.retry import AttemptState

SOURCES = sorted(Path(core.__file__).parent.glob("*.py"))
ATTRIBUTES = {name for kind in (Call, Replica, Health, Breaker, AttemptState) for name in kind.__slots__}
#: `state` moves by the tables of `core.states`; test_each_move_is_made_in_one_module is about it.
SHARED = {"state"}
CHANGES = {
    "add",
    "append",
    "appendleft",
    "clear",
    "discard",
    "extend",
    "pop",
    "popleft",
    "remove",
    "setdefault",
    "update",
}
MOVES = {"started", "queued", "asleep", "starving", "held_back", "finished", "cancelled"}


def written(node: ast.AST) -> list[ast.expr]:
    """The expressions that a statement or call changes."""
    match node:
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            return [one for target in targets for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            return [target]
        case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in CHANGES:
            return [value]
    return []


def test_each_attribute_has_one_writer() -> None:
    writers: dict[str, set[str]] = defaultdict(set)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target in written(node):
                inner = target.value if isinstance(target, ast.Subscript) else target
                if not isinstance(inner, ast.Attribute) or inner.attr not in ATTRIBUTES - SHARED:
                    continue
                if not (isinstance(inner.value, ast.Name) and inner.value.id == "self"):
                    writers[inner.attr].add(path.stem)
    assert len(writers) > 20, "the search finds what is written"
    assert not {attribute: who for attribute, who in writers.items() if len(who) > 1}


def test_each_move_is_made_in_one_module() -> None:
    """But a queue is entered at two doors: `core.calls` has the ordinary one, `core.waiting` that of suspects."""
    makers: dict[str, set[str]] = defaultdict(set)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Subscript(value=ast.Name(id=name)) if name in MOVES:
                    makers[name].add(path.stem)
                case ast.Assign(targets=[ast.Attribute(attr="state")], value=value):
                    by_table = isinstance(value, ast.Subscript)
                    assert by_table or path.stem in {"calls", "breaker"}, f"{path.name}:{node.lineno}"
    assert makers == {**{move: {"dispatch"} for move in MOVES}, "queued": {"calls", "waiting"}}
