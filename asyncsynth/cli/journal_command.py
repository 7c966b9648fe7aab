"""`asyncsynth journal verify`, `repair` and `stats`: tools for the journal of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asyncsynth.errors import EXIT_STORAGE

RunDir = Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON lines on standard output, for programs.")]
_SHOWN = 20  #: most records that are named

app: typer.Typer = typer.Typer(
    help="Check, repair and measure a run's journal.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def verify(directory: RunDir, as_json: AsJson = False) -> None:
    """Check the whole journal: every line, sequence, mark, sidecar and the manifest.

    Changes nothing. Exit codes: 0 intact, 5 something is damaged.
    """
    from asyncsynth.cli.show import event
    from asyncsynth.cli.text import number, one_line, say
    from asyncsynth.storage.verify import run_directories
    from asyncsynth.storage.verify import verify as verify_journal

    whole = True
    for place in run_directories(directory):
        found = verify_journal(place)
        whole = whole and not found.findings
        if as_json:
            event({"event": "verified", **found.as_json()})
            continue
        entries = ", ".join(f"{number(n)} {kind}" for kind, n in sorted(found.kinds.items())) or "none"
        say(f"{place}: {number(found.lines)} lines in {number(len(found.segments))} segments,"
            f" {number(found.nbytes)} bytes; entries: {entries}; {number(found.sidecars)} sidecars agree")  # fmt: skip
        for finding in found.findings:
            say(f"  damaged   {one_line(str(finding), 400)}")
        for note in found.notes:
            say(f"  note      {one_line(note, 400)}")
    if not whole:
        if not as_json:
            say(f"  `asyncsynth journal repair {directory}` keeps every intact entry.")
        raise typer.Exit(EXIT_STORAGE)
    if not as_json:
        say("whole")


@app.command()
def repair(
    directory: RunDir,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Keep every intact entry; originals go to DIR/damaged. The next run redoes what was lost.

    Exit codes: 0 repaired, or nothing to repair; 2 a process is writing the run; 5 something cannot be repaired.
    """
    from asyncsynth.cli.show import event
    from asyncsynth.cli.text import number, one_line, say
    from asyncsynth.storage.repair import repair as repair_journal

    left = False
    for done in repair_journal(directory, dry_run=dry_run):
        left = left or bool(done.left)
        if as_json:
            event({"event": "repaired", **done.as_json()})
            continue
        what = "would be rewritten" if dry_run else "rewritten"
        said = f"{len(done.rewritten)} segments {what}, {number(done.lost)} lines lost" if done.rewritten else ""
        said = said or ("sidecars set aside" if done.set_aside else "nothing to repair")
        say(f"{done.directory}: {said}, {number(done.kept)} entries kept")
        for path in done.rewritten:
            say(f"  rewritten {path}")
        for path in done.set_aside:
            say(f"  original  {path}")
        if done.lost:
            named = ", ".join(one_line(repr(key), 60) for key in done.keys[:_SHOWN]) or "not known"
            more = f" and {len(done.keys) - _SHOWN} more" if len(done.keys) > _SHOWN else ""
            say(f"  lost      entries of records: {named}{more}; the next run generates them again")
        for finding in done.left:
            say(f"  left      {one_line(str(finding), 400)}: restore it from a copy")
        for note in done.notes:
            say(f"  note      {one_line(note, 400)}")
    if left:
        raise typer.Exit(EXIT_STORAGE)


@app.command()
def stats(directory: RunDir, as_json: AsJson = False) -> None:
    """Show what the journal holds: bytes, entries by type, records, and entries that later ones replaced."""
    from asyncsynth.cli.show import event
    from asyncsynth.cli.text import number, one_line, say
    from asyncsynth.storage.journal_stats import journal_stats
    from asyncsynth.storage.verify import run_directories

    for place in run_directories(directory):
        found = journal_stats(place)
        if as_json:
            event({"event": "journal", **found.as_json()})
            continue
        each = f", {number(round(found.bytes_per_record))} a record" if found.bytes_per_record else ""
        share = f" ({found.superseded_bytes / found.bytes:.1%} of the bytes)" if found.bytes else ""
        say(f"{place}")
        say(f"  journal   {number(found.segments)} segments, {number(found.bytes)} bytes{each}")
        say(f"  sidecars  {number(found.sidecars)}, {number(found.sidecar_bytes)} bytes")
        if found.answers:
            say(f"  answers   {number(found.answers)} kept, {number(found.answer_bytes)} bytes")
        say(f"  written   {found.first} to {found.last or 'now'}")
        for kind, n in sorted(found.entries.items()):
            say(f"  entries   {one_line(kind, 40)}: {number(n)}")
        say(f"  records   {number(found.final)} final, {number(found.partial)} partial, {number(found.failed)} failed")
        for name, n in found.steps.items():
            say(f"  results   {one_line(name, 100)}: {number(n)}")
        say(f"  replaced  {number(found.superseded)} entries by later ones{share}")
