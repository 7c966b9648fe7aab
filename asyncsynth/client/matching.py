"""Which request an answer belongs to.

HTTP/1.1 pairs them by order only: the next answer on a connection is taken for the next request's. A server, proxy or
load balancer that sends one answer twice shifts every later answer on that connection to another record. So:

- Each attempt sends an `X-Request-Id` of its own. vLLM makes it the `id` of its answer; others return it as a header.
  An answer with that id is proven. One with the id of another attempt is refused, and the request is sent again on a
  new connection.
- Servers that return no id get rest instead: a connection is not used again for `REST_S`, so that bytes that follow an
  answer arrive while no request is waiting. An answer that repeats an earlier one of its connection is held for twice
  the
  time of the slowest answer so far: if it is a copy, the real answer follows it.
- Bytes that no request asked for end the connection.

Findings are counted and reported in `Matching.note`.
"""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass, field

from asyncsynth.client.transport import TransportFailure, WireResponse

ID_HEADER = "x-request-id"
REST_S = 0.01  #: between two requests on a connection to a server that returns no ids
MAX_RESTING = 256  #: connections at rest at once; above it, the one that has rested longest is used
RESENDS = 2  #: of one request whose answers were refused, before it fails
LEAST_HOLD_S, LONGEST_HOLD_S = 0.05, 30.0  #: of an answer that repeats an earlier one
HARMLESS_REPEATS = 4  #: after these, more than the copies found, the server is known to repeat itself
_REMEMBERED = 64  #: answers of a connection to compare with


class Verdict(enum.Enum):
    """What to do with an answer."""

    ACCEPT = "it belongs to the request"
    REFUSE = "it belongs to another request"
    HOLD = "it repeats an earlier answer of its connection: wait to see whether another follows"


class Crossed(TransportFailure):
    """An answer that belongs to another request; `response` holds it."""

    def __init__(self, response: WireResponse) -> None:
        super().__init__("crossed", "the answer belongs to another request")
        self.response = response


@dataclass(slots=True)
class History:
    """The answers of one connection that no id proves."""

    bodies: dict[int, None] = field(default_factory=dict)  #: hashes, the oldest first
    unproven: int = 0

    def add(self, known: int) -> None:
        """Remember an answer by the hash of its body."""
        self.unproven += 1
        self.bodies[known] = None
        if len(self.bodies) > _REMEMBERED:
            del self.bodies[next(iter(self.bodies))]


class Matching:
    """Judges the answers of one server.

    `name` is the server's name in notes; `notes` is the list to which they are added and in which they are updated.
    `sends_ids` is False if the user sends their own X-Request-Id.
    `returns_ids` is None until the first answer, and stays False once an answer of a new connection has no id.
    """

    __slots__ = (
        "_doubtful",
        "_next",
        "_note_at",
        "_prefix",
        "_refused",
        "_slowest_s",
        "_surplus",
        "at_once",
        "name",
        "notes",
        "repeats",
        "returns_ids",
    )

    def __init__(self, name: str, *, sends_ids: bool = True) -> None:
        self.name = name
        self.notes: list[str] = []
        self.returns_ids: bool | None = None if sends_ids else False
        self.at_once: bool = False  #: connections need no rest: ids prove all answers, and none was refused
        self.repeats = 0  #: held answers that were no copies
        shape = str(uuid.uuid4())
        self._prefix = shape[:24].encode()  # with 12 hexadecimal digits it is a UUID, which every gateway accepts
        self._next = 0
        self._refused = 0
        self._surplus = 0
        self._doubtful = 0
        self._slowest_s = 0.0
        self._note_at: int | None = None

    def token(self) -> bytes:
        """The id of a new attempt; empty if ids prove nothing."""
        if self.returns_ids is False:
            return b""
        self._next = number = self._next + 1
        return b"%b%012x" % (self._prefix, number)

    def proven(self) -> None:
        """The first answer with its id."""
        if self.returns_ids is None:
            self.returns_ids = self.at_once = True

    def judge(self, token: bytes, response: WireResponse, history: History, *, fresh: bool, seconds: float) -> Verdict:
        """Judges an answer (2xx) whose body lacks its id.

        Args:
            token: the id that was sent; empty if the user's own header replaces it.
            response: the answer.
            history: of its connection.
            fresh: it is the connection's first answer.
            seconds: how long it took.
        """
        if token:
            returned = response.headers.get(ID_HEADER, "").encode("latin-1", "replace")
            if token in returned:
                self.proven()
                return Verdict.ACCEPT
            if self._prefix in returned or self._prefix in response.body:
                return Verdict.REFUSE
            if not fresh and self.returns_ids:
                return Verdict.REFUSE
            if fresh:
                self.ids_are_no_proof()
        if seconds > self._slowest_s:
            self._slowest_s = seconds
        known = hash(response.body)
        if known in history.bodies and self.repeats < HARMLESS_REPEATS * (1 + self._refused):
            return Verdict.HOLD
        history.add(known)
        return Verdict.ACCEPT

    def hold_s(self) -> float:
        """How long a repeated answer waits for another one."""
        return min(LONGEST_HOLD_S, max(LEAST_HOLD_S, 2 * self._slowest_s))

    def refused(self) -> None:
        """An answer of another request came; its request is sent again."""
        self._refused += 1
        self._say()

    def ids_are_no_proof(self) -> None:
        """The server returns no ids, or a cache returns old ones: send none from now on."""
        self.returns_ids = self.at_once = False

    def surplus(self, status: int, body: bytes, history: History) -> None:
        """A whole answer came that no request asked for."""
        if status == 408:  # how some servers announce that they close an idle connection
            return
        self._surplus += 1
        if not self.returns_ids and hash(body) not in history.bodies:
            self._doubtful += history.unproven
        self._say()

    def report_to(self, notes: list[str]) -> None:
        """Move the notes to a list of the caller's."""
        if self._note_at is not None:
            self._note_at += len(notes)
        notes += self.notes
        self.notes = notes

    def _say(self) -> None:
        self.at_once = False
        found = self._surplus + self._refused
        said = (
            f"{self.name} sent {_counted(found, 'answer')} meant for another request or for none (a proxy or "
            "server that sends an answer twice does this). None of these was used: the connections were closed"
        )
        if self._refused:
            said += f", and {_counted(self._refused, 'request')} sent again"
        if self._doubtful:
            said += (
                f". Of the answers before these, {self._doubtful} carry no request id and may belong to other records: "
                "bypass the proxy, or let the server return X-Request-Id, and run again"
            )
        if self._note_at is None:
            self._note_at = len(self.notes)
            self.notes.append(said)
        else:
            self.notes[self._note_at] = said


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
