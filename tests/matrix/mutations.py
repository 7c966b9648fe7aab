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

from tests.kit.files import ROOT

#: A mutation that hangs the tests is noticed as well, if it says so.
LIMIT_S = 120.0
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)

RECOVERY = "tests/storage/test_recovery.py"
SCHEDULER = "tests/core/test_scheduler.py"
CODEC = "tests/client/test_codec.py"
POOL = "tests/client/test_server_pool.py"
MATCHING = "tests/client/test_matching.py"
STOPPING = "tests/engine/test_stopping.py"
CONSERVED = "tests/engine/test_conserved.py"
VALUES = "tests/engine/test_step_values.py"
ANSWERS = "tests/engine/test_paid_answers.py"
MISBEHAVING = "tests/engine/test_misbehaving.py"
GARBLED = "tests/storage/test_garbled_files.py"
GARBLED_YAML = "tests/servers/test_garbled_yaml.py"
WAITING = "tests/steps/test_waiting_steps.py"


@dataclass(frozen=True, slots=True)
class Mutation:
    """`old` is exactly once in `file` (below the package). `hangs`: the tests may also never end."""

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
        "an entry that begins a segment is noted in the facts of the one before", "storage/run_journal.py",
        "        where = self._journal.append_encoded(entry.encode())\n        entry.note(self._facts, where)",
        "        facts = self._facts\n        where = self._journal.append(entry.encode())\n"
        "        entry.note(facts, where)",
        2, ("tests/engine/test_run.py::test_every_segment_of_a_run_has_its_sidecar",),
    ),
    Mutation(
        "a full disk is no failure", "storage/journal.py",
        "            raise storage_error(error, path, doing) from error\n", "            return\n",
        7, ("tests/cli/test_cli.py::test_a_disk_that_takes_no_more_is_5_and_loses_nothing",),
    ),
    Mutation(
        "files are replaced without a sync", "storage/files.py",
        "            if sync:\n                fs.fdatasync(fd)\n", "",
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
        "an overload is the record's fault", "core/blame.py",
        "            self._overloaded(call, replica, outcome, is_test, now, out)\n",
        "            self._charge(call, None, Transient('overloaded', '', outcome.status), now, out)\n",
        15, (f"{SCHEDULER}::test_sustained_429_shrinks_to_the_minimum_and_recovers",),
    ),
    Mutation(
        "an outage is charged to the records", "core/blame.py",
        "call.retry.charged = max(0, call.retry.charged - charges)", "pass",
        13, (f"{SCHEDULER}::test_half_hour_outage_with_256_in_flight_loses_nothing",),
    ),
    Mutation(
        "no record is ever convicted", "core/suspects.py",
        "SOLO_CRASHES = 2 ", "SOLO_CRASHES = 10**9 ",
        14, ("tests/core/test_crashes.py::test_exactly_the_poison_record_is_quarantined",), hangs=True,
    ),
    Mutation(
        "a tick that wakes one call forgets the next", "client/server_pool.py",
        "        self._arm()  # `ticks_before`", "        # `ticks_before`",
        11, ("tests/client/test_server_pool.py::test_each_of_several_sleeping_retries_is_woken",), hangs=True,
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
        "        if (not choice.text or choice.text.isspace()) and not (", "        if False and not (",
        11, ("tests/matrix/test_faults.py",),
    ),
    Mutation(
        "a seed that depends on the order of requests", "pipeline/context.py",
        'return seed_of(f"{self.run_seed}\\x1f{self.key}\\x1f{self._step_id}\\x1f{sample}")\n',
        "return stable_seed(len(self.completions), random.random())\n",
        9, ("tests/matrix/test_interrupted.py",),
    ),
    Mutation(
        "a changed pipeline is not noticed", "engine/changes.py",
        "changes = [] if current.fingerprint == plan.fingerprint else diff(current.fields, plan.fields)",
        "changes: list[str] = []",
        10, ("tests/matrix/test_changes.py",),
    ),
    Mutation(
        "results of a step are thrown away", "engine/run_directory.py",
        "        if claim.steps or claim.ended:\n", "        if claim.ended:\n",
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
    Mutation(
        "an integer beyond 64 bits becomes a float", "tasks/exact_json.py",
        'return refuse(f"{_short(literal)} is an integer beyond 64 bits")', "return float(literal)",
        31, ("tests/tasks/test_exact_json.py::test_an_integer_beyond_64_bits_is_refused_wherever_it_is",),
    ),
    Mutation(
        "a keyword that nothing checks passes", "tasks/schema_check.py",
        'elif keyword not in self._known and not keyword.startswith("x-"):', "elif False:",
        31, ("tests/tasks/test_schema_check.py::test_without_the_package_what_is_not_checked_is_refused",),
    ),
    Mutation(
        "a run's folders are not its own", "storage/layout.py",
        'r"stage-\\d+", folder=True', 'r"stage-0", folder=True',
        36, ("tests/storage/test_layout.py::test_roundabout_ways_lead_to_the_same_file",),
    ),
    Mutation(
        "an export asks about its own run only", "storage/layout.py",
        "owner = run if run is not None and is_own(run, to) else owner_of(to)",
        "owner = run if run is not None and is_own(run, to) else None",
        36, ("tests/storage/test_layout.py::test_roundabout_ways_lead_to_the_same_file",),
    ),
    Mutation(
        "seeds come from the code of a step", "pipeline/graph.py",
        'base = short_hash({"step": type(node.step).__name__, "models": models})',
        'base = short_hash({"step": node.step.settings(), "models": models})',
        35, (f"{ANSWERS}::test_an_edited_reader_pays_nothing",),
    ),
    Mutation(
        "an answer is kept without the sampling fields it was asked with", "engine/paid_answers.py",
        "fields = {name: value for name in _FIELDS[kind] if (value := getattr(request, name)) is not None}",
        "fields = {name: getattr(request, name) for name in _FIELDS[kind] if name != 'params'}",
        35, (f"{ANSWERS}::test_every_field_of_a_request_tells_its_answer_from_others",),
    ),
    Mutation(
        "a retried row reads the answers that failed", "engine/run_directory.py",
        "        if retry_failed and (claim.failed or claim.lost_rows) and", "        if False and",
        35, (f"{ANSWERS}::test_retrying_with_the_same_reader_really_asks_again",),
    ),
    Mutation(
        "a damaged answer is believed", "storage/kept_answers.py",
        "if check(line, self._files[(place >> _FILE_BITS) - 1].salt)[0] < 0:", "if not line:",
        35, ("tests/storage/test_kept_answers.py::test_a_flipped_bit_costs_the_answer_and_never_changes_it",),
    ),
    Mutation(
        "a thought passes for the answer", "client/codec.py",
        "    choice.text = answer\n", "    pass\n",
        32, ("tests/client/test_answers.py",),
    ),
    Mutation(
        "the thought in a field of its own is lost", "client/codec.py",
        "            choice.reasoning = reasoning_in(message)\n", "            pass\n",
        32, ("tests/client/test_answers.py",),
    ),
    Mutation(
        "a cut thought is paid three times", "client/no_answer.py",
        'return Permanent("reasoning_cut", said, status, raw=thought)',
        'return Transient("empty_content", said, status, max_attempts=ANSWER_ATTEMPTS, raw=thought)',
        32, ("tests/client/test_answers.py",),
    ),
    Mutation(
        "paid answers of no use are not counted", "client/server_pool.py",
        "            self._totals.wasted += 1\n", "            pass\n",
        32, ("tests/client/test_answers.py",),
    ),
    Mutation(
        "the first of several values counts", "tasks/parsing.py",
        "            last, unusable = (made, text[end:]), None\n", "            return made, text[end:]\n",
        32, ("tests/tasks/test_last_value.py",),
    ),
    Mutation(
        "a record that was read counts as one that has ended", "engine/runner.py",
        "over = self.counts.read - self.counts.pending + ", "over = self.counts.read + ",
        27, (f"{STOPPING}::test_done_means_ended_whatever_stops_the_run",),
    ),
    Mutation(
        "a record that is tried again counts as one that never ended", "engine/run_directory.py",
        "        again = sum(claim.ended for claim in self._claims.values())", "        again = 0",
        27, (f"{STOPPING}::test_the_summary_of_a_second_try_and_status_say_the_same",),
    ),
    Mutation(
        "a stop forgets that the input was read to its end", "engine/run_states.py",
        "(ALL_READ, STOP): STOPPING_ALL_READ,", "(ALL_READ, STOP): STOPPING,",
        27, ("tests/engine/test_run_states.py",),
    ),
    Mutation(
        "a signal while the command loads is a traceback", "cli/main.py",
        "            signal.signal(number, _end)\n", "            pass\n",
        21, ("tests/cli/test_signals.py::test_a_signal_while_the_command_loads_ends_it_with_its_exit_code",),
    ),
    Mutation(
        "a stop withdraws nothing", "engine/runner.py",
        "        self._pool.withdraw()\n", "",
        28, (f"{STOPPING}::test_after_a_stop_nothing_is_sent_and_the_slowest_answer_is_the_bound",),
    ),
    Mutation(
        "a cancellation that a step swallows makes a result", "engine/walk.py",
        "if task is not None and task.cancelling() and (way.is_ending or self._is_ending()):\n            raise",
        "if False:\n            raise",
        28, ("tests/engine/test_failing.py::test_a_step_that_swallows_the_cancellation_makes_no_result_of_it",),
    ),
    Mutation(
        "a call that waits is not withdrawn", "client/server_pool.py",
        "        for waiter in waiters.values():\n            _fail(waiter, refusal)\n", "",
        28, (f"{POOL}::test_withdrawing_lets_what_is_at_the_servers_end_and_sends_nothing_more",),
        hangs=True,
    ),
    Mutation(
        "answers of a record that is given back are lost", "engine/walk.py",
        "if way.models_left > 0 or way.withdrawn:", "if way.models_left > 0 and not way.withdrawn:",
        28, (f"{STOPPING}::test_a_part_of_a_step_over_several_rows_is_kept",),
    ),
    Mutation(
        "failures that are alike do not stop the run", "engine/failing.py",
        "if self._over or self._count < ALIKE:", "if True:",
        29, ("tests/engine/test_failing.py",),
    ),
    Mutation(
        "helpers of helpers are not followed", "pipeline/usercode.py",
        "        for name in sorted(reads.globals):\n", "        for name in ():\n",
        34, ("tests/pipeline/test_usercode.py",),
    ),
    Mutation(
        "constants of a module are not followed", "pipeline/usercode.py",
        "            if attribute in own:\n", "            if callable(own.get(attribute)):\n",
        34, ("tests/pipeline/test_usercode.py",),
    ),
    Mutation(
        "what cannot be followed is not named", "pipeline/usercode.py",
        "        if not self._quiet:\n            self._code.missed.setdefault(path, kind.__qualname__)\n", "",
        34, ("tests/pipeline/test_usercode.py",),
    ),
    Mutation(
        "the plan takes what follows a redone step for reusable", "engine/changes.py",
        "            cause = sorted(step.depends & changed) or step.lost\n", "            cause = step.lost\n",
        34, ("tests/engine/test_plans.py",),
    ),
    Mutation(
        "a row without a partner is not counted", "engine/joins.py",
        'drop(key, f"partner_{loss}" if loss else "no_partner")', "pass",
        30, (f"{CONSERVED}::test_a_row_without_a_partner_is_counted_with_the_reason",),
    ),
    Mutation(
        "a row that another branch brought is not counted", "engine/joins.py",
        'drop(key, "other_branch")', "pass",
        30, (f"{CONSERVED}::test_merged_branches_keep_the_order_of_the_input_and_the_first_branch_wins",),
    ),
    Mutation(
        "a step that makes no rows is not counted", "engine/walk.py",
        '            self.drop(key, step, "no_rows")\n        return [(f"{key}.{number}", child)',
        '            pass\n        return [(f"{key}.{number}", child)',
        30, (f"{CONSERVED}::test_every_row_that_goes_into_a_step_comes_out_or_is_counted",),
    ),
    Mutation(
        "branches that multiply rows differently are joined", "pipeline/graph.py",
        "        check_joins(nodes)\n", "",
        30, (f"{CONSERVED}::test_branches_that_are_known_to_multiply_differently_are_refused",),
    ),
    Mutation(
        "a row is kept although its branch made other rows of it", "engine/joins.py",
        "None if any(related(key, other) for other in rows) else lost(key, number)", "lost(key, number)",
        30, (f"{CONSERVED}::test_a_row_is_not_kept_beside_the_rows_made_of_it",),
    ),
    Mutation(
        "a step's own cancelled future ends its record without a word", "engine/walk.py",
        "            way.end(key, step, error, view)  # the step's own",
        "            raise  # the step's own",
        30, (f"{CONSERVED}::test_a_cancelled_future_of_the_steps_own_fails_its_row",),
    ),
    Mutation(
        "NaN passes for JSON", "records.py",
        "        if not math.isfinite(value):\n", "        if False:\n",
        31, (f"{VALUES}::test_a_bad_value_in_the_middle_costs_its_row_and_no_run",),
    ),
    Mutation(
        "what a user's row step returns is not looked at", "engine/walk.py",
        "                made = _foreign_rows(made, step)\n", "                made = dict(made)\n",
        31, (f"{VALUES}::test_the_message_names_the_place_the_type_and_the_way_out",),
    ),
    Mutation(
        "a tuple stays one until the journal is read", "records.py",
        "    if (kind is list or kind is tuple) and",
        "    if kind is tuple:\n        return value\n    if kind is list and",
        31, (f"{VALUES}::test_a_tuple_is_a_list_for_the_next_step",),
    ),
    Mutation(
        "the rows between stages are not checked", "storage/barrier_rows.py",
        "    if rows != facts[\"kept\"] or not ended:\n", "    if False:\n",
        37, ("tests/storage/test_barrier_rows.py",),
    ),
    Mutation(
        "an input that lost rows is the same input", "engine/run_directory.py",
        "records < before * exact", "False",
        38, ("tests/engine/test_shorter_input.py",),
    ),
    Mutation(
        "forked processes keep the lock", "storage/files.py",
        "    for fd in list(OWN_FDS):\n", "    for fd in ():\n",
        39, ("tests/storage/test_lock.py::test_a_process_that_a_step_forked_does_not_keep_the_lock_of_a_killed_run",),
    ),
    Mutation(
        "a writer does not see that its segment is gone", "storage/journal.py",
        '            refuse_if_gone(self._fd, path, "journal\'s segment")\n', "",
        39, ("tests/storage/test_lock.py::test_a_writer_whose_files_are_taken_away_stops_before_it_acknowledges_more",),
    ),
    Mutation(
        "temporary files follow links", "storage/files.py",
        "_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW", "_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC",
        40, ("tests/storage/test_safe_files.py",),
    ),
    Mutation(
        "a cut answer is not noted", "pipeline/context.py",
        'if choices[0].finish_reason == "length" or', "if",
        33, ("tests/engine/test_made.py::test_no_cut_answer_is_a_training_target",),
    ),
    Mutation(
        "a cut answer is a training target", "steps/sft.py",
        '                    raise Dropped("truncated")\n', "                    pass\n",
        33, ("tests/steps/test_form.py::test_a_cut_answer_is_no_target",),
    ),
    Mutation(
        "what is known of texts is lost at a barrier", "engine/walk.py",
        "return with_carried(row, way.makings().carried(row))", "return row",
        33, ("tests/engine/test_made.py::test_no_cut_answer_is_a_training_target",),
    ),
    Mutation(
        "a task's system prompt does not reach the training rows", "tasks/base.py",
        'return noted.get(str(number), row.get("system_prompt") or self.system_prompt)\n',
        'return row.get("system_prompt")\n',
        33, ("tests/engine/test_made.py::test_a_tasks_system_prompt_reaches_the_training_rows",),
    ),
    Mutation(
        "a step that exits ends the run", "engine/walk.py",
        "        except BaseException as error:  # SystemExit too: a step",
        "        except Exception as error:  # a step",
        47, (f"{MISBEHAVING}::test_it_costs_its_row_and_no_more",),
    ),
    Mutation(
        "a record whose step was cancelled vanishes", "engine/walk.py",
        "            if way.is_ending or self._is_ending():\n                raise\n            way.end(key,",
        "            if True:\n                raise\n            way.end(key,",
        47, (f"{MISBEHAVING}::test_in_a_branch_its_row_is_counted_at_the_join",),
    ),
    Mutation(
        "waiting for a model counts against a step's time", "pipeline/context.py",
        "                left -= loop.time() - since\n                deadline.reschedule(None)\n",
        "                pass\n",
        47, (f"{MISBEHAVING}::test_the_time_limit_of_a_task_does_not_count_its_model",),
    ),
    Mutation(
        "any number of calls at once", "pipeline/lanes.py",
        "        while len(self._busy) >= self._limit:\n", "        while False:\n",
        48, (f"{WAITING}::test_no_more_calls_at_once_than_workers",), hangs=True,
    ),
    Mutation(
        "what a costly step made is not kept", "engine/walk.py",
        "self._ask if node.step.journal else self._compute", "self._compute",
        48, (f"{WAITING}::test_a_journaled_step_is_not_called_again",),
    ),
    Mutation(
        "a stopped run begins calls that waited", "pipeline/lanes.py",
        "                turn.set_exception(Withdrawn())\n", "                turn.set_result(None)\n",
        48, (f"{WAITING}::test_a_stop_begins_no_call_and_loses_no_row",), hangs=True,
    ),
    Mutation(
        "tools are called again after a crash", "engine/paid_answers.py",
        'kept._store.put(key, _PART_TAG, {"part": made})', "pass",
        48, ("tests/tasks/test_tool_chat.py::test_an_interrupted_conversation_pays_no_turn_and_calls_no_tool_twice",),
    ),
    Mutation(
        "a failed call may not wait again", "core/states.py",
        "    (IN_FLIGHT, QUEUE): WAITING,\n", "",
        12, (f"{SCHEDULER}::test_random_scripts_keep_the_rules",),
    ),
    Mutation(
        "a refusal halts without a canary", "core/refusals.py",
        'return outcome.reason == "quota" and len(entry.refused_at) >= HALT_AFTER',
        "return len(entry.refused_at) >= HALT_AFTER",
        41, (f"{SCHEDULER}::test_a_refused_request_costs_itself_and_no_other",),
    ),
    Mutation(
        "an old answer clears a later refusal", "core/refusals.py",
        "for known, at in entry.refused_at.items() if at > call.started_at}",
        "for known, at in entry.refused_at.items() if False}",
        41, (f"{SCHEDULER}::test_a_key_that_is_revoked_in_mid_run_halts_though_old_answers_still_come",),
    ),
    Mutation(
        "a canary that is refused counts as answered", "core/refusals.py",
        'if isinstance(canary, Permanent) and canary.scope == "server":', "if False:",
        41, (f"{SCHEDULER}::test_a_server_that_refuses_all_halts",), hangs=True,
    ),
    Mutation(
        "errors inside HTTP 200 have no code", "client/server_errors.py",
        "    status = said.code\n    if status is None:", "    status = None\n    if status is None:",
        42, (f"{CODEC}::test_an_error_inside_a_200_counts_as_its_status",),
    ),
    Mutation(
        "an answer that the server broke off is a result", "client/codec.py",
        "if not is_whole and (broken := _broken_off(", "if False and (broken := _broken_off(",
        42, (f"{CODEC}::test_an_answer_that_the_server_broke_off_is_none",),
    ),
    Mutation(
        "a wait beyond the cap is capped and followed", "core/blame.py",
        "if asked > cap and outcome.status == 429:", "if False:",
        43, (f"{SCHEDULER}::test_a_wait_beyond_the_cap_halts_with_the_words",), hangs=True,
    ),
    Mutation(
        "a quota that does not come back is waited for", "core/refusals.py",
        "return replica.spent >= QUOTA_WAITS and now - replica.spent_at >= QUOTA_S", "return False",
        43, (f"{SCHEDULER}::test_a_quota_that_does_not_come_back_when_it_says_halts",), hangs=True,
    ),
    Mutation(
        "a health check that was sent before the last sign of life counts", "core/silence.py",
        " or number != replica.checks_sent:", ":",
        17, ("tests/core/test_silence.py::test_no_request_of_a_slow_server_is_cut",),
    ),
    Mutation(
        "a file that cannot be opened is the server's fault", "client/server_pool.py",
        "if words := machine_limit(failure):", 'if words := "":',
        45, ("tests/client/test_machine_limits.py::test_what_this_machine_lacks_charges_no_record_and_no_server",),
    ),
    Mutation(
        "an answer of another model is taken", "client/server_pool.py",
        "if named in (before, request.model):", "if named:",
        46, ("tests/client/test_other_model.py",),
    ),
    Mutation(
        "a manifest's parts may be of any kind", "storage/manifest.py",
        "return _checked(cls(**values))", "return cls(**values)",
        49, (f"{GARBLED}::test_a_manifest_with_any_value_replaced_is_usable_or_refused_by_name",),
    ),
    Mutation(
        "threads share a temporary name", "storage/files.py",
        "_HOST, threading.get_native_id())", "_HOST, 0)",
        40, (f"{GARBLED}::test_two_threads_that_export_to_one_file_do_not_meet",),
    ),
    Mutation(
        "control characters in YAML are unexpected", "servers/yaml_mapping.py",
        "except yaml.reader.ReaderError as error:", "except ZeroDivisionError as error:",
        49, (f"{GARBLED_YAML}::test_a_garbled_fleet_or_vllm_file_is_read_or_refused_with_the_file",),
    ),
    Mutation(
        "any identifier is a variable's name", "client/secret.py",
        "if is_name and (_is_plain_name(name) or", "if is_name and (True or",
        50, (f"{GARBLED_YAML}::test_a_key_typed_as_the_name_of_a_variable_is_refused_and_not_shown",),
    ),
    Mutation(
        "another attempt's id is no reason to refuse", "client/matching.py",
        "if self._prefix in returned or self._prefix in response.body:", "if self._prefix == response.body:",
        44, (f"{MATCHING}::test_an_answer_with_another_attempts_id_or_without_the_usual_one_is_refused",),
    ),
    Mutation(
        "repeated answers are believed at once", "client/matching.py",
        "if known in history.bodies and self.repeats", "if not known and self.repeats",
        44, (f"{MATCHING}::test_a_copy_is_never_another_requests_answer",),
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
        raise ValueError(f"{mutation.name}: its text is {source.count(mutation.old)} times in {mutation.file}")
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
