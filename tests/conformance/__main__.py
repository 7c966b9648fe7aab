"""`python -m tests.conformance [NAME ...]`: tries the behaviours and prints what is not as the table says."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.conformance.rows import BEHAVIOURS, NOT_YET
from tests.conformance.run import wrong

WITHIN_S = 8.0


def main() -> int:
    """Returns 1 if a row differs from what `NOT_YET` says of it."""
    names = sys.argv[1:]
    unexpected = 0
    for behaviour in BEHAVIOURS:
        if names and behaviour.name not in names:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = wrong(behaviour, Path(folder), WITHIN_S)
        verdict = "wrong" if found else "ok"
        if bool(found) != (behaviour.name in NOT_YET):
            unexpected += 1
            verdict += "!"
        print(f"{verdict:6} {time.monotonic() - began:5.2f} s  {behaviour.name:28} {found:.200}", flush=True)
    print(f"{unexpected} rows differ from NOT_YET (marked `!`)")
    return int(bool(unexpected))


if __name__ == "__main__":
    sys.exit(main())
