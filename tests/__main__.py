"""All checks, in one command: `python -m tests`. The same here and in CI; ends at the first that fails."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

from tests.quick import BUDGET_S

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

RUFF = [sys.executable, "-m", "ruff", "check", "."]
CHECKS = [
    RUFF,
    [sys.executable, "-m", "mypy"],
    [str(BIN / "lint-imports"), "--no-cache"],
]
PYTEST = [sys.executable, "-m", "pytest"]

EXAMPLES = f"""\
python -m tests              ruff, mypy, the import rules, then every test: what CI runs
python -m tests --fast       the same without the embedded model
python -m tests --quick      ruff and the pure and simulated tests, in under {BUDGET_S} s of CPU: no sockets, no
                             processes, no embedded model, no Hypothesis, nothing marked `slow`. It leaves out mypy
                             (3 to 5 s more) and the import rules.
python -m tests -- -k name   what follows `--` goes to pytest

`python -m pytest --why-not-quick --collect-only` says why a test is not quick; tests/quick.py is the rule.
"""


def commands(arguments: list[str]) -> tuple[list[list[str]], bool]:
    """(the checks in the order in which they are quick to fail, whether they are the quick ones)."""
    parser = argparse.ArgumentParser(
        prog="python -m tests",
        description="All checks, in one command; ends at the first that fails.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--fast", action="store_true", help="without the embedded model")
    which.add_argument("--quick", action="store_true", help=f"ruff and the quick tests: under {BUDGET_S} s of CPU")
    parser.add_argument("pytest", nargs="*", metavar="-- ARGUMENT", help="for pytest")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        return [RUFF, [*PYTEST, "--quick", *chosen.pytest]], True
    markers = ["-m", "not embedded"] if chosen.fast else []
    return [*CHECKS, [*PYTEST, "--durations=5", "--row-table", *markers, *chosen.pytest]], False


def main() -> int:
    """Runs the checks."""
    checks, is_quick = commands(sys.argv[1:])
    for command in checks:
        print(f"$ {' '.join(command)}", flush=True)
        began = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        print(f"  exit {code} after {time.monotonic() - began:.1f} s", flush=True)
        if code:
            return code
    if is_quick:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"  {used.ru_utime + used.ru_stime:.1f} s of CPU; {BUDGET_S} s are the limit on a current machine")
    return 0


if __name__ == "__main__":
    sys.exit(main())
