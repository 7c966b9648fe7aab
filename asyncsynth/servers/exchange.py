"""`exchange_for`: the one way to open connections to a configured server."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from asyncsynth.client.adopt import adopt
from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.loads import ORCA_REQUEST
from asyncsynth.client.transport import Exchange
from asyncsynth.servers.access import expanded, tls_context
from asyncsynth.servers.configs import ServerConfig

_KEY_HEADERS = frozenset({"authorization", "api-key", "x-api-key"})


def exchange_for(
    config: ServerConfig, *, client: httpx.AsyncClient | None = None, environ: Mapping[str, str] | None = None
) -> Exchange:
    """Connections to `config`, with its key and headers. Opens none; the caller closes it with `aclose`.

    Whatever a configuration says about reaching its server is read here and nowhere else, so that a run, `check`,
    `bench` and the health checks of started servers all reach it alike.

    Args:
        client: the user's own ``httpx.AsyncClient``, which is used for this server instead.
        environ: where the key's variable, those of headers and query, and the proxy are looked up; None is the
            process's environment.

    Raises:
        ConfigurationError: a variable that is not set, a certificate that cannot be read.
    """
    if client is not None:
        return adopt(client, config.base_url)
    where = config.origin or config.name
    headers, secrets = expanded(config.headers, where, environ)
    query, more = expanded(config.query, where, environ)
    if config.orca:
        headers |= ORCA_REQUEST
    named = {name.lower() for name in headers}
    return Http11Pool(
        config.base_url,
        headers,
        # A key of the user's own headers is the one that this server wants.
        api_key=None if named & _KEY_HEADERS and not config.key_required else config.key(environ),
        query=query,
        secrets=secrets | more,
        ssl_context=tls_context(where, config.ca_file, config.client_cert, config.client_key),
        environ=environ,
    )
