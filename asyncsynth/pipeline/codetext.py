"""The text of a user's functions, classes and modules, without the parts that do not affect results.

Comments, blank lines, quotes and docstrings are no part of a text. It comes from the source if the source is the
code that runs. A function whose file was edited after its import, or that was typed at a prompt, is represented by
its bytecode.
"""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import linecache
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

_MAX_BYTES = 4 << 20  #: a larger file is data; its functions are represented by their bytecode
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_WITH_DOCS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
#: Decorators that do not read a function's docstring.
_PLAIN = frozenset({"staticmethod", "classmethod", "property", "cached_property", "cache", "lru_cache", "wraps"})
_OWN = ("task", "step")
_OF_A_PROJECT = ("pyproject.toml", "setup.py", "setup.cfg")


@functools.lru_cache(maxsize=4096)
def is_users(filename: str) -> bool:
    """Whether code from this file is the user's own: neither Python's, nor an installed package's, nor asyncsynth's."""
    if not filename:
        return False
    if filename.startswith("<"):  # a notebook's cell, a prompt, a generated function
        return not filename.startswith(("<frozen", "<attrs", "<template"))
    path = os.path.realpath(filename)
    parts = path.split(os.sep)
    if "site-packages" in parts or "dist-packages" in parts:
        return False
    return not any(path.startswith(folder + os.sep) for folder in _installed_folders())


@functools.lru_cache(maxsize=1)
def _installed_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return tuple({os.path.realpath(path) for path in (paths["stdlib"], paths["platstdlib"], own)})


class SourceFile:
    """One file, parsed and compiled once.

    Attributes:
        tree: its syntax tree.
    """

    def __init__(self, source: str, filename: str) -> None:
        self.source = source
        self.tree: ast.Module = ast.parse(source)
        self._nodes: dict[tuple[str, int], list[Any]] = {}
        self._classes: dict[str, list[ast.ClassDef]] = {}
        self._codes: dict[tuple[str, int], list[CodeType]] = {}
        self._index(self.tree, "")
        for code in nested(compile(source, filename, "exec", dont_inherit=True)):
            self._codes.setdefault((code.co_name, code.co_firstlineno), []).append(code)

    def _index(self, node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, _FUNCTIONS):
                name = getattr(child, "name", "<lambda>")
                decorators = getattr(child, "decorator_list", [])
                line = min([child.lineno, *(each.lineno for each in decorators)])
                self._nodes.setdefault((name, line), []).append(child)
                inner = f"{prefix}{name}.<locals>."
            elif isinstance(child, ast.ClassDef):
                self._classes.setdefault(prefix + child.name, []).append(child)
                inner = f"{prefix}{child.name}."
            self._index(child, inner)

    def function(self, code: CodeType) -> Any:
        """The node of a function, None if it cannot be identified, or is not the code that runs."""
        key = code.co_name, code.co_firstlineno
        nodes = self._nodes.get(key, ())
        return nodes[0] if len(nodes) == 1 and code in self._codes.get(key, ()) else None

    def classes(self, qualname: str) -> list[ast.ClassDef]:
        """The classes of that qualified name."""
        return self._classes.get(qualname, [])

    @functools.cached_property
    def text(self) -> str:
        """The whole module."""
        return ast.unparse(_Bare(keep_docs="__doc__" in self.source).visit(_copied(self.tree)))


_files: dict[str, tuple[str, SourceFile | None]] = {}


def source_file(filename: str) -> SourceFile | None:
    """The file as it is on the disk (or in the notebook) now; None if there is no Python source to read."""
    linecache.checkcache(filename)
    lines = linecache.getlines(filename)
    source = "".join(lines)
    known = _files.get(filename)
    if known is not None and known[0] == source:
        return known[1]
    found: SourceFile | None = None
    if (source or _is_empty(filename)) and len(source) <= _MAX_BYTES:
        try:
            found = SourceFile(source, filename)
        except (SyntaxError, ValueError, RecursionError):
            found = None
    _files[filename] = source, found
    return found


def _is_empty(filename: str) -> bool:
    """Whether it is an empty source file, as many ``__init__.py`` files are."""
    return filename.endswith(".py") and os.path.isfile(filename) and not os.path.getsize(filename)


@functools.lru_cache(maxsize=4096)
def project_folder(filename: str) -> str:
    """The folder that moves when the user moves a file's project: the nearest one with the mark of a project,
    else the one that holds the file or its packages."""
    here = folder = os.path.dirname(os.path.abspath(filename))
    while os.path.isfile(os.path.join(here, "__init__.py")) and os.path.dirname(here) != here:
        here = os.path.dirname(here)
    top = here
    while os.path.dirname(folder) != folder:
        if any(os.path.isfile(os.path.join(folder, name)) for name in _OF_A_PROJECT):
            return folder
        folder = os.path.dirname(folder)
    return top


def function_text(code: CodeType, scope: Mapping[str, Any]) -> str:
    """The text of a function, its nested ones included. `scope`: its globals."""
    file = source_file(code.co_filename)
    node = None if file is None else file.function(code)
    if node is None:
        return bytecode_text(code)
    node = _copied(node)
    if isinstance(node, ast.Lambda):
        return ast.unparse(node)
    node.decorator_list = [each for each in node.decorator_list if not _is_own(each, scope)]
    # A decorator may use the docstring; prompt libraries do.
    keep = any(_last_name(each) not in _PLAIN for each in node.decorator_list)
    doc = ast.get_docstring(node, clean=False) if keep else None
    text = ast.unparse(_Bare().visit(node))
    return text if doc is None else f"{text}\n{doc}"


def class_text(kind: type, filename: str, *, methods: bool = False) -> str:
    """The text of a class: bases, annotations, assignments, and `methods`. '' if it cannot be read."""
    file = source_file(filename) if filename else None
    found = [] if file is None else file.classes(kind.__qualname__)
    texts = []
    for node in found:
        bare = _copied(node)
        if not methods:
            bare.body = [each for each in bare.body if not isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))]
        texts.append(ast.unparse(_Bare().visit(bare)))
    return "\n".join(texts)


def bytecode_text(code: CodeType) -> str:
    """Instructions, names and constants, those of nested functions included; no addresses."""
    consts = [
        bytecode_text(item)
        if isinstance(item, CodeType)
        else repr(sorted(map(repr, item)))  # a set's order changes from process to process
        if isinstance(item, frozenset)
        else repr(item)
        for item in code.co_consts
    ]
    return repr((code.co_code.hex(), code.co_names, consts))


def nested(code: CodeType) -> Iterator[CodeType]:
    """A code object and all those in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested(constant)


def module_file(name: str) -> str | None:
    """The file of a module, found without importing it or its packages; None if there is none."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return getattr(loaded, "__file__", None)
    path: Any = None
    spec = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        try:
            spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:end]), path)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and end < len(parts):
            return None
    return spec.origin if spec is not None and spec.has_location else None


class _Bare(ast.NodeTransformer):
    """Takes docstrings away."""

    def __init__(self, *, keep_docs: bool = False) -> None:
        self._keep = keep_docs

    def visit(self, node: ast.AST) -> Any:
        if not self._keep and isinstance(node, _WITH_DOCS) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        if isinstance(node, _WITH_DOCS) and not node.body and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]
        return self.generic_visit(node)


def _copied(node: Any) -> Any:
    """A deep copy of a syntax tree, without the recursion of `copy.deepcopy` through its contexts."""
    if isinstance(node, list):
        return [_copied(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    made = type(node)(**{name: _copied(value) for name, value in ast.iter_fields(node)})
    return ast.copy_location(made, node)


def _last_name(decorator: ast.expr) -> str:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def _is_own(decorator: ast.expr, scope: Mapping[str, Any]) -> bool:
    """Whether it is `@task` or `@step`: what they are given are settings of the step."""
    if _last_name(decorator) not in _OWN:
        return False
    called: Any = decorator.func if isinstance(decorator, ast.Call) else decorator
    while isinstance(called, ast.Attribute):
        called = called.value
    found = scope.get(getattr(called, "id", ""))
    module = getattr(found, "__module__", None) or getattr(found, "__name__", "")
    return str(module).split(".")[0] == "asyncsynth"
