"""The names that a function reads, found in its bytecode: globals, attributes and the imports in its body."""

from __future__ import annotations

import dis
import importlib.util
import types
from collections.abc import Iterable
from typing import Any

from asyncsynth.pipeline.codetext import is_users, module_file, nested

_GLOBAL_READS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})


class Reads:
    """The names that a function and those nested in it read.

    Attributes:
        globals: names of its module.
        attributes: of anything, names that it imports from modules included.
        escaping: globals that are used for more than their attributes.
        imports: (module, level, names) of the imports in its body.
        texts: texts that it holds; some may name modules.
        stored: globals that it sets; `stored_attributes`: those of any object.
    """

    def __init__(self, code: types.CodeType | None) -> None:
        self.globals: set[str] = set()
        self.attributes: set[str] = set()
        self.escaping: set[str] = set()
        self.stored: set[str] = set()
        self.stored_attributes: set[str] = set()
        self.imports: list[tuple[str, int, tuple[str, ...]]] = []
        self.texts: set[str] = set()
        for each in nested(code) if code is not None else ():
            self._scan(each)

    @classmethod
    def of(cls, attributes: Iterable[str]) -> Reads:
        """Adds these attributes, as if a function read them."""
        made = cls(None)
        made.attributes = set(attributes)
        return made

    def _scan(self, code: types.CodeType) -> None:
        self.texts.update(each for each in code.co_consts if isinstance(each, str))
        constants: list[Any] = [None, None]
        last = ""
        for instruction in dis.get_instructions(code):
            name = instruction.opname
            is_attribute = name.startswith(("LOAD_ATTR", "LOAD_METHOD"))
            if last and not is_attribute:
                self.escaping.add(last)
            last = ""
            if name in _GLOBAL_READS:
                self.globals.add(instruction.argval)
                last = instruction.argval
            elif name == "IMPORT_NAME":
                level, names = constants[-2:]
                self.imports.append((instruction.argval, level or 0, tuple(names or ())))
            elif name == "STORE_GLOBAL":
                self.stored.add(instruction.argval)
                self.globals.add(instruction.argval)
            elif name == "STORE_ATTR":
                self.stored_attributes.add(instruction.argval)
            elif instruction.opcode in dis.hasname:
                self.attributes.add(instruction.argval)
            elif "CONST" in name or "SMALL_INT" in name:
                constants.append(instruction.argval)


def absolute_names(imports: Iterable[tuple[str, int, tuple[str, ...]]], package: str) -> set[str]:
    """Absolute names of imported modules; of ``from a import b``, `a` and `a.b`, if that is a module."""
    found: set[str] = set()
    for module, level, names in imports:
        base = module
        if level:
            try:
                base = importlib.util.resolve_name("." * level + module, package)
            except ImportError:
                continue
        if not base:
            continue
        found.add(base)
        file = module_file(base)
        if file is None or (is_users(file) and file.endswith("__init__.py")):  # without a file: a namespace package
            found.update(f"{base}.{name}" for name in names if module_file(f"{base}.{name}") is not None)
    return found
