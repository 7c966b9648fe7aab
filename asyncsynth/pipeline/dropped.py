"""`Dropped`: how a step leaves a row out."""

from __future__ import annotations


class Dropped(Exception):
    """Raised by a step: the row leaves the pipeline for a counted `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
