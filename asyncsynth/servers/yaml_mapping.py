"""YAML mappings that know where they were written, so that an error about a value names its file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import yaml

from asyncsynth.errors import InputError


def read_mapping(path: Path) -> YamlMapping:
    """The top of a YAML file. Raises InputError, with the file and the line."""
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", path=str(path)) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise InputError(f"not YAML: {error.problem}", path=str(path), line=mark.line + 1 if mark else None) from None
    except yaml.reader.ReaderError as error:  # its position counts characters
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise InputError(
            f"not YAML: the character U+{code:04X}, which YAML does not allow", path=str(path), line=line
        ) from None
    except RecursionError:
        raise InputError("not YAML that can be read: it is nested too deep", path=str(path)) from None
    if node is None:
        raise InputError("the file is empty", path=str(path), hint="Write a vLLM configuration or a fleet into it.")
    return YamlMapping(node, path)


class YamlMapping:
    """A YAML mapping that remembers where each of its values was written."""

    def __init__(self, node: yaml.Node, path: Path) -> None:
        self.path = path
        self.line: int = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            self.fail("expected keys and values, such as `port: 8000`")
        self.values: dict[str, yaml.Node] = {}  #: by name, with dashes, as vLLM takes both spellings
        self.spelled: dict[str, str] = {}  #: name -> as it was written
        self._elsewhere: dict[int, Path] = {}  #: of values that another file laid over: id of the node -> file
        for key, value in node.value:
            name = str(key.value).replace("_", "-") if isinstance(key, yaml.ScalarNode) else "?"
            if name in self.values:
                self.fail(f"{name} is given twice", key)
            self.values[name] = value
            self.spelled[name] = str(key.value)

    def overlay(self, other: YamlMapping) -> None:
        """Put the values of `other` in the place of these, or beside them; each keeps its own file and line."""
        self.values.update(other.values)
        self.spelled.update(other.spelled)
        self._elsewhere.update({id(node): other.path for node in other.values.values()})

    def place(self, node: yaml.Node | None = None) -> str:
        """``file:line`` of a value, or of this mapping."""
        if node is None:
            return f"{self.path}:{self.line}"
        return f"{self._elsewhere.get(id(node), self.path)}:{node.start_mark.line + 1}"

    def fail(self, message: str, node: yaml.Node | None = None, *, hint: str = "") -> NoReturn:
        """Raise InputError at `node`, or at this mapping's first line."""
        line = self.line if node is None else node.start_mark.line + 1
        path = self.path if node is None else self._elsewhere.get(id(node), self.path)
        raise InputError(message, path=str(path), line=line, hint=hint)

    def mapping(self, name: str) -> YamlMapping | None:
        """The mapping under `name`; None if there is none."""
        node = self.values.get(name)
        return None if node is None else YamlMapping(node, self.path)

    def value(self, name: str) -> Any:
        """The value under `name`, of any kind; `name` must be one of `values`."""
        node = self.values[name]
        try:
            return yaml.SafeLoader("").construct_object(node, deep=True)
        except yaml.YAMLError as error:
            self.fail(f"{name}: {getattr(error, 'problem', error)}", node)
        except (ValueError, TypeError, OverflowError, AttributeError, LookupError):
            # What looks like a date or a number and is none: 2024-13-45, 0x, !!int many
            self.fail(f"{name}: the value is none of its YAML type", node, hint="Put text into quotes.")
        except RecursionError:
            self.fail(f"{name}: the value is nested too deep", node)

    def get(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """The value of `name`, which has to be of `kind`."""
        name = name.replace("_", "-")
        if (node := self.values.get(name)) is None:
            return default
        value = self.value(name)
        if value is None:
            return default
        wanted = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kind) or (isinstance(value, bool) and bool not in wanted):
            names = " or ".join(k.__name__ for k in wanted)
            self.fail(f"{name} must be {names}, not {type(value).__name__}", node)
        return value

    def names(self, name: str) -> frozenset[str] | None:
        """A string or a list of strings; None if it is absent."""
        value = self.get(name, (str, list))
        if value is None:
            return None
        names = [value] if isinstance(value, str) else value
        if not names or not all(isinstance(item, str) and item for item in names):
            self.fail(f"{name} must be a name or a list of names", self.values[name.replace("_", "-")])
        return frozenset(names)

    def at_least_one(self, name: str) -> int | None:
        """A positive integer; None if it is absent."""
        value: int | None = self.get(name, int)
        if value is not None and value < 1:
            self.fail(f"{name} must be at least 1, not {value}", self.values[name.replace("_", "-")])
        return value

    def seconds(self, name: str) -> float | None:
        """A number of seconds above 0; None if it is absent."""
        value: float | None = self.get(name, (int, float))
        if value is not None and not 0 < value < float("inf"):
            self.fail(f"{name} must be a number of seconds above 0, not {value}", self.values[name.replace("_", "-")])
        return value
