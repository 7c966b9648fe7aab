"""Makes a check from a user's JSON schema. It covers every keyword of the schema; else the schema is refused.

The package `jsonschema` decides if it is installed (the extra `schema`). Without it our own check does
(`json_schema`), which knows fewer keywords. A keyword that neither checks is refused, with its place in the schema,
so that no constraint passes unchecked. References never leave the schema: nothing is fetched.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import orjson

from asyncsynth.tasks import json_schema

Check = Callable[[Any], str]  #: '' for a value that fits, else where it does not fit, in words

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_INSTALL = "pip install 'asyncsynth[schema]'"

#: Keywords that describe and constrain nothing. Those with a prefix `x-` are of the same kind.
_DESCRIBING = frozenset(
    ["$schema", "$comment", "title", "description", "default", "examples", "example", "deprecated", "readOnly",
     "writeOnly", "$defs", "definitions", "discriminator", "externalDocs", "xml"]
)  # fmt: skip
#: Keywords that name places; they are followed by `jsonschema` only.
_NAMING = frozenset(["$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor"])
#: Keywords that `jsonschema` reads together with another one.
_BESIDE = {
    "if": ["then", "else"], "contains": ["minContains", "maxContains"], "items": ["additionalItems"],
    "minimum": ["exclusiveMinimum"], "maximum": ["exclusiveMaximum"],
}  # fmt: skip

_ONE = frozenset(
    ["not", "if", "then", "else", "contains", "items", "additionalItems", "additionalProperties", "propertyNames",
     "unevaluatedItems", "unevaluatedProperties"]
)  # fmt: skip
_LIST = frozenset(["allOf", "anyOf", "oneOf", "prefixItems", "items"])
_MAP = frozenset(["properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"])
#: Keywords whose schemas look at the same value as the schema that they are in.
_IN_PLACE = frozenset(["allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas"])
#: Keywords of the standard, which are not typing errors, whichever checker is used.
_STANDARD = frozenset(
    ["contains", "minContains", "maxContains", "if", "then", "else", "format", "propertyNames", "$anchor", "$id",
     "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties"]
)  # fmt: skip
_REFERENCES = frozenset(["$ref", "$dynamicRef", "$recursiveRef"])


class BadSchema(ValueError):
    """A schema that cannot be used. The message tells where and why."""


def check_of(schema: Mapping[str, Any] | bool, *, library: bool | None = None) -> Check:
    """The check that a schema asks for. Made once for each schema: the most recent 256 are kept.

    Args:
        schema: of draft 2020-12, or of the draft that its ``$schema`` names.
        library: whether `jsonschema` decides. None: if it is installed.

    Raises:
        BadSchema: no schema of its draft, a keyword that is not checked, a reference that leads out of the schema or
            around in a circle.
    """
    try:
        text = orjson.dumps(schema)
    except TypeError as error:
        raise BadSchema(f"it is not JSON: {error}") from None
    return _check(text, has_library() if library is None else library)


@functools.cache
def has_library() -> bool:
    """Whether `jsonschema` is installed."""
    try:
        import jsonschema  # noqa: F401
    except ImportError:
        return False
    return True


@functools.lru_cache(maxsize=256)
def _check(text: bytes, library: bool) -> Check:
    schema = orjson.loads(text)
    try:
        return _of_library(schema) if library else _of_our_own(schema)
    except RecursionError:
        raise BadSchema("it is nested too deep") from None


# --- with our own check ---------------------------------------------------------------------------


def _of_our_own(schema: Any) -> Check:
    if isinstance(schema, dict) and str(schema.get("$schema", DIALECT)).rstrip("#") != DIALECT:
        raise BadSchema(f"#/$schema: {schema['$schema']!r:.80} needs the package jsonschema: {_INSTALL}")
    if isinstance(schema, dict):  # a name for the whole changes nothing, since no reference may use it
        schema = {keyword: value for keyword, value in schema.items() if keyword != "$id"}
    known = json_schema.RULES.keys() | _DESCRIBING
    walk = _Walk(known, {}, f"needs the package jsonschema: {_INSTALL}", json_schema.RULES)
    walk.look(schema, _Local(schema))
    return functools.partial(_own_words, schema=schema)


def _own_words(value: Any, *, schema: Any) -> str:
    try:
        return json_schema.mismatch(value, schema)
    except RecursionError:
        return "the answer is nested too deep to be checked"


# --- with jsonschema ------------------------------------------------------------------------------


def _of_library(schema: Any) -> Check:
    import jsonschema
    import referencing
    from referencing.jsonschema import specification_with

    default = jsonschema.Draft202012Validator
    if not isinstance(schema, (dict, bool)):
        raise BadSchema(f"{_short(schema)} is not a schema")
    kind = default if isinstance(schema, bool) else jsonschema.validators.validator_for(schema, default=None)
    if kind is None or (isinstance(schema, dict) and "$schema" not in schema):
        if isinstance(schema, dict) and "$schema" in schema:
            raise BadSchema(f"#/$schema: {schema['$schema']!r:.80} is not a known draft of JSON Schema")
        kind = default
    dialect = kind.META_SCHEMA.get("$schema", DIALECT)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise BadSchema(f"{_pointer(error.absolute_path)}: {_cut(error.message)}") from None
    specification = specification_with(dialect)
    registry: Any = referencing.Registry()
    resource = specification.create_resource(schema)
    resolver = registry.resolver_with_root(resource)
    checked = set(kind.VALIDATORS)
    checked.update(*(names for keyword, names in _BESIDE.items() if keyword in checked))
    if dialect == DIALECT:
        checked -= {"additionalItems"}
    beside = {name: first for first, names in _BESIDE.items() for name in names if name not in kind.VALIDATORS}
    # Up to draft 7, keywords beside a $ref are ignored.
    is_alone = not {"$recursiveRef", "$dynamicRef"} & kind.VALIDATORS.keys()
    formats = kind.FORMAT_CHECKER
    known = checked | _DESCRIBING | _NAMING
    unknown = "is not a keyword that can be checked"
    _Walk(known, formats.checkers, unknown, beside=beside, ref_is_alone=is_alone).look(
        schema, _Of(resolver, specification, referencing.exceptions.Unresolvable)
    )
    exact = jsonschema.validators.extend(kind, {"multipleOf": _multiple_of} if "multipleOf" in checked else {})
    validator = exact(schema, registry=registry, format_checker=formats)
    return functools.partial(_library_words, validator=validator, best=jsonschema.exceptions.best_match)


def _library_words(value: Any, *, validator: Any, best: Any) -> str:
    try:
        error = best(validator.iter_errors(value))
    except RecursionError:
        return "the answer is nested too deep to be checked"
    return "" if error is None else f"{_place(error.absolute_path)}: {_cut(error.message)}"


def _multiple_of(_: Any, step: float, value: Any, __: Any) -> Iterator[Any]:
    """By the written decimal numbers: 0.3 is a multiple of 0.1, although their doubles are not."""
    from jsonschema import ValidationError

    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and not json_schema.is_multiple(value, step):
        yield ValidationError(f"{value} is not a multiple of {step}")


# --- what is in a schema ----------------------------------------------------------------------------


class _Local:
    """References within a schema, by JSON pointer."""

    def __init__(self, root: Any) -> None:
        self._root = root

    def inside(self, node: Any) -> _Local:
        return self

    def lookup(self, ref: str) -> tuple[Any, _Local]:
        """What it refers to. Raises KeyError."""
        return json_schema.resolve(ref, self._root), self


class _Of:
    """References as `referencing` resolves them, with `$id` and anchors."""

    def __init__(self, resolver: Any, specification: Any, missing: type[Exception]) -> None:
        self._resolver = resolver
        self._specification = specification
        self._missing = missing

    def inside(self, node: Any) -> _Of:
        if not isinstance(node, dict) or not ({"$id", "id"} & node.keys()):
            return self
        inner = self._resolver.in_subresource(self._specification.create_resource(node))
        return _Of(inner, self._specification, self._missing)

    def lookup(self, ref: str) -> tuple[Any, _Of]:
        """What it refers to. Raises KeyError."""
        try:
            found = self._resolver.lookup(ref)
        except (self._missing, ValueError) as error:
            raise KeyError(ref) from error
        return found.contents, _Of(found.resolver, self._specification, self._missing)


class _Walk:
    """Goes through the schemas in a schema, and only those; data, such as an `enum`, is ignored."""

    def __init__(
        self,
        known: Set[str],
        formats: Mapping[str, Any],
        unknown: str,
        rules: Mapping[str, tuple[Callable[[Any], bool], str]] | None = None,
        *,
        beside: Mapping[str, str] | None = None,  #: keyword -> the one without which it checks nothing
        ref_is_alone: bool = False,
    ) -> None:
        self._known = known
        self._beside = beside or {}
        self._ref_is_alone = ref_is_alone
        self._rules = rules or {}
        self._formats = formats
        self._unknown = unknown
        self._seen: dict[int, Any] = {}  #: keeps the nodes, so that no two have the same id
        self._same_value: dict[int, list[tuple[int, str]]] = {}

    def look(self, schema: Any, references: Any) -> None:
        """Raises BadSchema."""
        self._node(schema, "#", references)
        self._no_circle()

    def _node(self, node: Any, at: str, references: Any) -> None:
        if isinstance(node, bool) or id(node) in self._seen:
            return
        if not isinstance(node, dict):
            raise BadSchema(f"{at}: {_short(node)} is not a schema")
        self._seen[id(node)] = node
        inside = references.inside(node)
        for keyword, value in node.items():
            here = f"{at}/{keyword.replace('~', '~0').replace('/', '~1')}"
            if (rule := self._rules.get(keyword)) is not None and not rule[0](value):
                raise BadSchema(f"{here}: {_short(value)} is not {rule[1]}")
            if keyword in _REFERENCES and keyword in self._known:
                self._reference(node, value, here, inside)
            elif keyword not in self._known and not keyword.startswith("x-"):
                raise BadSchema(f"{here}: the keyword {keyword!r} {self._unknown}{self._nearest(keyword)}")
            elif (first := self._beside.get(keyword)) is not None and first not in node:
                raise BadSchema(f"{here}: the keyword {keyword!r} checks nothing without {first!r}")
            elif self._ref_is_alone and "$ref" in node and self._constrains(keyword):
                raise BadSchema(
                    f"{here}: this draft does not check {keyword!r} beside '$ref': put the two into 'allOf', or name a "
                    "later draft in '$schema'"
                )
            elif keyword == "format" and value not in self._formats:
                raise BadSchema(
                    f"{here}: the format {_short(value)} cannot be checked; known here: "
                    f"{', '.join(sorted(self._formats))} (more with {_INSTALL})"
                )
            for name, part in _parts(keyword, value):
                if keyword in _IN_PLACE:
                    self._same_value.setdefault(id(node), []).append((id(part), f"{here}{name}"))
                self._node(part, f"{here}{name}", inside)

    @staticmethod
    def _constrains(keyword: str) -> bool:
        return keyword not in _DESCRIBING | _NAMING and not keyword.startswith("x-")

    def _reference(self, node: Any, ref: Any, at: str, references: Any) -> None:
        try:
            if not isinstance(ref, str):
                raise KeyError(ref)
            target, beyond = references.lookup(ref)
        except KeyError:
            raise BadSchema(
                f"{at}: {_short(ref)} leads nowhere within the schema; other places are never fetched: copy what it "
                "names into $defs"
            ) from None
        if not isinstance(target, (dict, bool)):
            raise BadSchema(f"{at}: {_short(ref)} leads to {_short(target)}, which is not a schema")
        self._same_value.setdefault(id(node), []).append((id(target), at))
        self._node(target, ref if ref.startswith("#") else f"{at} -> {ref}", beyond)

    def _no_circle(self) -> None:
        """No schema may refer back to itself without descending into the value."""
        done: set[int] = set()
        for start in self._same_value:
            way: list[tuple[int, Iterator[tuple[int, str]]]] = [(start, iter(self._same_value[start]))]
            on_way = {start}
            while way:
                node, rest = way[-1]
                step = next(rest, None)
                if step is None:
                    way.pop()
                    on_way.discard(node)
                    done.add(node)
                elif step[0] in on_way:
                    raise BadSchema(f"{step[1]}: leads back to itself without an end")
                elif step[0] not in done:
                    on_way.add(step[0])
                    way.append((step[0], iter(self._same_value.get(step[0], ()))))

    def _nearest(self, keyword: str) -> str:
        near = difflib.get_close_matches(keyword, self._known, n=1, cutoff=0.8)
        return f". Did you mean {near[0]!r}?" if near and keyword not in _STANDARD else ""


def _parts(keyword: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(its place below the keyword, schema) for each schema that a keyword holds."""
    if keyword in _LIST and isinstance(value, list):
        for number, part in enumerate(value):
            yield f"/{number}", part
    elif keyword in _MAP and isinstance(value, dict):
        for name, part in value.items():
            if not (keyword == "dependencies" and isinstance(part, list)):
                yield f"/{name.replace('~', '~0').replace('/', '~1')}", part
    elif keyword in _ONE:
        yield "", value


def structure(schema: Any) -> Any:
    """A schema with the keywords only that our own check knows, less the patterns: those of pydantic's types may be
    written for another engine, and pydantic checks them."""
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in ("pattern", "patternProperties") or keyword not in json_schema.RULES:
            continue
        if keyword in _MAP:
            made[keyword] = {name: structure(part) for name, part in value.items()}
        elif keyword in _LIST and isinstance(value, list):
            made[keyword] = [structure(part) for part in value]
        else:
            made[keyword] = structure(value) if keyword in _ONE else value
    return made


# --- words ------------------------------------------------------------------------------------------


def _place(path: Any) -> str:
    words = ""
    for part in path:
        words += f"[{part}]" if isinstance(part, int) else f".{part}" if words else str(part)
    return words or "the answer"


def _pointer(path: Any) -> str:
    return "#" + "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def _short(value: Any) -> str:
    return _cut(orjson.dumps(value).decode(), 80)


def _cut(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
