"""Where models are served, as the user says it: `--servers URL|FILE|DIR` and ASYNCSYNTH_SERVERS.

- a URL: ``http://127.0.0.1:8000/v1`` (``/v1`` is added where there is no path), or ``unix:/run/vllm.sock``;
- a vLLM file, the one given to ``vllm serve --config``: its model, host, port, TLS and api-key are read;
- a fleet file: ``servers: [...]``, each ``{url, models?, api_key_env?, limit?, name?, ...}`` (it runs elsewhere; all
  `ServerConfig` has all keys) or ``{config, gpus?, env?, flags?, ...}``: a vLLM file, and how to start it (`Launch`);
- a folder: every ``*.yaml`` and ``*.yml`` in it, but for vLLM files that a fleet in it names.

Keys of a fleet are names of environment variables, never keys.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, unquote, urlsplit

import yaml

from asyncsynth.client.request_heads import UNIX_SCHEME
from asyncsynth.client.secret import Secret, check_variable, shown_url
from asyncsynth.errors import ConfigurationError
from asyncsynth.servers.access import check_values
from asyncsynth.servers.launch_settings import LAUNCH_KEYS, Launch, read_launch
from asyncsynth.servers.problems import Problems
from asyncsynth.servers.yaml_mapping import YamlMapping, read_mapping

ENVIRONMENT = "ASYNCSYNTH_SERVERS"
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
#: vLLM reads its own key from this variable, so one export serves both sides; it wins over the default.
_VLLM_KEY_ENV = "VLLM_API_KEY"
_ANY_ADDRESS = {"", "0.0.0.0", "::"}  # noqa: S104  # others listen there, not we
#: A server without a scheme: `localhost:8000`, `10.0.0.7:8000/v1`, `[::1]:8000`.
_HOST_AND_PORT = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]):\d{1,5}(?:/[^:]*)?$")
_COMMON_KEYS = ("name", "api_key_env", "limit", "max_concurrency", "requests_per_minute", "tokens_per_minute", "orca",
                "request_timeout")  # fmt: skip
_ACCESS_KEYS = ("headers", "query", "ca_file", "client_cert", "client_key")
_URL_KEYS = ("url", "models", "max_num_seqs", *_ACCESS_KEYS, *_COMMON_KEYS)
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
        api_key: a key that is in a vLLM file itself; wins over `api_key_env`.
        limit: a fixed number of requests in flight there, or None for one that adapts.
        max_concurrency: the most that one which adapts may grow to, or None for its own bound.
        slots: requests that the server works on at once (vLLM's max-num-seqs), where that is known.
        requests_per_minute, tokens_per_minute: what a hosted API allows, or None. Tokens are the prompt's and those
            that may be generated.
        orca: ask for the server's load in the headers of every answer. vLLM then logs a line for each of them.
        request_timeout: seconds for each whole answer of this server, or None: no limit while it makes progress.
        headers, query: sent with every request; ``${NAME}`` is the value of an environment variable.
        ca_file, client_cert, client_key: PEM files: an authority to trust, and what this client shows of itself.
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
    request_timeout: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    origin: str = ""
    key_required: bool = False
    launch: Launch | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", unquote(urlsplit(self.base_url).netloc))

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


def servers_from_environment(
    environ: Mapping[str, str] | None = None, *, problems: Problems | None = None
) -> list[ServerConfig]:
    """The servers of ASYNCSYNTH_SERVERS, separated by commas. `problems`, and what it raises: as `parse_servers`."""
    text = (os.environ if environ is None else environ).get(ENVIRONMENT, "")
    return parse_servers(_split(text), origin=ENVIRONMENT, problems=problems)


def parse_servers(
    given: Sequence[str], *, origin: str = "--servers", problems: Problems | None = None
) -> list[ServerConfig]:
    """The servers of the `--servers` options; `origin` is what messages call the place they come from.

    A value with a URL in it may name several servers, separated by commas, as ASYNCSYNTH_SERVERS does.

    Args:
        problems: takes what is wrong, for a caller with more to check; what could be read is returned.

    Raises:
        ConfigurationError: a value that is no URL, file or folder; a server named twice; several such errors.
        InputError: a file that does not say what it should, with its line.
    """
    found = Problems() if problems is None else problems
    values = [part for value in given for part in (_split(value) if "://" in value else [value])]
    servers = [server for value in values for server in found.tried(_load_one, value, origin, found) or ()]
    seen: dict[str, ServerConfig] = {}
    for server in servers:
        if (first := seen.setdefault(server.base_url, server)) is not server:
            found.add(
                ConfigurationError(
                    f"two servers have the address {server.base_url}: {first.origin} and {server.origin}",
                    hint="Give each its own port, or leave one out.",
                )
            )
    if problems is None:
        found.require_none()
    return servers


def _split(text: str) -> list[str]:
    """At commas, but not within a URL that holds a user: a comma may be of its password, which is quoted nowhere."""
    wholes = re.split(r",(?=\s*https?://)", text)
    parts = [part for one in wholes for part in ([one] if "://" in one and "@" in one else one.split(","))]
    return [part.strip() for part in parts if part.strip()]


def parse_url(url: str, *, where: str) -> str:
    """A base URL as it is used: checked, ``/v1`` added where there is no path.

    ``unix:/path`` becomes ``http+unix://%2Fpath/v1``.

    Raises:
        ConfigurationError: neither http(s) nor a Unix socket, no host, a user, query or fragment in it, or the path of
            one endpoint.
    """
    url = url.strip()
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        if not path.startswith("/"):
            raise ConfigurationError(f"{where}: {url!r} is not the path of a socket", hint="Write unix:/run/vllm.sock")
        return f"{UNIX_SCHEME}://{quote('/' + path.lstrip('/'), safe='')}/v1"
    try:
        parts = urlsplit(url)
        port = None if parts.scheme == UNIX_SCHEME else parts.port
    except ValueError as error:
        raise ConfigurationError(f"{where}: {shown_url(url)!r} is not a URL: {error}") from None
    if parts.username or parts.password:  # not quoted: it may be a key
        raise ConfigurationError(
            f"{where}: a URL for {parts.hostname} holds a user or password",
            hint="Put the key into an environment variable and name it as api_key_env.",
        )
    if parts.scheme == UNIX_SCHEME and parts.netloc.lower().startswith("%2f"):
        return f"{UNIX_SCHEME}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        hint = "It looks like http://127.0.0.1:8000/v1"
        if _HOST_AND_PORT.match(url):
            hint = f"Write http://{url}"
        elif parts.query:
            hint = "Give what follows the ? as `query` in a fleet file, or as LLM(query={...})."
        raise ConfigurationError(f"{where}: {shown_url(url)!r} is not the base URL of a server", hint=hint)
    path = parts.path.rstrip("/")
    if path.endswith("/completions"):  # /chat/completions, too
        base = path.removesuffix("/completions").removesuffix("/chat")
        raise ConfigurationError(
            f"{where}: {shown_url(url)!r} is where one kind of request goes, not the base URL of a server",
            hint=f"The base URL ends in /v1: {_base_url(parts.scheme, parts.hostname, port, base)}",
        )
    return _base_url(parts.scheme, parts.hostname, port, parts.path)


def _base_url(scheme: str, host: str, port: int | None, path: str) -> str:
    if host in _ANY_ADDRESS:
        host = "127.0.0.1"  # an address to listen on is none to connect to
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}{'' if port is None else f':{port}'}{path.rstrip('/') or '/v1'}"


def _load_one(value: str, origin: str, problems: Problems) -> list[ServerConfig]:
    if "://" in value or value.startswith("unix:"):
        return [ServerConfig(base_url=parse_url(value, where=origin), origin=origin)]
    try:
        path = Path(value).expanduser()
    except RuntimeError:  # ~nobody/x, where there is no such user
        path = Path(value)
    if os.path.isdir(path):
        return _read_folder(path, origin, problems)
    if not os.path.isfile(path):
        raise ConfigurationError(
            f"{origin}: there is no file or folder {value}",
            hint=f"For a server there, write http://{value}"
            if _HOST_AND_PORT.match(value)
            else "Give a URL (http://127.0.0.1:8000/v1), a vLLM --config file, a fleet file, or a folder.",
        )
    return _servers(read_mapping(path), problems)


def _servers(top: YamlMapping, problems: Problems) -> list[ServerConfig]:
    """The servers of one YAML file: a fleet (it has ``servers``) or a vLLM configuration."""
    if "servers" in top.values:
        found = [problems.tried(_entry, entry, problems) for entry in _entries(top, problems)]
        return [server for server in found if server is not None]
    config, launch = _vllm(top, problems), read_launch(top)
    return [] if config is None else [replace(config, launch=launch)]


def _read_folder(folder: Path, origin: str, problems: Problems) -> list[ServerConfig]:
    """Every YAML file in it; a vLLM file that one of its fleets starts is read there, with its placement."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))
    if not files:
        raise ConfigurationError(f"{origin}: the folder {folder} holds no .yaml file")
    tops = [top for file in files if (top := problems.tried(read_mapping, file)) is not None]
    untold = Problems()  # the fleets are read again below, and tell what is wrong then
    entries = [entry for top in tops if "servers" in top.values for entry in untold.tried(_entries, top, untold) or ()]
    named = [untold.tried(_config_file, entry) for entry in entries if "config" in entry.values]
    started = {file.resolve() for file in named if file is not None}
    alone = [top for top in tops if top.path.resolve() not in started]
    return [server for top in alone for server in problems.tried(_servers, top, problems) or ()]


def _entries(top: YamlMapping, problems: Problems) -> list[YamlMapping]:
    listed = top.values["servers"]
    if not isinstance(listed, yaml.SequenceNode) or not listed.value:
        top.fail("servers must be a list, each with a url or a config", listed)
    found = [problems.tried(YamlMapping, node, top.path) for node in listed.value]
    return [entry for entry in found if entry is not None]


def _entry(entry: YamlMapping, problems: Problems) -> ServerConfig | None:
    """One server of a fleet: it runs somewhere (url), or it can be started here (config).

    A wrong setting is left at its default, so that all others are checked too. None if it is not clear which server
    this is.
    """
    tried = problems.tried
    starts, runs = "config" in entry.values, "url" in entry.values
    known = _CONFIG_KEYS if starts else _URL_KEYS if runs else tuple(dict.fromkeys((*_CONFIG_KEYS, *_URL_KEYS)))
    allowed = [key.replace("_", "-") for key in known]
    unknown = [key for key in entry.values if key not in allowed]
    for key in unknown:
        tried(_refuse_key, entry, key, known)
    if "limit" in entry.values and "max-concurrency" in entry.values:
        tried(
            entry.fail,
            "limit and max_concurrency exclude each other",
            entry.values["max-concurrency"],
            hint="limit is a fixed number in flight; max_concurrency bounds one that adapts.",
        )
    key_env = tried(_key_variable, entry)
    common: dict[str, Any] = {
        "api_key_env": DEFAULT_KEY_ENV if key_env is None else key_env,
        "key_required": "api-key-env" in entry.values and key_env is not None,
        "limit": tried(entry.at_least_one, "limit"),
        "max_concurrency": tried(entry.at_least_one, "max_concurrency"),
        "requests_per_minute": tried(entry.at_least_one, "requests_per_minute"),
        "tokens_per_minute": tried(entry.at_least_one, "tokens_per_minute"),
        "orca": tried(entry.get, "orca", bool) or False,
        "request_timeout": tried(entry.seconds, "request_timeout"),
        "origin": entry.place(),
    }
    name = tried(entry.get, "name", str) or ""
    if starts:
        file = tried(_config_file, entry)
        settings = None if file is None else tried(read_mapping, file)
        if settings is None:
            return None
        launch = tried(read_launch, settings, entry)
        config = _vllm(settings, problems)
        if launch is None or config is None:
            return None
        return replace(config, name=name or config.name, launch=launch, **common)
    models, slots = tried(entry.names, "models"), tried(entry.at_least_one, "max_num_seqs")
    common |= _access(entry, problems)
    url = entry.get("url", str)
    if url is None:
        if not unknown:  # else one of them was meant as the url
            entry.fail("a server without a url or a config")
        return None
    return ServerConfig(base_url=parse_url(url, where=entry.place()), name=name, models=models, slots=slots, **common)


def _key_variable(entry: YamlMapping) -> str:
    named: str = entry.get("api_key_env", str, DEFAULT_KEY_ENV)
    if "api-key-env" in entry.values:
        check_variable(named, f"{entry.place(entry.values['api-key-env'])}: api_key_env")
    return named


def _access(entry: YamlMapping, problems: Problems) -> dict[str, Any]:
    """How the server of a `url` entry is reached; files are relative to the fleet's folder."""
    found: dict[str, Any] = {}
    for kind in ("headers", "query"):
        if kind in entry.values:
            values = problems.tried(entry.value, kind)
            if not isinstance(values, dict):
                problems.tried(entry.fail, f"{kind} must map names to values", entry.values[kind])
                continue
            problems.tried(check_values, kind, values, entry.place(entry.values[kind]))
            found[kind] = {str(name): str(value) for name, value in values.items()}
    for kind in ("ca_file", "client_cert", "client_key"):
        file = problems.tried(entry.get, kind, str)
        if file is not None:
            named = problems.tried(_relative, entry, kind, file)
            found[kind] = None if named is None else str(named)
    return found


def _config_file(entry: YamlMapping) -> Path:
    """The vLLM file of an entry: its path is relative to the fleet's folder."""
    file = _relative(entry, "config", entry.get("config", str) or "")
    if not os.path.isfile(file):  # the method raises for a name that is too long
        entry.fail(f"config: there is no file {file}", entry.values["config"])
    return file


def _relative(entry: YamlMapping, key: str, named: str) -> Path:
    """A path that an entry names: relative to the fleet's folder."""
    try:
        return entry.path.parent / Path(named).expanduser()
    except RuntimeError:  # ~nobody/x, where there is no such user
        entry.fail(f"{key}: {named!r} names no file", entry.values[key.replace("_", "-")])


def _refuse_key(entry: YamlMapping, key: str, known: Sequence[str]) -> NoReturn:
    name = key.replace("-", "_")
    near = get_close_matches(name, known, n=1)
    meant = f"Did you mean {near[0]}? " if near else ""
    if key == "api-key":
        meant = "Keys do not belong into files: name an environment variable as api_key_env. "
    elif key in ("url", *LAUNCH_KEYS):
        meant = "A server has either a url, or a config to start it with. "
    hint = f"{meant}Known: {', '.join(known)}"
    entry.fail(f"unknown key {name}", entry.values[key], hint=hint)


def require_keys(
    servers: Sequence[ServerConfig], environ: Mapping[str, str] | None = None, *, problems: Problems | None = None
) -> None:
    """Raises ConfigurationError if a fleet names a key's variable and that is not set; the message has `problems`
    too."""
    problems = Problems() if problems is None else problems
    for server in servers:
        if server.key_required and server.key(environ) is None:
            problems.add(
                ConfigurationError(
                    f"{server.origin}: {server.name} takes its key from {server.api_key_env}, which is not set",
                    hint=f"export {server.api_key_env}=..., or take api_key_env out where the server wants none.",
                )
            )
    problems.require_none()


def _vllm(top: YamlMapping, problems: Problems) -> ServerConfig | None:
    """What a client needs of a `vllm serve --config` file; the other hundred keys are vLLM's own matter.

    None if its model or its address is not clear.
    """
    tried = problems.tried
    served = tried(_served, top)
    port = tried(_port, top)
    host, tls = tried(top.get, "host", str, ""), tried(top.get, "ssl-certfile", str)
    keys, slots = tried(top.get, "api-key", (str, list)), tried(_slots, top)
    if "uds" in top.values:
        top.fail("servers on a Unix socket (uds) are not supported", top.values["uds"], hint="Use host and port.")
    if served is None or port is None or host is None:
        return None
    key = keys[0] if isinstance(keys, list) and keys else keys
    base_url = _base_url("https" if tls else "http", host, port, "/v1")
    try:
        urlsplit(base_url)
    except ValueError as error:
        top.fail(f"host: {host!r:.80} is no address: {error}", top.values["host"])
    return ServerConfig(
        base_url=base_url,
        models=served,
        api_key=Secret(str(key)) if key else None,
        slots=slots,
        origin=f"{top.path}:{top.line}",
    )


def _served(top: YamlMapping) -> frozenset[str]:
    model = top.get("model", str) or top.get("model-tag", str)
    served = top.names("served-model-name") or (frozenset([model]) if model else None)
    if served is None:
        top.fail(
            "no model is named",
            hint="A vLLM configuration names its `model`; a list of running servers belongs under `servers`.",
        )
    return served


def _port(top: YamlMapping) -> int:
    port: int = top.get("port", int, 8000)
    if not 0 < port < 65536:
        top.fail(f"port must be between 1 and 65535, not {port}", top.values["port"])
    return port


def _slots(top: YamlMapping) -> int | None:
    """Requests that all engines of a vLLM server work on at once: each of a data-parallel set has max-num-seqs."""
    one = top.at_least_one("max-num-seqs")
    return None if one is None else one * (top.at_least_one("data-parallel-size") or 1)
