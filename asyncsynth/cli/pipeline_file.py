"""From `PIPELINE.py` or `PIPELINE.py:name` to a Pipeline."""

from __future__ import annotations

import runpy
import sys
import traceback
from pathlib import Path

from asyncsynth.engine.pipeline import Pipeline
from asyncsynth.errors import AsyncsynthError, ConfigurationError


def load_pipeline(target: str) -> Pipeline:
    """Runs the file, which is code that the user chose to run, and returns the pipeline that it defines.

    Its ``if __name__ == "__main__":`` part does not run. Raises ConfigurationError with the file and the line.
    """
    path_text, _, name = target.rpartition(":") if target.rpartition(":")[0].endswith(".py") else (target, "", "")
    path = Path(path_text)
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: no such pipeline file", hint="Give the path of a Python file that defines a Pipeline."
        )
    # The file may import its neighbours, as if Python ran it.
    sys.path.insert(0, str(path.resolve().parent))
    try:
        # `__file__` is absolute, as if Python ran the file: paths made from it are the same.
        names = runpy.run_path(str(path.absolute()), run_name="asyncsynth_pipeline")
    except AsyncsynthError as error:
        # The same error with its place first; type, hint and exit code stay.
        error.message = f"{_place(path, error)}{error.message}"
        raise
    except SystemExit as error:
        raise ConfigurationError(
            f"{_place(path, error)}the pipeline file ends the process with exit({error.code!r})",
            hint='Move everything but the pipeline\'s definition under `if __name__ == "__main__":`.',
        ) from error
    except Exception as error:
        raise ConfigurationError(
            f"{_place(path, error)}{type(error).__name__}: {error}", hint="The pipeline file could not be run."
        ) from error
    found = {key: value for key, value in names.items() if isinstance(value, Pipeline)}
    if name:
        if name not in found:
            raise ConfigurationError(f"{path}: no pipeline is named {name!r}; it has {_listed(found)}")
        return found[name]
    if len(set(map(id, found.values()))) != 1:
        raise ConfigurationError(
            f"{path}: one pipeline was expected, found {_listed(found)}",
            hint=f"Choose one: {path}:NAME" if found else "Write `with Pipeline() as pipeline:` at the top level.",
        )
    return next(iter(found.values()))


def _listed(found: dict[str, Pipeline]) -> str:
    return ", ".join(sorted(found)) or "none"


def _place(path: Path, error: BaseException) -> str:
    """`file:line: ` of the last frame inside the pipeline file."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path.resolve()
    ]
    if isinstance(error, SyntaxError) and error.lineno and Path(error.filename or "").resolve() == path.resolve():
        lines.append(error.lineno)
    return f"{path}:{lines[-1]}: " if lines else f"{path}: "
