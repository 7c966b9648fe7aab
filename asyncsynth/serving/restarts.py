"""When a crashed server is started again, and when it is given up. Decides only; time and chance are arguments."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from asyncsynth.core.retry import Rng


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """Seconds, but for `crashes`.

    Args:
        first_s, longest_s: the pause before a restart: it doubles with each crash that is not long ago.
        crashes: up to this many within `within_s` are followed by a restart; the next one is the last.
    """

    first_s: float = 0.5
    longest_s: float = 60.0
    crashes: int = 5
    within_s: float = 900.0

    def said(self) -> str:
        """Why a server is not started again, in words."""
        return f"crashed more than {self.crashes} times within {self.within_s:g} s"


class Restarts:
    """The crashes of one server."""

    def __init__(self, policy: RestartPolicy, rng: Rng) -> None:
        self._policy = policy
        self._rng = rng
        self._crashes: deque[float] = deque()

    def crashed(self, now: float) -> float | None:
        """It crashed: seconds until the restart, or None to give up."""
        policy = self._policy
        self._crashes.append(now)
        while self._crashes[0] <= now - policy.within_s:
            self._crashes.popleft()
        count = len(self._crashes)
        if count > policy.crashes:
            return None
        pause = min(policy.longest_s, policy.first_s * 2.0 ** (count - 1))
        # At least half of it: several servers that one fault took down do not come back at once.
        return pause * (0.5 + self._rng.random() / 2)
