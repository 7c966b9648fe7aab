"""The rows of the reliability matrix: what each tries, and what must hold. How often is counted by the tests.

A test that holds a row has the mark `@pytest.mark.row(4)`, in any file; `files_of` finds the files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
_MARKER = re.compile(r"mark\.row\(([\d, ]+)\)")


@dataclass(frozen=True, slots=True)
class Row:
    """`alone`: measures time or memory, so nothing else runs beside it."""

    title: str
    holds: str
    alone: bool = False


ROWS = {
    1: Row("journal cut at every byte", "every cut recovers the exact prefix"),
    2: Row("random bits of a journal flipped", "none undetected"),
    3: Row("journal cut, then zeros, garbage, newlines", "every one recovers"),
    4: Row("kill -9 of the whole engine, then resumed", "0 lost, 0 duplicated, redo <= window, export as straight"),
    5: Row("failure at every write, sync, rename", "each one stops writing, 0 false acknowledgements"),
    6: Row("power cut that drops unsynced pages", "0 acknowledged lost"),
    7: Row("full, failing, read-only disk", "exit 5 naming the path, the same command resumes"),
    8: Row("two processes on one run", "the second refused with the holder's pid"),
    9: Row("interrupted ten times against straight", "export byte for byte the same"),
    10: Row("each field of the fingerprint changed", "refused with what differs; excluded fields accepted"),
    11: Row("each fault of a server at each place", "the expected class and number of attempts"),
    12: Row("two virtual hours, 20 % faults", "0 lost, same seed same run, retries <= budget"),
    13: Row("virtual half-hour outage, 256 in flight", "0 dead letters, full rate <= 60 s after"),
    14: Row("a poison record that kills its server", "exactly it quarantined, <= 4 crashes"),
    15: Row("sustained 429", "the limit reaches its minimum, recovers >= 90 %"),
    16: Row("answers of 10 to 4,000 tokens", "adaptive limit >= 95 % of the best fixed one"),
    17: Row("hung server with a healthy /health", "found in <= 120 virtual s"),
    18: Row("keep-alive race", "0 surfaced"),
    19: Row("soak: two steps, 5 % faults", "memory flat, descriptors and tasks constant, counts reconcile", alone=True),
    20: Row("resume and status over a large journal", "<= 5 s and <= 150 MB; status <= 2 s", alone=True),
    21: Row("signals at random moments", "documented exit code, 0 lost"),
    22: Row("model of the journal, random rules", "the model agrees"),
    23: Row("hostile text through every output", "0 raw control bytes, 0 formulas, 0 crashes"),
    24: Row("canary key on every path", "0 hits"),
    25: Row("answers made to use up the client", "refused, memory + <= 32 MiB"),
    26: Row("the code broken on purpose", "each break is caught by a row"),
    27: Row("done means ended, whatever stops the run", "read = earlier + ok + failed + pending, done: 0 pending"),
    28: Row("stopping is quick", "0 requests sent after the stop, over when the slowest answer is, 0 paid twice"),
    29: Row("failures that repeat stop the run", "exit 4 after 20 alike, or at --max-failures; resumable"),
    30: Row("random graphs of forks, filters, expansions and joins", "rows in = out + failed + dropped, per step"),
    31: Row("values of every kind, from answers and from steps", "kept as they are, or refused by name and place"),
    32: Row("thinking, empty answers, several values in one", "never the answer; what was paid is counted"),
    33: Row("answers cut at max_tokens, system prompts of tasks", "no cut training target; what was sent is written"),
    34: Row("each thing that a user's step reads, edited", "noticed; what it does not read costs nothing"),
    35: Row("paid answers are read again", "an edited reader pays 0 requests, an edited prompt all, none is wrong"),
    36: Row("writers pointed at a run's own files", "each refused, every byte as before"),
    37: Row("the rows between stages, damaged", "told; verify names the file; the next run makes it again"),
    38: Row("an input that lost rows beyond its first MiB", "noticed and told on resume"),
    39: Row(
        "locks: forked children, deleted and moved files",
        "a killed run resumes; nothing is acknowledged into a lost file",
    ),
    40: Row("links and files planted at a run's temporary names", "never followed or written to"),
    41: Row("requests refused by themselves, or all of them", "one refusal costs one record; refused for all: a halt"),
    42: Row("errors inside HTTP 200, answers broken off", "as the status they name; no partial text is a result"),
    43: Row("quotas and balances that are spent", "the server's words and until when; pointless waits end"),
    45: Row("no open files, ports or memory on this machine", "0 records and 0 servers charged; waits, and is told"),
    46: Row("a server that answers as another model", "noticed at the first such answer, none is kept"),
    47: Row("steps that exit, cancel, hang, block", "their row fails and is named, no other; nothing is lost silently"),
    48: Row("steps that wait in coroutines, threads, processes", "bounded, kept once, nothing outlives the run"),
    49: Row("manifests, server lines and YAML files, garbled", "an error that names the file, or what can be used"),
    50: Row("a key typed as the name of a variable", "refused with its place, and never shown"),
    44: Row("answers sent twice, sooner or later", "none at another record; what was met is said"),
}


def marked_files() -> dict[Path, list[set[int]]]:
    """The test files that hold rows, and the rows of each of their markers."""
    found: dict[Path, list[set[int]]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for match in _MARKER.finditer(path.read_text()):
            found.setdefault(path, []).append({int(number) for number in match[1].split(",") if number.strip()})
    return found


def files_of(rows: set[int]) -> list[Path]:
    """The test files that hold one of `rows`."""
    return [path for path, markers in marked_files().items() if any(rows & marked for marked in markers)]


def groups(wanted: set[int]) -> list[set[int]]:
    """`wanted` in groups that share no test, so that each group may be run by a process of its own."""
    made = [{row} for row in sorted(wanted)]
    for marked in (rows for markers in marked_files().values() for rows in markers):
        touched = [group for group in made if group & marked]
        if len(touched) > 1:
            made = [group for group in made if group not in touched] + [set().union(*touched)]
    return sorted(made, key=min)
