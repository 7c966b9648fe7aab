"""What a row of the table is: a behaviour of a server, who shows it, and what a run of 12 records must make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.conformance.server import Answer

RECORDS = 12
OBSERVED = "seen at a server or a gateway; no page that says so is known to us"


@dataclass(frozen=True)
class Complete:
    """All records end well, each with the answer to its own question, or all with `text`."""

    text: str | None = None
    requests: int | None = None  #: for records, at most

    def __str__(self) -> str:
        return "all records ok"


@dataclass(frozen=True)
class OneFails:
    """Record 3 fails for one of `reasons`, and its message has `words`; the others end well."""

    reasons: tuple[str, ...]
    words: str = ""

    def __str__(self) -> str:
        return f"that record fails (`{'` or `'.join(self.reasons)}`), the others are ok"


@dataclass(frozen=True)
class AllFail:
    """All records fail for `reason`."""

    reason: str
    requests: int = RECORDS  #: at most

    def __str__(self) -> str:
        return f"each record fails as `{self.reason}`, after one request"


@dataclass(frozen=True)
class Told:
    """Nothing can work: the run stops or fails, and the user reads `words` (each of them, in any case)."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"the run ends and says: {', '.join(self.words)}"


Expected = Complete | OneFails | AllFail | Told


@dataclass(frozen=True)
class Behaviour:
    """A row.

    Args:
        name: its name, in snake case; tests and `NOT_YET` use it.
        does: what the server does, as a sentence without a subject.
        who: servers and gateways that do it.
        answer: how the scripted server does it.
        expected: what a run makes of it.
        source: the URL that says so, or `OBSERVED`.
        llm: settings of the LLM that the user needs for it.
        task: settings of the task, `TextGeneration`.
        fleet: keys of the server in a fleet file that the user needs for it.
        run: options of the run.
        options: of the scripted server.
    """

    name: str
    does: str
    who: tuple[str, ...]
    answer: Answer
    expected: Expected
    source: str = OBSERVED
    llm: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    fleet: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
