"""What the code says of a task: its docstring taken apart, its settings, prompts and first request."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import re
import sys
import textwrap
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import asyncsynth
from asyncsynth import LLM, Context, Step, Task
from asyncsynth.client.messages import Completion, ModelRequest

#: Of all models in the examples, since tasks may look at the name.
MODEL = "Qwen/Qwen2.5-1.5B-Instruct"

_PAPER = re.compile(r"(?:arXiv[ :]*)(\d{4}\.\d{5})")
_SECTION = re.compile(r"^(Columns|Args|Example|Examples|Result|Paper|Papers)::?(?:\s|$)")
_SPAN = re.compile(r"``(.+?)``", re.DOTALL)
#: Examples of tasks whose docstrings have none: a row, and the outputs.
_EXAMPLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "TextGeneration": (
        {"instruction": "What is synthetic data?"},
        {"generation": "Data that a program or a model made.", "model_name": "Qwen/Qwen2.5-1.5B-Instruct"},
    ),
    "MagpieGenerator": (
        {},
        {
            "instruction": "Name three rivers.",
            "response": "The Nile, the Danube and the Volga.",
            "conversation": [
                {"role": "user", "content": "Name three rivers."},
                {"role": "assistant", "content": "The Nile, the Danube and the Volga."},
            ],
            "model_name": "Qwen/Qwen2.5-1.5B-Instruct",
        },
    ),
    "UltraFeedback": (
        {"instruction": "How much is 2 + 2?", "generations": ["4", "It is 5."]},
        {
            "ratings": [5, 1],
            "rationales": ["The answer is right and to the point.", "2 + 2 is 4, not 5."],
            "model_name": "Qwen/Qwen2.5-7B-Instruct",
        },
    ),
}


# --- what there is -----------------------------------------------------------------------------------------------


def public_tasks() -> list[type[Step]]:
    """The tasks that the package exports, by name: subclasses of Task, and sources that ask a model."""
    found = [getattr(asyncsynth, name) for name in asyncsynth.__all__]
    return sorted(
        {
            kind
            for kind in found
            if inspect.isclass(kind)
            and issubclass(kind, Step)
            and kind is not Task
            and (issubclass(kind, Task) or kind.__module__.startswith("asyncsynth.tasks."))
        },
        key=lambda kind: kind.__name__,
    )


def lineage(kind: type[Any]) -> list[type[Any]]:
    """The class and its bases down to Step."""
    return [base for base in kind.__mro__ if issubclass(base, Step)]


# --- docstrings --------------------------------------------------------------------------------------------------


@dataclass
class Doc:
    """A class's docstring, taken apart."""

    summary: str = ""
    body: list[str] = field(default_factory=list)
    sections: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: type[Any]) -> Doc:
        """Of the class itself; empty if it has none."""
        doc = cls()
        section = ""
        for paragraph in re.split(r"\n[ \t]*\n", inspect.cleandoc(kind.__dict__.get("__doc__") or "")):
            if found := _SECTION.match(paragraph):
                section = found[1].removesuffix("s") if found[1] != "Args" and found[1] != "Columns" else found[1]
                doc.sections[section] = [paragraph]
            elif section in ("Example", "Result") or (section and paragraph.startswith(" ")):
                doc.sections[section].append(paragraph)
            elif not doc.summary:
                doc.summary = paragraph
            else:
                section = ""
                doc.body.append(paragraph)
        return doc

    def section(self, name: str) -> str:
        """A section's text without its heading."""
        text = "\n\n".join(self.sections.get(name, ()))
        return re.sub(r"^\w+::?[ \t]*\n*", "", text, count=1).rstrip()


def arguments(text: str) -> dict[str, str]:
    """Name -> meaning, of an Args section."""
    meanings: dict[str, str] = {}
    names: list[str] = []
    lines = text.splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    for line in lines:
        found = re.match(r"([\w, *`]+?):(?:\s+|$)(.*)", line[indent:])
        if found and not line[indent:].startswith(" "):
            names = [name.strip(" *`") for name in found[1].split(",")]
            meanings.update(dict.fromkeys(names, found[2]))
        else:
            for name in names:
                meanings[name] = f"{meanings[name]} {line.strip()}".strip()
    return meanings


def plain(text: str) -> str:
    """reStructuredText's double backticks as Markdown's single ones, each on one line."""
    return _SPAN.sub(lambda span: f"`{' '.join(span[1].split())}`", text)


def cell(text: str) -> str:
    """Text in a table."""
    return " ".join(plain(text).split()).replace("|", r"\|")


# --- settings ----------------------------------------------------------------------------------------------------


@dataclass
class Setting:
    """One argument of a task."""

    name: str
    type: str
    default: str
    long_default: str = ""


def settings_of(kind: type[Any]) -> tuple[list[Setting], dict[str, str]]:
    """The arguments of a task and of what it passes them on to, and what each means."""
    found: dict[str, Setting] = {}
    meanings: dict[str, str] = {}
    todo = lineage(kind)
    seen: set[type[Any]] = set()
    takes = takes_of(kind)
    while todo:
        base = todo.pop(0)
        if base in seen:
            continue
        seen.add(base)
        said = arguments(Doc.of(base).section("Args"))
        for name, meaning in said.items():
            meanings.setdefault(name, meaning)
        own = base.__dict__.get("__init__")
        if own is not None:
            for parameter in list(inspect.signature(own).parameters.values())[1:]:
                if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                    found.setdefault(parameter.name, _setting(parameter))
        # "Others: see `Magpie`": a class that is handed the rest.
        for name in re.findall(r"see `(\w+)`", said.get("Others", "")):
            other = getattr(sys.modules[base.__module__], name, None)
            if inspect.isclass(other) and issubclass(other, Step) and other not in lineage(kind):
                todo = [*lineage(other), *todo]
    return [one for one in found.values() if takes is None or one.name in takes], meanings


def takes_of(kind: type[Any]) -> frozenset[str] | None:
    """The arguments that a class takes; None if it hands others on to its bases."""
    parameters = inspect.signature(kind).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


def _setting(parameter: inspect.Parameter) -> Setting:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        kind = ""
    else:
        kind = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    if parameter.default is parameter.empty:
        return Setting(parameter.name, kind, "required")
    if isinstance(parameter.default, str) and (len(parameter.default) > 60 or "\n" in parameter.default):
        return Setting(parameter.name, kind, "see below", parameter.default)
    shown = repr(parameter.default)
    return Setting(parameter.name, kind, "an object" if " at 0x" in shown else f"`{shown}`")


# --- prompts and examples ----------------------------------------------------------------------------------------


def prompts_of(kind: type[Any]) -> dict[str, str]:
    """Name -> text of the templates in tasks/prompts that a task or its bases name."""
    folder = files("asyncsynth.tasks") / "prompts"
    known = {path.name.removesuffix(".jinja"): path for path in folder.iterdir() if path.name.endswith(".jinja")}
    wanted = [kind.prompt] if getattr(kind, "prompt", None) else []
    others: list[type[Any]] = [*lineage(kind), *(type(value) for value in vars(made(kind)).values())]
    for base in others:
        if base.__module__.startswith("asyncsynth.tasks.") and base is not Task:
            with contextlib.suppress(OSError, TypeError):
                source = inspect.getsource(sys.modules[base.__module__])
                wanted += re.findall(r"\"(\w+)\"", source)
    return {name: known[name].read_text(encoding="utf-8").rstrip() for name in dict.fromkeys(wanted) if name in known}


def made(kind: type[Any]) -> Any:
    """The task with its default settings where it can be made so, else with those of its example; else the class."""
    for settings in ({}, {"num_rows": 1}, example_settings(kind)):
        if (task := made_with(kind, settings)) is not None:
            return task
    return kind


def made_with(kind: type[Any], settings: dict[str, Any]) -> Any:
    """The task, or None if it cannot be made like this."""
    with contextlib.suppress(Exception):
        return kind(llm=LLM(model=MODEL), **settings)
    return None


def example_settings(kind: type[Any]) -> dict[str, Any]:
    """The plain values that the docstring's example gives the task: `Kind(llm=..., labels=["a"])`."""
    settings: dict[str, Any] = {}
    names: dict[str, Any] = {}
    for code in code_of(Doc.of(kind).section("Example")):
        with contextlib.suppress(SyntaxError):
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    with contextlib.suppress(ValueError):
                        names[node.targets[0].id] = ast.literal_eval(node.value)
                elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == kind.__name__:
                    for keyword in node.keywords:
                        with contextlib.suppress(ValueError, KeyError):
                            value = keyword.value
                            known = names[value.id] if isinstance(value, ast.Name) else ast.literal_eval(value)
                            settings[str(keyword.arg)] = known
    return settings


def code_of(text: str) -> list[str]:
    """The literal blocks in a section: what is indented and has no double backticks."""
    return [
        textwrap.dedent(paragraph).strip("\n")
        for paragraph in re.split(r"\n[ \t]*\n", text)
        if paragraph.startswith("    ") and "``" not in paragraph
    ]


def example_of(kind: type[Any], doc: Doc) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The row and the outputs of the docstring's example, where they can be read."""
    rows = []
    for span in _SPAN.findall(doc.section("Example")):
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(" ".join(span.split()))
            if isinstance(value, dict):
                rows.append(value)
    return (rows[0], rows[1]) if len(rows) > 1 else _EXAMPLES.get(kind.__name__)


class _Recorded(Exception):
    """Nothing is answered here."""


def first_request(kind: type[Any], row: dict[str, Any]) -> ModelRequest | None:
    """The first request that a task sends for a row: with default settings, or with its example's."""
    sent: list[ModelRequest] = []
    tried = [task_in(made(kind)), task_in(made_with(kind, example_settings(kind)))]

    async def send(request: ModelRequest) -> Completion:
        sent.append(request)
        raise _Recorded

    for task in tried:
        if sent or task is None:
            continue
        with contextlib.suppress(Exception):
            asyncio.run(task.generate(task.view(row), Context(key="0", run_seed=0, step_id="docs", send=send)))
    return sent[0] if sent else None


def doc_of(kind: type[Any]) -> Doc:
    """The docstring; sections that it leaves out are its nearest base's (below Task)."""
    doc = Doc.of(kind)
    for base in lineage(kind)[1:]:
        if base is Task:
            break
        for name, text in Doc.of(base).sections.items():
            if name != "Example":
                doc.sections.setdefault(name, text)
    doc.summary = doc.summary or kind.__name__
    return doc


def columns_of(kind: type[Step]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Inputs, optional inputs and outputs; of a source those of the task that it begins with."""
    ready = made(kind)
    return ready.inputs, ready.optional_inputs, (task_in(ready) or ready).outputs


def task_in(step: Any) -> Task | None:
    """The step itself, or the task that a source begins with."""
    if isinstance(step, Task) or step is None:
        return step
    return next((value for value in vars(step).values() if isinstance(value, Task)), None)


def papers_of(kind: type[Any]) -> list[str]:
    """Links to the papers that a task, its bases and their modules name."""
    texts = []
    for base in lineage(kind):
        if base is Task:
            break
        texts += [base.__dict__.get("__doc__") or "", sys.modules[base.__module__].__doc__ or ""]
    numbers = dict.fromkeys(number for text in texts for number in _PAPER.findall(text))
    return [f"[arXiv {number}](https://arxiv.org/abs/{number})" for number in numbers]
