"""asyncsynth: instruction-tuning and preference data by prompting models that you serve.

How this package is laid out (imports point downward only; see docs/architecture.md):

    cli        parse, call, show
    engine     doing it: feed records, walk each through the graph, journal, report
    tasks      steps that ask a model          steps     steps that do not
    pipeline   what to do: steps, `>>`, checks, drawings; pure
    servers    where models run: embedded model, configurations, readiness
    client     one request to one model        storage   journal, sources, exports
    core       decisions without I/O: scheduling, retries, limits, windows
    records, errors

The public names are imported when they are first used, so that `import asyncsynth` and `--help` are quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "LLM": "client.llm",
    "Pipeline": "engine.pipeline",
    "RunOptions": "engine.options",
    "RunReport": "engine.report",
    "Result": "engine.result",
    "Step": "pipeline.step",
    "RowStep": "pipeline.step",
    "JoinStep": "pipeline.step",
    "Dropped": "pipeline.step",
    "Context": "pipeline.context",
    "Task": "tasks.base",
    "TextGeneration": "tasks.text_generation",
    "UltraFeedback": "tasks.ultra_feedback",
    "LoadDataFromDicts": "steps.loaders",
    "LoadJSONL": "steps.loaders",
    "GroupColumns": "steps.group",
    "CombineOutputs": "steps.group",
    "KeepColumns": "steps.columns",
    "RenameColumns": "steps.columns",
    "ExpandColumns": "steps.columns",
    "MergeColumns": "steps.columns",
    "Filter": "steps.filter",
    "FormPreference": "steps.preference",
    "FormSFT": "steps.sft",
    "AsyncsynthError": "errors",
    "RetryPolicy": "core.retry",
}

__all__ = [
    "LLM",
    "AsyncsynthError",
    "CombineOutputs",
    "Context",
    "Dropped",
    "ExpandColumns",
    "Filter",
    "FormPreference",
    "FormSFT",
    "GroupColumns",
    "JoinStep",
    "KeepColumns",
    "LoadDataFromDicts",
    "LoadJSONL",
    "MergeColumns",
    "Pipeline",
    "RenameColumns",
    "Result",
    "RetryPolicy",
    "RowStep",
    "RunOptions",
    "RunReport",
    "Step",
    "Task",
    "TextGeneration",
    "UltraFeedback",
    "__version__",
]

if TYPE_CHECKING:
    from asyncsynth.client.llm import LLM
    from asyncsynth.core.retry import RetryPolicy
    from asyncsynth.engine.options import RunOptions
    from asyncsynth.engine.pipeline import Pipeline
    from asyncsynth.engine.report import RunReport
    from asyncsynth.engine.result import Result
    from asyncsynth.errors import AsyncsynthError
    from asyncsynth.pipeline.context import Context
    from asyncsynth.pipeline.step import Dropped, JoinStep, RowStep, Step
    from asyncsynth.steps.columns import ExpandColumns, KeepColumns, MergeColumns, RenameColumns
    from asyncsynth.steps.filter import Filter
    from asyncsynth.steps.group import CombineOutputs, GroupColumns
    from asyncsynth.steps.loaders import LoadDataFromDicts, LoadJSONL
    from asyncsynth.steps.preference import FormPreference
    from asyncsynth.steps.sft import FormSFT
    from asyncsynth.tasks.base import Task
    from asyncsynth.tasks.text_generation import TextGeneration
    from asyncsynth.tasks.ultra_feedback import UltraFeedback


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'asyncsynth' has no attribute {name!r}")
    value = getattr(import_module(f"asyncsynth.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
