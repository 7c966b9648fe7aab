"""`asyncsynth demo`: the example pipeline of the package, on the embedded model."""

from __future__ import annotations

from pathlib import Path

from asyncsynth.cli.run_command import run_command
from asyncsynth.cli.text import complain
from asyncsynth.errors import ConfigurationError

#: In a wheel the files are in the package (`pyproject.toml` puts them there); in a checkout, in `examples/`.
_PACKAGE = Path(__file__).resolve().parent.parent
_PLACES = (_PACKAGE / "examples", _PACKAGE.parent / "examples")


def demo_command(output: Path | None, *, limit: int | None, as_json: bool) -> int:
    """Runs the example and returns the exit code of `asyncsynth run`. Raises AsyncsynthError."""
    pipeline = next((place / "preference.py" for place in _PLACES if (place / "preference.py").is_file()), None)
    if pipeline is None:
        raise ConfigurationError(
            f"the example preference.py is missing; looked in {', '.join(map(str, _PLACES))}",
            hint="Install asyncsynth again, or run `asyncsynth run examples/preference.py --embedded` in a checkout.",
        )
    complain(f"running {pipeline} on a small model on this CPU")
    return run_command(
        str(pipeline),
        input=None,
        settings=(),
        export=True,
        as_json=as_json,
        output=output,
        embedded=True,
        limit=limit,
    )
