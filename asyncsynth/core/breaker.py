"""When to pause a server, and when to test it again."""

from __future__ import annotations

from asyncsynth.core.retry import Rng
from asyncsynth.core.states import CLOSED, ReplicaState, answering, paused, removed, taken_down, tried

#: Stand-ins for the id of the call that tests a server: the driver tests it, by a `HealthCheck`. Its answer closes the
#: breaker, or (DRIVER_FIRST) only lets a call test the server.
DRIVER, DRIVER_FIRST = -1, -2

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


class Breaker:
    """Pauses a server that only fails: *different* calls fail, and none succeeds (with a record's fault, one call
    fails).

    While closed, it notes which calls failed since the last success. When there are enough of them (`blame`), it opens:
    a pause of 0.5 s, doubling to 30 s, with jitter, then one call as a test. Its answer closes the
    breaker, a failure opens it again. `core.states` has the table of its states.
    """

    __slots__ = (
        "cause",
        "failures",
        "how",
        "lost",
        "opened_at",
        "refused",
        "refused_since",
        "state",
        "streak",
        "test_at",
        "test_call",
        "tries",
    )

    def __init__(self) -> None:
        self.state: ReplicaState = CLOSED
        self.streak: dict[int, int] = {}  # call id -> charges since the last success
        self.refused: dict[int, int] = {}  # the same for refused connections
        self.refused_since: float = 0.0
        self.failures: int = 0  # the sum of both
        self.tries: int = 0
        self.opened_at: float | None = None  # start of the outage, kept over tests
        self.test_at: float | None = None
        self.test_call: int | None = None  # id of the call that tests the server, DRIVER or DRIVER_FIRST
        self.cause: str = ""
        self.lost: bool = False  # down, and its supervisor does not restart it
        self.how: str = ""  # why it does not come back, in words that follow its name

    def blame(self, call_id: int, now: float, connect: bool, limit: int, *, others: int) -> bool:
        """Note a failure while closed. True if the server is at fault and the breaker must open.

        `others`: calls in flight there. They may yet succeed, so at least as many different calls must have failed; a
        dead server fails them all soon. Or the same few fail over and over, while the others hang.
        """
        if connect and not self.refused:
            self.refused_since = now
        notes = self.refused if connect else self.streak
        notes[call_id] = notes.get(call_id, 0) + 1
        self.failures += 1
        if connect and sum(self.refused.values()) >= max(5, min(16, limit // 8)):
            return True
        different = len(self.streak) + len(self.refused)
        return different >= max(3, others) or (different >= 3 and self.failures >= 2 * limit)

    def settle(self, started_at: float) -> bool:
        """A call that started then has succeeded: earlier failures were not this server's fault.

        A server that shuts down refuses new connections while it still answers old requests, so only the success of a
        later call outweighs a refused connection. False if such notes remain.
        """
        self.streak.clear()
        if self.refused and started_at > self.refused_since:
            self.refused.clear()
        self.failures = sum(self.refused.values())
        return not self.refused

    def take_notes(self) -> list[tuple[int, int]]:
        """Returns (call id, charges) since the last success, and forgets them."""
        notes = [*self.streak.items(), *self.refused.items()]
        self.streak.clear()
        self.refused.clear()
        self.failures = 0
        return notes

    def open(self, now: float, cause: str, rng: Rng, at_least: float = 0.0) -> float:
        """Pause, or pause again. Returns when to test it, in seconds."""
        if self.opened_at is None:
            self.opened_at = now
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self.tries, 16)) * (0.5 + 0.5 * rng.random())
        self.tries += 1
        self.state = paused[self.state]
        self.tested_by(None)
        self.cause = cause
        self.test_at = now + max(pause, at_least)
        return self.test_at

    def half_open(self) -> None:
        """The pause is over: one call may try."""
        self.state = tried[self.state]
        self.tested_by(None)
        self.test_at = None

    def take_down(self) -> None:
        """Paused by its supervisor, which will report when it is back."""
        self.state = taken_down[self.state]
        self.tested_by(None)
        self.test_at = None

    def give_up(self, cause: str, how: str) -> None:
        """The server does not come back. `how` follows its name in a message: "is not started again"."""
        self.cause = cause
        self.how = how
        self.lost = True

    def remove(self) -> None:
        """The server leaves the fleet."""
        self.state = removed[self.state]

    def tested_by(self, call_id: int | None) -> None:
        """A call (or DRIVER, DRIVER_FIRST) tests the server; None: it no longer does."""
        self.test_call = call_id

    def close(self) -> None:
        """The server answers."""
        self.state = answering[self.state]
        self.tested_by(None)
        self.test_at = None
        self.opened_at = None
        self.tries = 0
        self.cause = ""
        self.lost = False
