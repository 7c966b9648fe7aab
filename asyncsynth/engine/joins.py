"""Which rows of a join's branches belong together. Every row key that reaches a join leaves it or is counted.

The rows that branches make of one row have one key; together they are one row of the join. So

    row keys that come in = rows that come out + failed + dropped,

where a row is dropped for one of these reasons:

- `partner_failed`, `partner_dropped`: a branch without the row failed it or dropped it, or the row that it was made
  of, or one made of it. That branch has counted its own part; the parts of the other branches, which may have been
  paid for, are counted here.
- `no_partner`: a branch never had the row: it made another number of rows.

MergeBranches does not put parts together: there, every row of every branch counts, and goes out or is dropped as
`other_branch`: an earlier branch brought the row, or one that it was made of, or one made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from asyncsynth.pipeline import JoinStep
from asyncsynth.records import Row

Item = tuple[str, Row]  #: row key, row
Loss = Literal["failed", "dropped"]
Drop = Callable[[str, str], None]  #: row key, reason


def matched(
    step: JoinStep, branches: Sequence[list[Item]], root: str, lost: Callable[[str, int], Loss | None], drop: Drop
) -> list[tuple[str, list[Row]]]:
    """For each row that the step makes: its key, and the branches' rows; an empty row for a branch that has none.

    Args:
        root: the record's key, with which all row keys begin.
        lost: what a branch (by its number) did to a row key that it does not bring.
        drop: counts a row that is left out.
    """
    if step.whichever:
        return _first_come(branches, root, drop)
    by_key = [dict(branch) for branch in branches]
    first, *others = by_key
    if all(len(other) == len(first) and all(key in other for key in first) for other in others):
        return [(key, [rows[key] for rows in by_key]) for key in first]
    found: list[tuple[str, list[Row]]] = []
    for key in sorted({key for rows in by_key for key in rows}, key=lambda key: _order(key, root)):
        losses = [
            # A branch that has a row above or below this one made another number of rows: it lost nothing.
            None if any(related(key, other) for other in rows) else lost(key, number)
            for number, rows in enumerate(by_key)
            if key not in rows
        ]
        if not losses or (step.missing == "none" and None not in losses):
            found.append((key, [rows.get(key, {}) for rows in by_key]))
        else:
            loss = next((loss for loss in ("failed", "dropped") if loss in losses), None)
            drop(key, f"partner_{loss}" if loss else "no_partner")
    return found


def _first_come(branches: Sequence[list[Item]], root: str, drop: Drop) -> list[tuple[str, list[Row]]]:
    """Every row, from the first branch that brings it, in the order of the keys."""
    taken: dict[str, list[Row]] = {}
    above: set[str] = set()  # what the rows taken were made of
    for number, branch in enumerate(branches):
        new: list[Item] = []
        for key, row in branch:
            if key in taken or key in above or any(other in taken for other in _ancestors(key, root)):
                drop(key, "other_branch")
            else:
                new.append((key, row))
        for key, row in new:
            taken[key] = [row if place == number else {} for place in range(len(branches))]
            above.update(_ancestors(key, root))
    return sorted(taken.items(), key=lambda item: _order(item[0], root))


def related(one: str, other: str) -> bool:
    """Whether two row keys of one record are the same, or one row was made of the other."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _ancestors(key: str, root: str) -> Iterator[str]:
    while len(key) > len(root):
        key = key.rpartition(".")[0]
        yield key


def _order(key: str, root: str) -> list[int]:
    """`17.10` comes after `17.9`."""
    return [int(part) for part in key[len(root) + 1 :].split(".") if part]
