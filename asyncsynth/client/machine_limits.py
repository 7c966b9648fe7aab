"""Limits of this machine: open files, ports, memory. They are not the fault of a server or of a record."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path

from asyncsynth.client.transport import TransportFailure

RESERVE = 64  #: open files left for all but the servers' connections: journal, logs, what steps open
SPARE = 1024  #: and for these beside the connections, when the soft limit is raised
#: The kernel's errors for a connection that this machine has no room for, and what to do.
_WORDS = {
    errno.EMFILE: "this process may open no more files: raise `ulimit -n`, or lower the concurrency",
    errno.ENFILE: "this machine may open no more files: raise fs.file-max, or lower the concurrency",
    errno.ENOMEM: "this machine has no memory for another connection",
    errno.ENOBUFS: "this machine has no memory for another connection",
    errno.EADDRNOTAVAIL: "this machine has no free port for another connection: lower the concurrency, or widen "
    "net.ipv4.ip_local_port_range",
}


def machine_limit(failure: TransportFailure) -> str:
    """What this machine lacked for a connection, in words; '' for any other failure."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _WORDS:
            # An address of a family that this machine does not have gives the same error as no free port.
            return _WORDS[cause.errno] if cause.errno != errno.EADDRNOTAVAIL or ports_are_scarce() else ""
        cause = cause.__cause__
    return ""


def ports_are_scarce(proc: Path = Path("/proc")) -> bool:
    """Whether connections use, or have just used, half of the ports that this machine has for them; Linux only."""
    try:
        first, last = map(int, (proc / "sys/net/ipv4/ip_local_port_range").read_text().split())
        counts = (proc / "net/sockstat").read_text()
    except (OSError, ValueError):
        return False
    found = re.search(r"^TCP: inuse (\d+) .*?\btw (\d+)", counts, re.MULTILINE)
    return found is not None and int(found[1]) + int(found[2]) >= (last - first) // 2


def connections_each(servers: int, wanted: int, may_open: int, opened: int) -> int | None:
    """How many connections each server may have, so that all of them fit; None if all wanted ones fit.

    Args:
        servers: how many there are.
        wanted: connections at most, to all of them together.
        may_open: files that this process may open.
        opened: files that it has open for other things.
    """
    room = may_open - opened - RESERVE
    return None if wanted <= room else max(1, room // max(1, servers))


def raise_open_files(wanted: int) -> int:
    """Raises the soft limit of open files above `wanted`, as far as the hard one allows; returns what it is then."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 1 << 30
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 30
    if soft < wanted:
        most = wanted + SPARE if hard == resource.RLIM_INFINITY else min(wanted + SPARE, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS allows less than it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def open_files() -> int:
    """Files that this process has open; an estimate if the system does not report it."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder))
    return RESERVE
