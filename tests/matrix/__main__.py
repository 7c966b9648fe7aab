"""The reliability matrix: one line a row, what was tried, how often, what held, seconds. Exit 1 when a row fails.

python -m tests.matrix               in full: about 15 minutes on two cores
python -m tests.matrix --short       the shortened form, as in `python -m tests`
python -m tests.matrix --rows 4,12   these rows only
python -m tests.matrix --mutations   row 26 only: the code broken on purpose
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.matrix.plugin import Result, parse_rows, read_results
from tests.matrix.rows import ROWS, TESTS, files_of, groups

ROOT = TESTS.parent
#: Rows that take long go first, so that the last minutes are not one row's alone.
LONGEST = (26, 4, 21, 16, 12, 22)


def run_rows(rows: set[int], folder: Path, *, short: bool) -> list[Result]:
    """Runs the tests of `rows` in one process; what failed shows its output."""
    report = folder / f"{'-'.join(map(str, sorted(rows)))}.json"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rows", ",".join(map(str, sorted(rows)))]
    command += ["--row-report", str(report), *map(str, files_of(rows))]
    environment = {key: value for key, value in os.environ.items() if key != "ASYNCSYNTH_FULL_MATRIX"}
    if not short:
        environment["ASYNCSYNTH_FULL_MATRIX"] = "1"
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    results = list(read_results(report)) if report.exists() else []
    for row in rows - {result.row for result in results}:
        results.append(Result(row, failed=["no test ran"]))
    if ran.returncode or any(result.failed for result in results):
        print(ran.stdout, ran.stderr, sep="\n", file=sys.stderr, flush=True)
        if not any(result.failed for result in results):
            results[0].failed.append(f"pytest ended with {ran.returncode}")
    return results


def tell(results: list[Result], *, as_json: bool) -> None:
    for result in results:
        print(json.dumps(result.as_json()) if as_json else result.line(), flush=True)


def run_all(wanted: set[int], *, short: bool, as_json: bool) -> list[Result]:
    """Two groups of rows at a time; those that measure time or memory have the machine for themselves."""
    found: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="matrix-") as made:
        folder = Path(made)
        if short:
            found = sorted(run_rows(wanted, folder, short=True), key=lambda result: result.row)
            tell(found, as_json=as_json)
            return found
        parts = groups(wanted)
        alone = [rows for rows in parts if any(ROWS[row].alone for row in rows)]
        others = [rows for rows in parts if rows not in alone]
        others.sort(key=lambda rows: min((LONGEST.index(row) for row in rows if row in LONGEST), default=len(LONGEST)))
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for done in concurrent.futures.as_completed(pool.submit(run_rows, r, folder, short=False) for r in others):
                found += done.result()
                tell(done.result(), as_json=as_json)
        for rows in alone:
            results = run_rows(rows, folder, short=False)
            found += results
            tell(results, as_json=as_json)
    return found


def main() -> int:
    """Parses the command line, runs, sums up."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=parse_rows, default=set(ROWS), help="for example 4,12")
    parser.add_argument("--short", action="store_true", help="every row with fewer repetitions")
    parser.add_argument("--mutations", action="store_true", help="row 26 only")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    wanted = {26} if options.mutations else options.rows
    # Started in the background, this process may ignore SIGINT, and so would all that it starts: row 21 sends it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    found = run_all(wanted, short=options.short, as_json=options.json)
    failed = sorted(result.row for result in found if result.verdict != "ok")
    took = time.monotonic() - began
    if not options.json:
        verdict = f"rows that did not hold: {failed}" if failed else "all hold"
        print(f"{len(found)} rows in {took / 60:.1f} min: {verdict}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
