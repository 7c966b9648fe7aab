"""Ways to break the code, each of which a row of the matrix must notice (row 26).

A mutation is applied to a copy of the repository, never to the working tree. `tests` are the narrowest that notice.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: A mutation that hangs the tests is noticed as well, if it says so.
LIMIT_S = 120.0
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)

RECOVERY = "tests/storage/test_recovery.py"
SCHEDULER = "tests/core/test_scheduler.py"


@dataclass(frozen=True, slots=True)
class Mutation:
    """`old` stands exactly once in `file` (below the package). `hangs`: the tests may also never end."""

    name: str
    file: str
    old: str
    new: str
    row: int  #: the row that is expected to notice
    tests: tuple[str, ...]
    hangs: bool = False


MUTATIONS = (
    Mutation(
        "no fsync of a commit group", "storage/journal.py",
        'doing = "sync the journal"\n            fs.fdatasync(self._fd)', 'doing = "sync the journal"',
        6, (f"{RECOVERY}::test_a_power_cut_that_drops_unsynced_pages_loses_nothing_acknowledged",),
    ),
    Mutation(
        "no fsync of the directory of a new segment", "storage/journal.py",
        "fs.fdatasync(self._fd)\n                fs.fsync_dir(self.directory)", "fs.fdatasync(self._fd)",
        6, (f"{RECOVERY}::test_a_power_cut_that_drops_unsynced_pages_loses_nothing_acknowledged",),
    ),
    Mutation(
        "no CRC check", "storage/framing.py",
        """if not head.endswith(field) or not line.endswith(b',"_c":"%08x"}' % crc32(head, salt)):""",
        "if not head.endswith(field):",
        2, (f"{RECOVERY}::test_every_flipped_bit_is_noticed",),
    ),
    Mutation(
        "no lock", "storage/lock.py",
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass",
        8, ("tests/storage/test_journal.py::test_a_second_opener_is_told_the_holders_pid",),
    ),
    Mutation(
        "acknowledged before it is written", "storage/journal.py",
        "        work.add_done_callback(self._written)\n",
        "        work.add_done_callback(self._written)\n"
        "        for waiter in group.waiters:\n            waiter.done() or waiter.set_result(None)\n",
        5, (f"{RECOVERY}::test_a_failure_of_any_call_stops_writing_and_acknowledges_nothing_false",),
    ),
    Mutation(
        "off by one in recovery", "storage/segments.py",
        "self.end = offset + len(line) + 1", "self.end = offset + len(line)",
        1, (f"{RECOVERY}::test_cut_at_every_byte_recovers_the_exact_prefix",),
    ),
    Mutation(
        "the torn tail is cut before its copy is safe", "storage/recovery.py",
        "            fs.fdatasync(target)\n", "            pass\n",
        5, (f"{RECOVERY}::test_a_tail_is_on_the_disk_before_it_is_cut",),
    ),
    Mutation(
        "lines after a bad one are read on", "storage/segments.py",
        "                self.bad = True\n                return\n", "                continue\n",
        2, (f"{RECOVERY}::test_every_flipped_bit_is_noticed",),
    ),
    Mutation(
        "a sidecar is trusted though its segment changed", "storage/facts.py",
        "        if last_seq_of(segment, fs) != head[\"last_seq\"]:\n            return None\n", "",
        2, ("tests/storage/test_sidecars.py::test_a_sidecar_is_not_trusted_when_its_segment_changed",),
    ),
    Mutation(
        "an entry that begins a segment is noted in the facts of the one before", "engine/rundir.py",
        "        where = self._append(entry)\n        self._sidecars.facts.final(\n",
        "        facts = self._sidecars.facts\n        where = self._append(entry)\n        facts.final(\n",
        2, ("tests/engine/test_run.py::test_every_segment_of_a_run_has_its_sidecar",),
    ),
    Mutation(
        "a full disk is no failure", "storage/journal.py",
        "            raise storage_error(error, path, doing) from error\n", "            return\n",
        7, ("tests/cli/test_cli.py::test_a_disk_that_takes_no_more_is_5_and_loses_nothing",),
    ),
    Mutation(
        "files are replaced without a sync", "storage/files.py",
        "            write_all(fs, fd, data)\n            fs.fdatasync(fd)\n", "            write_all(fs, fd, data)\n",
        5, ("tests/storage/test_sidecars.py::test_a_file_that_is_replaced_is_never_seen_half_written",),
    ),
    Mutation(
        "no retry budget", "core/dispatch.py",
        "if payer is None or (not payer.starved and payer.budget.try_take(now)):", "if True:",
        12, (f"{SCHEDULER}::test_retry_budget_paces_charged_retries",),
    ),
    Mutation(
        "a slot is held during backoff", "core/scheduler.py",
        "            slots.failed(replica, now)\n", "",
        12, (f"{SCHEDULER}::test_random_scripts_keep_the_rules",),
    ),
    Mutation(
        "a cancelled call keeps its slot", "core/dispatch.py",
        "            replica.in_flight -= 1\n            self._book.left(call, replica)\n",
        "            self._book.left(call, replica)\n",
        12, (f"{SCHEDULER}::test_random_scripts_keep_the_rules",),
    ),
    Mutation(
        "a failed call may not wait again", "core/states.py",
        "    (IN_FLIGHT, QUEUE): WAITING,\n", "",
        12, (f"{SCHEDULER}::test_random_scripts_keep_the_rules",),
    ),
    Mutation(
        "an overload is the record's fault", "core/faults.py",
        "            self._overloaded(call, replica, outcome, probing, now, out)\n",
        "            self._charge(call, None, Transient('overloaded', '', outcome.status), now, out)\n",
        15, (f"{SCHEDULER}::test_sustained_429_shrinks_to_the_minimum_and_recovers",),
    ),
    Mutation(
        "an outage is charged to the records", "core/faults.py",
        "call.retry.charged = max(0, call.retry.charged - charges)", "pass",
        13, (f"{SCHEDULER}::test_half_hour_outage_with_256_in_flight_loses_nothing",),
    ),
    Mutation(
        "no record is ever convicted", "core/suspects.py",
        "SOLO_CRASHES = 2 ", "SOLO_CRASHES = 10**9 ",
        14, ("tests/core/test_crashes.py::test_exactly_the_poison_record_is_quarantined",), hangs=True,
    ),
    Mutation(
        "a tick that wakes one call forgets the next", "client/pool.py",
        "        self._arm()  # `ticks_before`", "        # `ticks_before`",
        11, ("tests/client/test_pool.py::test_each_of_several_sleeping_retries_is_woken",), hangs=True,
    ),
    Mutation(
        "silence is not noticed", "core/dispatch.py",
        "SILENCE_S = 30.0 ", "SILENCE_S = 30_000.0 ",
        17, ("tests/core/test_crashes.py::test_a_hung_server_is_found_within_two_minutes",),
    ),
    Mutation(
        "the limit does not hear refusals", "core/adaptive.py",
        "        super().on_overload(now, started_at)\n        if self.cuts == cuts", "        if self.cuts == cuts",
        15, ("tests/core/test_adaptive.py::test_sustained_429_reaches_the_minimum_and_recovers",),
    ),
    Mutation(
        "keep-alive above the server's", "client/http11.py",
        "KEEPALIVE_S = 4.0 ", "KEEPALIVE_S = 60.0 ",
        18, ("tests/client/test_http11.py::test_idle_connections_are_given_up_before_vllm_closes_them",),
    ),
    Mutation(
        "no redaction", "client/http11.py",
        "        if self._redactor:\n", "        if False:\n",
        24, ("tests/security/test_secrets.py",),
    ),
    Mutation(
        "no cap on answers", "client/connection.py",
        "if self._size > self._pool.max_response_bytes:", "if False:",
        25, ("tests/security/test_limits.py::test_bombs_are_refused_within_32_mib",), hangs=True,
    ),
    Mutation(
        "formulas go into CSV", "storage/exports.py",
        "return f\"'{text}\" if _FORMULA.match(text) else text", "return text",
        23, ("tests/security/test_hostile_text.py",),
    ),
    Mutation(
        "control bytes go to the terminal", "cli/text.py",
        '    text = _CONTROL.sub("\\ufffd", text)\n    return text if limit', "    return text if limit",
        23, ("tests/security/test_hostile_text.py",),
    ),
    Mutation(
        "a swallowed parse error", "tasks/ratings.py",
        '    raise ParseFailure(f"ratings: {why}", raw=raw)\n', "    return [Evaluation(None)] * count\n",
        11, ("tests/tasks/test_ratings.py",),
    ),
    Mutation(
        "empty answers count as answers", "client/codec.py",
        "        if not text or text.isspace():\n", "        if False:\n",
        11, ("tests/matrix/test_faults.py",),
    ),
    Mutation(
        "a seed that depends on the order of requests", "pipeline/context.py",
        'return seed_of(f"{self.run_seed}\\x1f{self.key}\\x1f{self._step_id}\\x1f{sample}")\n',
        "return stable_seed(len(self.completions), random.random())\n",
        9, ("tests/matrix/test_interrupted.py",),
    ),
    Mutation(
        "a changed pipeline is not noticed", "engine/rundir.py",
        "changes = [] if current.fingerprint == plan.fingerprint else diff(current.fields, plan.fields)",
        "changes: list[str] = []",
        10, ("tests/matrix/test_changes.py",),
    ),
    Mutation(
        "results of a step are thrown away", "engine/rundir.py",
        "        if claim.steps:\n", "        if False:\n",
        10, ("tests/matrix/test_changes.py",),
    ),
    Mutation(
        "a window that holds nothing back", "core/window.py",
        "if self.in_flight and (self.in_flight >= self.records or self.held >= self.bytes):", "if False:",
        19, ("tests/core/test_parts.py::test_a_window_admits_within_its_bounds",),
    ),
    Mutation(
        "credits are not given back", "core/window.py",
        "        self.in_flight -= 1\n        self.held -= nbytes\n", "        self.held -= nbytes\n",
        9, ("tests/matrix/test_interrupted.py",), hangs=True,
    ),
    Mutation(
        "a signal is not heard", "cli/signals.py",
        "        loop.add_signal_handler(number, received, number)\n", "        pass\n",
        21, ("tests/cli/test_cli.py::test_the_first_signal_drains_and_the_run_resumes",),
    ),
)  # fmt: skip


def copy_of_the_repository(target: Path) -> None:
    """What the tests need: package, tests, benchmarks, configuration."""
    ignored = shutil.ignore_patterns("__pycache__", ".git", ".*_cache", "*.pyc", ".hypothesis")
    for name in ("asyncsynth", "tests", "docs", "examples", "server_configs"):
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "SECURITY.md"):
        shutil.copy(ROOT / name, target / name)


def environment(copy: Path) -> dict[str, str]:
    """Python finds the copy's package, in child processes too."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("ASYNCSYNTH")}
    return {**keep, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}


def apply(mutation: Mutation, copy: Path) -> None:
    """Breaks the copy. ValueError when the text is not there exactly once."""
    path = copy / "asyncsynth" / mutation.file
    source = path.read_text()
    if source.count(mutation.old) != 1:
        raise ValueError(f"{mutation.name}: its text stands {source.count(mutation.old)} times in {mutation.file}")
    path.write_text(source.replace(mutation.old, mutation.new))


def noticed_by(mutation: Mutation, copy: Path) -> str:
    """Which tests noticed; empty when none did. The copy is left broken."""
    apply(mutation, copy)
    where = subprocess.run(
        [sys.executable, "-c", "import asyncsynth; print(asyncsynth.__file__)"],
        cwd=copy, env=environment(copy), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if where.stdout.strip() != str(copy / "asyncsynth" / "__init__.py"):
        raise RuntimeError(f"the copy would not be tested but {where.stdout}{where.stderr}")
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--rows", str(mutation.row)]
    try:
        ran = subprocess.run(
            [*command, *mutation.tests], cwd=copy, env=environment(copy),
            capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT_S:.0f} s" if mutation.hangs else ""
    if ran.returncode == 1:
        return ", ".join(sorted(name.rpartition("::")[2] for name in _FAILED.findall(ran.stdout))) or "a test"
    if ran.returncode != 0:
        raise RuntimeError(f"{mutation.name}: pytest ended with {ran.returncode}: {ran.stdout}{ran.stderr}")
    return ""
