"""`asyncsynth run`: signals, progress, export and exit code around a run."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncsynth.cli.check_command import tell_servers
from asyncsynth.cli.pipeline_file import load_pipeline
from asyncsynth.cli.serve_command import ServerDisplay
from asyncsynth.cli.show import ProgressDisplay, event, summary
from asyncsynth.cli.signals import Stopped, StopSignals
from asyncsynth.cli.text import complain, counted
from asyncsynth.engine.execution import Running, execute, execute_shared, processes
from asyncsynth.engine.options import RunOptions
from asyncsynth.engine.overrides import apply_settings
from asyncsynth.engine.pipeline import run_in_loop
from asyncsynth.engine.report import RunReport
from asyncsynth.engine.run import Run
from asyncsynth.engine.worker_processes import WorkerProgram
from asyncsynth.errors import ConfigurationError
from asyncsynth.serving.vllm.starting import StartOptions
from asyncsynth.storage import layout
from asyncsynth.storage.exports import export as export_rows
from asyncsynth.storage.result_rows import leaves

_WORKER = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from asyncsynth.cli.worker_command import main; main()"
)


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
    path = list(sys.path)  # before the pipeline's file adds to it
    pipeline = load_pipeline(target)
    apply_settings(pipeline, settings)
    if input is not None:
        pipeline.with_input(str(input))
    run = pipeline.resolved(
        RunOptions(
            **options,
            answers=answers_option(answers),
            on_servers=lambda found: tell_servers(found, pipeline.needs(), as_json=as_json),
            on_wait=complain,
            on_download=Download(),
        )
    )
    if export and (source := run.plan.source.open().path) is not None:
        layout.refuse_input_as_result(source, run.directory, run.plan.leaves)
    program = WorkerProgram(
        [sys.executable, "-P", "-c", _WORKER, json.dumps(path)],
        {"target": target, "input": None if input is None else str(input), "settings": list(settings)},
    )
    report = run_in_loop(lambda: _supervised(run, processes(run, workers), program, as_json=as_json))
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
    """``--answers`` as a value of `RunOptions.answers`."""
    # An absolute path, since worker processes get it, too.
    return given if given in (None, "", "own", "run", "none") else str(Path(given).absolute())


async def _supervised(run: Run, workers: int, program: WorkerProgram, *, as_json: bool) -> RunReport | None:
    """The run, with its progress shown and signals handled. A cancelled run reports what it has done.

    Returns None if a signal came before the run began.
    """
    display = ProgressDisplay(as_json=as_json)
    running: Running | None = None

    def began(runner: Running) -> None:
        nonlocal running
        running = runner
        display.start(runner)

    def drain(name: str) -> None:
        if running is None:
            cancel(name)
            return
        display.clear()
        at_servers = running.at_servers()
        running.drain(name)
        waiting = "requests" if at_servers is None else counted(at_servers, "request")
        complain(
            f"{name}: sending nothing more; waiting for {waiting} at the servers. "
            "Again: cancel them. Finished work is kept."
        )

    def cancel(name: str) -> None:
        display.clear()
        if running is not None:
            running.drain(name)
        signals.cancel()
        complain(f"{name}: cancelling. Again: exit at once.")

    signals = StopSignals(drain, cancel)
    with signals.installed():
        try:
            if workers:
                return await execute_shared(run, workers, program, on_runner=began)
            return await execute(run, on_runner=began)
        except asyncio.CancelledError:
            if not signals.caused_cancel():
                raise
            return None if running is None else running.report()
        finally:
            display.stop()


class Download:
    """Reports the download of an embedded model's weights, a quarter at a time."""

    def __init__(self) -> None:
        self._told = -1

    def __call__(self, got: int, total: int) -> None:
        quarter = 4 * got // total if total else 0
        if quarter > self._told:
            self._told = quarter
            complain(f"downloading the embedded model's weights: {got >> 20} of {total >> 20} MiB")


def _export_all(report: RunReport) -> dict[str, object]:
    """Each end of the graph to a JSONL file of its name in the run directory."""
    exported: dict[str, object] = {}
    for leaf in leaves(report.directory):
        to = report.directory / layout.result_name(leaf)
        exported[str(to)] = export_rows(report.directory, to, leaf=leaf).rows
    return exported
