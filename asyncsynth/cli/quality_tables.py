"""`asyncsynth status --quality` and `asyncsynth compare`: measures of the data as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asyncsynth.cli.show import event
from asyncsynth.cli.text import one_line, say, width
from asyncsynth.quality.run_quality import Comparison, RunQuality, measure_table

_NAME_COLUMNS = 60


def quality_command(directory: Path, *, as_json: bool) -> None:
    """Prints the measures of each step of a run."""
    quality = RunQuality.read(directory).as_json()
    if as_json:
        event(quality)
        return
    sample = f"diversity and agreement from up to {quality['sample_size']} texts or rows"
    say(one_line(f"{quality['pipeline']} in {directory}; {sample}", 4096))
    titles = {step["step"]: step["task"] for step in quality["steps"]}
    for step, measures in measure_table(quality).items():
        say()
        say(f"{one_line(step, 100)}{f' ({one_line(task, 60)})' if (task := titles.get(step)) else ''}")
        _table([(_label(name), _value(name, value)) for name, value in measures.items()])
    if not quality["steps"]:
        say("the journal is empty")


def compare_command(first: Path, second: Path, *, as_json: bool) -> None:
    """Prints the measures of two runs side by side."""
    compared = Comparison(RunQuality.read(first), RunQuality.read(second)).as_json()
    if as_json:
        event(compared)
        return
    say(one_line(f"A  {first}", 4096))
    say(one_line(f"B  {second}", 4096))
    for line in compared["settings"]:
        say(f"   {one_line(line)}")
    if not compared["settings"]:
        say("   the settings are the same")
    for step, measures in compared["steps"].items():
        say()
        say(one_line(step, 100))
        lines = [("", "A", "B", "B - A")]
        for name, (one, other, difference) in measures.items():
            lines.append((_label(name), _value(name, one), _value(name, other), _value(name, difference, sign="+")))
        _table(lines)


def _label(name: str) -> str:
    # The same names as in the JSON: names of models have underscores.
    return one_line(name.removesuffix("_share"), _NAME_COLUMNS)


def _value(name: str, value: float | None, *, sign: str = "") -> str:
    if value is None:
        return "-"
    if name.endswith("_share"):
        return f"{100 * value:{sign}.1f} %"
    if value == int(value):
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.3g}" if abs(value) < 1 else f"{value:{sign},.1f}"


def _table(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        name = line[0] + " " * (widths[0] - width(line[0]))
        cells = [" " * (most - width(cell)) + cell for cell, most in zip(line[1:], widths[1:], strict=True)]
        say("  ".join([" ", name, *cells]).rstrip())
