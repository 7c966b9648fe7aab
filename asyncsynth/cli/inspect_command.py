"""`asyncsynth status`, `export` and `draw`: commands that read."""

from __future__ import annotations

from pathlib import Path

from asyncsynth.cli.pipeline_file import load_pipeline
from asyncsynth.cli.show import event, server_words
from asyncsynth.cli.text import number, one_line, say
from asyncsynth.engine.status import RunStatus
from asyncsynth.errors import ConfigurationError
from asyncsynth.pipeline.draw import mermaid, plain_text
from asyncsynth.storage.exports import export as export_rows
from asyncsynth.storage.failures import export_failures
from asyncsynth.storage.files import atomic_write
from asyncsynth.storage.layout import refuse_own_files

_FAILURES_SHOWN = 20  #: kinds of failures, with one example each


def status_command(directory: Path, *, as_json: bool) -> None:
    """Prints counts, failures with examples, and which process is writing."""
    status = RunStatus.read(directory, examples=_FAILURES_SHOWN)
    if as_json:
        event(status.as_json())
        return
    writing = f" (process {status.writer_pid} is writing)" if status.writer_pid else ""
    say(one_line(f"{status.pipeline} in {directory}{writing}", 4096))
    say(f"  state     {one_line(status.completeness, 200)}")
    _say_counts(status)


def _say_counts(status: RunStatus) -> None:
    """Prints the counts of a run, those of the stages before the last one first."""
    if status.before is not None:
        _say_counts(status.before)
        passed = status.before.barrier
        kept = f"{number(passed.kept)} of {number(passed.read)} rows kept" if passed else "not done yet"
        say(f"  {one_line(status.before.directory.name)}: above. The step over all rows after it: {kept}")
        for reason, count in sorted(passed.dropped.items() if passed else ()):
            say(f"  dropped   {one_line(reason, 100)}: {number(count)}")
    if status.shards:
        say(f"  shards    {status.shards} (the counts are their sums)")
    say(f"  records   {number(status.ok)} ok, {number(status.failed)} failed")
    for what, counts in (
        ("rows", status.rows),
        ("results", status.steps),
        ("failures", status.failed_rows),
        ("dropped", status.dropped_rows),
    ):
        for name, count in sorted(counts.items(), key=lambda item: -item[1]):
            say(f"  {what:<9} {one_line(name, 100)}: {number(count)}")
    for server in status.servers:
        say(f"  server    {server_words(server, 300)}{'' if status.writer_pid else ' (when it last ran)'}")
    for failed in status.examples:
        said = f"; said {one_line(raw, 120)!r}" if (raw := failed.raw) else ""
        place = f"record {one_line(failed.key, 60)}, step {one_line(failed.step, 60)}"
        say(f"  e.g. {place}: {one_line(failed.reason, 60)}: {one_line(failed.message)}{said}")


def export_command(
    directory: Path,
    to: Path,
    *,
    leaf: str,
    failed: bool,
    as_json: bool,
    complete_only: bool = False,
    provenance: bool = False,
) -> None:
    """Writes the rows of one end of the graph, or those that failed. Prints whether the run is complete."""
    if failed and provenance:
        raise ConfigurationError("--provenance describes results; rows of --failed have none", hint="Leave out one.")
    if failed:
        exported = export_failures(directory, to, complete_only=complete_only)
    else:
        exported = export_rows(directory, to, leaf=leaf, complete_only=complete_only, provenance=provenance)
    how = exported.completeness
    if as_json:
        event({"event": "exported", "path": str(to), "rows": exported.rows, **how.as_json()})
        return
    say(f"{one_line(str(to), 4096)}: {number(exported.rows)} rows")
    if not how.complete:
        say(f"  The run is {one_line(how.words, 200)}")


def draw_command(target: str, *, form: str, to: Path | None) -> None:
    """Draws a pipeline, offline."""
    drawers = {"text": plain_text, "mermaid": mermaid}
    if form not in drawers:
        raise ConfigurationError(f"--form {form}: unknown", hint="Use text or mermaid.")
    pipeline = load_pipeline(target)
    pipeline.checked()
    drawing = drawers[form](pipeline)
    if to is None:
        say(drawing)
    else:
        refuse_own_files(to)
        atomic_write(to, drawing.encode() + b"\n")
