"""Old results never answer for new code: whatever a user's step reads is part of its fingerprint."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest

from asyncsynth.cli.pipeline_file import load_pipeline
from tests.kit.user_modules import HEAD, loaded, plan_of, task_file
from tests.matrix.plugin import Tried

F1 = "def f(t): return t + '1'\n"
ROW = 'row["instruction"]'

Case = tuple[dict[str, str], str, str, str]  #: files, the one that is edited, the old text, the new text


def case(main: str, helper: str, old: str, new: str) -> Case:
    return {"p.py": main, "helper.py": helper}, "helper.py", old, new


def own(main: str, old: str, new: str) -> Case:
    return {"p.py": main}, "p.py", old, new


def step_file(definition: str, chain: str, imports: str = "import helper") -> str:
    return f"""{HEAD}{imports}
{definition}
with Pipeline(name="p") as p:
    LoadDataFromDicts(data=[{{"instruction": "q"}}] * 3) >> {chain}
"""


PACKAGE = {
    "pkg/__init__.py": "",
    "pkg/a.py": "from .b import g\nfrom . import c\ndef f(t): return g(t) + c.TAIL\n",
    "pkg/b.py": "def g(t): return t + '1'\n",
    "pkg/c.py": "TAIL = '!'\n",
}
TASK_CLASS = """
class Ask(TextGeneration):
    def messages(self, row, ctx):
        return [{"role": "user", "content": EXPRESSION}]
"""
ASK = 'Ask(llm=LLM(model="m"))'

EDITS: dict[str, Case] = {
    # what the case files show
    "from helper import f": case(task_file("from helper import f", f"f({ROW})"), F1, "'1'", "'2'"),
    "import helper": case(task_file("import helper", f"helper.f({ROW})"), F1, "'1'", "'2'"),
    "a helper of a helper": case(
        task_file("from helper import f", f"f({ROW})"), F1.replace(" f(", " g(") + "def f(t): return g(t)\n",
        "'1'", "'2'",
    ),
    "constant of a helper": case(
        task_file("from helper import f", f"f({ROW})"), "S = '1'\ndef f(t): return t + S\n", "'1'", "'2'"
    ),
    "module.CONSTANT": case(task_file("import helper", f"helper.PROMPT + {ROW}"), "PROMPT = 'a'\n", "'a'", "'b'"),
    "object with a method": case(
        task_file("from helper import P", f"p_.f({ROW})", before="p_ = P()"),
        "class P:\n    def f(self, t): return t + '1'\n", "'1'", "'2'",
    ),
    # ways to import
    "module alias": case(task_file("import helper as h", f"h.f({ROW})"), F1, "'1'", "'2'"),
    "alias of a function": own(
        task_file("", f"f({ROW})", before="def a(t): return t\ndef b(t): return t + t\nf, g = a, b\nx = (a, b)"),
        "f, g = a, b", "f, g = b, a",
    ),
    "from pkg.sub import x": (
        {"p.py": task_file("from pkg.a import f", f"f({ROW})"), **PACKAGE}, "pkg/b.py", "'1'", "'2'",
    ),
    "import pkg.sub": (
        {"p.py": task_file("import pkg.a", f"pkg.a.f({ROW})"), **PACKAGE}, "pkg/c.py", "'!'", "'?'",
    ),
    "from pkg import sub": (
        {"p.py": task_file("from pkg import c", f"c.TAIL + {ROW}"), **PACKAGE}, "pkg/c.py", "'!'", "'?'",
    ),
    "import inside the function": (
        {"p.py": task_file("", f"g({ROW})", before="def g(t):\n    from pkg.a import f\n    return f(t)"), **PACKAGE},
        "pkg/b.py", "'1'", "'2'",
    ),
    "a module passed on": case(
        task_file("import helper", f"call(helper, {ROW})", before="def call(m, t): return m.f(t)"), F1, "'1'", "'2'"
    ),
    "a module read by name": case(task_file("import helper", f"getattr(helper, 'f')({ROW})"), F1, "'1'", "'2'"),
    "star import": case(task_file("from helper import *", f"f({ROW})"), F1, "'1'", "'2'"),
    # kinds of values
    "enum": case(
        task_file("from helper import E", f"E.A.value + {ROW}"),
        "import enum\nclass E(enum.Enum):\n    A = 'a'\n", "'a'", "'b'",
    ),
    "class attribute": case(
        task_file("import helper", f"helper.C.PROMPT + {ROW}"), "class C:\n    PROMPT = 'a'\n", "'a'", "'b'"
    ),
    "computed class attribute": case(
        task_file("import helper", f"helper.C.PROMPT + {ROW}"),
        "X = 'a'\nclass C:\n    PROMPT = X\n", "X = 'a'", "X = 'b'",
    ),
    "base class": case(
        task_file("import helper", f"helper.C().f({ROW})"),
        "class B:\n    def f(self, t): return t + '1'\nclass C(B): pass\n", "'1'", "'2'",
    ),
    "dataclass default": case(
        task_file("import helper", f"helper.C().x + {ROW}"),
        "import dataclasses\n@dataclasses.dataclass\nclass C:\n    x: str = 'a'\n", "'a'", "'b'",
    ),
    "dataclass object": case(
        task_file("from helper import c", f"c.x + {ROW}"),
        "import dataclasses\n@dataclasses.dataclass\nclass C:\n    x: str\nc = C('a')\n", "'a'", "'b'",
    ),
    "pydantic object": case(
        task_file("from helper import c", f"c.x + {ROW}"),
        "import pydantic\nclass C(pydantic.BaseModel):\n    x: str\nc = C(x='a')\n", "'a'", "'b'",
    ),
    "named tuple": case(
        task_file("from helper import c", f"c.x + {ROW}"),
        "import typing\nclass C(typing.NamedTuple):\n    x: str\nc = C(x='a')\n", "'a'", "'b'",
    ),
    "object with __slots__": case(
        task_file("from helper import c", f"c.x + {ROW}"),
        "class C:\n    __slots__ = ('x',)\n    def __init__(self, x): self.x = x\nc = C('a')\n", "C('a')", "C('b')",
    ),
    "object with __call__": case(
        task_file("from helper import c", f"c({ROW})"),
        "class C:\n    def __call__(self, t): return t + '1'\nc = C()\n", "'1'", "'2'",
    ),
    "property": case(
        task_file("from helper import c", f"c.x + {ROW}"),
        "class C:\n    @property\n    def x(self): return '1'\nc = C()\n", "'1'", "'2'",
    ),
    "staticmethod": case(
        task_file("from helper import C", f"C.f({ROW})"),
        "class C:\n    @staticmethod\n    def f(t): return t + g()\ndef g(): return '1'\n", "'1'", "'2'",
    ),
    "classmethod": case(
        task_file("from helper import C", f"C.f({ROW})"),
        "class C:\n    X = '1'\n    @classmethod\n    def f(cls, t): return t + cls.X\n", "'1'", "'2'",
    ),
    "bound method": case(
        task_file("from helper import f", f"f({ROW})"),
        "class C:\n    def __init__(self, x): self.x = x\n    def f(self, t): return t + self.x\nf = C('1').f\n",
        "C('1')", "C('2')",
    ),
    "dict of functions": case(
        task_file("from helper import D", f"D['a']({ROW})"),
        "def g(t): return t + '1'\nD = {'a': g}\n", "'1'", "'2'",
    ),
    "order of a dict": case(
        task_file("from helper import D", f"str(D) + {ROW}"), "D = {'a': 1, 'b': 2}\n",
        "'a': 1, 'b': 2", "'b': 2, 'a': 1",
    ),
    "list inside a tuple": case(
        task_file("from helper import D", f"str(D) + {ROW}"), "D = ([1, {'x': {2, 3}}],)\n", "{2, 3}", "{2, 4}"
    ),
    "regular expression": case(
        task_file("from helper import R", f"R.sub('', {ROW})"), "import re\nR = re.compile('a')\n", "'a'", "'b'"
    ),
    "method of a pattern": case(
        task_file("from helper import R", f"R('', {ROW})"), "import re\nR = re.compile('a').sub\n", "'a'", "'b'"
    ),
    "path, date, decimal": case(
        task_file("from helper import D", f"str(D) + {ROW}"),
        "import datetime, decimal, pathlib\nD = [pathlib.Path('a'), datetime.date(2020, 1, 1), decimal.Decimal('1')]\n",
        "'1'", "'2'",
    ),
    "a long list": case(
        task_file("from helper import D", f"D[70] + {ROW}"),
        "D = ['x'] * 70 + ['a']\n", "['a']", "['b']",
    ),
    "a huge number": case(task_file("import helper", f"str(helper.N) + {ROW}"), "N = 2 ** 80\n", "80", "81"),
    "a file read at import": (
        {
            "p.py": task_file("import helper", f"helper.PROMPT + {ROW}"),
            "helper.py": "import pathlib\nPROMPT = (pathlib.Path(__file__).parent / 'prompt.txt').read_text()\n",
            "prompt.txt": "first words",
        },
        "prompt.txt", "first", "other",
    ),
    # ways to hold a value
    "closure": case(
        task_file("from helper import f", f"f({ROW})"),
        "def make(x):\n    def f(t): return t + x\n    return f\nf = make('1')\n", "'1'", "'2'",
    ),
    "closure over an object": case(
        task_file("from helper import f", f"f({ROW})"),
        "class C:\n    def g(self): return '1'\ndef make(x):\n    return lambda t: t + x.g()\nf = make(C())\n",
        "'1'", "'2'",
    ),
    "partial": case(
        task_file("from helper import f", f"f({ROW})"),
        "import functools\ndef g(t, x): return t + x\nf = functools.partial(g, x='1')\n", "'1'", "'2'",
    ),
    "function in a partial": case(
        task_file("from helper import f", f"f({ROW})"),
        "import functools\ndef g(x, t): return t + x + '!'\nf = functools.partial(g, '1')\n", "'!'", "'?'",
    ),
    "default argument": case(
        task_file("from helper import f", f"f({ROW})"), "X = '1'\ndef f(t, x=X): return t + x\n", "'1'", "'2'"
    ),
    "keyword default": case(
        task_file("from helper import f", f"f({ROW})"), "X = '1'\ndef f(t, *, x=X): return t + x\n", "'1'", "'2'"
    ),
    "function in a default": case(
        task_file("from helper import f", f"f({ROW})"),
        "def g(t): return t + '1'\ndef f(t, x=g): return x(t)\n", "'1'", "'2'",
    ),
    "decorator": case(
        task_file("from helper import f", f"f({ROW})"),
        "import functools\ndef d(g):\n    @functools.wraps(g)\n    def w(t): return g(t) + '!'\n    return w\n"
        "@d\ndef f(t): return t + '1'\n", "'!'", "'?'",
    ),
    "what a decorator wraps": case(
        task_file("from helper import f", f"f({ROW})"),
        "import functools\ndef d(g):\n    @functools.wraps(g)\n    def w(t): return g(t) + '!'\n    return w\n"
        "@d\ndef f(t): return t + '1'\n", "'1'", "'2'",
    ),
    "argument of a decorator": case(
        task_file("from helper import f", f"f({ROW})"),
        "def d(x):\n    def e(g): return lambda t: g(t) + x\n    return e\n"
        "@d('!')\ndef f(t): return t\n", "'!'", "'?'",
    ),
    "lru_cache": case(
        task_file("from helper import f", f"f({ROW})"),
        "import functools\n@functools.lru_cache\ndef f(t): return g(t)\ndef g(t): return t + '1'\n", "'1'", "'2'",
    ),
    "context manager": case(
        task_file("from helper import f", f"g({ROW})", before="def g(t):\n    with f() as x: return t + x"),
        "import contextlib\n@contextlib.contextmanager\ndef f(): yield g()\ndef g(): return '1'\n", "'1'", "'2'",
    ),
    "singledispatch": case(
        task_file("from helper import f", f"f({ROW})"),
        "import functools\n@functools.singledispatch\ndef f(t): return t\n"
        "@f.register\ndef g(t: str): return t + '1'\n", "'1'", "'2'",
    ),
    "global state": case(
        task_file("from helper import f", f"f({ROW})"),
        "_s = {}\ndef put(v):\n    global _x\n    _x = v\nput('1')\ndef f(t): return t + _x\n", "'1'", "'2'",
    ),
    "async helper": case(
        task_file("from helper import f", f"await f({ROW})"), "async def f(t): return t + '1'\n", "'1'", "'2'"
    ),
    "generator": case(
        task_file("from helper import f", f"''.join(f({ROW}))"), "def f(t): yield t + '1'\n", "'1'", "'2'"
    ),
    "name in a comprehension": case(
        task_file("from helper import f", f"''.join([f(c) for c in {ROW}])"), F1, "'1'", "'2'"
    ),
    "name in a lambda": case(
        task_file("from helper import f", f"(lambda t: f(t))({ROW})"), F1, "'1'", "'2'"
    ),
    "name in a nested function": case(
        task_file("import helper", f"g({ROW})", before="def g(t):\n    def h(): return helper.f(t)\n    return h()"),
        F1, "'1'", "'2'",
    ),
    "class inside a function": case(
        task_file("import helper", f"g({ROW})", before="def g(t):\n    class K: x = helper.f(t)\n    return K.x"),
        F1, "'1'", "'2'",
    ),
    "mutual recursion": case(
        task_file("from helper import f", f"f({ROW})"),
        "def f(t): return g(t) if t else ''\ndef g(t): return f(t[1:]) + '1'\n", "'1'", "'2'",
    ),
    "an object that holds itself": case(
        task_file("from helper import c", f"c.x + {ROW}"),
        "class C: pass\nc = C()\nc.me = c\nc.x = '1'\n", "'1'", "'2'",
    ),
    "docstring that is read": case(
        task_file("from helper import f", f"f.__doc__ + {ROW}"), 'def f(t):\n    "one"\n    return t\n', "one", "two"
    ),
    # kinds of steps
    "a check in an annotation": case(
        task_file("import helper", f"helper.C(x='a').x + {ROW}"),
        "import pydantic, typing\ndef g(x): return x + '1'\n"
        "class C(pydantic.BaseModel):\n    x: typing.Annotated[str, pydantic.AfterValidator(g)]\n", "'1'", "'2'",
    ),
    "a constant in a field": case(
        task_file("import helper", f"str(helper.C(x=9)) + {ROW}"),
        "import pydantic\nLEAST = 3\nclass C(pydantic.BaseModel):\n    x: int = pydantic.Field(ge=LEAST)\n", "3", "4",
    ),
    "a constant as a field's default": case(
        task_file("import helper", f"str(helper.C()) + {ROW}"),
        "import pydantic\nN = 3\nclass C(pydantic.BaseModel):\n    x: int = N\n", "3", "4",
    ),
    "a type with arguments": case(
        task_file("import helper", f"helper.B().f({ROW})"),
        "import typing\nT = typing.TypeVar('T')\nclass A(typing.Generic[T]):\n    def f(self, t): return t + '1'\n"
        "B = A[int]\n", "'1'", "'2'",
    ),
    "an annotated type": case(
        task_file("import helper", f"str(helper.A) + {ROW}"),
        "import pydantic, typing\ndef g(x): return x + '1'\nA = typing.Annotated[str, pydantic.AfterValidator(g)]\n",
        "'1'", "'2'",
    ),
    "a TypeAdapter": case(
        task_file("import helper", f"helper.T.validate_python({ROW})"),
        "import pydantic, typing\ndef g(x): return x + '1'\n"
        "T = pydantic.TypeAdapter(typing.Annotated[str, pydantic.AfterValidator(g)])\n", "'1'", "'2'",
    ),
    "the factory of a defaultdict": case(
        task_file("import helper", f"helper.D['x'] + {ROW}"),
        "import collections\nD = collections.defaultdict(lambda: '1')\n", "'1'", "'2'",
    ),
    "a UserDict": case(
        task_file("import helper", f"helper.D['x'] + {ROW}"),
        "import collections\nD = collections.UserDict(x='1')\n", "'1'", "'2'",
    ),
    "a template": case(
        task_file("import helper", f"helper.T.render(x={ROW})"), "import jinja2\nT = jinja2.Template('{{x}} 1')\n",
        "1'", "2'",
    ),
    "a filter of a template": case(
        task_file("import helper", f"helper.T.render(x={ROW})"),
        "import jinja2\ndef up(t): return t + '1'\nE = jinja2.Environment()\nE.filters['up'] = up\n"
        "T = E.from_string('{{x|up}}')\n", "'1'", "'2'",
    ),
    "a template that its loader holds": case(
        task_file("import helper", f"helper.E.get_template('a').render(x={ROW})"),
        "import jinja2\nE = jinja2.Environment(loader=jinja2.DictLoader({'a': '{{x}} 1'}))\n", "1'", "2'",
    ),
    "an import by a name that is written there": case(
        task_file("import importlib", f"importlib.import_module('helper').f({ROW})"), F1, "'1'", "'2'"
    ),
    "an import in the body from a folder without __init__.py": (
        {"p.py": task_file("", f"g({ROW})", before="def g(t):\n    from parts import sub\n    return sub.f(t)\n"),
         "parts/sub.py": F1}, "parts/sub.py", "'1'", "'2'",
    ),
    "a path in the project": case(
        task_file("import helper", f"helper.P.name + {ROW}"),
        "import pathlib\nP = pathlib.Path(__file__).parent / 'a.txt'\n", "a.txt", "b.txt",
    ),
    "Filter's lambda, a constant": case(
        step_file("", 'Filter(lambda row: len(row["instruction"]) < helper.MOST)'), "MOST = 3\n", "3", "4"
    ),
    "Filter's lambda, a function": case(
        step_file("", 'Filter(lambda row: helper.f(row["instruction"]))'), F1, "'1'", "'2'"
    ),
    "Filter's partial": case(
        step_file("import functools", "Filter(functools.partial(helper.f, 3))"),
        "def f(n, row): return g(n)\ndef g(n): return n > 1\n", "1", "2",
    ),
    "Filter's bound method": case(
        step_file("", "Filter(helper.C(3).keep)"),
        "class C:\n    def __init__(self, n): self.n = n\n    def keep(self, row): return self.n > g()\n"
        "def g(): return 1\n", "return 1", "return 2",
    ),
    "a Task subclass, a constant": case(
        step_file(TASK_CLASS.replace("EXPRESSION", f"helper.PROMPT + {ROW}"), ASK), "PROMPT = 'a'\n", "'a'", "'b'"
    ),
    "a Task subclass, its own constant": own(
        step_file("PROMPT = 'a'\n" + TASK_CLASS.replace("EXPRESSION", f"PROMPT + {ROW}"), ASK, ""), "'a'", "'b'"
    ),
    "a Task subclass, its base in a helper": case(
        step_file("class Ask(helper.Base): pass", ASK),
        "from asyncsynth import TextGeneration" + TASK_CLASS.replace("Ask", "Base").replace("EXPRESSION", "'a'"),
        "'a'", "'b'",
    ),
    "a Task subclass, its private state": case(
        step_file(
            TASK_CLASS.replace("EXPRESSION", "self._words + 'x'")
            + "    def __init__(self, **more):\n        self._words = helper.PROMPT\n"
            "        super().__init__(**more)\n",
            ASK,
        ),
        "PROMPT = 'a'\n", "'a'", "'b'",
    ),
    "a RowStep": case(
        step_file(
            "class Own(RowStep):\n    outputs = ('n',)\n    def apply(self, row): return {**row, 'n': helper.N}",
            "Own()",
        ),
        "N = 3\n", "3", "4",
    ),
    "a RowStep's helper object": case(
        step_file(
            "class Own(RowStep):\n    outputs = ('n',)\n    def __init__(self, how):\n        self.how = how\n"
            "        super().__init__()\n    def apply(self, row): return {**row, 'n': self.how.f()}",
            "Own(helper.How())",
        ),
        "class How:\n    def f(self): return 3\n", "3", "4",
    ),
    "@step": case(
        step_file(
            '@step(inputs=["instruction"], outputs=["n"])\ndef count(row): return {"n": helper.N}', "count()"
        ),
        "N = 3\n", "3", "4",
    ),
    "columns of a @step": own(
        step_file('@step(inputs=["instruction"], outputs=["n"])\ndef count(row): return {"n": 1}', "count()", ""),
        'outputs=["n"]', 'outputs=["m"]',
    ),
    "a GlobalStep": case(
        step_file(
            "from asyncsynth import GlobalStep\nclass Own(GlobalStep):\n"
            "    def decide(self, rows): return [{}] * helper.N", "Own()"
        ),
        "N = 3\n", "3", "4",
    ),
    "a pydantic class": case(
        step_file("", 'StructuredGeneration(llm=LLM(model="m"), schema=helper.Person)'),
        "import pydantic\nclass Person(pydantic.BaseModel):\n    age: int\n    @pydantic.field_validator('age')\n"
        "    @classmethod\n    def old(cls, v): return check(v)\ndef check(v): return v + 1\n", "1", "2",
    ),
}  # fmt: skip


@pytest.mark.row(34)
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_anything_that_a_step_reads_is_noticed(tmp_path: Path, name: str, tried: Tried) -> None:
    files, edited, old, new = EDITS[name]
    assert old in files[edited]
    before, again = plan_of(tmp_path, files), plan_of(tmp_path, files)
    assert before.fields == again.fields, "the same files, the same fingerprint"
    after = plan_of(tmp_path, {**files, edited: files[edited].replace(old, new)})
    assert after.fingerprint != before.fingerprint
    if before.model_steps and "Filter" not in files["p.py"]:
        assert after.model_steps[0].fingerprint != before.model_steps[0].fingerprint
    tried(1, "edits of what a step reads")


UNREAD: dict[str, Case] = {
    "comments and blank lines": case(
        task_file("from helper import f", f"f({ROW})"), F1, "def f", "# about f\n\n\ndef f"
    ),
    "quotes": case(task_file("from helper import f", f"f({ROW})"), F1, "'1'", '"1"'),
    "docstrings": case(
        task_file("from helper import f", f"f({ROW})"), 'def f(t):\n    "one"\n    return t\n', "one", "two"
    ),
    "another function of the helper": case(
        task_file("from helper import f", f"f({ROW})"), F1 + "def g(t): return 5\n", "5", "6"
    ),
    "another constant of the helper": case(
        task_file("import helper", f"helper.f({ROW})"), F1 + "OTHER = 5\n", "5", "6"
    ),
    "a lock and a logger": case(
        task_file("from helper import f", f"f({ROW})"),
        "import logging, threading\nL = threading.Lock()\nG = logging.getLogger('a')\n"
        "def f(t):\n    with L: G.info(t)\n    return t\n", "'a'", "'b'",
    ),
    "what a class leaves out": case(
        task_file("from helper import c", f"c.x + {ROW}"),
        "N = 5\nclass C:\n    not_fingerprinted = frozenset({'born'})\n    x = ''\nc = C()\nc.born = N\n", "5", "6",
    ),
    "where the model of a @task runs": own(
        task_file("", ROW), 'LLM(model="m")', 'LLM(model="m", base_url="http://127.0.0.1:1/v1")'
    ),
    "code of another step's": own(
        task_file("", ROW) + "def other(): return 5\n", "return 5", "return 6"
    ),
}  # fmt: skip


@pytest.mark.row(34)
@pytest.mark.parametrize("name", UNREAD)
def test_what_a_step_does_not_read_costs_nothing(tmp_path: Path, name: str, tried: Tried) -> None:
    files, edited, old, new = UNREAD[name]
    assert old in files[edited]
    before = plan_of(tmp_path, files)
    after = plan_of(tmp_path, {**files, edited: files[edited].replace(old, new)})
    assert after.fields == before.fields
    tried(1, "edits of what no step reads")


def test_a_name_in_the_plan_says_what_changed(tmp_path: Path) -> None:
    files, *_ = EDITS["constant of a helper"]
    with loaded(tmp_path, files) as pipeline:
        code = pipeline.steps[1].code()
    assert code.parts["helper.S"] == "1"
    assert set(code.parts) == {"(inputs)", "(outputs)", "(optional_inputs)", "ask", "f", "helper.f", "helper.S"}


MISSED: dict[str, tuple[str, str, str]] = {
    "an open file": ("import sys\nF = sys.__stderr__\ndef f(t): return F.name\n", "helper.F", "TextIOWrapper"),
    "a client": (
        "import httpx\nCLIENT = httpx.AsyncClient()\ndef f(t): return str(CLIENT)\n", "helper.CLIENT", "AsyncClient"
    ),
    "a generator of chance": (
        "import random\nR = random.Random(3)\ndef f(t): return R.random()\n", "helper.R", "Random"
    ),
    "a file that is opened": ("def f(t): return open('x').read()\n", "helper.f", "the files that it opens"),
    "a context variable": (
        "import contextvars\nV = contextvars.ContextVar('v')\ndef f(t): return V.get(t)\n", "helper.V", "ContextVar"
    ),
    "a module by its name": (
        "import sys\ndef f(t): return sys.modules[t].f(t)\n", "helper.f", "what it imports by name"
    ),
    "templates of a folder": (
        "import jinja2\nE = jinja2.Environment(loader=jinja2.FileSystemLoader('x'))\n"
        "def f(t): return E.get_template(t).render()\n", "helper.E['loader']", "FileSystemLoader"
    ),
    "an import by name": (
        "import importlib\ndef f(t): return importlib.import_module('x')\n", "helper.f", "what it imports by name"
    ),
    "state of an object": (
        "import httpx\nclass C:\n    def __init__(self): self.client = httpx.Client()\nc = C()\n"
        "def f(t): return str(c)\n", "helper.c.client", "Client"
    ),
}  # fmt: skip


@pytest.mark.row(34)
@pytest.mark.parametrize("name", MISSED)
def test_what_cannot_be_followed_is_named_and_changes_nothing(tmp_path: Path, name: str, tried: Tried) -> None:
    helper, where, what = MISSED[name]
    files = {"p.py": task_file("from helper import f", f"f({ROW})"), "helper.py": helper}
    first, again = plan_of(tmp_path, files), plan_of(tmp_path, files)
    assert first.fields == again.fields
    assert any(where in note and what in note and "ask_0" in note for note in first.notes), first.notes
    tried(1, "things that cannot be followed, named")


def test_an_empty_package_is_no_module_without_source(tmp_path: Path) -> None:
    body = "def g(t):\n    from pkg.a import f\n    return f(t)\n"
    plan = plan_of(tmp_path, {"p.py": task_file("", f"g({ROW})", before=body), **PACKAGE})
    assert not plan.notes


def test_installed_packages_are_known_by_their_versions(tmp_path: Path) -> None:
    files = {"p.py": task_file("import orjson", f"str(orjson.dumps({ROW}))")}
    plan = plan_of(tmp_path, files)
    assert list(plan.packages) == ["orjson"]
    assert not plan.notes


def test_a_file_that_was_edited_after_its_import_is_known_by_what_runs(tmp_path: Path) -> None:
    files = {"p.py": task_file("from helper import f", f"f({ROW})"), "helper.py": F1}
    with loaded(tmp_path, files) as pipeline:
        before = pipeline.plan().fields
        helper = Path(pipeline.steps[1].function.__globals__["f"].__code__.co_filename)
        helper.write_text(F1.replace("'1'", "'234'"))
        edited = pipeline.plan().fields
    with loaded(tmp_path, {**files, "helper.py": F1.replace("'1'", "'234'")}) as pipeline:
        assert pipeline.plan().fields != edited, "what ran was not what is in the file now"
    assert before != edited


def test_a_moved_project_is_the_same_one_from_any_folder_and_by_any_command(tmp_path: Path) -> None:
    text = (
        HEAD + "import pathlib\nHERE = pathlib.Path(__file__).parent\nFILES = [HERE / 'a.txt', str(HERE)]\n"
        "@step(inputs=['instruction'], outputs=['out'])\ndef one(row):\n    return {'out': len(FILES)}\n"
        "with Pipeline(name='p') as p:\n    LoadDataFromDicts(data=[{'instruction': 'q'}]) >> one()\n"
    )
    plans, path = [], list(sys.path)
    for folder in ("here", "there"):
        file = tmp_path / folder / "p.py"
        file.parent.mkdir()
        file.write_text(text)
        plans.append(load_pipeline(os.path.relpath(file)).plan())
        plans.append(runpy.run_path(str(file), run_name="__main__")["p"].plan())
    sys.path[:] = path
    assert len({plan.fingerprint for plan in plans}) == 1, [plan.fields for plan in plans]
