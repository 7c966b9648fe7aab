"""Every name in a run directory. Code that writes to a path chosen by a user first calls `refuse_own_files`.

A run directory has two kinds of names: the run's own, which this module lists, and all others, which are the user's
(`result.jsonl` and other exports among them). A name is the run's own whether or not the file is there yet: a
later run may make it. Names are compared without regard to case, since some file systems do not tell
`lock` from `LOCK`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from asyncsynth.errors import ConfigurationError

MANIFEST = "MANIFEST.json"
LOCK = "LOCK"
SERVERS = "servers.json"
SERVER_LOGS = "servers"
EXTENT = "extent.json"
ANSWERS = "answers"
DAMAGED = "damaged"
BARRIER_ROWS = "barrier.jsonl"
BARRIER_FACTS = "barrier.json"
RESULT = "result.jsonl"

_SEGMENT = re.compile(r"seg-(\d{6,})\.jsonl\Z")
_STAGE = re.compile(r"stage-(\d+)\Z")
_OLD_STAGE = re.compile(r"segment-(\d+)\Z")
_SHARD = re.compile(r"shard-(\d+)\Z")
_TEMPORARY = re.compile(r"\.(.+)\.(\d+)@([0-9a-f]{8})(?:-\d+)?\.tmp\Z")
_RESULT = re.compile(r"result(-.+)?\.jsonl\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class OwnName:
    """Names of one kind. `example` is one of them; `pattern` matches all, as whole names in any case.

    A folder is the run's own with everything in it.
    """

    example: str
    pattern: re.Pattern[str]
    folder: bool = False


def _own(example: str, pattern: str | None = None, *, folder: bool = False) -> OwnName:
    return OwnName(example, re.compile(rf"(?:{pattern or re.escape(example)})\Z", re.IGNORECASE), folder)


#: Everything that a run makes in its directory. docs/journal.md has a line for each.
OWN_NAMES = (
    _own("seg-000001.jsonl", r"seg-\d+\.jsonl"),
    _own("seg-000001.idx", r"seg-\d+\.idx"),
    _own(MANIFEST),
    _own(LOCK),
    _own("tail-000001-4096.bin", r"tail-\d+-\d+(?:-\d+)?\.bin"),
    _own(DAMAGED, folder=True),
    _own(SERVERS, r"servers\.json(?:\.new)?"),
    _own(SERVER_LOGS, folder=True),
    _own(EXTENT),
    _own(ANSWERS, folder=True),
    _own("stage-1", r"stage-\d+", folder=True),
    _own("segment-1", r"segment-\d+", folder=True),  # stages of a run that began with manifest format 1
    _own(BARRIER_ROWS),
    _own(BARRIER_FACTS),
    _own("shard-0", r"shard-\d+", folder=True),
    _own(".MANIFEST.json.4711@89abcdef-2.tmp", r"\..+\.\d+@[0-9a-f]{8}(?:-\d+)?\.tmp"),
)


# --- names of numbered files ------------------------------------------------------------------


def segment_name(number: int) -> str:
    """The name of the journal's segment `number` (from 1)."""
    return f"seg-{number:06d}.jsonl"


def tail_stem(number: int, at: int) -> str:
    """The name, without its suffix, of the torn tail that a crash left in segment `number` from byte `at` on."""
    return f"tail-{number:06d}-{at}"


def stage_name(number: int) -> str:
    """The folder of stage `number` (from 1) of a pipeline that steps over all rows split, unless it is the last."""
    return f"stage-{number}"


def old_stage_name(number: int) -> str:
    """The same in a run that began with manifest format 1."""
    return f"segment-{number}"


def is_old_stage(name: str) -> bool:
    """True for an `old_stage_name`."""
    return bool(_OLD_STAGE.match(name))


def shard_name(number: int) -> str:
    """The folder of shard `number` (from 0)."""
    return f"shard-{number}"


def segment_numbers(names: Iterable[str]) -> list[int]:
    """The numbers of the journal's segments among the names, in order."""
    return _numbers(_SEGMENT, names)


def stage_folders(names: Iterable[str]) -> list[str]:
    """The stages' folders among the names, in order. All folders of a run are named in the same way."""
    there = list(names)
    current = [stage_name(number) for number in _numbers(_STAGE, there)]
    return [*(old_stage_name(number) for number in _numbers(_OLD_STAGE, there)), *current]


def shard_numbers(names: Iterable[str]) -> list[int]:
    """The numbers of the shards' folders among the names, in order."""
    return _numbers(_SHARD, names)


def _numbers(pattern: re.Pattern[str], names: Iterable[str]) -> list[int]:
    return sorted(int(match[1]) for name in names if (match := pattern.match(name)))


def temporary_name(name: str, pid: int, host: str, thread: int) -> str:
    """The name that process `pid` of machine `host` (8 hexadecimal digits) writes a file under until it is whole.

    `thread` tells the files of one process apart.
    """
    return f".{name}.{pid}@{host}-{thread}.tmp"


def temporary_parts(name: str) -> tuple[str, int, str] | None:
    """(name, pid, host) of a `temporary_name`; None for any other."""
    match = _TEMPORARY.match(name)
    return None if match is None else (match[1], int(match[2]), match[3])


def result_name(leaf: str) -> str:
    """The file that a finished run exports one end of the graph to. It belongs to the user, and is made again each
    time."""
    return RESULT if leaf == "default" else f"result-{leaf}.jsonl"


def is_result(path: Path) -> bool:
    """True if the path has a `result_name` for its name."""
    return bool(_RESULT.match(path.name))


# --- the owner of a path ----------------------------------------------------------------------


def is_own_name(name: str) -> bool:
    """True if a run makes a file or a folder of this name in its directory."""
    folded = name.casefold()  # folds more than re.IGNORECASE, as file systems do
    return any(own.pattern.match(folded) for own in OWN_NAMES)


def is_own(run: Path, path: Path) -> bool:
    """True if the path is a file of the run in directory `run`, or may become one. Symbolic links are followed."""
    directory = os.path.realpath(run)
    return any(_is_within(directory, place) for place in _places(path))


def owner_of(path: Path) -> Path | None:
    """The run directory, anywhere above, whose own file the path is; None if there is none."""
    for place in _places(path):
        for directory in Path(place).parents:
            if _is_within(str(directory), place) and is_run(directory):
                return directory
    return None


def is_run(directory: Path) -> bool:
    """True if the directory holds a manifest, or a journal that has lost it."""
    return (directory / MANIFEST).exists() or (directory / segment_name(1)).exists()


def _places(path: Path) -> set[str]:
    """The path of the name, and the target of the link: writing may replace either."""
    return {os.path.join(os.path.realpath(path.parent), path.name), os.path.realpath(path)}


def _is_within(directory: str, place: str) -> bool:
    """True if the first name below the directory on the way to the place is a run's own. Both are real paths."""
    above = Path(directory).parts
    parts = Path(place).parts
    return len(parts) > len(above) and parts[: len(above)] == above and is_own_name(parts[len(above)])


def refuse_own_files(to: Path, run: Path | None = None) -> None:
    """Raises ConfigurationError if `to` is a folder, or a run's own: of the one in `run`, or of any other."""
    if to.is_dir():
        raise ConfigurationError(f"{to} is a directory", hint="Name a file, e.g. rows.jsonl in it.")
    refuse_own_places(to, run)


def refuse_own_places(to: Path, run: Path | None = None) -> None:
    """The same for a folder to write to."""
    owner = run if run is not None and is_own(run, to) else owner_of(to)
    if owner is not None:
        raise ConfigurationError(
            f"{to} is a name of the run's own files: the run in {owner} reads or writes it",
            hint="Choose another name, or a place outside the run directory.",
        )


def refuse_own_answers(to: Path, run: Path) -> None:
    """The same for a directory of answers, which may be the one of a run."""
    place = Path(os.path.realpath(to))
    if place.name == ANSWERS and (is_run(place.parent) or place.parent == Path(os.path.realpath(run))):
        return
    refuse_own_places(to, run)


def refuse_input_as_result(source: Path, run: Path, leaves: Iterable[str]) -> None:
    """Raises ConfigurationError if the finished run would write its rows over the file that it reads."""
    place = os.path.realpath(source)
    if place in {os.path.join(os.path.realpath(run), result_name(leaf)) for leaf in leaves}:
        raise ConfigurationError(
            f"{source} is the input, and the run in {run} would write its result over it",
            hint="Choose another run directory, move the input, or write no result (--no-export).",
        )


# --- directories without a run yet ------------------------------------------------------------


def may_become_run(names: Iterable[str]) -> bool:
    """True if a directory without a manifest, with these names in it, may be used for a run.

    True for an empty one, and for one that holds only exports or files that a run makes before its manifest. Names that
    others use as well (`answers`, `extent.json`) do not make it one.
    """
    there = list(names)
    if not all(is_own_name(name) or _RESULT.match(name) for name in there):
        return False
    begun = any(name == LOCK or _RESULT.match(name) or _SEGMENT.match(name) for name in there)
    return begun or not any(is_own_name(name) for name in there)
