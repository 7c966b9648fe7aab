"""The table, by groups."""

from __future__ import annotations

from tests.conformance import answers, errors, starts, wire
from tests.conformance.table import Behaviour

GROUPS: dict[str, list[Behaviour]] = {
    "Lists of models": starts.LISTS,
    "Health and metrics": starts.HEALTH,
    "Fields that are refused": starts.FIELDS,
    "Shapes of answers": answers.SHAPES,
    "Bookkeeping and JSON": answers.BOOKKEEPING,
    "Errors inside HTTP 200": errors.INSIDE_200,
    "Statuses that pass": errors.LATER,
    "One prompt refused": errors.ONE_REFUSED,
    "Every prompt refused": errors.ALL_REFUSED,
    "Redirects": wire.REDIRECTS,
    "HTTP": wire.FRAMING,
    "Connections": wire.CONNECTIONS,
}
BEHAVIOURS = [row for rows in GROUPS.values() for row in rows]

#: Behaviours that a run does not handle as the table says. Their tests must fail: take a name out when it works.
NOT_YET: frozenset[str] = frozenset()
