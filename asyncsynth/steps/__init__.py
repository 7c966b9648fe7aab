"""Steps that ask no model. Each is pure: computed again on resume, never journaled.

Most change one row; `Deduplicate`, `DiversitySelect` and `DeitaFilter` see all rows (`pipeline.step.GlobalStep`).
"""

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

__all__ = [
    "CombineOutputs",
    "Deduplicate",
    "DeitaFilter",
    "DiversitySelect",
    "ExpandColumns",
    "Filter",
    "FormPreference",
    "FormSFT",
    "GroupColumns",
    "KeepColumns",
    "LoadDataFromDicts",
    "LoadDisk",
    "LoadHub",
    "LoadJSONL",
    "LoadParquet",
    "MergeBranches",
    "MergeColumns",
    "RenameColumns",
]
