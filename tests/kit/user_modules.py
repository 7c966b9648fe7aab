"""Users' pipelines, written to files and loaded as in a fresh process."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from asyncsynth.cli.pipeline_file import load_pipeline
from asyncsynth.engine.pipeline import Pipeline
from asyncsynth.pipeline import Plan

_numbers = itertools.count()

HEAD = "from asyncsynth import *\nfrom asyncsynth import RowStep\n"


def task_file(imports: str, expression: str, *, before: str = "") -> str:
    """A pipeline file with one @task whose prompt is `expression`."""
    return f"""{HEAD}{imports}
{before}
@task(llm=LLM(model="m"), inputs=["instruction"], outputs=["out"])
async def ask(row, ctx):
    return {{"out": (await ctx.chat({expression})).text}}
with Pipeline(name="p") as p:
    LoadDataFromDicts(data=[{{"instruction": "q"}}] * 3) >> ask()
"""


@contextmanager
def loaded(folder: Path, files: Mapping[str, str], main: str = "p.py") -> Iterator[Pipeline]:
    """The pipeline in `main`; forgets the modules beside it at the end."""
    root = folder / f"process-{next(_numbers)}"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    path, modules = list(sys.path), set(sys.modules)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    importlib.invalidate_caches()
    try:
        yield load_pipeline(str(root / main))
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = before
        for name in set(sys.modules) - modules:
            if str(root) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def plan_of(folder: Path, files: Mapping[str, str]) -> Plan:
    """The plan of the pipeline in ``p.py``."""
    with loaded(folder, files) as pipeline:
        return pipeline.plan()
