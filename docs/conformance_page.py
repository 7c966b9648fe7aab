"""docs/conformance.md: the behaviours of servers that the tests script, and what a run makes of each."""

from __future__ import annotations

from collections import Counter

from docs.markdown import COMMAND, NOTE, cell, tidy
from tests.conformance.rows import BEHAVIOURS, GROUPS, NOT_YET
from tests.conformance.table import OBSERVED, RECORDS, Behaviour

_INTRO = f"""\
Servers that speak the OpenAI API differ. Each row below is one difference. A scripted server on a real socket shows it,
a pipeline of {RECORDS} records runs against that server, and a test compares the result with the last column but one.
The scripts are in `tests/conformance`.

"Seen at" names software and services that behaved so according to a report or their documentation.
Their present version may differ. A row without a source was observed.
"""
_OUTCOMES = """\
- *all records ok*: the user notices nothing, except retries in the counts.
- *that record fails*: the behaviour hits one record; its row fails with this reason and the server's words, and the
  others are ok.
- *the run ends and says*: no record can work; the run stops or all records fail, and the message has these words.
"""


def page() -> str:
    """The page's text."""
    parts = [NOTE, "# Servers: what is known to work\n", _INTRO, _OUTCOMES]
    parts.append(f"{len(BEHAVIOURS)} behaviours{_open(BEHAVIOURS)}.\n")
    parts.append(_servers())
    parts += [_group(title, rows) for title, rows in GROUPS.items()]
    parts.append(f"Written from the tests by `{COMMAND}`.")
    return tidy(parts)


def _open(rows: list[Behaviour]) -> str:
    count = sum(row.name in NOT_YET for row in rows)
    return f", {count} of them not yet as the table says" if count else ""


def _servers() -> str:
    """The servers that are named in three rows or more, the most frequent first."""
    named = Counter(who for row in BEHAVIOURS for who in row.who)
    not_yet = Counter(who for row in BEHAVIOURS if row.name in NOT_YET for who in row.who)
    lines = ["## By server\n", "| server | behaviours | not yet |", "| --- | --- | --- |"]
    for who, count in sorted(named.items(), key=lambda entry: (-entry[1], entry[0])):
        if count >= 3:
            lines.append(f"| {cell(who)} | {count} | {not_yet[who] or ''} |")
    return "\n".join(lines) + "\n"


def _group(title: str, rows: list[Behaviour]) -> str:
    lines = [f"## {title}\n", "| the server | seen at | a run | source |", "| --- | --- | --- | --- |"]
    for row in rows:
        outcome = f"**not yet:** {row.expected}" if row.name in NOT_YET else str(row.expected)
        source = "" if row.source == OBSERVED else f"[source]({row.source})"
        lines.append(f"| {cell(row.does)} | {cell(', '.join(row.who))} | {cell(outcome)} | {source} |")
    return "\n".join(lines) + "\n"
