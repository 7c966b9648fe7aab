"""`exchange_for`: the one way to open connections to a configured server."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from asyncsynth.client.adopt import adopt
from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.loads import ORCA_REQUEST
from asyncsynth.client.transport import Exchange
from asyncsynth.servers.configs import ServerConfig


def exchange_for(
    config: ServerConfig, *, client: httpx.AsyncClient | None = None, environ: Mapping[str, str] | None = None
) -> Exchange:
    """Connections to `config`, with its key and headers. Opens none; the caller closes it with `aclose`.

    Whatever a configuration says about reaching its server is read here and nowhere else, so that a run, `check`,
    `bench` and the health checks of started servers all reach it alike.

    Args:
        client: the user's own ``httpx.AsyncClient``, which is used for this server instead.
        environ: where the key's variable is looked up; None is the process's environment.
    """
    if client is not None:
        return adopt(client, config.base_url)
    return Http11Pool(config.base_url, ORCA_REQUEST if config.orca else None, api_key=config.key(environ))
