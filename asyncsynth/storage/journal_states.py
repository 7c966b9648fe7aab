"""Which state of a journal follows which: the rules first, then a table for each of its two sides.

The *journal* itself:

- OPEN takes entries. CLOSE makes it CLOSING: it begins no more groups for entries, and writes those that it has.
- A FAILED write or sync is final: from then on every call gets that failure, and nothing is tried again. It can only be
  RELEASEd.
- RELEASE closes the files and the lock. A CLOSED journal stays closed.

Its *groups*. Lines collect in one group while at most one other group is being written:

- BEGIN opens a group, if none is collecting.
- COMMIT hands the group that collects to the writer thread. If that is busy, the group is DUE and is handed over as
  soon as the thread is free.
- WRITTEN ends a write, successful or not, and leaves the group that collects.
- DROP gives up the group that collects: writing has failed.

`moves(table, event)` is one column of a table, as in `core.states`. The journal changes its states only by
these columns. A move that no table has is a KeyError with the state's name: a bug in the journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from asyncsynth.core.states import after

#: States of the journal.
Life = Literal["open", "closing", "failed", "closed"]
OPEN: Final = "open"
CLOSING: Final = "closing"
FAILED: Final = "failed"
CLOSED: Final = "closed"

LifeEvent = Literal["close", "fail", "release"]
CLOSE: Final = "close"  # `Journal.close` is called
FAIL: Final = "fail"  # a write or a sync fails
RELEASE: Final = "release"  # files and lock are closed

LIFE: Final[Mapping[tuple[Life, LifeEvent], Life]] = {
    (OPEN, CLOSE): CLOSING,
    (CLOSING, CLOSE): CLOSING,
    (OPEN, FAIL): FAILED,
    (OPEN, RELEASE): CLOSED,  # without a last mark, as a crash leaves it
    (CLOSING, FAIL): FAILED,
    (CLOSING, RELEASE): CLOSED,
    (FAILED, FAIL): FAILED,  # of several failures the first one counts
    (FAILED, CLOSE): FAILED,
    (FAILED, RELEASE): CLOSED,
    (CLOSED, CLOSE): CLOSED,
    (CLOSED, FAIL): CLOSED,  # a write that was still under way when a cancelled `close` released the journal
    (CLOSED, RELEASE): CLOSED,
}

#: States of the groups.
Groups = Literal["idle", "collecting", "writing", "writing and collecting", "writing and due"]
IDLE: Final = "idle"  # nothing collects, nothing is being written
COLLECTING: Final = "collecting"  # a group collects; its timer runs
WRITING: Final = "writing"  # a group is being written, none collects
BOTH: Final = "writing and collecting"
DUE: Final = "writing and due"  # the group that collects waits for the writer thread

GroupsEvent = Literal["begin", "commit", "written", "drop"]
BEGIN: Final = "begin"
COMMIT: Final = "commit"  # a group's time has come, or it is full
WRITTEN: Final = "written"
DROP: Final = "drop"

GROUPS: Final[Mapping[tuple[Groups, GroupsEvent], Groups]] = {
    (IDLE, BEGIN): COLLECTING,
    (IDLE, COMMIT): IDLE,  # there is nothing to write
    (COLLECTING, COMMIT): WRITING,
    (WRITING, BEGIN): BOTH,
    (WRITING, COMMIT): WRITING,
    (WRITING, WRITTEN): IDLE,
    (BOTH, COMMIT): DUE,
    (BOTH, WRITTEN): COLLECTING,
    (DUE, COMMIT): DUE,
    (DUE, WRITTEN): COLLECTING,  # and committed at once
    (IDLE, DROP): IDLE,
    (COLLECTING, DROP): IDLE,
    (WRITING, DROP): WRITING,
    (BOTH, DROP): WRITING,
    (DUE, DROP): WRITING,
}


#: The columns, by what happened: `self._life = failed[self._life]`.
closed: Final[dict[Life, Life]] = after(LIFE, CLOSE)
failed: Final[dict[Life, Life]] = after(LIFE, FAIL)
released: Final[dict[Life, Life]] = after(LIFE, RELEASE)
begun: Final[dict[Groups, Groups]] = after(GROUPS, BEGIN)
committed: Final[dict[Groups, Groups]] = after(GROUPS, COMMIT)
written: Final[dict[Groups, Groups]] = after(GROUPS, WRITTEN)
dropped: Final[dict[Groups, Groups]] = after(GROUPS, DROP)
