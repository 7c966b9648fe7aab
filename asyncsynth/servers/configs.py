"""Where models are served, as the user says it: `--servers URL|FILE|DIR` and ASYNCSYNTH_SERVERS.

- a URL: ``http://127.0.0.1:8000/v1`` (``/v1`` is added where there is no path);
- a vLLM file, the one given to ``vllm serve --config``: its model, host, port, TLS and api-key are read;
- a fleet file: ``servers: [{url, models?, api_key_env?, limit?, name?, ...}]``, for servers that run elsewhere; all
  keys stand in `ServerConfig`;
- a folder: every ``*.yaml`` and ``*.yml`` in it.

Keys of a fleet are names of environment variables, never keys.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import yaml

from asyncsynth.client.secret import Secret
from asyncsynth.errors import ConfigurationError, InputError

ENVIRONMENT = "ASYNCSYNTH_SERVERS"
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
#: vLLM reads its own key from this variable, so one export serves both sides; it wins over the default.
_VLLM_KEY_ENV = "VLLM_API_KEY"
_ANY_ADDRESS = {"", "0.0.0.0", "::"}  # noqa: S104  # others listen there, not we
_FLEET_KEYS = (
    "url", "models", "api_key_env", "name",
    "limit", "max_concurrency", "max_num_seqs", "requests_per_minute", "tokens_per_minute", "orca",
)  # fmt: skip


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
        raise ConfigurationError(f"{where}: {url!r} is not a URL: {error}") from None
    if parts.username or parts.password:  # not quoted: it may be a key
        raise ConfigurationError(
            f"{where}: a URL for {parts.hostname} holds a user or password",
            hint="Put the key into an environment variable and name it as api_key_env.",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{where}: {url!r} is not the base URL of a server", hint="It looks like http://127.0.0.1:8000/v1"
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
        files = sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml"))
        if not files:
            raise ConfigurationError(f"{origin}: the folder {value} holds no .yaml file")
        return [server for file in files for server in read_file(file)]
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
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", path=str(path)) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise InputError(f"not YAML: {error.problem}", path=str(path), line=mark.line + 1 if mark else None) from None
    if node is None:
        raise InputError("the file is empty", path=str(path), hint="It is to hold a vLLM configuration.")
    top = _Mapping(node, path)
    return list(_fleet(top)) if "servers" in top.values else [_vllm(top)]


class _Mapping:
    """A YAML mapping that remembers where each of its values was written."""

    def __init__(self, node: yaml.Node, path: Path) -> None:
        self.path = path
        self.line = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            self.fail("expected keys and values, such as `port: 8000`")
        self.values: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value).replace("_", "-") if isinstance(key, yaml.ScalarNode) else "?"
            if name in self.values:
                self.fail(f"{name} is given twice", key)
            self.values[name] = value

    def fail(self, message: str, node: yaml.Node | None = None, *, hint: str = "") -> NoReturn:
        """Raise InputError at `node`, or at this mapping's first line."""
        line = self.line if node is None else node.start_mark.line + 1
        raise InputError(message, path=str(self.path), line=line, hint=hint)

    def get(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """The value of `name`, which has to be of `kind`."""
        name = name.replace("_", "-")
        if (node := self.values.get(name)) is None:
            return default
        try:
            value = yaml.SafeLoader("").construct_object(node, deep=True)
        except yaml.YAMLError as error:
            self.fail(f"{name}: {getattr(error, 'problem', error)}", node)
        if value is None:
            return default
        wanted = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kind) or (isinstance(value, bool) and bool not in wanted):
            names = " or ".join(k.__name__ for k in wanted)
            self.fail(f"{name} is to be {names}, not {type(value).__name__}", node)
        return value

    def names(self, name: str) -> frozenset[str] | None:
        """A string or a list of strings; None where it is absent."""
        value = self.get(name, (str, list))
        if value is None:
            return None
        names = [value] if isinstance(value, str) else value
        if not names or not all(isinstance(item, str) and item for item in names):
            self.fail(f"{name} is to be a name or a list of names", self.values[name.replace("_", "-")])
        return frozenset(names)

    def at_least_one(self, name: str) -> int | None:
        """A positive integer; None where it is absent."""
        value: int | None = self.get(name, int)
        if value is not None and value < 1:
            self.fail(f"{name} is to be at least 1, not {value}", self.values[name.replace("_", "-")])
        return value


def _fleet(top: _Mapping) -> Iterator[ServerConfig]:
    listed = top.values["servers"]
    if not isinstance(listed, yaml.SequenceNode) or not listed.value:
        top.fail("servers is to be a list, each with a url", listed)
    for node in listed.value:
        entry = _Mapping(node, top.path)
        origin = f"{top.path}:{entry.line}"
        allowed = [key.replace("_", "-") for key in _FLEET_KEYS]
        for key, value in entry.values.items():
            if key not in allowed:
                near = get_close_matches(key, allowed, n=1)
                meant = f"Did you mean {near[0].replace('-', '_')}? " if near else ""
                if key == "api-key":
                    meant = "Keys do not belong into files: name an environment variable as api_key_env. "
                entry.fail(f"unknown key {key.replace('-', '_')}", value, hint=f"{meant}Known: {_FLEET_KEYS}")
        url = entry.get("url", str)
        if url is None:
            entry.fail("a server without a url")
        if "limit" in entry.values and "max-concurrency" in entry.values:
            entry.fail(
                "limit and max_concurrency exclude each other",
                entry.values["max-concurrency"],
                hint="limit is a fixed number in flight; max_concurrency bounds one that adapts.",
            )
        yield ServerConfig(
            base_url=parse_url(url, where=origin),
            name=entry.get("name", str, ""),
            models=entry.names("models"),
            api_key_env=entry.get("api_key_env", str, DEFAULT_KEY_ENV),
            limit=entry.at_least_one("limit"),
            max_concurrency=entry.at_least_one("max_concurrency"),
            slots=entry.at_least_one("max_num_seqs"),
            requests_per_minute=entry.at_least_one("requests_per_minute"),
            tokens_per_minute=entry.at_least_one("tokens_per_minute"),
            orca=entry.get("orca", bool, False),
            origin=origin,
        )


def _vllm(top: _Mapping) -> ServerConfig:
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


def _slots(top: _Mapping) -> int | None:
    """Requests that all engines of a vLLM server work on at once: each of a data-parallel set has max-num-seqs."""
    one = top.at_least_one("max-num-seqs")
    return None if one is None else one * (top.at_least_one("data-parallel-size") or 1)
