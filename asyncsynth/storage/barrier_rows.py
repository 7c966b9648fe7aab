"""The rows that a step over all rows let through, as a file: a line `{"k": key, "row": {...}}` for each.

`barrier.json` beside it has `kept`, their number, and `crc`, the CRC-32 of the whole file in eight hexadecimal digits.
Versions of asyncsynth that wrote no `crc` wrote `kept`, too.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson

from asyncsynth.records import Row
from asyncsynth.storage import layout
from asyncsynth.storage.exports import NewFile
from asyncsynth.storage.files import storage_error

_CHUNK = 1 << 20


def encode_row(key: str, row: Row) -> bytes:
    """The line of one row. Raises TypeError for a row that JSON cannot hold."""
    return orjson.dumps({"k": key, "row": row}, option=orjson.OPT_APPEND_NEWLINE)


def decode_row(line: bytes) -> tuple[str, Row]:
    """(key, row) of a line. Raises ValueError, KeyError or TypeError for one that is damaged."""
    item = orjson.loads(line)
    return item["k"], item["row"]


class RowsWriter:
    """Writes rows to a new file, and keeps the file's checksum."""

    def __init__(self, file: NewFile) -> None:
        self._file = file
        self._crc = 0

    def write(self, key: str, row: Row) -> None:
        """Adds a row. Raises TypeError for one that JSON cannot hold, StorageError."""
        line = encode_row(key, row)
        self._crc = crc32(line, self._crc)
        self._file.write(line)

    @property
    def crc(self) -> str:
        """The checksum of the rows written so far, as in `barrier.json`."""
        return f"{self._crc:08x}"


def read_facts(directory: Path) -> dict[str, Any] | None:
    """The contents of `barrier.json`; None if there is none, or none that can be read. Raises StorageError."""
    path = directory / layout.BARRIER_FACTS
    try:
        facts = orjson.loads(path.read_bytes())
        known = {"read": int(facts["read"]), "kept": int(facts["kept"]), "dropped": dict(facts["dropped"])}
        crc = facts.get("crc")
        return {**known, "made_from": facts["made_from"], "crc": None if crc is None else str(crc)}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, path, "read the file") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def damage(directory: Path, facts: dict[str, Any]) -> str:
    """What is wrong with the rows in a directory, by its `barrier.json`; '' for nothing. Reads the file once.

    Without a `crc` only the number of rows is compared. Raises StorageError.
    """
    path = directory / layout.BARRIER_ROWS
    rows, crc, ended = 0, 0, True
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                crc = crc32(chunk, crc)
                ended = chunk.endswith(b"\n")
                rows += len(io.BytesIO(chunk).readlines()) - (not ended)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        raise storage_error(error, path, "read the file") from error
    if rows != facts["kept"] or not ended:
        part = "" if ended else " and a part of one"
        return f"has {rows:,} rows{part} where {facts['kept']:,} were written"
    if facts["crc"] not in (None, f"{crc:08x}"):
        return "does not match its checksum"
    return ""


def unchecked(facts: dict[str, Any]) -> str:
    """A note on rows that have no checksum; '' for those that have one."""
    if facts["crc"] is not None:
        return ""
    return "was written by a version that kept no checksum: only the number of its rows is checked"


def check_rows(directory: Path) -> tuple[str, str]:
    """(what is wrong with the rows in a directory, other notes on them); both are '' if there are none.

    Raises StorageError.
    """
    there = [(directory / name).exists() for name in (layout.BARRIER_ROWS, layout.BARRIER_FACTS)]
    if not any(there):
        return "", ""
    facts = read_facts(directory)
    if facts is None:  # it is removed first and written last: a run was stopped in between
        if there[1]:
            return "has no readable barrier.json beside it", ""
        return "", "is not finished: the next run makes it again"
    return damage(directory, facts), unchecked(facts)
