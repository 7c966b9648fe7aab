"""Where models are served, as the user says it: `--servers URL|FILE|DIR` and ASYNCSYNTH_SERVERS.

- a URL: ``http://127.0.0.1:8000/v1`` (``/v1`` is added where there is no path);
- a vLLM file, the one given to ``vllm serve --config``: its model, host, port, TLS and api-key are read;
- a fleet file: ``servers: [...]``, each ``{url, models?, api_key_env?, limit?, name?, ...}`` (it runs elsewhere; all
  keys stand in `ServerConfig`) or ``{config, gpus?, env?, flags?, ...}``: a vLLM file, and how to start it (`Launch`);
- a folder: every ``*.yaml`` and ``*.yml`` in it, but for vLLM files that a fleet in it names.

Keys of a fleet are names of environment variables, never keys.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from asyncsynth.client.secret import Secret, shown_url
from asyncsynth.errors import ConfigurationError
from asyncsynth.servers.launches import LAUNCH_KEYS, Launch, read_launch
from asyncsynth.servers.yaml_mapping import YamlMapping, read_mapping

ENVIRONMENT = "ASYNCSYNTH_SERVERS"
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
#: vLLM reads its own key from this variable, so one export serves both sides; it wins over the default.
_VLLM_KEY_ENV = "VLLM_API_KEY"
_ANY_ADDRESS = {"", "0.0.0.0", "::"}  # noqa: S104  # others listen there, not we
_COMMON_KEYS = ("name", "api_key_env", "limit", "max_concurrency", "requests_per_minute", "tokens_per_minute", "orca")
_URL_KEYS = ("url", "models", "max_num_seqs", *_COMMON_KEYS)
_CONFIG_KEYS = ("config", *LAUNCH_KEYS, *_COMMON_KEYS)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """One server to send to.

    Args:
        base_url: with its path, normally ``/v1``; no trailing slash.
        name: how reports call it; by default ``host:port``.
        models: the names it answers to, or None to ask it.
        api_key_env: the environment variable that holds its key; used only when it is set. In place of the
            default, VLLM_API_KEY is taken where that is set.
        api_key: a key that stands in a vLLM file itself; wins over `api_key_env`.
        limit: a fixed number of requests in flight there, or None for one that adapts.
        max_concurrency: the most that one which adapts may grow to, or None for its own bound.
        slots: requests that the server works on at once (vLLM's max-num-seqs), where that is known.
        requests_per_minute, tokens_per_minute: what a hosted API allows, or None. Tokens are the prompt's and those
            that may be generated.
        orca: ask for the server's load in the headers of every answer. vLLM then logs a line for each of them.
        origin: where this was written, ``file:line`` or the option, for messages.
        key_required: `api_key_env` was named on purpose: an unset variable is an error (`require_keys`).
        launch: how to start it here; None for servers that are only known by their URL.
    """

    base_url: str
    name: str = ""
    models: frozenset[str] | None = None
    api_key_env: str = DEFAULT_KEY_ENV
    api_key: Secret | None = field(default=None, repr=False)
    limit: int | None = None
    max_concurrency: int | None = None
    slots: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    orca: bool = False
    origin: str = ""
    key_required: bool = False
    launch: Launch | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", urlsplit(self.base_url).netloc)

    def key(self, environ: Mapping[str, str] | None = None) -> Secret | None:
        """The API key to send, if there is one."""
        if self.api_key is not None:
            return self.api_key
        value = (os.environ if environ is None else environ).get(self.key_variable(environ), "").strip()
        return Secret(value) if value else None

    def key_variable(self, environ: Mapping[str, str] | None = None) -> str:
        """The variable that the key is taken from, or, where none is set, the one to set."""
        variables = os.environ if environ is None else environ
        if self.api_key_env == DEFAULT_KEY_ENV and variables.get(_VLLM_KEY_ENV, "").strip():
            return _VLLM_KEY_ENV
        return self.api_key_env


def servers_from_environment(environ: Mapping[str, str] | None = None) -> list[ServerConfig]:
    """The servers of ASYNCSYNTH_SERVERS, separated by commas. Raises as `parse_servers`."""
    text = (os.environ if environ is None else environ).get(ENVIRONMENT, "")
    return parse_servers([part.strip() for part in text.split(",") if part.strip()], origin=ENVIRONMENT)


def parse_servers(given: Sequence[str], *, origin: str = "--servers") -> list[ServerConfig]:
    """The servers of the `--servers` options; `origin` is what messages call the place they come from.

    Raises:
        ConfigurationError: a value that is no URL, file or folder; a server named twice.
        InputError: a file that does not say what it should, with its line.
    """
    servers = [server for value in given for server in _load_one(value, origin)]
    seen: dict[str, ServerConfig] = {}
    for server in servers:
        if (first := seen.setdefault(server.base_url, server)) is not server:
            raise ConfigurationError(
                f"two servers have the address {server.base_url}: {first.origin} and {server.origin}",
                hint="Give each its own port, or leave one out.",
            )
    return servers


def parse_url(url: str, *, where: str) -> str:
    """A base URL as it is used: checked, ``/v1`` added where there is no path.

    Raises:
        ConfigurationError: not http(s), no host, or a user, query or fragment in it.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{where}: {shown_url(url)!r} is not a URL: {error}") from None
    if parts.username or parts.password:  # not quoted: it may be a key
        raise ConfigurationError(
            f"{where}: a URL for {parts.hostname} holds a user or password",
            hint="Put the key into an environment variable and name it as api_key_env.",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{where}: {shown_url(url)!r} is not the base URL of a server",
            hint="It looks like http://127.0.0.1:8000/v1",
        )
    return _base_url(parts.scheme, parts.hostname, port, parts.path)


def _base_url(scheme: str, host: str, port: int | None, path: str) -> str:
    if host in _ANY_ADDRESS:
        host = "127.0.0.1"  # an address to listen on is none to connect to
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}{'' if port is None else f':{port}'}{path.rstrip('/') or '/v1'}"


def _load_one(value: str, origin: str) -> list[ServerConfig]:
    if "://" in value:
        return [ServerConfig(base_url=parse_url(value, where=origin), origin=origin)]
    path = Path(value).expanduser()
    if path.is_dir():
        return _read_folder(path, origin)
    if not path.is_file():
        raise ConfigurationError(
            f"{origin}: there is no file or folder {value}",
            hint="Give a URL (http://127.0.0.1:8000/v1), a vLLM --config file, a fleet file, or a folder.",
        )
    return read_file(path)


def read_file(path: Path) -> list[ServerConfig]:
    """The servers of one YAML file: a fleet (it has ``servers``) or a vLLM configuration.

    Raises:
        InputError: with the file and the line.
    """
    return _servers(read_mapping(path))


def _servers(top: YamlMapping) -> list[ServerConfig]:
    if "servers" in top.values:
        return [_entry(entry) for entry in _entries(top)]
    return [replace(_vllm(top), launch=read_launch(top))]


def _read_folder(folder: Path, origin: str) -> list[ServerConfig]:
    """Every YAML file in it; a vLLM file that one of its fleets starts is read there, with its placement."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))
    if not files:
        raise ConfigurationError(f"{origin}: the folder {folder} holds no .yaml file")
    tops = [read_mapping(file) for file in files]
    entries = [entry for top in tops if "servers" in top.values for entry in _entries(top)]
    started = {_config_file(entry).resolve() for entry in entries if "config" in entry.values}
    return [server for top in tops if top.path.resolve() not in started for server in _servers(top)]


def _entries(top: YamlMapping) -> list[YamlMapping]:
    listed = top.values["servers"]
    if not isinstance(listed, yaml.SequenceNode) or not listed.value:
        top.fail("servers is to be a list, each with a url or a config", listed)
    return [YamlMapping(node, top.path) for node in listed.value]


def _entry(entry: YamlMapping) -> ServerConfig:
    """One server of a fleet: it runs somewhere (url), or it can be started here (config)."""
    starts = "config" in entry.values
    _check_keys(entry, _CONFIG_KEYS if starts else _URL_KEYS)
    if "limit" in entry.values and "max-concurrency" in entry.values:
        entry.fail(
            "limit and max_concurrency exclude each other",
            entry.values["max-concurrency"],
            hint="limit is a fixed number in flight; max_concurrency bounds one that adapts.",
        )
    common: dict[str, Any] = {
        "api_key_env": entry.get("api_key_env", str, DEFAULT_KEY_ENV),
        "key_required": "api-key-env" in entry.values,
        "limit": entry.at_least_one("limit"),
        "max_concurrency": entry.at_least_one("max_concurrency"),
        "requests_per_minute": entry.at_least_one("requests_per_minute"),
        "tokens_per_minute": entry.at_least_one("tokens_per_minute"),
        "orca": entry.get("orca", bool, False),
        "origin": entry.place(),
    }
    name = entry.get("name", str, "")
    if starts:
        settings = read_mapping(_config_file(entry))
        launch = read_launch(settings, entry)
        config = _vllm(settings)
        return replace(config, name=name or config.name, launch=launch, **common)
    url = entry.get("url", str)
    if url is None:
        entry.fail("a server without a url or a config")
    return ServerConfig(
        base_url=parse_url(url, where=entry.place()),
        name=name,
        models=entry.names("models"),
        slots=entry.at_least_one("max_num_seqs"),
        **common,
    )


def _config_file(entry: YamlMapping) -> Path:
    """The vLLM file of an entry: its path is relative to the fleet's folder."""
    named = entry.get("config", str)
    file = entry.path.parent / Path(named or "").expanduser()
    if not file.is_file():
        entry.fail(f"config: there is no file {file}", entry.values["config"])
    return file


def _check_keys(entry: YamlMapping, known: Sequence[str]) -> None:
    allowed = [key.replace("_", "-") for key in known]
    for key, value in entry.values.items():
        if key in allowed:
            continue
        near = get_close_matches(key, allowed, n=1)
        meant = f"Did you mean {near[0].replace('-', '_')}? " if near else ""
        if key == "api-key":
            meant = "Keys do not belong into files: name an environment variable as api_key_env. "
        elif key in ("url", *LAUNCH_KEYS):
            meant = "A server has either a url, or a config to start it with. "
        entry.fail(f"unknown key {key.replace('-', '_')}", value, hint=f"{meant}Known: {', '.join(known)}")


def require_keys(servers: Sequence[ServerConfig], environ: Mapping[str, str] | None = None) -> None:
    """Raises ConfigurationError where a fleet names a key's variable and that is not set."""
    for server in servers:
        if server.key_required and server.key(environ) is None:
            raise ConfigurationError(
                f"{server.origin}: {server.name} takes its key from {server.api_key_env}, which is not set",
                hint=f"export {server.api_key_env}=..., or take api_key_env out where the server wants none.",
            )


def _vllm(top: YamlMapping) -> ServerConfig:
    """What a client needs of a `vllm serve --config` file; the other hundred keys are vLLM's own matter."""
    model = top.get("model", str) or top.get("model-tag", str)
    served = top.names("served-model-name") or (frozenset([model]) if model else None)
    if served is None:
        top.fail(
            "no model is named",
            hint="A vLLM configuration names its `model`; a list of running servers stands under `servers`.",
        )
    if "uds" in top.values:
        top.fail("servers on a Unix socket (uds) are not supported", top.values["uds"], hint="Use host and port.")
    port = top.get("port", int, 8000)
    if not 0 < port < 65536:
        top.fail(f"port is to be between 1 and 65535, not {port}", top.values["port"])
    keys = top.get("api-key", (str, list))
    key = keys[0] if isinstance(keys, list) and keys else keys
    return ServerConfig(
        base_url=_base_url("https" if top.get("ssl-certfile", str) else "http", top.get("host", str, ""), port, "/v1"),
        models=served,
        api_key=Secret(str(key)) if key else None,
        slots=_slots(top),
        origin=f"{top.path}:{top.line}",
    )


def _slots(top: YamlMapping) -> int | None:
    """Requests that all engines of a vLLM server work on at once: each of a data-parallel set has max-num-seqs."""
    one = top.at_least_one("max-num-seqs")
    return None if one is None else one * (top.at_least_one("data-parallel-size") or 1)
