"""How a run looks: a live line on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from asyncsynth.cli.live_line import LiveLine
from asyncsynth.cli.text import complain, counted, duration, escaped, number, one_line, say, write
from asyncsynth.engine.execution import Running
from asyncsynth.engine.report import Progress, RunReport
from asyncsynth.storage import layout

_TERMINAL_EVERY_S = 0.5
_PLAIN_EVERY_S = 5.0
_SERVERS_SHOWN = 4  #: servers in a line of progress; --json has all


class ProgressDisplay:
    """Shows a runner's progress until `stop`. An error of the display never reaches the run."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._line = LiveLine(as_json=as_json)
        self._task: asyncio.Task[None] | None = None
        self._noted = 0  #: notes of this runner's pool that were printed

    def start(self, runner: Running) -> None:
        """Begins to show this runner instead of the one before. Call it in the run's event loop."""
        self.stop()
        self._task = asyncio.get_running_loop().create_task(self._show(runner))

    def stop(self) -> None:
        """Ends, and leaves the terminal's line empty."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
            self.clear()

    def clear(self) -> None:
        """Removes the live line, before something else is written there."""
        self._line.clear()

    async def _show(self, runner: Running) -> None:
        every = _TERMINAL_EVERY_S if self._line.is_shown else _PLAIN_EVERY_S
        while True:
            try:
                self._tell(runner.progress().notes)
                await asyncio.sleep(every)
                self._draw(runner.progress())
            except (OSError, ValueError):
                return  # nothing reads the output any more; the run continues

    def _tell(self, notes: Sequence[str]) -> None:
        """Prints what happened to servers since the last look. In JSON, every progress has all notes."""
        if self._as_json or len(notes) == self._noted:
            return
        self.clear()
        for note in notes[self._noted :]:
            complain(one_line(note, 400))
        self._noted = len(notes)

    def _draw(self, progress: Progress) -> None:
        if self._as_json:
            event({"event": "progress", **progress.as_json()})
        elif self._line.is_shown:
            self._line.draw(progress_line(progress))
        else:
            complain(progress_line(progress))


def progress_line(progress: Progress) -> str:
    """One line: records, rows, rates, in flight, retries, failures by reason, time left."""
    counts = progress.counts
    done = counts.earlier + counts.ok + counts.failed
    limit = sum(server["limit"] for server in progress.servers)
    of_total = f"/{number(progress.total)}" if progress.total is not None else ""
    parts = [
        *([f"stage {one_line(progress.stage, 60)}"] if progress.stage else []),
        f"{number(done)}{of_total} records",
        f"{number(progress.tokens_per_s)} tok/s",
        f"{number(progress.requests_in_flight)} of {number(limit)} in flight",
    ]
    if progress.requests_waiting:
        parts.append(f"{number(progress.requests_waiting)} waiting")
    if retries := sum(progress.retries.values()):
        parts.append(f"{number(retries)} retries")
    if progress.reread_answers:
        parts.append(f"{number(progress.reread_answers)} answers re-read")
    if counts.failures:
        parts.append("failed: " + _by_reason(counts.failures))
    paused = [one_line(server["name"], 60) for server in progress.servers if server["state"] != "closed"]
    if paused:
        parts.append("paused: " + ", ".join(paused))
    if progress.waits:
        parts.append(f"waiting: {one_line(progress.waits, 300)}")
    parts.append(f"{duration(progress.elapsed_s)}, ETA {duration(progress.eta_s)}")
    parts += [server_words(server, 120) for server in progress.servers[:_SERVERS_SHOWN]]
    if len(progress.servers) > _SERVERS_SHOWN:
        parts.append(f"{len(progress.servers) - _SERVERS_SHOWN} more servers")
    return one_line(" · ".join(parts), 1000)


def server_words(server: Mapping[str, Any], limit: int) -> str:
    """One server: requests in flight of its limit, its own report of its load, and why the limit is what it is."""
    of_itself = []
    if server.get("server_waiting") is not None:
        of_itself.append(f"its queue {number(server['server_waiting'])}")
    if server.get("server_kv") is not None:
        of_itself.append(f"KV {100 * server['server_kv']:.0f} %")
    said = f" ({', '.join(of_itself)})" if of_itself else ""
    words = f"{server.get('name')} {server.get('in_flight')}/{server.get('limit')}{said}: {reason_of(server)}"
    return one_line(words, limit)


def reason_of(server: Mapping[str, Any]) -> str:
    """Why a server's limit is what it is, without the number that the line has already: `growing 272` is `growing`."""
    why = str(server.get("why"))
    phase, number, rest = why.partition(str(server.get("limit")))
    if not number or phase.endswith(" at ") or rest[:1] not in ("", ":", ";"):
        return why
    return (phase.rstrip() + rest).removeprefix(": ")


def event(fields: Mapping[str, object]) -> None:
    """One JSON line on standard output, which may be a terminal: control characters are escaped."""
    try:
        line = orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # a file name that is not Unicode, an integer over 64 bits
        line = json.dumps(fields, default=str, allow_nan=False)
    write(sys.stdout, escaped(line) + "\n")


def summary(report: RunReport, exported: Mapping[str, object]) -> None:
    """Prints the summary at the end of a run."""
    counts = report.counts
    state = "done" if report.complete else f"stopped ({one_line(report.stopped_why, 400) or 'before the end'})"
    say(f"{one_line(report.pipeline)}: {state} in {duration(report.elapsed_s)}")
    if not report.complete:
        say(f"  unfinished: {one_line(report.missing, 200)}")
    say(f"  records   {number(counts.read)} read, {number(counts.ok)} ok, {number(counts.failed)} failed"
        + (f", {number(counts.pending)} pending" if counts.pending else "")
        + (f", {number(counts.earlier)} done earlier" if counts.earlier else "")
        + (f" ({number(counts.earlier_failed)} of them with failures)" if counts.earlier_failed else ""))  # fmt: skip
    say(f"  rows      {number(counts.rows)} made"
        + (f", {number(counts.failed_rows)} failed" if counts.failed_rows else ""))  # fmt: skip
    if counts.reused_steps:
        say(f"  reused    {counted(counts.reused_steps, 'step result')} of earlier runs")
    if report.reread_answers:
        say(f"  re-read   {counted(report.reread_answers, 'answer')} paid for earlier")
    if counts.dropped:
        say(f"  dropped   {_by_reason(counts.dropped)}")
    for found in report.cut_answers():
        say(f"  cut       {one_line(cut_words(found), 300)}")
    if counts.failures:
        say(f"  failures  {_by_reason(counts.failures)}")
    for failed in counts.examples.values():
        place = f"record {one_line(failed['key'], 60)}, step {one_line(failed['step'], 60)}"
        say(f"  e.g.      {place}: {one_line(failed['reason'], 60)}: {one_line(failed['message'], 400)}")
    if report.requests:
        rate = report.completion_tokens / max(report.elapsed_s, 1e-9)
        say(f"  requests  {number(report.requests)}, {number(report.completion_tokens)} tokens ({number(rate)} tok/s)"
            + _latency(report))  # fmt: skip
    if report.retries:
        say(f"  retries   {_by_reason(report.retries)}")
    for model, answers in sorted(report.answered_by.items()):
        say(f"  answered  {one_line(model)}: {number(answers)}")
    for server in report.limits[:_SERVERS_SHOWN]:
        say(f"  limit     {one_line(server['name'], 60)} {server['limit']}: {one_line(reason_of(server))}")
    for note in report.notes:
        say(f"  note      {one_line(note, 400)}")
    for path, rows in exported.items():
        say(f"  output    {one_line(path, 4096)} ({rows} rows)")
    if not report.complete:
        say("  output    not written: the run is unfinished. `asyncsynth export` writes what is there.")
        for old in sorted(filter(layout.is_result, report.directory.glob("*.jsonl"))):
            say(f"  output    {one_line(str(old), 4096)} is of an earlier run")
        say(f"  {report.advice or 'Run the same command again to resume.'}")
    elif counts.failed_rows or counts.earlier_failed:
        directory = one_line(str(report.directory), 4096)
        say(f"  See `asyncsynth status {directory}`; --retry-failed tries the failed records again.")


def _latency(report: RunReport) -> str:
    """How long requests took; '' if none of them got a useful answer."""
    if report.latency_p50_s is None or report.latency_p99_s is None:
        return ""
    return f", p50 {report.latency_p50_s:.2f} s, p99 {report.latency_p99_s:.2f} s"


def cut_words(cut: Mapping[str, Any]) -> str:
    """One item of `RunReport.cut_answers` in words, with what to do."""
    setting, _, value = str(cut["limit"]).partition("=")
    how = f"LLM({setting}=...)" if setting == "max_tokens" else f"{setting}=..."
    advice = f"raise {how}, or ask for shorter answers" if value else "ask for shorter answers"
    return (
        f"{cut['step']}: {100 * cut['share']:.0f} % of answers ({number(cut['cut'])} of {number(cut['answers'])}) "
        f"ended at {cut['limit']}; {advice}"
    )


def _by_reason(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{one_line(reason, 80)} {number(count)}" for reason, count in ordered)
