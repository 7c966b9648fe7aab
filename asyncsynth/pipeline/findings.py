"""What the collector of `pipeline.usercode` has found: parts with names of their own, packages, imports, places."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import itertools
import os
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from asyncsynth.pipeline.codetext import is_users, module_file, project_folder, source_file
from asyncsynth.pipeline.constants import shown
from asyncsynth.pipeline.reads import absolute_names


@dataclasses.dataclass(slots=True)
class Code:
    """What a step's results depend on besides its settings.

    Attributes:
        parts: name -> the value of a constant, or the hash of a function, class or module; JSON.
        missed: name -> what is read there and cannot be followed.
        packages: installed distribution that the code uses -> its version.
    """

    parts: dict[str, Any] = dataclasses.field(default_factory=dict)
    missed: dict[str, str] = dataclasses.field(default_factory=dict)
    packages: dict[str, str] = dataclasses.field(default_factory=dict)


class Findings:
    """What a collector has found. It names each part once, and follows imports by their text.

    Args:
        home: the modules whose names are reported without the module's name before them.
    """

    def __init__(self, home: frozenset[str]) -> None:
        self.code: Code = Code()
        self.objects: int = 0  #: functions, classes, values and modules that were followed
        self.modules: set[str] = set()  #: modules that were followed whole, and packages that were noted
        self._home = home
        self._labels: dict[int, tuple[str, Any]] = {}  # with the object, so that its id stays its own
        self._taken: set[str] = set()
        self._folders: dict[str, None] = {}  # of the projects whose code is followed, in the order of their finding

    def prefixed(self, module: str, name: str) -> str:
        """A name with its module before it, if that is not the home."""
        return name if module in self._home else f"{module}.{name}"

    def label(self, found: Any, module: str, qualname: str) -> str:
        """A name of its own for a function or a class."""
        wanted = self.prefixed(module, qualname)
        label = next(
            each
            for each in itertools.chain([wanted], (f"{wanted}#{number}" for number in itertools.count(2)))
            if each not in self._taken
        )
        self._taken.add(label)
        self._labels[id(found)] = label, found
        return label

    def part(self, path: str, form: Any, *, unless: str | None = None) -> None:
        """Notes a part, unless it would only say that the function `unless` has its own name."""
        if path != unless:
            self.code.parts[path] = shown(form)

    def label_of(self, found: Any) -> str | None:
        """The name that a function or a class has already."""
        known = self._labels.get(id(found))
        return None if known is None else known[0]

    def place(self, file: str) -> None:
        """Notes the project of a file whose code is followed."""
        if file and not file.startswith("<"):
            folder = project_folder(file)
            self._folders[folder] = None
            self._folders[os.path.realpath(folder)] = None

    def inside_project(self, path: str) -> str | None:
        """A path in the user's project, from there, so that moving the project changes no result."""
        if not path.startswith(os.sep):
            return None
        path = os.path.normpath(path)
        for folder in self._folders:
            if path == folder or path.startswith(folder + os.sep):
                return path[len(folder) :] or os.sep
        return None

    def package(self, module: str) -> None:
        """Notes the installed package that has this module, with its version."""
        root = module.split(".")[0]
        if root and root != "asyncsynth" and root not in self.modules:
            self.modules.add(root)
            if (found := _distribution(root)) is not None:
                self.code.packages[found[0]] = found[1]

    def imported(self, name: str) -> None:
        """A module that is imported while a step runs: its whole text, and what it imports."""
        key = f"{name} (imported inside a function)"
        if key in self._taken:
            return
        self._taken.add(key)
        file = module_file(name)
        if file is None or not is_users(file):
            self.package(name)
            return
        source = source_file(file)
        if source is None:
            self.code.missed[name] = "a module without source"
            return
        self.objects += 1
        self.code.parts[key] = digest(source.text)
        parent = name.rpartition(".")[0]
        package = name if file.endswith("__init__.py") else parent
        found: list[tuple[str, int, tuple[str, ...]]] = []
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                found += [(each.name, 0, ()) for each in node.names]
            elif isinstance(node, ast.ImportFrom):
                found.append((node.module or "", node.level, tuple(each.name for each in node.names)))
        for other in sorted(absolute_names(found, package) | ({parent} if parent else set())):
            self.imported(other)


def names_a_module(text: str) -> bool:
    """Whether a text is the name of a module of the user's."""
    if not all(part.isidentifier() for part in text.split(".")):
        return False
    file = module_file(text)
    return file is not None and is_users(file)


def digest(text: str) -> str:
    """The hash of a text, as a part shows it."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@functools.lru_cache(maxsize=4096)
def _distribution(root: str) -> tuple[str, str] | None:
    """Name and version of the installed distribution that has a module of this name; None for Python's own."""
    if root in sys.stdlib_module_names:
        return None
    try:
        return root, metadata.version(root)
    except (metadata.PackageNotFoundError, ValueError):
        pass
    names = _distributions().get(root)
    return (names[0], metadata.version(names[0])) if names else None


@functools.lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()
