"""The command line: parse, call, show. Commands import heavy modules themselves, so that --help is fast."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from asyncsynth.cli import journal_command
from asyncsynth.cli.signals import Stopped, past_stopping, stop_on_signals
from asyncsynth.errors import EXIT_FAULT, EXIT_STOPPED, AsyncsynthError

app: typer.Typer = typer.Typer(
    name="asyncsynth",
    help="Make instruction-tuning and preference data by prompting models that you serve.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(journal_command.app, name="journal")

PipelineFile = Annotated[
    str, typer.Argument(metavar="PIPELINE.py", help="Python file with a Pipeline; FILE.py:NAME picks one.")
]
RunDir = Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON lines to standard output, for programs.")]

GPUs = Annotated[
    list[str] | None,
    typer.Option("--gpus", metavar="FILE=0,1", help="GPUs of the server that FILE describes; may be given again."),
]
VLLM = Annotated[
    str, typer.Option("--vllm-command", metavar="COMMAND", help="Command that starts vLLM [env: ASYNCSYNTH_VLLM].")
]


@app.command()
def run(
    pipeline: PipelineFile,
    input: Annotated[Path | None, typer.Option(help="JSONL file to read instead of the pipeline's own source.")] = None,
    output: Annotated[Path | None, typer.Option(help="Run directory [default: asyncsynth-runs/<name>].")] = None,
    servers: Annotated[
        list[str] | None,
        typer.Option(
            help="Server URL, configuration file, or folder of them; may be given again. [env: ASYNCSYNTH_SERVERS]"
        ),
    ] = None,
    start: Annotated[
        bool, typer.Option("--start", help="Start the servers that the models need and that do not answer yet.")
    ] = False,
    gpus: GPUs = None,
    vllm_command: VLLM = "",
    embedded: Annotated[
        bool, typer.Option("--embedded", help="A small model on this CPU answers for every model.")
    ] = False,
    embedded_model: Annotated[
        str | None, typer.Option(help="Which embedded model: a known name or a GGUF file. Implies --embedded.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="STEP.SETTING=VALUE", help="Change a step's setting for this run; may be given again."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Stop after this many input records.")] = None,
    seed: Annotated[int, typer.Option(help="Run seed: all sampling seeds and random choices follow from it.")] = 0,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Fixed number of requests in flight on each server [default: tuned automatically]."),
    ] = None,
    request_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Give up a request whose whole answer takes longer [default: no limit while its server progresses].",
        ),
    ] = None,
    model_change: Annotated[
        str,
        typer.Option(
            metavar="stop|note",
            help="When a server's answers begin to name another model: send it no more requests, or only note it.",
        ),
    ] = "stop",
    window: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of records in flight [default: follows the servers' limits]."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, help="Number of worker processes [default: 1, or the run's existing shard count]."
        ),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry records that failed earlier.")] = False,
    answers: Annotated[
        str | None,
        typer.Option(
            metavar="own|run|none|DIR",
            help="Which answers to keep, so that a changed parser can read them again without paying: those of steps "
            "with your own code, all in the run directory, none, or all in a directory that runs share "
            "[default: own].",
        ),
    ] = None,
    max_failures: Annotated[
        str | None,
        typer.Option(
            metavar="N|P%",
            help="Stop, resumable, if more records fail [default: if the first 20 all fail in the same way].",
        ),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Accept a changed pipeline or input; redo what depends on it.")
    ] = False,
    export: Annotated[bool, typer.Option(help="Write the rows to DIR/<result>.jsonl at the end.")] = True,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline. Run the same command again to resume.

    Exit codes: 0 done, 2 bad usage or configuration, 3 done with failed records, 4 stopped and resumable,
    5 disk or journal failure. Ctrl-C stops sending and waits for the requests at the servers; a second one
    cancels them; a third exits at once.
    """
    from asyncsynth.cli.run_command import run_command

    code = run_command(
        pipeline,
        input=input,
        settings=tuple(setting or ()),
        export=export,
        as_json=as_json,
        output=output,
        servers=tuple(servers or ()),
        start=start,
        gpus=tuple(gpus or ()),
        vllm_command=vllm_command,
        embedded=embedded_model or embedded,
        limit=limit,
        seed=seed,
        concurrency=concurrency,
        request_timeout=request_timeout,
        model_change=model_change,
        window=window,
        workers=workers,
        retry_failed=retry_failed,
        max_failures=max_failures,
        update=update,
        answers=answers,
    )
    raise typer.Exit(code)


@app.command()
def check(
    pipeline: Annotated[
        str | None, typer.Argument(metavar="[PIPELINE.py]", help="Test only what this pipeline needs.")
    ] = None,
    servers: Annotated[
        list[str] | None,
        typer.Option(
            help="Server URL, configuration file, or folder of them; may be given again. [env: ASYNCSYNTH_SERVERS]"
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Check only this model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Test what servers can do, with a few small requests to each.

    Exit codes: 0 all fine, 2 bad usage or configuration, 3 a server does not answer or cannot do what is needed,
    4 a signal.
    """
    from asyncsynth.cli.check_command import check_command

    raise typer.Exit(check_command(pipeline, servers=tuple(servers or ()), model=model, as_json=as_json))


@app.command()
def bench(
    servers: Annotated[
        list[str] | None,
        typer.Option(
            help="Server URL, configuration file, or folder of them; may be given again. [env: ASYNCSYNTH_SERVERS]"
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which model, if a server has several.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSONL file with a column instruction, prompt or messages [default: generated prompts]."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of an answer.")] = 256,
    seconds: Annotated[float, typer.Option(min=1, help="Maximum seconds for each server.")] = 120,
    max_concurrency: Annotated[int, typer.Option(min=1, max=16384, help="Maximum number of requests at once.")] = 1024,
    max_requests: Annotated[int, typer.Option(min=1, help="Maximum number of requests to each server.")] = 20_000,
    as_json: AsJson = False,
) -> None:
    """Find how many concurrent requests make good use of a server, and what limits it.

    Exit codes: 0 measured, 2 bad usage or configuration, 3 a server does not answer or gave too few answers to measure,
    4 a signal, or a server that refuses every request.
    """
    from asyncsynth.cli.bench_command import bench_command
    from asyncsynth.servers.load_test import BenchPlan

    plan = BenchPlan(seconds=seconds, max_concurrency=max_concurrency, max_requests=max_requests)
    code = bench_command(
        servers=tuple(servers or ()), model=model, prompts=prompts, max_tokens=max_tokens, plan=plan, as_json=as_json
    )
    raise typer.Exit(code)


@app.command()
def serve(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE|DIR...", help="vLLM --config files, fleet files, or folders of them.")
    ],
    gpus: GPUs = None,
    vllm_command: VLLM = "",
    logs: Annotated[Path | None, typer.Option(help="Folder for the servers' logs [default: in the cache].")] = None,
    ready_timeout: Annotated[float, typer.Option(min=1, help="Seconds for a server to become ready.")] = 1800,
    check: Annotated[bool, typer.Option("--check", help="Only report problems; start nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start vLLM servers, keep them running, and drain them at the end.

    Exit codes: 0 ended by a signal (or no problem, with --check), 2 bad configuration or a server that does not
    start, 4 a server crashed too often. Ctrl-C drains; a second one kills the servers; a third exits at once.
    """
    from asyncsynth.cli.serve_command import serve_command

    code = serve_command(
        files,
        gpus=tuple(gpus or ()),
        vllm_command=vllm_command,
        logs=logs,
        ready_timeout=ready_timeout,
        check=check,
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command()
def status(
    directory: RunDir,
    quality: Annotated[
        bool, typer.Option("--quality", help="Measure the data: failures, lengths, duplicates, ratings, ...")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the state of a run, even while another process is writing it."""
    if quality:
        from asyncsynth.cli.quality_tables import quality_command

        quality_command(directory, as_json=as_json)
        return
    from asyncsynth.cli.inspect_command import status_command

    status_command(directory, as_json=as_json)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="DIR_A", help="A run directory.")],
    second: Annotated[Path, typer.Argument(metavar="DIR_B", help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Compare the data of two runs: the settings that differ, and each step's measures side by side."""
    from asyncsynth.cli.quality_tables import compare_command

    compare_command(first, second, as_json=as_json)


@app.command()
def export(
    directory: RunDir,
    to: Annotated[
        Path, typer.Option("--to", help="File to write; its extension sets the format (.jsonl, .csv, .parquet).")
    ],
    leaf: Annotated[str, typer.Option(help="Which end of the graph, if it has several.")] = "default",
    failed: Annotated[
        bool,
        typer.Option("--failed", help="Write the failed rows instead: key, step, reason, message, input (.jsonl)."),
    ] = False,
    complete_only: Annotated[
        bool, typer.Option("--complete-only", help="Write nothing and exit with 4 if the run is unfinished.")
    ] = False,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="Add a column with how each row was made: model, tokens, ...")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's rows to a file, in input order. An unfinished run is exported too, with a warning."""
    from asyncsynth.cli.inspect_command import export_command

    export_command(
        directory,
        to,
        leaf=leaf,
        failed=failed,
        as_json=as_json,
        complete_only=complete_only,
        provenance=provenance,
    )


@app.command()
def draw(
    pipeline: PipelineFile,
    form: Annotated[str, typer.Option("--form", help="text or mermaid")] = "text",
    to: Annotated[Path | None, typer.Option("--to", help="File to write instead of the terminal.")] = None,
) -> None:
    """Draw a pipeline: its steps, columns and mappings."""
    from asyncsynth.cli.inspect_command import draw_command

    draw_command(pipeline, form=form, to=to)


@app.command()
def demo(
    output: Annotated[Path | None, typer.Option(help="Run directory [default: asyncsynth-runs/preference].")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Stop after this many of the 24 instructions.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make preference pairs from 24 instructions with a small model on this CPU. Needs no server, GPU or key.

    Exit codes: as for `run`.
    """
    from asyncsynth.cli.demo_command import demo_command

    raise typer.Exit(demo_command(output, limit=limit, as_json=as_json))


@app.command()
def version() -> None:
    """Print the version."""
    from asyncsynth import __version__

    typer.echo(__version__)


def _version_asked(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def asyncsynth(
    _: Annotated[
        bool, typer.Option("--version", callback=_version_asked, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before any command."""


def main() -> None:
    """Does what the command line says. `cli.main` calls it."""
    stop_on_signals()
    try:
        _run_command()
    finally:
        past_stopping()


def _run_command() -> None:
    try:
        app()
    except Stopped as stopped:
        from asyncsynth.cli.text import complain

        message = f"{stopped}: stopped. Run the same command again to continue."
        if "--json" in sys.argv:
            from asyncsynth.cli.show import event

            event({"event": "error", "error": "Stopped", "message": message, "exit_code": EXIT_STOPPED})
        complain(message)
        sys.exit(EXIT_STOPPED)
    except AsyncsynthError as error:
        from asyncsynth.cli.show import event
        from asyncsynth.cli.text import complain

        if "--json" in sys.argv:
            kind = type(error).__name__
            event({"event": "error", "error": kind, "message": str(error), "exit_code": error.exit_code})
        complain(f"error: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        _tell_fault(error)
        sys.exit(EXIT_FAULT)


def _tell_fault(error: Exception) -> None:
    """Prints an unexpected error: its place, and how to get its traceback."""
    import traceback

    from asyncsynth.cli.show import event
    from asyncsynth.cli.text import complain

    if os.environ.get("ASYNCSYNTH_TRACEBACK"):
        complain("".join(traceback.format_exception(error)))
    frame = traceback.extract_tb(error.__traceback__)[-1]
    message = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
    if "--json" in sys.argv:
        event({"event": "error", "error": type(error).__name__, "message": message, "exit_code": EXIT_FAULT})
    complain(
        f"error: unexpected: {message}\n"
        "  Finished records are safe. Run the same command with ASYNCSYNTH_TRACEBACK=1 to see the traceback."
    )
