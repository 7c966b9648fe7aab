"""What a request to a server carries, and how TLS meets it: headers, query parameters, certificates.

A value that is a secret is written as `${NAME}` and read from that environment variable when a connection is made; what
is shown, kept or compared holds only the name.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path

from asyncsynth.client.secret import SECRET_CHARS, PrivateHeaders, Secret, check_variable
from asyncsynth.errors import ConfigurationError

_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
#: Names of headers and parameters whose values are keys.
_SECRET_NAME = re.compile("auth|api-?_?key|token|secret|password|credential|cookie", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
#: Those that the client writes itself.
_OURS = ("content-length", "transfer-encoding", "connection", "accept-encoding", "host", "content-type")


def check_values(kind: str, values: Mapping[str, str], where: str) -> None:
    """Refuses headers or query parameters that cannot be sent, or that hold a key.

    Args:
        kind: "headers" or "query".
        values: as they are written, `${NAME}` not replaced.
        where: for messages.

    Raises:
        ConfigurationError: with the name of the entry; its value is not shown.
    """
    for name, value in values.items():
        place = f"{where}: {kind}: {name!r}"
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigurationError(f"{place}: a name and a string were expected", hint='Quote it: api-version: "1".')
        if kind == "headers":
            if not _HEADER_NAME.fullmatch(name) or not value.isascii() or any(c in value for c in "\r\n\0"):
                raise ConfigurationError(f"{place} cannot be sent as a header", hint="Use ASCII, without line breaks.")
            if name.lower() in _OURS:
                raise ConfigurationError(f"{place} is set by asyncsynth itself", hint="Leave it out.")
        for found in _VARIABLE.findall(value):
            check_variable(found, f"{place}: ${{...}}")
        if _SECRET_NAME.search(name) and value and not _VARIABLE.search(value):
            raise ConfigurationError(
                f"{place} holds a key", hint=f"Keep keys in environment variables: {name}: ${{NAME}}"
            )


def expanded(
    values: Mapping[str, str], where: str, environ: Mapping[str, str] | None = None
) -> tuple[PrivateHeaders, set[Secret]]:
    """The values with each `${NAME}` replaced, and the secrets among them.

    Raises:
        ConfigurationError: a variable that is not set.
    """
    variables = os.environ if environ is None else environ
    secrets: set[Secret] = set()

    def value_of(found: re.Match[str]) -> str:
        check_variable(found[1], f"{where}: ${{...}}", variables)
        value = variables.get(found[1], "").strip()
        if not value:
            raise ConfigurationError(
                f"{where}: the environment variable {found[1]} is not set", hint=f"export {found[1]}=..."
            )
        if len(value) >= SECRET_CHARS:
            secrets.add(Secret(value))
        return value

    return PrivateHeaders((name, _VARIABLE.sub(value_of, value)) for name, value in values.items()), secrets


def tls_context(
    where: str, ca_file: str | None = None, client_cert: str | None = None, client_key: str | None = None
) -> ssl.SSLContext | None:
    """A verifying context with a private authority and a client certificate (PEM files); None if neither is given.

    The authority of `ca_file` is trusted in addition to the system's. `client_key` may be part of `client_cert`.

    Raises:
        ConfigurationError: a file that cannot be read, or holds something else.
    """
    if ca_file is None and client_cert is None:
        if client_key is not None:
            raise ConfigurationError(f"{where}: client_key without client_cert", hint="Name the certificate as well.")
        return None
    context = ssl.create_default_context()
    for name, file in (("ca_file", ca_file), ("client_cert", client_cert), ("client_key", client_key)):
        if file is not None and not Path(file).is_file():
            raise ConfigurationError(f"{where}: {name}: there is no file {file}")
    try:
        if ca_file is not None:
            context.load_verify_locations(ca_file)
        if client_cert is not None:
            context.load_cert_chain(client_cert, client_key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        names = "ca_file" if client_cert is None else "ca_file, client_cert or client_key"
        raise ConfigurationError(
            f"{where}: {names} cannot be read: {error}", hint="PEM files are expected; the key without a password."
        ) from None
    return context


def _no_password() -> str:
    """Without it, OpenSSL asks the terminal."""
    raise ValueError("the key has a password")
