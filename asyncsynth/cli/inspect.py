"""`asyncsynth status`, `export` and `draw`: commands that read."""

from __future__ import annotations

from pathlib import Path

from asyncsynth.cli.load import load_pipeline
from asyncsynth.cli.show import event
from asyncsynth.cli.text import number, one_line, say
from asyncsynth.engine.rundir import RunStatus
from asyncsynth.errors import ConfigurationError
from asyncsynth.pipeline.draw import mermaid, plain_text
from asyncsynth.storage.exports import export as export_rows
from asyncsynth.storage.files import atomic_write

_FAILURES_SHOWN = 5


def status_command(directory: Path, *, as_json: bool) -> None:
    """Prints counts, failures with examples, and who is writing."""
    status = RunStatus.read(directory, examples=_FAILURES_SHOWN)
    if as_json:
        event(status.as_json())
        return
    say(f"{status.pipeline} in {directory}" + (f" (process {status.writer_pid} is writing)" if status.writer_pid else ""))
    say(f"  records   {number(status.ok)} ok, {number(status.failed)} failed, {number(status.partial)} begun"
        + (f", of {number(status.total)}" if status.total is not None else ""))  # fmt: skip
    say(f"  rows      {number(status.rows)}")
    for what, counts in (("dropped", status.dropped), ("failures", status.failures), ("answered", status.answered_by)):
        for reason, count in sorted(counts.items(), key=lambda item: -item[1]):
            say(f"  {what:<9} {one_line(reason, 100)}: {number(count)}")
    for failed in status.examples:
        say(f"  e.g. record {one_line(str(failed['k']), 60)}, step {failed['step']}: {one_line(failed['message'])}")
    for note in status.notes:
        say(f"  note      {one_line(note, 400)}")


def export_command(directory: Path, to: Path, *, leaf: str, as_json: bool) -> None:
    """Writes the rows of one end of the graph."""
    exported = export_rows(directory, to, leaf=leaf)
    if as_json:
        event({"event": "exported", "path": str(to), "rows": exported.rows})
    else:
        say(f"{to}: {number(exported.rows)} rows")


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
        atomic_write(to, drawing.encode() + b"\n")
