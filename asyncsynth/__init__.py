"""asyncsynth: instruction-tuning and preference data by prompting models that you serve.

How this package is laid out (imports point downward only; see docs/architecture.md):

    cli        parse, call, show
    engine     doing it: feed records, walk each through the graph, journal, report
    tasks      steps that ask a model          steps     steps that do not
    pipeline   what to do: steps, `>>`, checks, drawings; pure
    servers    where models run: embedded model, configurations, readiness
    client     one request to one model        storage   journal, sources, exports
    core       decisions without I/O: scheduling, retries, limits, windows
    records, calling, errors

The public names are imported when they are first used, so that `import asyncsynth` and `--help` are quick.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if sys.platform == "win32":  # before anything is imported that Windows lacks
    raise ImportError(
        "asyncsynth runs on Linux and macOS. It locks and syncs files in ways that Windows does not have. On Windows, "
        "install it in WSL (https://learn.microsoft.com/windows/wsl/install)",
        name="asyncsynth",
    )

_HOME = {
    "LLM": "client.llm",
    "Pipeline": "engine.pipeline",
    "RunOptions": "engine.options",
    "RunReport": "engine.report",
    "Result": "engine.result",
    "Step": "pipeline.step",
    "RowStep": "pipeline.step",
    "JoinStep": "pipeline.step",
    "GlobalStep": "pipeline.step",
    "Dropped": "pipeline.step",
    "Context": "pipeline.context",
    "Task": "tasks.base",
    "TextGeneration": "tasks.text_generation",
    "UltraFeedback": "tasks.ultra_feedback",
    "SelfInstruct": "tasks.self_instruct",
    "EvolInstruct": "tasks.evol_instruct",
    "EvolComplexity": "tasks.evol_complexity",
    "EvolQuality": "tasks.evol_quality",
    "InstructionBacktranslation": "tasks.instruction_backtranslation",
    "Revision": "tasks.revision",
    "ComplexityScorer": "tasks.complexity_scorer",
    "QualityScorer": "tasks.quality_scorer",
    "Jury": "tasks.jury",
    "ChatGeneration": "tasks.chat_generation",
    "ToolChat": "tasks.tool_chat",
    "Magpie": "tasks.magpie",
    "MagpieGenerator": "tasks.magpie_generator",
    "PairwiseJudge": "tasks.pairwise_judge",
    "StructuredGeneration": "tasks.structured_generation",
    "TextClassification": "tasks.text_classification",
    "GenerateSentencePair": "tasks.sentence_pair",
    "task": "tasks.task_decorator",
    "TaskContext": "tasks.task_decorator",
    "step": "steps.step_decorator",
    "LoadDataFromDicts": "steps.loaders",
    "LoadJSONL": "steps.loaders",
    "LoadParquet": "steps.load_parquet",
    "LoadDisk": "steps.load_disk",
    "LoadHub": "steps.load_hub",
    "GroupColumns": "steps.group",
    "CombineOutputs": "steps.group",
    "MergeBranches": "steps.group",
    "KeepColumns": "steps.columns",
    "RenameColumns": "steps.columns",
    "ExpandColumns": "steps.columns",
    "MergeColumns": "steps.columns",
    "Filter": "steps.filter",
    "Deduplicate": "steps.deduplicate",
    "DiversitySelect": "steps.diversity_select",
    "DeitaFilter": "steps.deita_filter",
    "FormPreference": "steps.preference",
    "FormSFT": "steps.sft",
    "AsyncsynthError": "errors",
    "RetryPolicy": "core.retry",
}

__all__ = [
    "LLM",
    "AsyncsynthError",
    "ChatGeneration",
    "CombineOutputs",
    "ComplexityScorer",
    "Context",
    "Deduplicate",
    "DeitaFilter",
    "DiversitySelect",
    "Dropped",
    "EvolComplexity",
    "EvolInstruct",
    "EvolQuality",
    "ExpandColumns",
    "Filter",
    "FormPreference",
    "FormSFT",
    "GenerateSentencePair",
    "GlobalStep",
    "GroupColumns",
    "InstructionBacktranslation",
    "JoinStep",
    "Jury",
    "KeepColumns",
    "LoadDataFromDicts",
    "LoadDisk",
    "LoadHub",
    "LoadJSONL",
    "LoadParquet",
    "Magpie",
    "MagpieGenerator",
    "MergeBranches",
    "MergeColumns",
    "PairwiseJudge",
    "Pipeline",
    "QualityScorer",
    "RenameColumns",
    "Result",
    "RetryPolicy",
    "Revision",
    "RowStep",
    "RunOptions",
    "RunReport",
    "SelfInstruct",
    "Step",
    "StructuredGeneration",
    "Task",
    "TaskContext",
    "TextClassification",
    "TextGeneration",
    "ToolChat",
    "UltraFeedback",
    "__version__",
    "step",
    "task",
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
    from asyncsynth.pipeline.step import Dropped, GlobalStep, JoinStep, RowStep, Step
    from asyncsynth.steps.columns import ExpandColumns, KeepColumns, MergeColumns, RenameColumns
    from asyncsynth.steps.deduplicate import Deduplicate
    from asyncsynth.steps.deita_filter import DeitaFilter
    from asyncsynth.steps.diversity_select import DiversitySelect
    from asyncsynth.steps.filter import Filter
    from asyncsynth.steps.group import CombineOutputs, GroupColumns, MergeBranches
    from asyncsynth.steps.load_disk import LoadDisk
    from asyncsynth.steps.load_hub import LoadHub
    from asyncsynth.steps.load_parquet import LoadParquet
    from asyncsynth.steps.loaders import LoadDataFromDicts, LoadJSONL
    from asyncsynth.steps.preference import FormPreference
    from asyncsynth.steps.sft import FormSFT
    from asyncsynth.steps.step_decorator import step
    from asyncsynth.tasks.base import Task
    from asyncsynth.tasks.chat_generation import ChatGeneration
    from asyncsynth.tasks.complexity_scorer import ComplexityScorer
    from asyncsynth.tasks.evol_complexity import EvolComplexity
    from asyncsynth.tasks.evol_instruct import EvolInstruct
    from asyncsynth.tasks.evol_quality import EvolQuality
    from asyncsynth.tasks.instruction_backtranslation import InstructionBacktranslation
    from asyncsynth.tasks.jury import Jury
    from asyncsynth.tasks.magpie import Magpie
    from asyncsynth.tasks.magpie_generator import MagpieGenerator
    from asyncsynth.tasks.pairwise_judge import PairwiseJudge
    from asyncsynth.tasks.quality_scorer import QualityScorer
    from asyncsynth.tasks.revision import Revision
    from asyncsynth.tasks.self_instruct import SelfInstruct
    from asyncsynth.tasks.sentence_pair import GenerateSentencePair
    from asyncsynth.tasks.structured_generation import StructuredGeneration
    from asyncsynth.tasks.task_decorator import TaskContext, task
    from asyncsynth.tasks.text_classification import TextClassification
    from asyncsynth.tasks.text_generation import TextGeneration
    from asyncsynth.tasks.tool_chat import ToolChat
    from asyncsynth.tasks.ultra_feedback import UltraFeedback


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise _unknown(name)
    value = getattr(import_module(f"asyncsynth.{home}"), name)
    globals()[name] = value
    return value


def _unknown(name: str) -> Exception:
    """`from asyncsynth import NAME` shows the words of an ImportError, and hides those of an AttributeError."""
    from asyncsynth.distilabel_names import hint

    if (words := hint(name)) is not None:
        return ImportError(words, name="asyncsynth")
    return AttributeError(f"module 'asyncsynth' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
