"""How a line of the journal is framed and checked. Pure.

A line is `{...,"_q":<seq>,"_c":"<crc32, 8 hex digits>"}` and a newline. The CRC covers the raw bytes before
`,"_c"` and starts from the segment's salt, so bytes of another segment never pass the check. `_q` counts every line
of the run, headers and marks included, so that a missing line shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import orjson

FORMAT = 1
HEADER_START = b'{"t":"seg",'
MARK_START = b'{"t":"mark",'
_TRAILER = 17  #: bytes of `,"_c":"xxxxxxxx"}`
_OFFSET_BITS = 40
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a segment. `prev` is the last seq before this segment; its own is `prev + 1`."""

    run_id: str
    segment: int
    salt: int
    prev: int


def location(segment: int, offset: int) -> int:
    """Where a line starts, as one integer. Never 0: segments count from 1."""
    return segment << _OFFSET_BITS | offset


def split_location(where: int) -> tuple[int, int]:
    """(segment, byte offset) of a location."""
    return where >> _OFFSET_BITS, where & _OFFSET_MASK


def frame(body: bytes, seq: int, salt: int) -> bytes:
    """The line, newline included, for a JSON object that is not empty."""
    head = b'%b,"_q":%d' % (body[:-1], seq)
    return b'%b,"_c":"%08x"}\n' % (head, crc32(head, salt))


def check(line: bytes, salt: int) -> tuple[int, int]:
    """(seq, where `,"_q"` starts) of a line without its newline; (-1, -1) if it does not check."""
    head = line[:-_TRAILER]
    if not line.endswith(b',"_c":"%08x"}' % crc32(head, salt)):
        return -1, -1
    at = head.rfind(b',"_q":')
    digits = head[at + 6 :]
    if at < 0 or not digits.isdigit():
        return -1, -1
    return int(digits), at


def check_next(line: bytes, seq: int, salt: int) -> int:
    """As `check`, for a known seq: where `,"_q"` starts, or -1 if the line is another one."""
    head = line[:-_TRAILER]
    field = b',"_q":%d' % seq
    if not head.endswith(field) or not line.endswith(b',"_c":"%08x"}' % crc32(head, salt)):
        return -1
    return len(head) - len(field)


def header_line(header: Header) -> bytes:
    """A segment's first line. Its own CRC starts from 0: the salt is inside."""
    body = orjson.dumps(
        {"t": "seg", "format": FORMAT, "run": header.run_id, "n": header.segment, "salt": header.salt,
         "prev": header.prev}
    )  # fmt: skip
    return frame(body, header.prev + 1, 0)


def parse_header(line: bytes) -> tuple[Header, int] | None:
    """(header, format version) from a first line without its newline; None if it does not check."""
    if not line.startswith(HEADER_START) or check(line, 0)[0] < 0:
        return None
    data = orjson.loads(line)
    return Header(data["run"], data["n"], data["salt"], data["prev"]), data["format"]


def mark_line(durable_upto: int, salt: int) -> bytes:
    """The first line of a commit group: all up to `durable_upto` was synced before this was written.

    It repeats the salt, so that it can be trusted even if the segment's header is damaged.
    """
    body = b'{"t":"mark","durable_upto":%d,"salt":%d}' % (durable_upto, salt)
    return frame(body, durable_upto + 1, salt)


def mark_durable_upto(line: bytes, salt: int | None) -> int:
    """`durable_upto` of a mark without its newline, or -1. Salt None: trust the one in the mark."""
    if not line.startswith(MARK_START):
        return -1
    try:
        data = orjson.loads(line)
        carried, upto = data["salt"], data["durable_upto"]
    except (ValueError, KeyError):
        return -1
    if not isinstance(carried, int) or not isinstance(upto, int) or not 0 <= carried < 1 << 32:
        return -1
    if salt is not None and carried != salt:
        return -1
    return upto if check(line, carried)[0] >= 0 else -1
