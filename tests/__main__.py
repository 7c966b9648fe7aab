"""All checks, in one command: `python -m tests`. The same here and in CI; ends at the first that fails.

python -m tests              linters, types, floors, then every test
python -m tests --fast       without the embedded model
python -m tests -- -k name   what follows `--` goes to pytest
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

CHECKS = [
    [str(BIN / "ruff"), "check", "."],
    [str(BIN / "mypy")],
    [str(BIN / "lint-imports"), "--no-cache"],
]


def main() -> int:
    """Runs the checks in the order in which they are quick to fail."""
    arguments = sys.argv[1:]
    pytest = [sys.executable, "-m", "pytest", "--durations=5", "--row-table"]
    if "--fast" in arguments:
        pytest += ["-m", "not embedded"]
    if "--" in arguments:
        pytest += arguments[arguments.index("--") + 1 :]
    for command in [*CHECKS, pytest]:
        print(f"$ {' '.join(command)}", flush=True)
        began = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        print(f"  exit {code} after {time.monotonic() - began:.1f} s", flush=True)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
