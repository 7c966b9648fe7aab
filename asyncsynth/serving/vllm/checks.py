"""What can be checked about servers before any is started: flags, ports, GPUs, keys, each with file and line."""

from __future__ import annotations

import errno
import os
import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from asyncsynth.errors import AsyncsynthError, ConfigurationError
from asyncsynth.servers.configs import ServerConfig
from asyncsynth.servers.exchange import exchange_for
from asyncsynth.servers.launch_settings import GPU_VARIABLE, Launch
from asyncsynth.servers.problems import Problems
from asyncsynth.servers.readiness import ReadyPolicy
from asyncsynth.servers.sample_requests import plain_sample
from asyncsynth.servers.trial import contact_with
from asyncsynth.serving.vllm.flags import Finding, FlagTable, check_flags, load_table
from asyncsynth.serving.vllm.launch import VLLMCommand

_DEFAULT_UTILIZATION = 0.92  #: vLLM 0.33's gpu-memory-utilization
#: Flags that give a port to listen on; `port` itself has a default, 8000.
_PORTS = ("port", "data-parallel-rpc-port", "master-port")
_LOCAL = {"", "0.0.0.0", "::", "localhost", "127.0.0.1", "::1"}  # noqa: S104


def check_servers(
    servers: Sequence[ServerConfig],
    *,
    vllm: VLLMCommand | None = None,
    table: FlagTable | None = None,
    environ: Mapping[str, str] | None = None,
    gpus: int | None = None,
) -> list[Finding]:
    """Everything that is wrong with servers that will be started together on this machine; starts nothing.

    Args:
        vllm: what would run; None if there is none, then the flags are those of the pinned version.
        gpus: how many GPUs the machine has; None asks it.
    """
    table = table or load_table()
    machine = gpu_count() if gpus is None else gpus
    found: list[Finding] = []
    checked: set[tuple[Path, tuple[str, ...]]] = set()
    for server in servers:
        launch = _launch(server)
        if (launch.file, launch.overrides) not in checked or launch.overrides:  # a file of several replicas: once
            checked.add((launch.file, launch.overrides))
            installed = None if vllm is None else _public(vllm.version or "an unknown version")
            found += check_flags(launch.flags, table, installed=installed)
        found += _check_model(launch)
        found += _check_key(server, environ)
        if vllm is None or not vllm.is_cpu:
            found += _check_gpus(launch, machine)
    found += _check_ports(servers)
    if vllm is None or not vllm.is_cpu:
        found += _check_memory(servers, machine)
    return list(dict.fromkeys(found))


def require_sound(findings: Sequence[Finding], problems: Problems | None = None) -> list[Finding]:
    """The warnings among them. Raises ConfigurationError that tells all errors, and `problems` before them."""
    problems = Problems() if problems is None else problems
    for finding in findings:
        if finding.is_error:
            problems.add(ConfigurationError(f"{finding.place}: {finding.message}", hint=finding.hint))
    problems.require_none()
    return [finding for finding in findings if not finding.is_error]


def gpu_count() -> int:
    """The NVIDIA GPUs of this machine; 0 where none is seen."""
    listed = Path("/proc/driver/nvidia/gpus")
    if listed.is_dir():
        return sum(1 for _ in listed.iterdir())
    return sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia[0-9]*"))


def shared_gpus(server: ServerConfig, *, is_cpu: bool) -> tuple[str, ...]:
    """The GPUs that a server loads on: those it is given, or those that vLLM takes first."""
    launch = _launch(server)
    if is_cpu:
        return ()
    if launch.gpus is not None:
        return launch.gpus
    if (chosen := launch.env.get(GPU_VARIABLE, os.environ.get(GPU_VARIABLE, ""))) and "," not in chosen:
        return (chosen,)
    return tuple(map(str, range(_ranks(launch)))) if gpu_count() else ()


def _public(version: str) -> str:
    """0.33.0+cu129 -> 0.33.0"""
    return version.partition("+")[0]


def _launch(server: ServerConfig) -> Launch:
    assert server.launch is not None, "only servers that a file describes are started"
    return server.launch


def _ranks(launch: Launch) -> int:
    """GPUs that one server takes on this machine."""
    parallel = launch.number("tensor-parallel-size", 1) * launch.number("pipeline-parallel-size", 1)
    local = launch.number("data-parallel-size-local", launch.number("data-parallel-size", 1))
    return max(1, int(parallel * max(1.0, local)))


def _check_model(launch: Launch) -> Iterator[Finding]:
    flag = launch.flags.get("model")
    if flag is None or not isinstance(flag.value, str) or not flag.value.startswith(("/", "./", "../", "~")):
        return
    if not Path(flag.value).expanduser().exists():
        yield Finding(flag.place, f"model: there is no folder {flag.value}")


def _check_key(server: ServerConfig, environ: Mapping[str, str] | None) -> Iterator[Finding]:
    if server.key_required and server.key(environ) is None:
        yield Finding(
            server.origin,
            f"the key of {server.name} is to come from {server.api_key_env}, which is not set",
            f"export {server.api_key_env}=..., or take api_key_env out: then the server wants no key.",
        )


def _check_gpus(launch: Launch, machine: int) -> Iterator[Finding]:
    if launch.gpus is None:
        return
    ranks = _ranks(launch)
    sizes = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size", "data-parallel-size-local")
    said = next((name for name in sizes if name in launch.flags), "tensor-parallel-size")
    if len(launch.gpus) != ranks:
        yield Finding(
            launch.place,
            f"{len(launch.gpus)} GPUs ({','.join(launch.gpus)}) for {launch.file.name}, which takes {ranks}",
            f"Give it {ranks}, or set {said} to fit ({launch.place_of(said)}).",
        )
    for gpu in launch.gpus:
        if machine and gpu.isdigit() and int(gpu) >= machine:
            yield Finding(launch.place, f"there is no GPU {gpu}: this machine has {machine}, counted from 0")


def _check_ports(servers: Sequence[ServerConfig]) -> Iterator[Finding]:
    """A port that two servers would listen on; reading the files refuses the same address twice."""
    taken: dict[int, str] = {}
    for server in servers:
        launch = _launch(server)
        for name in _PORTS:
            port = int(launch.number(name, 8000 if name == "port" else 0))
            if not port:
                continue
            place = launch.place_of(name)
            if port in taken:
                yield Finding(place, f"{name} {port} is taken by {taken[port]}", "Give each its own.")
            taken.setdefault(port, place)


def _check_memory(servers: Sequence[ServerConfig], machine: int) -> Iterator[Finding]:
    """Servers on one GPU whose shares of its memory are more than all of it."""
    on: dict[str, list[tuple[float, Launch]]] = defaultdict(list)
    for server in servers:
        launch = _launch(server)
        if "kv-cache-memory-bytes" in launch.flags:
            continue  # it takes as much as it says, whatever the share is
        name = "gpu-memory-utilization"
        share = launch.number(name, launch.number("device-memory-utilization", _DEFAULT_UTILIZATION))
        gpus = launch.gpus
        if gpus is None and machine and GPU_VARIABLE not in launch.env:
            gpus = tuple(map(str, range(_ranks(launch))))  # what vLLM takes by default
        for gpu in gpus or ():
            on[gpu].append((share, launch))
    told: set[tuple[str, ...]] = set()
    for gpu, shares in on.items():
        places = tuple(launch.place_of("gpu-memory-utilization") for _, launch in shares)
        total = sum(share for share, _ in shares)
        if len(shares) > 1 and total > 1 + 1e-9 and places not in told:
            told.add(places)
            files = ", ".join(f"{launch.file.name} {share:g}" for share, launch in shares)
            yield Finding(
                places[-1],
                f"the servers on GPU {gpu} would take {total:.2f} of its memory ({files})",
                "Lower their gpu-memory-utilization, or place them on different GPUs: `gpus` in a fleet, or --gpus.",
            )


# --- ports in use ------------------------------------------------------------------------------


def is_local(server: ServerConfig) -> bool:
    """Whether its address is one of this machine's usual ones."""
    return (urlsplit(server.base_url).hostname or "") in _LOCAL


def port_in_use(server: ServerConfig) -> bool:
    """Whether something on this machine listens where the server is to."""
    parts = urlsplit(server.base_url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 8000
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports that only linger are free
        try:
            listener.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


async def already_served(server: ServerConfig, environ: Mapping[str, str] | None = None) -> bool:
    """Whether this server need not be started, since one with its models answers at its address.

    Raises:
        ConfigurationError: something else holds its port.
    """
    if is_local(server) and not port_in_use(server):
        return False
    exchange = exchange_for(server, environ=environ)
    try:
        policy = ReadyPolicy(connect_s=0.0, load_s=900.0)
        contact = contact_with(server, exchange, environ=environ, policy=policy)
        samples = {model: plain_sample(model) for model in server.models or ()}
        listing = await contact.wait_ready(next(iter(samples.values()), None))
        said = f"it serves {', '.join(sorted(listing.names))}" if listing.names else "it lists no models"
        if listing.names is not None and all(listing.has(model) for model in samples):
            return True
    except AsyncsynthError as error:
        said = error.message
        if not is_local(server):
            return False
    finally:
        await exchange.aclose()
    place = _launch(server).place_of("port")
    raise ConfigurationError(
        f"{place}: the port of {server.name} is taken by something that is not this server ({said})",
        hint="Stop it, or choose another port (in the file, or in `flags` of a fleet).",
    )
