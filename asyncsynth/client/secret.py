"""API keys from the environment to one header: they are never printed, and are blanked in texts that repeat them."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterable, Mapping
from typing import NoReturn
from urllib.parse import quote

from asyncsynth.errors import ConfigurationError


class _Unprinted(bytes):
    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__


class Secret:
    """Holds a string that no repr, str, format, pickle or traceback of this package shows."""

    __slots__ = ("_value", "encoded")

    def __init__(self, value: str) -> None:
        self._value = value
        self.encoded: _Unprinted = _Unprinted(value.encode("utf-8", "surrogateescape"))  #: in UTF-8

    def reveal(self) -> str:
        """The string itself. Call this where the string is used, and do not store the result in an attribute."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled: pass the name of its environment variable instead")


class PrivateHeaders(dict[str, str]):
    """Headers that may hold a key: an ordinary dict except for its repr."""

    def __repr__(self) -> str:
        return f"<{len(self)} headers>"

    __str__ = __repr__


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Parts of a variable's name, between underscores: a word in one case, perhaps with a short number; K8S, GPT4O.
_WORD = re.compile(r"(?:[A-Z]{0,20}|[a-z]{0,20}|[A-Z][a-z]{0,19})[0-9]{0,4}|[A-Z0-9]{0,8}")
_MOST_WORDS = 8


def check_variable(name: str, where: str, environ: Mapping[str, str] | None = None) -> None:
    """Refuses what cannot be, or hardly is, the name of an environment variable: it may be a key, typed in its place.

    A name that no person would give a variable (``hf_xYz...``) is refused only where no such variable is set. What was
    typed is not shown.

    Raises:
        ConfigurationError: with `where` for its place.
    """
    is_name = isinstance(name, str) and _VARIABLE.fullmatch(name)
    if is_name and (_is_plain_name(name) or name in (os.environ if environ is None else environ)):
        return
    raise ConfigurationError(
        f"{where}: the name of an environment variable was expected. What is written there is not shown: it may be a "
        "key",
        hint="Write the name, such as OPENAI_API_KEY, and export the key under it. If the text is a key, replace it: "
        "it is in a file now.",
    )


def _is_plain_name(name: str) -> bool:
    parts = name.split("_")
    return len(parts) <= _MOST_WORDS and all(map(_WORD.fullmatch, parts))


#: Names of headers and query parameters whose values are keys.
_SECRET_NAME = re.compile("auth|key|token|secret|password|credential|cookie|session", re.I)
#: Shorter values are not blanked: people give words such as "EMPTY" to servers without keys.
SECRET_CHARS = 8
_BLANK = "***"


def secrets_of(values: Mapping[str, str]) -> set[Secret]:
    """The keys in headers or query parameters: tokens without their scheme, Basic passwords, cookies' values."""
    found: set[str] = set()
    for name, value in values.items():
        if not _SECRET_NAME.search(name):
            continue
        scheme, _, token = value.strip().partition(" ")
        found.add(token.strip() or scheme)
        if scheme.lower() == "basic":
            found.add(_password(token))
        elif name.lower() == "cookie":
            found.update(part.partition("=")[2].strip() for part in value.split(";"))
    return {Secret(one) for one in found if len(one) >= SECRET_CHARS}


def shown_url(url: str) -> str:
    """A URL for messages: without user information, query and fragment, any of which may be a key."""
    scheme, separator, rest = url.strip().partition("://")
    if "@" in rest:  # a key may hold anything, "/" too: nothing before the last "@" is shown
        rest = "***@" + rest.rpartition("@")[2]
    return scheme + separator + re.sub(r"([?#]).*", r"\1***", rest, flags=re.DOTALL)


def _password(token: str) -> str:
    try:
        return base64.b64decode(token, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


class Redactor:
    """Blanks secrets in a server's answers, so that a key that it repeats reaches no journal and no log.

    It finds a key verbatim, percent-encoded, in base64 (anywhere in the encoded text) and with JSON's escaped slashes.
    """

    __slots__ = ("_forms", "_plain")

    def __init__(self, secrets: Iterable[Secret]) -> None:
        plain = {secret.reveal() for secret in secrets}
        #: Longest first: a form may be a part of another.
        self._plain = [Secret(one) for one in sorted(plain, key=len, reverse=True)]
        forms = {form for one in plain for form in _forms_of(one)}
        self._forms = [Secret(form) for form in sorted(forms, key=len, reverse=True)]

    def __repr__(self) -> str:
        return f"Redactor({len(self._plain)} secrets)"

    def __bool__(self) -> bool:
        return bool(self._plain)

    def body(self, body: bytes, *, plain_only: bool = False) -> bytes:
        """`body` without the secrets. `plain_only` finds verbatim keys only: for whole answers of a model."""
        for secret in self._plain if plain_only else self._forms:
            encoded: bytes = secret.encoded
            if encoded in body:
                body = body.replace(encoded, _BLANK.encode())
        return body

    def text(self, text: str) -> str:
        """`text` without the secrets."""
        for secret in self._forms:
            text = text.replace(secret.reveal(), _BLANK)
        return text


def _forms_of(secret: str) -> set[str]:
    raw = secret.encode()
    forms = {secret, quote(secret, safe=""), secret.replace("/", "\\/")}
    for shift in range(3):  # base64 writes the same bytes in three ways, by their place
        encoded = base64.b64encode(bytes(shift) + raw).decode()
        # The characters that hold bits of this secret only.
        inner = encoded[(0, 2, 3)[shift] : 8 * (shift + len(raw)) // 6]
        forms |= {inner, inner.translate(str.maketrans("+/", "-_"))}
    return forms
