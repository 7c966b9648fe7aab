"""The definition of the work: steps, their graph, its checks and drawings. Pure; the engine executes it."""

from asyncsynth.pipeline.context import Context
from asyncsynth.pipeline.current import current_graph
from asyncsynth.pipeline.graph import Graph
from asyncsynth.pipeline.plan import Node, Plan
from asyncsynth.pipeline.step import AllRows, Dropped, GlobalStep, JoinStep, ModelStep, RowStep, SourceStep, Step

__all__ = [
    "AllRows",
    "Context",
    "Dropped",
    "GlobalStep",
    "Graph",
    "JoinStep",
    "ModelStep",
    "Node",
    "Plan",
    "RowStep",
    "SourceStep",
    "Step",
    "current_graph",
]
