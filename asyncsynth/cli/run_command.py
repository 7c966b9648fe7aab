"""`asyncsynth run`: signals, progress, export and exit code around `Pipeline.arun`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asyncsynth.cli.check_command import tell_servers
from asyncsynth.cli.pipeline_file import load_pipeline
from asyncsynth.cli.serve_command import ServerDisplay
from asyncsynth.cli.show import ProgressDisplay, event, summary
from asyncsynth.cli.signals import Stopped, taken
from asyncsynth.cli.text import complain, counted
from asyncsynth.cli.workers import Run, run_of
from asyncsynth.engine.overrides import apply_settings
from asyncsynth.engine.pipeline import Pipeline, run_in_loop
from asyncsynth.engine.report import RunReport
from asyncsynth.engine.runner import Runner
from asyncsynth.engine.worker_processes import Workers
from asyncsynth.errors import EXIT_STOPPED, ConfigurationError
from asyncsynth.servers.capabilities import Capabilities
from asyncsynth.serving.vllm.starting import StartOptions
from asyncsynth.storage import layout
from asyncsynth.storage.exports import export as export_rows
from asyncsynth.storage.result_rows import leaves


def run_command(
    target: str,
    *,
    input: Path | None,
    settings: Sequence[str],
    export: bool,
    as_json: bool,
    start: bool = False,
    gpus: Sequence[str] = (),
    vllm_command: str = "",
    workers: int | None = None,
    answers: str | None = None,
    **options: Any,
) -> int:
    """Runs a pipeline file and returns the exit code. Raises AsyncsynthError."""
    if start:
        servers = ServerDisplay(as_json=as_json)
        options["start"] = StartOptions(
            vllm_command=vllm_command,
            gpus=gpus,
            on_event=servers.on_event,
            loading=servers.watching,
            on_warning=lambda warning: complain(f"warning: {warning}"),
        )
    elif gpus or vllm_command:
        raise ConfigurationError("--gpus and --vllm-command are for servers that --start starts")
    options["answers"] = answers_option(answers)
    path = list(sys.path)
    pipeline = load_pipeline(target)
    apply_settings(pipeline, settings)
    if input is not None:
        pipeline.with_input(str(input))
    with run_of(pipeline, workers, target, input, settings, path, options, export=export) as run:
        report = run_in_loop(lambda: _supervised(pipeline, run, as_json=as_json))
    if report is None:
        raise Stopped("a signal before the first record was read")
    exported: dict[str, object] = {}
    if export and report.complete:
        exported = _export_all(report)
    if as_json:
        event({"event": "done", **report.as_json(), "exported": exported})
    else:
        summary(report, exported)
    return report.exit_code


def answers_option(given: str | None) -> str | None:
    """``--answers`` as `RunOptions.answers` has it."""
    # An absolute path: worker processes get it, too.
    return given if given in (None, "", "own", "run", "none") else str(Path(given).absolute())


async def _supervised(pipeline: Pipeline, run: Run, *, as_json: bool) -> RunReport | None:
    """The run with progress on show and signals in hand; a cancelled run reports what it has done."""
    display = ProgressDisplay(as_json=as_json)
    signals = Signals(display)

    found: list[Capabilities] = []

    def on_runner(runner: Runner | Workers) -> None:
        signals.runner = runner
        display.start(runner)

    def on_servers(servers: Sequence[Capabilities]) -> None:
        found.extend(servers)
        tell_servers(servers, pipeline.needs(), as_json=as_json)

    with signals.installed():
        try:
            return await run(on_runner=on_runner, on_servers=on_servers, on_wait=complain, on_download=Download())
        except asyncio.CancelledError:
            if not signals.count:
                raise
            current = asyncio.current_task()
            if current is not None:
                current.uncancel()
            if signals.runner is None:
                return None
            return replace(signals.runner.report(), servers=[one.as_json() for one in found])
        finally:
            display.stop()


class Download:
    """Tells how far the weights of an embedded model have come, a quarter at a time."""

    def __init__(self) -> None:
        self._told = -1

    def __call__(self, got: int, total: int) -> None:
        quarter = 4 * got // total if total else 0
        if quarter > self._told:
            self._told = quarter
            complain(f"fetching the embedded model's weights: {got >> 20} of {total >> 20} MiB")


class Signals:
    """SIGINT and SIGTERM: the first sends nothing more and waits for what is at the servers, the second cancels that,
    the third exits at once."""

    def __init__(self, display: ProgressDisplay) -> None:
        self._display = display
        self.count = 0
        self.runner: Runner | Workers | None = None
        self._main: asyncio.Task[Any] | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Takes the signals for as long as the block runs."""
        self._main = asyncio.current_task()
        with taken(self._received):
            yield

    def _received(self, signum: int) -> None:
        self.count += 1
        name = signal.Signals(signum).name
        if self.count >= 3:
            os._exit(EXIT_STOPPED)  # acknowledged records are on the disk; nothing else is promised
        self._display.clear()
        if self.count == 1 and self.runner is not None:
            left = self.runner.progress().requests_in_flight
            self.runner.drain(name)
            complain(
                f"{name}: sending nothing more; waiting for {counted(left, 'request')} at the servers. "
                "Again: cancel them. Finished work is kept."
            )
            return
        if self.runner is not None:
            self.runner.drain(name)
        if self._main is not None:
            self._main.cancel()
        complain(f"{name}: cancelling. Again: exit at once.")


def _export_all(report: RunReport) -> dict[str, object]:
    """Each end of the graph to a JSONL file of its name in the run directory."""
    exported: dict[str, object] = {}
    for leaf in leaves(report.directory):
        to = report.directory / layout.result_name(leaf)
        exported[str(to)] = export_rows(report.directory, to, leaf=leaf).rows
    return exported
