"""Where rows come from: readers of JSON Lines, tables and Python data, one row in memory at a time."""

from asyncsynth.inputs.dicts import DictsReader
from asyncsynth.inputs.jsonl import JsonlReader
from asyncsynth.inputs.reader import BadRow, Reader, SourceRow

__all__ = ["BadRow", "DictsReader", "JsonlReader", "Reader", "SourceRow"]
