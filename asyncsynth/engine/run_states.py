"""Which state follows which in one stage of a run: the rules first, then the table.

- A stage is READING while it takes records from the input. Only then does it take any.
- END_OF_INPUT: the input, or its first `limit` records, is read. ALL_READ waits for the records in flight.
- STOP: the run must end early. Nothing more is sent or taken; records at the servers end. STOPPING is READING that
  was stopped, STOPPING_ALL_READ is ALL_READ that was stopped: it may still be complete, if no record needed more.
- BREAK: the journal can write no more. BROKEN waits for nothing; only CLOSE leads out of it.
- CLOSE: no task gets another record, whatever the reason. Every stage is CLOSED before it ends.
- COMPLETE follows CLOSED only, once the directory says that every record has ended. It is final.

States change by `RUN` and by nothing else. A move that it does not have is a KeyError: a fault of the runner's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from asyncsynth.core.states import after

RunState = Literal["reading", "all read", "stopping", "stopping, all read", "broken", "closed", "complete"]
READING: Final = "reading"  # takes records from the input
ALL_READ: Final = "all read"  # the input has no more; records in flight end
STOPPING: Final = "stopping"  # records at the servers end; nothing else is sent
STOPPING_ALL_READ: Final = "stopping, all read"  # the same, and the input has no more
BROKEN: Final = "broken"  # the journal takes nothing more
CLOSED: Final = "closed"  # no task gets another record
COMPLETE: Final = "complete"  # every record has ended, and the directory says so

RunEvent = Literal["end of input", "stop", "break", "close", "complete"]
END_OF_INPUT: Final = "end of input"
STOP: Final = "stop"  # a signal, too many failures, the caller's wish
BREAK: Final = "break"  # a write or a sync failed
CLOSE: Final = "close"  # the records in flight have ended, or an error ends the run
FINISH: Final = "complete"

RUN: Final[Mapping[tuple[RunState, RunEvent], RunState]] = {
    (READING, END_OF_INPUT): ALL_READ,
    (READING, STOP): STOPPING,
    (READING, BREAK): BROKEN,
    (READING, CLOSE): CLOSED,  # the input cannot be read on, or the run is cancelled
    (ALL_READ, STOP): STOPPING_ALL_READ,
    (ALL_READ, BREAK): BROKEN,
    (ALL_READ, CLOSE): CLOSED,
    (STOPPING, END_OF_INPUT): STOPPING_ALL_READ,  # the last rows failed on their own, one of them once too often
    (STOPPING, STOP): STOPPING,  # told again
    (STOPPING, BREAK): BROKEN,
    (STOPPING, CLOSE): CLOSED,
    (STOPPING_ALL_READ, STOP): STOPPING_ALL_READ,
    (STOPPING_ALL_READ, BREAK): BROKEN,
    (STOPPING_ALL_READ, CLOSE): CLOSED,
    (BROKEN, END_OF_INPUT): BROKEN,  # noticed by the next wait or flush, which raises
    (BROKEN, STOP): BROKEN,
    (BROKEN, BREAK): BROKEN,
    (BROKEN, CLOSE): CLOSED,
    (CLOSED, STOP): CLOSED,  # a signal in the last moments
    (CLOSED, BREAK): CLOSED,  # the last flush raises it
    (CLOSED, FINISH): COMPLETE,
    (COMPLETE, STOP): COMPLETE,  # while its rows go through a step over all rows: `RunTotals.stop` keeps the reason
    (COMPLETE, BREAK): COMPLETE,  # what counts is on the disk
}

#: The columns, by what happened: `state = ended[state]`.
ended: Final[dict[RunState, RunState]] = after(RUN, END_OF_INPUT)
stopped: Final[dict[RunState, RunState]] = after(RUN, STOP)
broken: Final[dict[RunState, RunState]] = after(RUN, BREAK)
closed: Final[dict[RunState, RunState]] = after(RUN, CLOSE)
completed: Final[dict[RunState, RunState]] = after(RUN, FINISH)

#: States in which the input is known to have no more records.
WHOLE_INPUT: Final[frozenset[RunState]] = frozenset({ALL_READ, STOPPING_ALL_READ})
