"""Credits for records in flight, bounded in number and in bytes."""

from __future__ import annotations


class Window:
    """Admission for records: at most `records` at once, and none more while `bytes` are held.

    A record's size is known only after it was read, so the bytes may be passed by the last record admitted; a
    record larger than the whole window is admitted alone.
    """

    __slots__ = ("bytes", "held", "in_flight", "records")

    def __init__(self, records: int, bytes: int) -> None:
        if records < 1 or bytes < 1:
            raise ValueError("a window holds at least one record and one byte")
        self.records: int = records
        self.bytes: int = bytes
        self.in_flight: int = 0  #: records admitted and not released
        self.held: int = 0  #: bytes charged and not released

    @property
    def room(self) -> int:
        """Records that `try_take` would admit now, if they had no size."""
        if self.held >= self.bytes:
            return 1 if self.in_flight == 0 else 0
        return self.records - self.in_flight

    def try_take(self) -> bool:
        """Take one record's credit before reading it; False when the window is full."""
        if self.in_flight and (self.in_flight >= self.records or self.held >= self.bytes):
            return False
        self.in_flight += 1
        return True

    def charge(self, nbytes: int) -> None:
        """Add bytes to what is held for records already admitted."""
        if nbytes < 0:
            raise ValueError("charge() takes a size, 0 or more")
        if not self.in_flight:
            raise ValueError("charge() without a record in flight")
        self.held += nbytes

    def release(self, nbytes: int) -> None:
        """Give one record's credit back, with all the bytes charged for it."""
        if not self.in_flight:
            raise ValueError("release() without a record in flight")
        if not 0 <= nbytes <= self.held:
            raise ValueError(f"release({nbytes}) but {self.held} bytes are held")
        self.in_flight -= 1
        self.held -= nbytes
