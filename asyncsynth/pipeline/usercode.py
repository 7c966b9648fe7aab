"""Everything that a user's step reads, followed from its classes and functions, for its fingerprint.

A collector follows functions, classes, constants, closures, defaults, `module.attribute` and imports inside functions,
to any depth, through every module that is not installed. It executes none of the user's code: values are inspected
in place. Values without a stable form (a client, an open file) are named instead.

The rule is to follow too much rather than too little: a redone result costs a request; an old result taken for a new
one spoils the data set.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import orjson

from asyncsynth.calling import unchecked
from asyncsynth.pipeline.classes import (
    MAIN,
    fields_of,
    file_of,
    is_own_class,
    is_user_class,
    is_written_attribute,
    left_out,
    stored_attributes_of,
    vars_or_slots,
)
from asyncsynth.pipeline.codetext import (
    bytecode_text,
    class_text,
    function_text,
    is_users,
)
from asyncsynth.pipeline.constants import SILENT, is_plain, parts_of_alias, stable_form
from asyncsynth.pipeline.findings import Code, Findings, digest, names_a_module
from asyncsynth.pipeline.known import held_by
from asyncsynth.pipeline.reads import Reads, absolute_names

#: Code that reads these may read any attribute of a module.
_BY_NAME = frozenset({"getattr", "vars", "__dict__", "attrgetter", "methodcaller", "globals", "eval", "exec", "dir"})
_IMPORTS_BY_NAME = frozenset({"import_module", "__import__", "modules"})  #: the last as in `sys.modules`
_READS_DOCS = frozenset({"__doc__", "getdoc"})
_READS_FILES = frozenset({"open", "read_text", "read_bytes"})
_MAX_OBJECTS = 100_000  #: functions, classes and values that are followed for one step
#: Names of a module that hold its location: moving a project changes no result.
_PLACES = frozenset({"__file__", "__path__", "__spec__", "__loader__", "__cached__", "__builtins__", "__name__"})
_OWN_ATTRIBUTES = frozenset({"default_llm", "declared_needs", "not_fingerprinted", "version"})
_SEQUENCES: tuple[Any, ...] = (list, tuple, deque)
_SETS: tuple[Any, ...] = (set, frozenset)
_SCALAR_BASES: tuple[Any, ...] = (str, bytes, int, float, complex)
_LRU_CACHE = type(functools.lru_cache(maxsize=1)(lambda: None))


class Collector:
    """Follows values; `code` holds the findings.

    Args:
        home: the module whose names are reported without its own name before them.
    """

    def __init__(self, home: str = "") -> None:
        self._findings = Findings(MAIN | {home})
        self._code = self._findings.code
        self._waiting: deque[tuple[Any, str]] = deque()
        self._inside: set[int] = set()  # containers and objects that are being looked at
        self._docs: dict[str, str] = {}
        self._reads_docs = False
        self._quiet = 0
        self._roots: set[str] = set()
        self._folders: dict[str, None] = {}  # of the projects whose code is followed, in order of discovery

    @property
    def code(self) -> Code:
        """Follows everything that is left, and returns the result."""
        while self._waiting:
            if self._findings.objects > _MAX_OBJECTS:
                self._code.missed["(more)"] = f"code beyond the first {_MAX_OBJECTS:,} objects"
                self._waiting.clear()
                break
            found, label = self._waiting.popleft()
            if isinstance(found, type):
                self._follow_class(found, label)
            else:
                self._follow_function(found, label)
        if self._reads_docs and self._docs:
            self._code.parts["(docstrings)"] = digest(orjson.dumps(self._docs, option=orjson.OPT_SORT_KEYS).decode())
        self._code.parts = dict(sorted(self._code.parts.items()))
        return self._code

    def add(self, value: Any, path: str) -> Any:
        """Follows `value` and returns its form as JSON. `path` names it where it is not a function or a class."""
        self._findings.objects += 1
        if isinstance(value, (str, PurePath)) and (inside := self._findings.inside_project(str(value))) is not None:
            return {"in the project": inside}
        found, form = stable_form(value)
        if found:
            return form
        if parts := parts_of_alias(value):
            return {"type": [self.add(part, path) for part in parts]}
        if isinstance(value, enum.Enum):
            self.add(type(value), path)
            return {"enum": f"{type(value).__qualname__}.{value.name}"}
        if isinstance(value, type):
            return {"class": self._class(value)}
        if isinstance(value, types.ModuleType):
            self._module(value, frozenset(), whole=True)
            return {"module": value.__name__}
        if (callable_form := self._callable(value, path)) is not None:
            return callable_form
        if id(value) in self._inside:
            return {"again": path}
        if self._findings.objects > _MAX_OBJECTS:
            self._code.missed["(more)"] = f"code beyond the first {_MAX_OBJECTS:,} objects"
            return {"beyond": type(value).__qualname__}
        self._inside.add(id(value))
        try:
            return self._compound(value, path)
        finally:
            self._inside.discard(id(value))

    def add_installed(self, kind: type) -> None:
        """Adds the text of a step's class that comes with an installed package: it has no `version` of ours."""
        self._findings.package(kind.__module__)
        text = class_text(kind, file_of(kind), methods=True)
        self._code.parts[f"{kind.__module__}.{kind.__qualname__}"] = digest(text)

    def root(self, value: Any, path: str) -> None:
        """Follows what a step's own attribute holds: code goes into the parts under its name, values under `path`."""
        self._root(path, self.add(value, path))

    def state(self, step: Any, name: str, value: Any) -> None:
        """Follows an attribute of the step."""
        path = f"self.{name}"
        self._root(path, self.attribute(step, name, value, path))

    def _root(self, path: str, form: Any) -> None:
        if not (isinstance(form, dict) and form.keys() <= {"code", "class"}):
            self._findings.part(path, form)

    # --- kinds of values -----------------------------------------------------------------------

    def _callable(self, value: Any, path: str) -> Any:
        """The form of a function or of an object made from one; None for anything else."""
        match value:
            case types.FunctionType():
                return {"code": self._function(value)}
            case types.MethodType():
                return {"method": self.add(value.__func__, path), "of": self.add(value.__self__, path)}
            case types.CodeType():
                return {"bytecode": digest(bytecode_text(value))}
            case functools.partial():
                parts = [self.add(each, path) for each in (value.args, value.keywords)]
                return {"partial": self.add(value.func, path), "given": parts}
            case staticmethod() | classmethod():
                return self.add(value.__func__, path)
            case property():
                return {"property": [self.add(each, path) for each in (value.fget, value.fset, value.fdel)]}
            case functools.cached_property():
                return {"property": self.add(value.func, path)}
            case functools.partialmethod():
                return self.add(functools.partial(value.func, *value.args, **value.keywords), path)
            case functools.singledispatchmethod():
                return self.add(value.dispatcher, path)
            case types.BuiltinFunctionType() | types.MethodWrapperType():
                owner = value.__self__
                if owner is None or isinstance(owner, types.ModuleType):
                    self._findings.package(value.__module__ or "")
                    if is_users(getattr(owner, "__file__", None) or ""):
                        self._code.missed.setdefault(path, "compiled code")
                    return {"builtin": value.__qualname__}
                return {"builtin": value.__qualname__, "of": self.add(owner, path)}
            case types.WrapperDescriptorType() | types.MethodDescriptorType() | types.ClassMethodDescriptorType():
                return {"builtin": value.__qualname__}
        if type(value) is _LRU_CACHE:
            return {"cached": self.add(value.__wrapped__, path)}
        return None

    def _compound(self, value: Any, path: str) -> Any:
        """The form of a container or of an object: its class and its state."""
        kind = type(value)
        form: dict[str, Any] = {}
        if is_user_class(kind):
            form["class"] = self._class(kind)
        elif is_own_class(kind) and hasattr(kind, "not_fingerprinted"):  # a step, used as an object
            form["class"] = f"{kind.__qualname__} {kind.version}"
        if isinstance(value, (dict, types.MappingProxyType)):
            pairs = dict.items(value) if isinstance(value, dict) else value.items()
            items = [[self.add(key, path), self.add(item, _under(path, key))] for key, item in pairs]
            form[kind.__name__] = items
            if isinstance(value, defaultdict):
                form["default"] = self.add(value.default_factory, path)
        elif (base := _base_of(kind, _SEQUENCES)) is not None:  # never through a user's method
            form[kind.__name__] = [self.add(item, path) for item in base.__iter__(value)]
        elif (base := _base_of(kind, _SETS)) is not None:
            form[kind.__name__] = sorted((self.add(item, path) for item in base.__iter__(value)), key=repr)
        elif (base := _base_of(kind, _SCALAR_BASES)) is not None:
            form[kind.__name__] = base.__repr__(value)
        elif "class" not in form:
            return self._installed_object(value, path)
        if "class" in form:
            state, unread = vars_or_slots(value), left_out(kind)
            if hasattr(kind, "not_fingerprinted"):  # a step: its private attributes are the graph's and the engine's
                unread |= {name for name in state if name.startswith("_")}
            form["state"] = {
                name: self.attribute(value, name, item, f"{path}.{name}")
                for name, item in state.items()
                if name not in unread
            }
        return form

    def attribute(self, owner: Any, name: str, value: Any, path: str) -> Any:
        """The form of an object's attribute. A value that its own methods change (a counter, a cache) counts as it was
        when this process first saw it: else each run in a process would refuse the results of the one before."""
        kind = owner if isinstance(owner, type) else type(owner)
        return self._first(owner, name, self.add(value, path), path, changes=name in stored_attributes_of(kind))

    def _first(self, owner: Any, name: str, form: Any, path: str, *, changes: bool) -> Any:
        if not changes:
            return form
        self._code.missed.setdefault(path, "a value that the step's own code changes")
        return _seen_first.setdefault((id(owner), name), (owner, form))[1]

    def _installed_object(self, value: Any, path: str) -> Any:
        """The form of an object of a class that is not the user's, if it has one."""
        kind = type(value)
        if isinstance(value, SILENT):
            return {"object": kind.__qualname__}
        if hasattr(kind, "params") and is_own_class(kind):  # an LLM
            return {"model": value.model, "params": self.add(value.params(), path)}
        if (held := held_by(value)) is not None:
            self._findings.package(kind.__module__)
            return {kind.__qualname__: [[name, self.add(item, _under(path, name))] for name, item in held.items()]}
        plain = is_plain(value)
        if plain is not None:
            self._findings.package(kind.__module__)
            return {kind.__qualname__: [self.add(item, _under(path, name)) for name, item in sorted(plain.items())]}
        if not self._quiet:
            self._code.missed.setdefault(path, kind.__qualname__)
        self._findings.package(kind.__module__)
        return {"not followed": kind.__qualname__}

    # --- functions -----------------------------------------------------------------------------

    def _function(self, function: types.FunctionType) -> str:
        known = self._findings.label_of(function)
        if known is not None:
            return known
        label = self._findings.label(function, function.__globals__.get("__name__", ""), function.__code__.co_qualname)
        self._waiting.append((function, label))
        return label

    def _follow_function(self, function: types.FunctionType, label: str) -> None:
        code, scope = function.__code__, function.__globals__
        self._findings.objects += 1
        if not is_users(code.co_filename):
            self._follow_installed_function(function, label)
            return
        self._findings.place(code.co_filename)
        self._code.parts[label] = digest(function_text(code, scope))
        self._docs[label] = function.__doc__ or ""
        arguments = code.co_varnames[: code.co_argcount]
        for name, value in zip(reversed(arguments), reversed(function.__defaults__ or ()), strict=False):
            self._findings.part(f"{label}({name})", self.add(value, f"{label}({name})"))
        for name, value in (function.__kwdefaults__ or {}).items():
            self._findings.part(f"{label}({name})", self.add(value, f"{label}({name})"))
        reads = Reads(code)
        self._note_reads(reads, label, scope)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not filled yet: a function that refers to itself
                continue
            self._value(f"{label}[{name}]", value, reads)
        home = scope.get("__name__", "")
        for name in sorted(reads.globals):
            if name not in scope or name in _PLACES:
                continue
            if name in reads.stored:
                self._own_global(scope, name, home)
            else:
                self._value(self._findings.prefixed(home, name), scope[name], reads, escapes=name in reads.escaping)
        for module in sorted(self._imported(reads, scope)):
            self._findings.imported(module)
        for name, value in sorted(vars(function).items()):  # `functools.wraps` keeps the wrapped function here
            if not name.startswith("__") or name == "__wrapped__":
                self._findings.part(f"{label}.{name}", self.add(value, f"{label}.{name}"))

    def _own_global(self, scope: dict[str, Any], name: str, home: str) -> None:
        """Notes a global that the function itself sets, by the value it had at first."""
        path = self._findings.prefixed(home, name)
        self._findings.part(path, self._first(scope, name, self.add(scope[name], path), path, changes=True))

    def _follow_installed_function(self, function: types.FunctionType, label: str) -> None:
        """A decorator's wrapper: the user code in it is followed, the rest belongs to a package."""
        self._findings.package(function.__globals__.get("__name__", ""))
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        held = [vars(function).get("__wrapped__"), *(value for value in defaults if callable(value))]
        for cell in function.__closure__ or ():
            try:
                held.append(cell.cell_contents)
            except ValueError:
                continue
        self._quiet += 1
        try:
            forms = [self.add(value, label) for value in held if _may_hold_code(value)]
        finally:
            self._quiet -= 1
        if forms:
            self._findings.part(label, forms)

    def _note_reads(self, reads: Reads, label: str, scope: Mapping[str, Any]) -> None:
        names = reads.globals | reads.attributes
        self._reads_docs = self._reads_docs or bool(names & _READS_DOCS)
        if names & _IMPORTS_BY_NAME and (names & {"import_module", "__import__"} or _reads_sys(reads, scope)):
            named = [text for text in sorted(reads.texts) if names_a_module(text)]
            for name in named:
                self._findings.imported(name)
            if not named:
                self._code.missed[label] = "what it imports by name"
        if ("open" in reads.globals and "open" not in scope) or reads.attributes & _READS_FILES:
            self._code.missed.setdefault(label, "the files that it opens")
        if names & {"globals", "eval", "exec"}:
            for name in sorted(scope):
                if not name.startswith("__"):
                    self._value(self._findings.prefixed(scope.get("__name__", ""), name), scope[name], reads)

    def _value(self, path: str, value: Any, reads: Reads, *, escapes: bool = True) -> None:
        """A value that a function reads by name."""
        if isinstance(value, types.ModuleType):
            by_name = bool((reads.globals | reads.attributes) & _BY_NAME)
            self._module(value, reads.attributes, whole=by_name or escapes)
            self._findings.part(path, {"module": value.__name__}, unless=value.__name__)
            return
        if path in self._roots:
            return
        self._roots.add(path)
        form = self.add(value, path)
        label = form.get("code", form.get("class")) if isinstance(form, dict) and len(form) == 1 else None
        self._findings.part(path, form, unless=label)

    # --- classes -------------------------------------------------------------------------------

    def _class(self, kind: type) -> str:
        if kind.__module__ == "builtins":
            return kind.__qualname__
        known = self._findings.label_of(kind)
        if known is not None:
            return known
        if not is_user_class(kind):
            self._findings.package(kind.__module__)
            return f"{kind.__module__}.{kind.__qualname__}"
        label = self._findings.label(kind, kind.__module__, kind.__qualname__)
        self._waiting.append((kind, label))
        return label

    def _follow_class(self, kind: type, label: str) -> None:
        self._findings.objects += 1
        self._findings.place(file_of(kind))
        bases = [self._class(base) for base in kind.__bases__]
        if type(kind) is not type:
            bases.append(self._class(type(kind)))
        own = {name: unchecked(value) for name, value in vars(kind).items()}
        self._code.parts[label] = digest(repr((bases, class_text(kind, file_of(kind)))))
        self._docs[label] = kind.__doc__ or ""
        if issubclass(kind, enum.Enum):
            values = [[name, self.add(member._value_, f"{label}.{name}")] for name, member in kind.__members__.items()]
            self._findings.part(f"{label}.(members)", values)
        generated = "__dataclass_fields__" in own or "_fields" in own or "__attrs_attrs__" in own
        unread = left_out(kind) | (_OWN_ATTRIBUTES if hasattr(kind, "not_fingerprinted") else frozenset())
        for name, value in sorted(own.items()):
            if name in unread or not is_written_attribute(kind, name, value, generated=generated):
                continue
            path = f"{label}.{name}"
            form = self.attribute(kind, name, value, path)
            self._findings.part(
                path, form, unless=form.get("code") if isinstance(form, dict) and len(form) == 1 else None
            )
        self._quiet += 1
        for name, said in fields_of(kind).items():
            path = f"{label}.{name}"
            self._findings.part(f"{path} (field)", {key: self.add(value, path) for key, value in said.items()})
        self._quiet -= 1

    # --- modules -------------------------------------------------------------------------------

    def _module(self, module: types.ModuleType, attributes: Iterable[str], *, whole: bool) -> None:
        """Follows the parts of a module that are read: these names, or all of it."""
        name = module.__name__
        if not is_users(getattr(module, "__file__", None) or _package_file(module)):
            self._findings.package(name)
            return
        self._findings.place(getattr(module, "__file__", None) or "")
        own = vars(module)
        if whole:
            if name in self._findings.modules:
                return
            self._findings.modules.add(name)
            attributes = [each for each in own if not each.startswith("__")]
        reads = Reads.of(attributes)
        for attribute in sorted(set(attributes)):
            if attribute in own:
                value = own[attribute]
                if isinstance(value, types.ModuleType):
                    if not whole or value.__name__.startswith(f"{name}."):
                        self._value(self._findings.prefixed(name, attribute), value, reads, escapes=whole)
                    continue
                self._value(self._findings.prefixed(name, attribute), value, reads)
            elif "__getattr__" in own:
                self._value(self._findings.prefixed(name, "__getattr__"), own["__getattr__"], reads)

    def _imported(self, reads: Reads, scope: Mapping[str, Any]) -> set[str]:
        """Names of modules that a function's body imports."""
        package = scope.get("__package__") or str(scope.get("__name__", "")).rpartition(".")[0]
        return absolute_names(reads.imports, package)


#: (id of an owner, name) -> the owner, which keeps its id, and the first form of a value that the code changes.
_seen_first: dict[tuple[int, str], tuple[Any, Any]] = {}


def _package_file(module: types.ModuleType) -> str:
    """A place inside a namespace package; '' for a built-in module."""
    places = list(getattr(module, "__path__", ()))
    if places:
        return f"{places[0]}/__init__.py"
    return "<module>" if getattr(module, "__spec__", None) is None else ""


def _reads_sys(reads: Reads, scope: Mapping[str, Any]) -> bool:
    return any(scope.get(name) is sys for name in reads.globals) or any(each[0] == "sys" for each in reads.imports)


def _base_of(kind: type, bases: tuple[Any, ...]) -> Any:
    return next((base for base in bases if issubclass(kind, base)), None)


def _may_hold_code(value: Any) -> bool:
    return value is not None and not isinstance(value, types.ModuleType)


def _under(path: str, key: Any) -> str:
    return f"{path}[{key!r:.40}]" if isinstance(key, (str, int)) else path
