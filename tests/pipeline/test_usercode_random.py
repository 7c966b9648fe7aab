"""Random modules that use each other: an edit of what a step reaches is noticed, an edit of the rest is not."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.user_modules import plan_of, task_file
from tests.matrix.plugin import FULL, Tried

KINDS = ("constant", "container", "function", "class", "object", "partial", "closure")
WAYS = ("from", "import", "alias", "body")
MODULES = 3


@dataclass
class Thing:
    """One definition in a module, and what it reads: (index of a thing, how it is imported)."""

    module: int
    kind: str
    reads: list[tuple[int, str]] = field(default_factory=list)


@st.composite
def worlds(draw: st.DrawFn) -> list[Thing]:
    """Things in an order in which each reads earlier ones, in its own module or in one that comes before it."""
    count = draw(st.integers(2, 9))
    things: list[Thing] = []
    modules = sorted(draw(st.lists(st.integers(0, MODULES - 1), min_size=count, max_size=count)))
    for number, module in enumerate(modules):
        thing = Thing(module, draw(st.sampled_from(KINDS)))
        for other in draw(st.lists(st.integers(0, number - 1), max_size=2, unique=True)) if number else []:
            thing.reads.append((other, draw(st.sampled_from(WAYS))))
        things.append(thing)
    return things


def expression(things: list[Thing], me: int, other: int, way: str) -> tuple[str, str, str]:
    """(line at the head of the module, line in the body, expression) that reads another thing."""
    mine, its = things[me].module, things[other].module
    name = f"x{other}"
    if mine == its:
        return "", "", name
    if way == "from":
        return f"from m{its} import {name} as y{other}", "", f"y{other}"
    if way == "import":
        return f"import m{its}", "", f"m{its}.{name}"
    if way == "alias" or things[me].kind not in ("function", "class"):
        return f"import m{its} as n{its}", "", f"n{its}.{name}"
    return "", f"from m{its} import {name}", name


def written(things: list[Thing], edited: int | None = None) -> dict[str, str]:
    """The modules as files; the value of the `edited` thing is another one."""
    heads: list[list[str]] = [[] for _ in range(MODULES)]
    bodies: list[list[str]] = [[] for _ in range(MODULES)]
    for me, thing in enumerate(things):
        value = repr("new" if me == edited else "old")
        used, inside = [], []
        for other, way in thing.reads:
            head, body, text = expression(things, me, other, way)
            heads[thing.module].append(head)
            inside.append(body)
            used.append(text)
        read = ", ".join([value, *used])
        body = "; ".join(each for each in inside if each) or "pass"
        bodies[thing.module].append(
            {
                "constant": f"x{me} = {value}" if not used else f"x{me} = ({read},)",
                "container": f"x{me} = {{'a': [{read}]}}",
                "function": f"def x{me}(t):\n    {body}\n    return [t, {read}]",
                "class": f"class x{me}:\n    def method(self, t):\n        {body}\n        return [t, {read}]",
                "object": f"class k{me}:\n    def __init__(self, *given): self.given = given\nx{me} = k{me}({read})",
                "partial": f"import functools\nx{me} = functools.partial(print, {read})",
                "closure": f"def made{me}(*given):\n    return lambda t: [t, given]\nx{me} = made{me}({read})",
            }[thing.kind]
        )
    return {f"m{at}.py": "\n".join([*heads[at], *bodies[at], ""]) for at in range(MODULES)}


def reached(things: list[Thing], root: int) -> tuple[set[int], set[int]]:
    """What is certainly read from `root`, and what may count as read: all of a module that a body imports."""
    certain, maybe, waiting = set[int](), set[int](), [root]
    whole: set[int] = set()
    while waiting:
        me = waiting.pop()
        if me in certain:
            continue
        certain.add(me)
        for other, way in things[me].reads:
            waiting.append(other)
            crosses = things[me].module != things[other].module
            if crosses and way == "body" and things[me].kind in ("function", "class"):
                whole |= set(range(things[other].module + 1))  # and what that module imports
    maybe = {at for at, thing in enumerate(things) if thing.module in whole}
    return certain, maybe


@pytest.mark.slow
@pytest.mark.row(34)
def test_an_edit_is_noticed_exactly_where_a_step_reaches_it(tried: Tried) -> None:
    noticed, unread = 0, 0

    @settings(max_examples=300 if FULL else 50, deadline=None)
    @given(things=worlds(), data=st.data())
    def check(things: list[Thing], data: st.DataObject) -> None:
        nonlocal noticed, unread
        root = data.draw(st.integers(0, len(things) - 1), label="root")
        edited = data.draw(st.integers(0, len(things) - 1), label="edited")
        module = things[root].module
        main = {"p.py": task_file(f"import m{module}", f"str(m{module}.x{root}) + row['instruction']")}
        with tempfile.TemporaryDirectory() as folder:
            before = plan_of(Path(folder), {**main, **written(things)})
            again = plan_of(Path(folder), {**main, **written(things)})
            after = plan_of(Path(folder), {**main, **written(things, edited)})
        assert before.fields == again.fields
        certain, maybe = reached(things, root)
        if edited in certain:
            noticed += 1
            assert after.model_steps[0].fingerprint != before.model_steps[0].fingerprint
        elif edited not in maybe:
            unread += 1
            assert after.fields == before.fields

    check()
    tried(noticed, "edits in random modules that a step reaches")
    tried(unread, "edits in random modules that it does not")
