"""Steps that ask no model. Each is pure and row-wise: computed again on resume, never journaled."""

from asyncsynth.steps.columns import ExpandColumns, KeepColumns, MergeColumns, RenameColumns
from asyncsynth.steps.filter import Filter
from asyncsynth.steps.group import CombineOutputs, GroupColumns
from asyncsynth.steps.loaders import LoadDataFromDicts, LoadJSONL
from asyncsynth.steps.preference import FormPreference
from asyncsynth.steps.sft import FormSFT

__all__ = [
    "CombineOutputs",
    "ExpandColumns",
    "Filter",
    "FormPreference",
    "FormSFT",
    "GroupColumns",
    "KeepColumns",
    "LoadDataFromDicts",
    "LoadJSONL",
    "MergeColumns",
    "RenameColumns",
]
