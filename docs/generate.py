"""Writes docs/tasks, docs/steps and docs/reference: pages for each public task and step, and for the settings of runs
and models, from docstrings, signatures and prompt templates. Also docs/conformance.md, from the tests' table.

    python -m docs.generate

Needs the checkout and nothing else; asks no model. The test of drift compares `FOLDERS` and `PAGES` with the files.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from asyncsynth import Step
from asyncsynth.client.messages import ChatRequest, CompletionRequest
from asyncsynth.pipeline.step import snake_case
from docs import conformance_page, reference_pages, step_pages
from docs.markdown import COMMAND, NOTE, cell, fence, names, settings_table, tidy
from docs.reading import (
    Doc,
    code_of,
    columns_of,
    doc_of,
    example_of,
    first_request,
    papers_of,
    plain,
    prompts_of,
    public_tasks,
)

HERE = Path(__file__).resolve().parent


def pages() -> dict[str, str]:
    """File name in docs/tasks -> text."""
    tasks = public_tasks()
    return {"README.md": index(tasks), **{f"{snake_case(task.__name__)}.md": page(task) for task in tasks}}


#: Folder in docs -> what makes its pages.
FOLDERS = {"tasks": pages, "steps": step_pages.pages, "reference": reference_pages.pages}
#: Page in docs -> what makes it.
PAGES = {"conformance.md": conformance_page.page}


def index(tasks: list[type[Step]]) -> str:
    """The page that lists the others."""
    lines = [
        NOTE,
        "# Tasks\n",
        "Steps that ask a model. Each page has the task's columns, settings, prompts, an example and its paper.\n",
        "| task | what it does | columns | paper |",
        "| --- | --- | --- | --- |",
    ]
    for task in tasks:
        doc = doc_of(task)
        inputs, optional, outputs = columns_of(task)
        columns = f"{names(inputs or optional)} → {names(outputs)}"
        link = f"[{task.__name__}]({snake_case(task.__name__)}.md)"
        lines.append(f"| {link} | {cell(doc.summary)} | {columns} | {', '.join(papers_of(task))} |")
    lines.append(f"\nWritten from the code by `{COMMAND}`.")
    return "\n".join(lines) + "\n"


def page(kind: type[Step]) -> str:
    """A task's page."""
    doc = doc_of(kind)
    parts = [NOTE, f"# {kind.__name__}\n", f"{plain(doc.summary)}\n"]
    parts.append(f"```python\nfrom asyncsynth import LLM, {kind.__name__}\n```\n")
    parts += [f"{_paragraph(text)}\n" for text in doc.body]
    parts += [_columns(kind, doc), f"## Settings\n\n{settings_table(kind)}"]
    example = example_of(kind, doc)
    parts += [_example(doc, example), _prompts(kind, example)]
    if papers := papers_of(kind):
        parts.append(f"## Paper\n\n{', '.join(papers)}\n")
    return tidy(parts)


def _paragraph(text: str) -> str:
    """A paragraph as Markdown; what is indented is code, what begins with a hyphen a list."""
    if text.startswith("    "):
        return f"```python\n{textwrap.dedent(text)}\n```"
    return plain(text)


def _columns(kind: type[Step], doc: Doc) -> str:
    lines = ["## Columns\n"]
    for what, columns in zip(("in", "optional", "out"), columns_of(kind), strict=True):
        lines.append(f"- {what}: {names(columns)}")
    if text := doc.section("Columns"):
        lines.append(f"\n{plain(text)}")
    return "\n".join(lines) + "\n"


def _example(doc: Doc, example: tuple[dict[str, Any], dict[str, Any]] | None) -> str:
    text = doc.section("Example")
    code = code_of(text)
    lines = ["## Example\n", *(f"{fence(block, 'python')}\n" for block in code)]
    if example is not None:
        lines += [f"In:\n\n{_json(example[0])}\n", f"Out:\n\n{_json(example[1])}\n"]
    elif text and not code:
        lines.append(f"{plain(textwrap.dedent(text))}\n")
    return "\n".join(lines) if len(lines) > 1 else ""


def _prompts(kind: type[Step], example: tuple[dict[str, Any], dict[str, Any]] | None) -> str:
    prompts = prompts_of(kind)
    lines = ["## Prompt\n"]
    if not prompts:
        lines.append("The task has no prompt text of its own.\n")
    for name, text in prompts.items():
        lines.append(f"`asyncsynth/tasks/prompts/{name}.jinja`:\n\n{fence(text, 'jinja')}\n")
    request = first_request(kind, example[0]) if example is not None else None
    if isinstance(request, CompletionRequest):
        lines.append(f"What is sent first for the example, as a raw completion:\n\n{fence(request.prompt, 'text')}\n")
    elif isinstance(request, ChatRequest):
        said = "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in request.messages)
        lines.append(f"What is sent first for the example:\n\n{fence(said, 'text')}\n")
        if request.schema is not None:
            lines.append(f"Its JSON schema:\n\n{_json(request.schema)}\n")
    return "\n".join(lines)


def _json(value: Any) -> str:
    # An ellipsis in a docstring's example means: what is here does not matter.
    return fence(json.dumps(value, indent=2, ensure_ascii=False, default=lambda _: "…"), "json")


def main() -> None:
    """Writes the pages, and removes those of things that are gone."""
    for folder, make in FOLDERS.items():
        place = HERE / folder
        place.mkdir(exist_ok=True)
        wanted = make()
        for path in place.glob("*.md"):
            if path.name not in wanted and path.read_text(encoding="utf-8").startswith(NOTE):
                path.unlink()
        for name, text in wanted.items():
            (place / name).write_text(text, encoding="utf-8")
        print(f"{place}: {len(wanted)} pages")
    for name, make_page in PAGES.items():
        (HERE / name).write_text(make_page(), encoding="utf-8")
    for task in public_tasks():
        if example_of(task, doc_of(task)) is None:
            print(f"  {task.__name__}: its docstring has no example of a row and its outputs")


if __name__ == "__main__":
    main()
