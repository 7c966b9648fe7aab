"""A run's servers as plain values: the limit of each, why it is so, and what keeps the server from reaching it.

The last values are kept beside the journal (``servers.json``), for `asyncsynth status`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from asyncsynth.client.server_pool import PoolSnapshot
from asyncsynth.core.replica_state import ReplicaSnapshot
from asyncsynth.errors import StorageError
from asyncsynth.storage import layout
from asyncsynth.storage.files import atomic_write

FILE = layout.SERVERS
KEEP_EVERY_S = 5.0


def server_lines(pool: PoolSnapshot, window_why: str) -> list[dict[str, Any]]:
    """The servers of a snapshot. `window_why` is added to the reasons of those that could take more requests."""
    return [_line(replica, window_why) for replica in pool.replicas]


def merged_lines(groups: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One line for each server, from the lines of several processes that share it.

    Requests in flight, limits and waiting requests are added. If one process has paused a server, the line says so. The
    reason is the last process's.
    """
    merged: dict[str, dict[str, Any]] = {}
    for line in chain.from_iterable(groups):
        known = merged.setdefault(line["name"], line)
        if known is line:
            merged[line["name"]] = {**line}
            continue
        known["why"] = f"in each process: {line['why']}"
        for field in ("in_flight", "limit", "waiting"):
            known[field] += line[field]
        for field in ("server_waiting", "server_running", "server_kv"):  # each process reads the whole server's
            known[field] = max((value for value in (known[field], line[field]) if value is not None), default=None)
        if known["state"] == "closed":
            known["state"] = line["state"]
    return list(merged.values())


def _line(replica: ReplicaSnapshot, window_why: str) -> dict[str, Any]:
    load = replica.load
    why = replica.why
    if window_why and replica.state == "closed" and replica.in_flight < replica.limit:
        why = f"{why}; not reached: {window_why}"
    return {
        "name": replica.name,
        "state": replica.state,
        "in_flight": replica.in_flight,
        "limit": replica.limit,
        "waiting": replica.waiting,
        "server_waiting": None if load is None else load.waiting,
        "server_running": None if load is None else load.running,
        "server_kv": None if load is None else load.kv,
        "why": why,
    }


def keep_lines(directory: Path, lines: list[dict[str, Any]]) -> None:
    """Writes the lines into the run directory, atomically, in place of the earlier ones.

    Does not sync: they are only for display. The journal reports a full or failing disk.
    """
    with contextlib.suppress(StorageError):
        atomic_write(directory / FILE, orjson.dumps(lines, option=orjson.OPT_INDENT_2), sync=False)


def kept_lines(directory: Path) -> list[dict[str, Any]]:
    """The lines that were kept last; empty if there are none, or none that can be read.

    A line with a value of another kind than `server_lines` writes is left out.
    """
    try:
        lines = orjson.loads((directory / FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return []
    return [line for line in lines if _is_line(line)] if isinstance(lines, list) else []


def _is_line(line: Any) -> bool:
    return isinstance(line, dict) and all(
        type(line.get(name)) in kinds for names, kinds in _KINDS.items() for name in names
    )


_KINDS: dict[tuple[str, ...], tuple[type, ...]] = {
    ("name", "state", "why"): (str,),
    ("in_flight", "limit", "waiting"): (int,),
    ("server_waiting", "server_running", "server_kv"): (int, float, type(None)),
}
