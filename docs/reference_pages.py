"""The pages of docs/reference: the settings of runs, models and retries, from dataclasses and the command line."""

from __future__ import annotations

import dataclasses
from typing import Any

import typer

from asyncsynth import LLM, RetryPolicy, RunOptions
from asyncsynth.cli.commands import app
from docs.markdown import COMMAND, NOTE, cell, fence, tidy
from docs.reading import Doc, arguments, code_of, plain

#: Options of `asyncsynth run` that set a field of another name.
_OPTIONS_OF = {"start": ("start", "gpus", "vllm_command"), "embedded": ("embedded", "embedded_model")}
_RUN_EXAMPLE = """\
from asyncsynth import KeepColumns, LoadDataFromDicts, Pipeline

with Pipeline(name="example") as pipeline:
    LoadDataFromDicts([{"instruction": "Name a river."}, {"instruction": "Name a lake."}]) >> KeepColumns("instruction")

for row in pipeline.run(output="runs/first", limit=1)["default"]["train"]:
    print(row)"""
_RUN_RESULT = "{'instruction': 'Name a river.'}"


def pages() -> dict[str, str]:
    """File name in docs/reference -> text."""
    return {
        "README.md": _index(),
        "run-options.md": run_options(),
        "llm.md": _dataclass_page(LLM),
        "retry-policy.md": _dataclass_page(RetryPolicy),
    }


def _index() -> str:
    return tidy(
        [
            NOTE,
            "# Reference\n",
            "- [run-options.md](run-options.md): every option of a run, in Python and on the command line",
            "- [llm.md](llm.md): `LLM`, a model and how to sample from it",
            "- [retry-policy.md](retry-policy.md): `RetryPolicy`, when a failed request is sent again",
            "- [../tasks](../tasks/README.md): steps that ask a model",
            "- [../steps](../steps/README.md): steps that ask none, and loaders",
            "- [../cli.md](../cli.md): every command",
            f"\nWritten from the code by `{COMMAND}`.",
        ]
    )


def command_options() -> dict[str, tuple[str, str]]:
    """Parameter of `asyncsynth run` -> (its option, its help)."""
    group = typer.main.get_command(app)
    parameters = group.commands["run"].params  # type: ignore[attr-defined]
    return {one.name: (one.opts[0], one.help or "") for one in parameters if one.name and one.opts[0].startswith("--")}


def run_options() -> str:
    """The page of `RunOptions`."""
    doc = Doc.of(RunOptions)
    options = command_options()
    meanings = arguments(doc.section("Args"))
    lines = ["| option | command line | type | default | meaning |", "| --- | --- | --- | --- | --- |"]
    used: set[str] = set()
    for field in dataclasses.fields(RunOptions):
        same = [name for name in _OPTIONS_OF.get(field.name, (field.name,)) if name in options]
        used.update(same)
        shown = ", ".join(f"`{options[name][0]}`" for name in same)
        lines.append(f"| `{field.name}` | {shown} | {_type(field)} | {_default(field)} | {_meaning(field, meanings)} |")
    others = ["| option | meaning |", "| --- | --- |"]
    others += [f"| `{option}` | {cell(text)} |" for name, (option, text) in options.items() if name not in used]
    return tidy(
        [
            NOTE,
            "# Options of a run\n",
            f"{plain(doc.summary)} Give them to `pipeline.run(...)`, `await pipeline.arun(...)` or "
            "`pipeline.stream(...)` by name, or to `asyncsynth run` as shown.\n",
            *lines,
            "\nThe command line alone has:\n",
            *others,
            f"\n## Example\n\n{fence(_RUN_EXAMPLE, 'python')}\n\nIt prints:\n\n{fence(_RUN_RESULT, 'text')}",
        ]
    )


def _dataclass_page(kind: type[Any]) -> str:
    doc = Doc.of(kind)
    meanings = arguments(doc.section("Args"))
    lines = [
        "| setting | type | default | meaning |",
        "| --- | --- | --- | --- |",
        *(
            f"| `{field.name}` | {_type(field)} | {_default(field)} | {_meaning(field, meanings)} |"
            for field in dataclasses.fields(kind)
        ),
    ]
    example = "\n\n".join(code_of(doc.section("Example")))
    result = "\n".join(code_of(doc.section("Result")))
    return tidy(
        [
            NOTE,
            f"# {kind.__name__}\n",
            f"{plain(doc.summary)}\n",
            *(f"{plain(text)}\n" for text in doc.body),
            *lines,
            f"\n## Example\n\n{fence(example, 'python')}\n\nIt prints:\n\n{fence(result, 'text')}",
        ]
    )


def _type(field: dataclasses.Field[Any]) -> str:
    return f"`{field.type}`".replace("|", r"\|")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is dataclasses.MISSING:
        return "required"
    made = field.default_factory()
    return "see below" if " at 0x" in repr(made) else f"`{made!r}`"


def _meaning(field: dataclasses.Field[Any], meanings: dict[str, str]) -> str:
    return cell(meanings.get(field.name, ""))
